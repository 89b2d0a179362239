"""The whole recipe: its sections together, what they exclude of each other, and what is gone of older ones."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, field_validator, model_validator

from qmimic.arms import ARMS, STUDENT, order
from qmimic.config.base import FolderName, InTable, Section
from qmimic.config.sections import (
    AugmentConfig,
    DataConfig,
    DetectorConfig,
    Int8Config,
    QuantizedTeacherConfig,
    RunConfig,
    StudentConfig,
    TeacherConfig,
)
from qmimic.config.teaching import MimicConfig, PruningConfig, QuantizerConfig
from qmimic.tables import DISTANCES, unknown

# Settings that are gone, with what holds in their place: recipes of old runs and studies say them.
GONE: dict[str, object] = {
    **{f"{name}.momentum": 0.9 for name in ("teacher", "quantized_teacher", "student", "int8")},
    **{f"{name}.milestones": [0.67, 0.89] for name in ("quantized_teacher", "int8")},
    **{f"{name}.gamma": 0.1 for name in ("teacher", "quantized_teacher", "student", "int8")},
    **{f"{name}.decay": "cosine" for name in ("quantized_teacher", "int8")},
    **{f"{name}.clip_norm": 5.0 for name in ("quantized_teacher", "int8")},
    **{f"{name}.ema": 0.0 for name in ("quantized_teacher", "int8")},
    "int8.optimizer": "adamw",
    "int8.weight_decay": 0.01,
}


class Recipe(Section):
    """A whole run: data, teacher, quantized teacher, student and the baselines beside it."""

    name: FolderName = Field("demo", description="name of the run")
    seed: int = Field(0, ge=0, lt=2**31, description="one seed gives one result")
    baselines: tuple[Annotated[str, InTable(ARMS)], ...] = Field(
        ("scratch",),
        description="students of equal schedule and cost trained beside it: "
        + ", ".join(f"{name} ({arm.about})" for name, arm in ARMS.items()),
    )
    published: dict[str, str] = Field({}, description="by network, what others report for it, for a column beside ours")
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

    @field_validator("published")
    @classmethod
    def _of_networks(cls, published: dict[str, str]) -> dict[str, str]:
        stranger = next((name for name in published if name not in order()), None)
        if stranger is not None:
            raise ValueError(unknown("network in published", stranger, order()))
        return published

    @model_validator(mode="before")
    @classmethod
    def _without_gone(cls, tree: Any) -> Any:
        """Leave out what is gone where it says what holds anyway."""
        if not isinstance(tree, dict):
            return tree
        tree = {name: dict(own) if isinstance(own, dict) else own for name, own in tree.items()}
        for key, value in GONE.items():
            section, _, name = key.partition(".")
            own = tree.get(section)
            if isinstance(own, dict) and name in own and own.pop(name) != value:
                raise ValueError(f"{key} is no longer a setting: it is always {value}; leave it out")
        return tree

    @model_validator(mode="after")
    def _pairs(self) -> "Recipe":
        if self.data.fold is None and set(self.data.train.split("+")) & set(self.data.val.split("+")):
            raise ValueError(
                "data.train and data.val share a split: name two, since scores on training images say little"
            )
        if self.augment.transpose and self.data.size[0] != self.data.size[1]:
            raise ValueError("augment.transpose needs a square picture: set it to 0, or data.size to two equal sides")
        if self.quantizer.per_channel and (self.student.quantize_map or "quantized" in self.baselines):
            raise ValueError("student.quantize_map needs one s for the whole map; set quantizer.per_channel=false")
        if DISTANCES[self.mimic.distance].to_cells and self.quantizer.kind != "uniform":
            raise ValueError(
                f"mimic.distance={self.mimic.distance} needs cells of one size: set quantizer.kind=uniform"
            )
        if (
            self.mimic.weight == "auto"
            and self.mimic.mode == "none"
            and not any(ARMS[name].taught for name in self.baselines)
        ):
            raise ValueError("mimic.weight=auto needs a teacher: set mimic.mode, or give the weight as a number")
        if "labelled" in self.baselines and self.data.unlabelled is None:
            raise ValueError(
                "baselines: labelled is the student without unlabelled pictures; set data.unlabelled, or leave it out"
            )
        cut = next((name for name in self.baselines if ARMS[name].pruned), None)
        if self.teacher.scale != 1 and (cut or self.pruning.method != "none"):
            raise ValueError(
                f"{cut or 'pruning.method=' + self.pruning.method} makes a student that sees pictures as its teacher "
                f"did, and teacher.scale={self.teacher.scale} makes them larger: set teacher.scale=1, or leave it out"
            )
        if self.pruning.method != "none" and self.student.weights:
            raise ValueError("student.weights and pruning.method exclude each other: set one of them")
        return self

    @property
    def teacher_architecture(self) -> str:
        """The teacher's architecture, of its own or the student's."""
        return self.teacher.detector or self.detector.architecture

    @property
    def students(self) -> "dict[str, Recipe]":
        """The recipes of a run's students by name, its own last; arms of other convolutions still have its backbone."""
        return {**{name: self.changed(ARMS[name].settings) for name in self.baselines}, STUDENT: self}

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.run.dir or f"runs/{self.name}")

    @property
    def needs_teachers(self) -> bool:
        """Whether the student depends on teachers: taught by one or by its labels, cut out of one, or on one's grid."""
        return self.needs_grid or self.pruning.method != "none" or self.data.unlabelled is not None

    @property
    def needs_grid(self) -> bool:
        """Whether the student depends on the grid of a quantized map: it is taught by one, or its own map is on one."""
        return self.mimic.mode != "none" or self.student.quantize_map

    @property
    def trains_teacher(self) -> bool:
        """Whether the run trains its teacher; if not, it is a file, opened as it is."""
        return self.teacher.kind == "detector"

    def changed(self, settings: Mapping[str, object]) -> "Recipe":
        """A copy with other values of some dotted keys, which are taken as they are."""
        sections: dict[str, dict[str, object]] = {}
        for key, value in settings.items():
            section, _, name = key.rpartition(".")
            sections.setdefault(section, {})[name] = value
        update = sections.pop("", {})
        return self.model_copy(
            update={**update, **{name: getattr(self, name).model_copy(update=own) for name, own in sections.items()}}
        )
