"""The sections of a recipe that say how a student is made of a teacher: taught by it, or cut out of it."""

from importlib.util import find_spec
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from qmimic.config.base import Advanced, InTable, Section, check_own
from qmimic.tables import DICTIONARIES, DISTANCES, DISTILLERS, MODES, PAPER_DISTILLER, REGION_POOLINGS


class QuantizerConfig(Section):
    """How a feature map is quantized."""

    kind: Annotated[str, InTable(DICTIONARIES)] = Field(
        "uniform", description="{0, s, 2s, 3s, ..} or {0, s, 2s, 4s, ..}"
    )
    stride: float = Field(0.25, gt=0, description="s, the step of the dictionary")
    relative: Advanced[bool] = Field(
        True, description="s counts in units of the map's rms on training images (portable)"
    )
    upper: Advanced[int | None] = Field(
        None, ge=1, le=65535, description="index of the highest level; null: no upper limit"
    )
    per_channel: Advanced[bool] = Field(
        False, description="rms, and so s, for every channel instead of for the whole map"
    )


class MimicConfig(Section):
    """What the student imitates, and how. What the paper leaves open is a switch here, the same for every arm."""

    mode: Annotated[str, InTable(MODES)] = Field(
        "quantization", description="which maps are quantized: both, neither, one; none: no mimic"
    )
    weight: Annotated[float, Field(ge=0)] | Literal["auto"] | None = Field(
        None,
        description="lambda of the total loss, whose meaning depends on `normalize`; auto: what holds mimic.share; "
        "null: auto wherever a student imitates",
    )
    share: float = Field(
        1.0,
        description="norm of the distillation gradient at the student's map over detection's, held by weight=auto",
    )
    distiller: Annotated[str, InTable(DISTILLERS)] = Field(
        PAPER_DISTILLER, description="what the student learns from its teacher; mimic is the paper's"
    )
    settings: Advanced[dict[str, Any]] = Field({}, description="the distiller's own settings, `name: value` each")
    distance: Annotated[str, InTable(DISTANCES)] = Field(
        "squared",
        description="how far regions are from the teacher's: squared is the paper's; cell is 0 in the teacher's cell",
    )
    normalize: Literal["paper", "region", "entry"] = Field(
        "entry",
        description="paper: 1/(2N) sum of squares; region: each by its dimension (Li et al.); entry: mean over rms^2",
    )
    adaptor_relu: Advanced[bool] = Field(True, description="ReLU after the adaptor r, before Q")
    order: Literal["pool_quantize", "quantize_pool"] = Field(
        "pool_quantize", description="pool, then r, then Q, as the equation has it, or the maps through r and Q first"
    )
    pooling: Annotated[str, InTable(REGION_POOLINGS)] = Field(
        "align",
        description="how regions are pooled for the mimic loss; pool: maxima; crop: unchanged entries",
    )
    region_size: Advanced[int] = Field(5, ge=1, le=14, description="bins of a pooled region on each side")
    regions: Literal["teacher", "student", "ground_truth", "random", "map"] = Field(
        "teacher", description="whose regions are matched; map: every entry of the whole map"
    )
    with_truth: Advanced[bool] = Field(True, description="whether ground-truth boxes are added ahead of the regions")
    sampling: Advanced[Literal["first", "balanced"]] = Field(
        "first", description="first: the best; balanced: random, as many without an object as with one"
    )
    region_count: Advanced[int] = Field(32, ge=1, le=4096, description="most regions per image")
    map_steps: Advanced[float] = Field(
        0.0, ge=0, lt=1, description="share of the steps, at the start, that match only the whole map"
    )
    last_step: float = Field(1.0, gt=0, le=1, description="share of the steps after which only detection is trained")

    @property
    def holds_share(self) -> bool:
        """Whether lambda follows from `share`."""
        return self.weight in (None, "auto")

    @model_validator(mode="after")
    def _phases(self) -> "MimicConfig":
        if not 0 < self.share <= 10:
            raise ValueError("mimic.share must be above 0 and at most 10; 0.1 is a tenth of detection's gradient")
        if DISTANCES[self.distance].to_cells and self.mode != "none" and not MODES[self.mode].teacher:
            raise ValueError(
                f"mimic.distance={self.distance} needs the teacher's map quantized: set mimic.mode=quantization"
            )
        if self.sampling == "balanced" and self.regions != "student":
            raise ValueError("mimic.sampling=balanced draws anew in every step: set mimic.regions=student")
        if self.sampling == "balanced" and self.region_count < 2:
            raise ValueError("mimic.sampling=balanced takes regions in pairs: set mimic.region_count to 2 or more")
        if self.last_step < self.map_steps:
            raise ValueError("mimic.last_step needs to be at least mimic.map_steps")
        return self

    @model_validator(mode="after")
    def _read(self) -> "MimicConfig":
        """What is set is read by the distiller. The section's own settings are the default distiller's."""
        fields = type(self).model_fields
        if (self.distiller == PAPER_DISTILLER and not self.settings) or not find_spec("torch"):
            return self
        kind = DISTILLERS[self.distiller]
        for name in sorted(DISTILLERS[PAPER_DISTILLER].reads - kind.reads):
            if getattr(self, name) != fields[name].default:
                raise ValueError(f"mimic.{name} has no effect with mimic.distiller={self.distiller}; leave it out")
        check_own(self.settings, kind.Settings, "mimic.settings", f"mimic.distiller={self.distiller}")
        return self


class PruningConfig(Section):
    """How the student is cut out of the trained teacher, a baseline of the paper."""

    method: Literal["none", "taylor", "lasso"] = Field(
        "none", description="taylor, lasso: the teacher pruned to the cost of student.backbone; none: a fresh network"
    )
    rounds: Advanced[int] = Field(
        30, ge=1, le=1000, description="taylor: removals of channels, after training for some steps"
    )
    steps: Advanced[int] = Field(
        10, ge=1, description="taylor: steps of one round, over which the criterion is averaged"
    )
    learning_rate: Advanced[float] = Field(2e-3, gt=0, description="taylor: learning rate of these steps")
    cost_weight: Advanced[float] = Field(
        3.0, ge=0, description="taylor: how much a channel's share of the multiply-accumulates counts against it"
    )
    multiple: Advanced[int] = Field(
        8,
        ge=1,
        le=64,
        description="taylor: layers keep a multiple of this many channels, as engines compute so many at once; narrow "
        "ones a multiple of a half of it, a quarter, and so on",
    )
    images: Advanced[int] = Field(256, ge=1, description="lasso: training images to fit on")
    places: Advanced[int] = Field(
        10, ge=1, le=1024, description="lasso: places of a layer's output in each of these images"
    )
