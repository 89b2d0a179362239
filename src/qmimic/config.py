"""The recipe: every setting of a run, typed, checked when it is read, saved resolved in the run folder.

Knows nothing of the code that uses it. A recipe is YAML on disk; `key.sub=value` on the command line changes it.
"""

import hashlib
import json
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    ValidationInfo,
    field_validator,
    model_validator,
)

from qmimic.errors import InputError
from qmimic.files import write_text
from qmimic.yaml_text import parse_yaml

MAX_RECIPE_BYTES = 1 << 20


class Section(BaseModel):
    """A part of a recipe: no unknown keys, no NaN, immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _plain_value(cls, value: Any, info: ValidationInfo) -> Any:
        # To Python, and so to pydantic, True is the number 1; in YAML it is the word yes, on or true.
        if isinstance(value, bool) and cls.model_fields[str(info.field_name)].annotation is not bool:
            raise ValueError("needs a value, not yes or no")
        if isinstance(value, str) and "\0" in value:
            raise ValueError("holds a NUL character, which no name has")
        return value


def _input_size(size: tuple[int, int]) -> tuple[int, int]:
    if any(side % 16 or not 32 <= side <= 4096 for side in size):
        raise ValueError("needs two multiples of 16 from 32 to 4096")
    return size


def _levels(strides: tuple[int, ...]) -> tuple[int, ...]:
    if not strides or set(strides) - {8, 16, 32} or list(strides) != sorted(set(strides)):
        raise ValueError("needs one to three of the strides 8, 16 and 32, each once, in growing order")
    return strides


Levels = Annotated[tuple[int, ...], AfterValidator(_levels)]
InputSize = Annotated[tuple[int, int], AfterValidator(_input_size)]
Side = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class DataConfig(Section):
    """What is trained on, and at which size."""

    root: str = Field("synthetic:digits", description="folder of a dataset (VOC, COCO or YOLO), or synthetic:digits")
    train: str = Field("train", description="name of the split to train on; several are joined by +")
    val: str = Field("val", description="name of the split to report on; several are joined by +")
    fold: tuple[int, int] | None = Field(
        None, description="k, n: report on the k-th (from 0) of n equal parts of `train` and train on the rest"
    )
    size: InputSize = Field((128, 128), description="height and width that images are fitted into, pixels")
    drop_bad_boxes: bool = Field(False, description="go on without the boxes and images that `data check` refuses")
    cache_mib: int = Field(2048, ge=0, description="decoded images kept on disk at most, MiB; 0: none")

    @field_validator("fold")
    @classmethod
    def _part(cls, fold: tuple[int, int] | None) -> tuple[int, int] | None:
        if (fold and not 0 <= fold[0] < fold[1]) or (fold and fold[1] < 2):
            raise ValueError("needs k, n with 0 <= k < n and n at least 2")
        return fold

    @property
    def scored(self) -> str:
        """What is reported on, in words."""
        return f"part {self.fold[0]} of {self.fold[1]} of {self.train}" if self.fold else self.val


class DetectorConfig(Section):
    """The detector around the backbone, the same for teacher and student."""

    architecture: str = Field(
        "faster_rcnn", description="faster_rcnn, rfcn, one_stage: a name in the table of architectures"
    )
    output_stride: Literal[16, 8] = Field(16, description="pixels from one entry of the feature map to the next")
    levels: Levels | None = Field(
        None, description="one_stage: strides of its maps, some of 8, 16 and 32; null: chosen by the training boxes"
    )
    anchors: tuple[tuple[Side, Side], ...] | None = Field(
        None,
        min_length=1,
        description="anchor widths and heights in pixels at data.size; null: fitted to the training boxes",
    )
    anchor_count: int = Field(9, ge=1, le=64, description="anchors fitted for each place of the map")
    roi_pooling: Literal["align", "pool"] = Field("align", description="RoIAlign or RoIPool (of R-FCN: its mean)")
    roi_size: int = Field(5, ge=1, le=14, description="bins of a pooled region on each side (k of R-FCN)")
    head_width: int | None = Field(
        None,
        ge=1,
        le=65536,
        description="units of the head's hidden layers; null: 1024 / width divisor, of one_stage 256 / width divisor",
    )
    rpn_samples: int = Field(128, ge=2, description="anchors sampled for the RPN losses, an image")
    roi_samples: int = Field(64, ge=4, description="regions sampled for the head's losses, an image")
    ohem: bool = Field(False, description="the head learns from its roi_samples hardest regions instead of random ones")
    pre_nms: int = Field(256, ge=1, le=4096, description="best anchors that enter the RPN's suppression, an image")
    post_nms: int = Field(64, ge=1, le=2048, description="proposals that leave it, an image")
    score_threshold: float = Field(0.02, ge=0, lt=1, description="lowest score of a detection")
    nms_threshold: float = Field(0.5, gt=0, lt=1, description="largest IoU of two detections of a class")
    max_detections: int = Field(100, ge=1, le=1000, description="detections kept, an image")


class AugmentConfig(Section):
    """Random views of a training image, drawn for whole batches."""

    flip: float = Field(0.5, ge=0, le=1, description="probability of a left-right flip")
    flip_vertical: float = Field(0.0, ge=0, le=1, description="probability of an up-down flip")
    scale: tuple[float, float] = Field((0.8, 1.25), description="smallest and largest zoom")
    shift: float = Field(0.1, ge=0, le=0.5, description="largest shift, as a share of the image's side (a crop)")
    colour: float = Field(0.2, ge=0, le=1, description="largest change of brightness, contrast and saturation")

    @model_validator(mode="after")
    def _scales(self) -> "AugmentConfig":
        if not 0.1 <= self.scale[0] <= self.scale[1] <= 10:
            raise ValueError("augment.scale needs 0.1 <= smallest <= largest <= 10")
        return self


class ScheduleConfig(Section):
    """How long and how fast one network is trained."""

    steps: int = Field(1200, ge=1, description="optimizer steps")
    batch_size: int = Field(16, ge=1, le=1024, description="images a step, over all processes")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="both fused")
    learning_rate: float = Field(2e-3, gt=0, description="peak learning rate")
    momentum: float = Field(0.9, ge=0, lt=1, description="of SGD")
    weight_decay: float = Field(1e-2, ge=0, description="on weights of convolutions and linear layers only")
    warmup_steps: int = Field(50, ge=0, description="steps of linear warm-up")
    decay: Literal["cosine", "step", "constant"] = Field("cosine", description="shape of the learning rate")
    milestones: tuple[Share, ...] = Field((0.67, 0.89), description="shares of the steps after which `step` decays")
    gamma: float = Field(0.1, gt=0, le=1, description="factor of one such decay")
    clip_norm: float = Field(5.0, ge=0, description="largest gradient norm; 0: no clipping")
    ema: float = Field(0.0, ge=0, lt=1, description="decay of the moving average of the weights; 0: none")
    evaluate_every: int = Field(300, ge=1, description="steps from one mAP on val to the next")
    checkpoint_every: int = Field(100, ge=1, description="steps from one checkpoint to the next")


class TeacherConfig(ScheduleConfig):
    """The large detector."""

    backbone: str = Field("resnet18/4", description="family and width divisor")
    weights: str | None = Field(
        None, description="backbone weights to start from: a safetensors file, torchvision's names"
    )
    min_map: float = Field(0.3, ge=0, le=1, description="mAP@0.5 on val below which a teacher is refused as too weak")


class QuantizedTeacherConfig(ScheduleConfig):
    """The fine-tuning of the teacher on its own quantized map."""

    steps: int = Field(200, ge=0, description="optimizer steps; 0: quantize without fine-tuning")
    learning_rate: float = Field(3e-4, gt=0, description="peak learning rate")
    warmup_steps: int = Field(20, ge=0, description="steps of linear warm-up")


class StudentConfig(ScheduleConfig):
    """The very tiny detector. Every arm (scratch, mimic, quantization mimic) has this same schedule."""

    learning_rate: float = Field(6e-3, gt=0, description="peak learning rate; the fewer channels, the more")
    backbone: str = Field("resnet18/16", description="family and width divisor")
    weights: str | None = Field(
        None, description="backbone weights to start from: a safetensors file, torchvision's names"
    )
    quantize_map: bool = Field(False, description="every student's own heads see its map quantized by the teacher's s")


class QuantizerConfig(Section):
    """How a feature map is quantized."""

    kind: Literal["uniform", "power_of_two"] = Field("uniform", description="{0, s, 2s, 3s, ..} or {0, s, 2s, 4s, ..}")
    stride: float = Field(1.0, gt=0, description="s, the step of the dictionary")
    relative: bool = Field(True, description="s counts in units of the map's rms on training images (portable)")
    upper: int | None = Field(None, ge=1, le=65535, description="index of the highest level; null: no upper limit")
    per_channel: bool = Field(False, description="rms, and so s, for every channel instead of for the whole map")


QuantizationOrder = Literal["pool_quantize", "quantize_pool"]
MimicMode = Literal["none", "mimic", "quantization", "teacher_only", "student_only"]


class MimicConfig(Section):
    """What the student imitates, and how. What the paper leaves open is a switch here, the same for every arm."""

    mode: MimicMode = Field("quantization", description="which maps are quantized: both, neither, one; none: no mimic")
    weight: Annotated[float, Field(ge=0)] | Literal["auto"] = Field(
        0.3, description="lambda of the total loss, whose meaning depends on `normalize`; auto: holds mimic.share"
    )
    share: float = Field(
        0.1, description="norm of the mimic gradient at the student's map in that of detection's, held by weight=auto"
    )
    distance: str = Field(
        "squared",
        description="how far regions are from the teacher's: squared is the paper's; cell is 0 in the teacher's cell",
    )
    normalize: Literal["paper", "region", "entry"] = Field(
        "entry",
        description="paper: 1/(2N) sum of squares; region: each by its dimension (Li et al.); entry: mean over rms^2",
    )
    adaptor_relu: bool = Field(True, description="ReLU after the adaptor r, before Q")
    order: QuantizationOrder = Field(
        "pool_quantize", description="pool, then r, then Q, as the equation has it, or the maps through r and Q first"
    )
    pooling: Literal["align", "pool"] = Field("align", description="how regions are pooled for the mimic loss")
    regions: Literal["teacher", "student", "ground_truth", "random", "map"] = Field(
        "teacher", description="whose regions are matched; map: every entry of the whole map"
    )
    with_truth: bool = Field(True, description="ground-truth boxes join the regions, ahead of them")
    region_count: int = Field(32, ge=1, le=1024, description="regions an image")
    map_steps: float = Field(0.0, ge=0, lt=1, description="share of the steps that match the whole map alone, first")
    last_step: float = Field(0.5, gt=0, le=1, description="share of the steps after which detection goes on alone")

    @model_validator(mode="after")
    def _phases(self) -> "MimicConfig":
        if not 0 < self.share <= 10:
            raise ValueError("mimic.share must be above 0 and at most 10; 0.1 is a tenth of detection's gradient")
        if self.distance == "cell" and self.mode in ("mimic", "student_only"):
            raise ValueError("mimic.distance=cell needs the teacher's map quantized: set mimic.mode=quantization")
        if self.last_step < self.map_steps:
            raise ValueError("mimic.last_step needs to be at least mimic.map_steps")
        return self


class PruningConfig(Section):
    """How the student is cut out of the trained teacher, a baseline of the paper."""

    method: Literal["none", "taylor", "lasso"] = Field(
        "none", description="taylor, lasso: the teacher pruned to the cost of student.backbone; none: a fresh network"
    )
    rounds: int = Field(30, ge=1, le=1000, description="taylor: removals of channels, after training for some steps")
    steps: int = Field(10, ge=1, description="taylor: steps of one round, over which the criterion is averaged")
    learning_rate: float = Field(3e-4, gt=0, description="taylor: learning rate of these steps")
    cost_weight: float = Field(
        3.0, ge=0, description="taylor: how much a channel's share of the multiply-accumulates counts against it"
    )
    images: int = Field(256, ge=1, description="lasso: training images to fit on")
    places: int = Field(10, ge=1, le=1024, description="lasso: places of a layer's output in each of these images")


TrackerName = Literal["tensorboard", "mlflow", "trackio", "wandb"]


class RunConfig(Section):
    """Where the run goes and how it computes."""

    dir: str | None = Field(None, description="run folder; null: runs/NAME")
    threads: int = Field(0, ge=0, le=1024, description="CPU threads; 0: one for each core")
    device: Literal["auto", "cpu"] = Field("auto", description="auto: a GPU where there is one")
    bank_mib: int = Field(
        8192, ge=0, description="largest teacher bank, MiB on disk; a larger one is not made, the teacher runs instead"
    )
    precision: Literal["auto", "fp32", "bf16"] = Field("auto", description="auto: bf16 for wide networks where it pays")
    report: bool = Field(True, description="the run ends with report.html; `qmimic report` writes it at any time")
    trackers: tuple[TrackerName, ...] = Field(
        ("tensorboard",), description="told of every number besides the log: " + ", ".join(get_args(TrackerName))
    )


class Int8Config(ScheduleConfig):
    """A detector on integers: how its grids are found, how it is trained on them, and when it is refused."""

    images: int = Field(128, ge=1, le=4096, description="training images that the scales of maps are found on")
    max_loss: Share = Field(0.01, description="mAP@0.5 on val that int8 may cost; above it is repaired, or refused")
    steps: int = Field(300, ge=0, description="optimizer steps on the grids, if int8 costs more; 0: none")
    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate")
    warmup_steps: int = Field(20, ge=0, description="steps of linear warm-up")


Arm = Literal["scratch", "quantized", "mimic", "separable", "grouped", "taylor", "lasso"]


class Recipe(Section):
    """A whole run: data, teacher, quantized teacher, student and the baselines beside it."""

    name: str = Field("demo", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="name of the run")
    seed: int = Field(0, ge=0, lt=2**31, description="one seed gives one result")
    baselines: tuple[Arm, ...] = Field(
        ("scratch",),
        description="students of equal schedule and cost trained beside it: " + ", ".join(get_args(Arm)),
    )
    data: DataConfig = DataConfig()
    detector: DetectorConfig = DetectorConfig()
    augment: AugmentConfig = AugmentConfig()
    teacher: TeacherConfig = TeacherConfig()
    quantized_teacher: QuantizedTeacherConfig = QuantizedTeacherConfig()
    student: StudentConfig = StudentConfig()
    quantizer: QuantizerConfig = QuantizerConfig()
    mimic: MimicConfig = MimicConfig()
    pruning: PruningConfig = PruningConfig()
    int8: Int8Config = Int8Config()
    run: RunConfig = RunConfig()

    @model_validator(mode="after")
    def _pairs(self) -> "Recipe":
        if self.data.fold is None and set(self.data.train.split("+")) & set(self.data.val.split("+")):
            raise ValueError("data.train and data.val share a split; scores on training images say nothing")
        if self.quantizer.per_channel and (self.student.quantize_map or "quantized" in self.baselines):
            raise ValueError("student.quantize_map needs one s for the whole map; set quantizer.per_channel=false")
        if self.mimic.distance == "cell" and self.quantizer.kind != "uniform":
            raise ValueError("mimic.distance=cell needs cells of one size: set quantizer.kind=uniform")
        if self.mimic.weight == "auto" and self.mimic.mode == "none" and "mimic" not in self.baselines:
            raise ValueError("mimic.weight=auto needs a teacher: set mimic.mode, or give the weight as a number")
        if self.pruning.method != "none" and self.student.weights:
            raise ValueError("a student has student.weights or is cut out of the teacher by pruning.method, not both")
        return self

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.run.dir or f"runs/{self.name}")


def embedded_recipes() -> dict[str, Path]:
    """The recipes that come with qmimic: names, such as `demo`, and their files."""
    return {path.stem: path for path in sorted((Path(__file__).parent / "recipes").glob("*.yaml"))}


def recipe_file(path: Path) -> Path:
    """The file of a recipe that is named by its path, or by the name of an embedded one. A file that is there wins.

    Raises:
        InputError: it is no file's name, and no embedded recipe has it.
    """
    embedded = embedded_recipes()
    if path.is_file() or path.suffix or len(path.parts) > 1:
        return path
    if path.name not in embedded:
        raise InputError(f"There is no recipe {path}; name a YAML file, or one of {', '.join(embedded)}.")
    return embedded[path.name]


def load_recipe(path: Path | str | None, overrides: list[str]) -> Recipe:
    """Read a recipe and apply `key.sub=value` overrides, whose values are YAML.

    Args:
        path: of a YAML file, or the name of an embedded recipe; None: the defaults.
        overrides: changes to it.

    Raises:
        InputError: the file is missing, not YAML, or has an unknown key (the nearest one is named) or a bad value.
    """
    tree = load_tree(recipe_file(Path(path)), "recipe") if path else {}
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise InputError(f"{override!r} is not an override; write key.sub=value, for example data.root=photos/.")
        put(tree, key, parse_yaml(value, override), override)
    return recipe_from(tree, str(path) if path else "the overrides")


def load_tree(path: Path, what: str) -> dict[str, Any]:
    """The plain values of a YAML file of `key: value` lines; `what` is how an error calls it.

    Raises:
        InputError: the file is missing, too large, or not such YAML.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_RECIPE_BYTES + 1)
    except OSError as error:
        raise InputError(f"Cannot read the {what} {path}: {error.strerror}; name a YAML file.") from error
    if len(raw) > MAX_RECIPE_BYTES:
        raise InputError(f"{path} is over 1 MiB, which no {what} is; name a {what}'s YAML file.")
    tree = parse_yaml(raw.decode("utf-8", "replace"), str(path))
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise InputError(f"{path} is not a {what}: it needs `key: value` lines.")
    # A section whose lines are all commented out is an empty one: the defaults.
    return {key: value for key, value in tree.items() if value is not None}


def put(tree: dict[str, Any], key: str, value: Any, source: str) -> None:
    """Set a dotted key of a recipe's plain values; `source` is how an error calls the setting.

    Raises:
        InputError: the key goes through a value.
    """
    *parents, leaf = key.split(".")
    node = tree
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise InputError(f"In {source!r}, {parent} is a value, not a section; see `qmimic train --help`.")
    node[leaf] = value


def recipe_from(tree: dict[str, Any], source: str) -> Recipe:
    """A checked recipe from plain values.

    Raises:
        InputError: an unknown key, a value of the wrong type, or settings that exclude each other.
    """
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        raise InputError(f"In {source}: {explain(error)}") from error


def explain(error: ValidationError) -> str:
    """The first fault of a validation as one sentence that names the key, the fault and the fix."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    parent, _, tried = key.rpartition(".")
    known_keys = dict(settings())
    if key not in known_keys and parent in known_keys and first["type"] != "extra_forbidden" and not tried.isdigit():
        # Of a union, pydantic adds the kind that it tried.
        key = parent
    if first["type"] == "extra_forbidden":
        known = [name for name, _ in settings()]
        same = [name for name in known if name.rpartition(".")[2] == key]  # the section was forgotten
        near = same or get_close_matches(key, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]}?" if near else "`qmimic train --help` lists the keys."
        return f"unknown key {key!r}; {hint}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] in ("model_type", "dict_type"):
        message = "needs `name: value` pairs"
    given = first.get("input")
    shown = f" (given: {given!r})" if isinstance(given, str | int | float | bool) and len(repr(given)) < 200 else ""
    return f"{key}: {message}{shown}." if key and not message.startswith(key) else f"{message}."


def settings(section: type[Section] = Recipe, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Every key of a recipe with its default and description, in order."""
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield prefix + name, (kind.__doc__ or "").splitlines()[0]
            yield from settings(kind, f"{prefix}{name}.")
        else:
            choices = get_args(kind) if getattr(kind, "__origin__", None) is Literal else ()
            default = "null" if field.default is None else _plain(field.default)
            extra = f"; one of {', '.join(map(str, choices))}" if choices else ""
            yield prefix + name, f"{field.description} [{default}{extra}]"


def choices(section: type[Section] = Recipe, prefix: str = "") -> dict[str, tuple[str, ...]]:
    """Every key of a recipe with the values that it may have, none where they cannot be listed."""
    found: dict[str, tuple[str, ...]] = {}
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            found |= choices(kind, f"{prefix}{name}.")
        elif kind is bool:
            found[prefix + name] = ("true", "false")
        else:
            literal = getattr(kind, "__origin__", None) is Literal
            found[prefix + name] = tuple(map(str, get_args(kind))) if literal else ()
    return found


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write the resolved recipe as YAML."""
    write_text(path, recipe_text(recipe))


def recipe_text(recipe: Recipe) -> str:
    """The resolved recipe as YAML."""
    text: str = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    return text


def fingerprint(*parts: object) -> str:
    """Twelve hexadecimal digits that name a combination of settings; equal settings, equal name."""
    plain = [part.model_dump(mode="json") if isinstance(part, BaseModel) else part for part in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()[:12]


def _plain(value: object) -> str:
    return json.dumps(value) if not isinstance(value, str) else value
