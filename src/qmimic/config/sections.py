"""The sections of a recipe: every setting with its type, its limits, its default and a sentence."""

from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from qmimic.config.base import Advanced, BackboneName, InputSize, InTable, Levels, Section, Share, Side
from qmimic.config.teacher_file import TeacherFileConfig, check_outputs
from qmimic.tables import (
    ARCHITECTURES,
    ROI_POOLINGS,
    TEACHERS,
    TRACKERS,
)

REST = "rest"  # in place of a folder: the training pictures whose labels do not count


class DataConfig(Section):
    """What is trained on, and at which size."""

    root: str = Field("synthetic:digits", description="folder of a dataset (VOC, COCO or YOLO), or synthetic:digits")
    train: str = Field("train", description="name of the split to train on; several are joined by +")
    val: str = Field("val", description="name of the split to report on; several are joined by +")
    fold: tuple[int, int] | None = Field(
        None, description="k, n: report on the k-th (from 0) of n equal parts of `train` and train on the rest"
    )
    size: InputSize = Field((128, 128), description="height and width that images are fitted into, pixels")
    drop_bad_boxes: bool = Field(False, description="leave out the boxes and images that `data check` refuses")
    allow_capped: bool = Field(
        False, description="train although a picture has more objects than the detector's settings let it find"
    )
    grey: bool = Field(
        False, description="networks have one input channel, the brightness; they still take colour pictures"
    )
    cache_mib: Advanced[int] = Field(2048, ge=0, description="decoded images kept on disk at most, MiB; 0: none")
    label_share: float = Field(
        1.0, gt=0, le=1, description="share of the training pictures whose labels count; the rest could be unlabelled"
    )
    unlabelled: str | None = Field(
        None,
        min_length=1,
        description="folder of pictures that the teacher labels for the student, or rest: those beyond label_share",
    )
    unlabelled_share: float = Field(0.5, gt=0, lt=1, description="share of unlabelled pictures in a student's batches")
    unlabelled_doubt: Advanced[float] = Field(
        0.5,
        gt=0,
        le=1,
        description="share of a threshold from which on a teacher's box is in doubt: neither object nor background",
    )

    @field_validator("fold")
    @classmethod
    def _part(cls, fold: tuple[int, int] | None) -> tuple[int, int] | None:
        if (fold and not 0 <= fold[0] < fold[1]) or (fold and fold[1] < 2):
            raise ValueError("needs k, n with 0 <= k < n and n at least 2")
        return fold

    @model_validator(mode="after")
    def _rest(self) -> "DataConfig":
        if self.unlabelled == REST and self.label_share == 1:
            raise ValueError(
                f"data.unlabelled={REST} needs pictures whose labels are not used: set data.label_share below 1, or "
                f"name a folder (./{REST} is one)"
            )
        return self

    @property
    def scored(self) -> str:
        """What is reported on, in words."""
        return f"part {self.fold[0]} of {self.fold[1]} of {self.train}" if self.fold else self.val


class DetectorConfig(Section):
    """The detector around the backbone, the same for teacher and student."""

    architecture: Annotated[str, InTable(ARCHITECTURES)] = Field("faster_rcnn", description="kind of detector")
    output_stride: Literal[16, 8] | None = Field(
        None, description="pixels from one entry of two stages' map to the next; null: chosen by the training boxes"
    )
    levels: Levels | None = Field(
        None, description="one_stage: strides of its maps, some of 8, 16 and 32; null: chosen by the training boxes"
    )
    anchors: tuple[tuple[Side, Side], ...] | None = Field(
        None,
        min_length=1,
        description="anchor widths and heights in pixels at data.size; null: fitted to the training boxes",
    )
    anchor_cells: tuple[Side, ...] | None = Field(
        None, min_length=1, description="anchors of these sides squared, in cells of the map, in place of `anchors`"
    )
    anchor_ratios: tuple[Side, ...] = Field(
        (1.0,), min_length=1, description="width to height of each anchor of anchor_cells, which keeps its area"
    )
    anchor_count: int = Field(9, ge=1, le=64, description="anchors fitted for each place of the map")
    roi_pooling: Annotated[str, InTable(ROI_POOLINGS)] = Field(
        "align", description="RoIAlign or RoIPool (of R-FCN: its mean)"
    )
    roi_size: int = Field(5, ge=1, le=14, description="bins of a pooled region on each side (k of R-FCN)")
    head_width: Advanced[int | None] = Field(
        None,
        ge=1,
        le=65536,
        description="units of the head's hidden layers; null: 1024 / width divisor, of one_stage 256 / width divisor",
    )
    softmax_weight: Advanced[float] = Field(
        0.5,
        ge=0,
        le=100,
        description="one_stage: weight of the loss that tells the classes apart where an object is; 0: none",
    )
    rpn_samples: Advanced[int] = Field(128, ge=2, description="anchors sampled for the RPN losses per image")
    roi_samples: Advanced[int] = Field(64, ge=4, description="regions sampled for the head's losses per image")
    ohem: bool = Field(False, description="the head learns from its roi_samples hardest regions, not from random ones")
    pre_nms: Advanced[int] = Field(
        256, ge=1, le=4096, description="best anchors that enter the RPN's suppression, per image"
    )
    post_nms: Advanced[int] = Field(64, ge=1, le=2048, description="proposals that leave it per image")
    score_threshold: float = Field(0.02, ge=0, lt=1, description="lowest score of a detection")
    nms_threshold: float = Field(0.5, gt=0, lt=1, description="largest IoU of two detections of a class")
    max_detections: int = Field(100, ge=1, le=1000, description="detections kept per image")

    @model_validator(mode="after")
    def _one_kind_of_anchors(self) -> "DetectorConfig":
        if self.anchors and self.anchor_cells:
            raise ValueError("detector.anchors are pixels and anchor_cells are cells of the map; give one of them")
        if self.anchor_ratios != (1.0,) and not self.anchor_cells:
            raise ValueError("detector.anchor_ratios are those of detector.anchor_cells; give these too")
        return self


class AugmentConfig(Section):
    """Random views of a training image, drawn for whole batches."""

    flip: float = Field(0.5, ge=0, le=1, description="probability of a left-right flip")
    flip_vertical: float = Field(0.0, ge=0, le=1, description="probability of an up-down flip")
    transpose: float = Field(
        0.0, ge=0, le=1, description="probability that rows and columns change places; with both flips: quarter turns"
    )
    mosaic: float = Field(
        0.0, ge=0, le=1, description="probability that four pictures at half size replace one, which is then zoomed"
    )
    scale: tuple[float, float] = Field((0.8, 1.25), description="smallest and largest zoom")
    shift: float = Field(0.1, ge=0, le=0.5, description="largest shift, as a share of the image's side (a crop)")
    colour: float = Field(0.2, ge=0, le=1, description="largest change of brightness, contrast and saturation")

    @model_validator(mode="after")
    def _scales(self) -> "AugmentConfig":
        if not 0.1 <= self.scale[0] <= self.scale[1] <= 10:
            raise ValueError("augment.scale needs 0.1 <= smallest <= largest <= 10")
        return self


class FineTuningConfig(Section):
    """How long and how fast a network is trained that was trained before."""

    steps: int = Field(200, ge=0, description="optimizer steps; 0: none")
    batch_size: int = Field(16, ge=1, le=1024, description="images per step, over all processes")
    learning_rate: float = Field(3e-4, gt=0, description="peak learning rate")
    warmup_steps: Advanced[int] = Field(20, ge=0, description="steps of linear warm-up")
    evaluate_every: Advanced[int] = Field(300, ge=1, description="steps between measurements of mAP on val")
    checkpoint_every: Advanced[int] = Field(100, ge=1, description="steps between checkpoints")

    @property
    def schedule(self) -> "ScheduleConfig":
        """The same as a whole schedule; all else as the defaults have it."""
        return ScheduleConfig.model_construct(**self.model_dump(include=set(ScheduleConfig.model_fields)))


class ScheduleConfig(FineTuningConfig):
    """How long and how fast one network is trained."""

    steps: int = Field(1200, ge=1, description="optimizer steps")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="sgd: with a momentum of 0.9")
    learning_rate: float = Field(2e-3, gt=0, description="peak learning rate")
    weight_decay: Advanced[float] = Field(1e-2, ge=0, description="on weights of convolutions and linear layers only")
    warmup_steps: Advanced[int] = Field(50, ge=0, description="steps of linear warm-up")
    decay: Advanced[Literal["cosine", "step", "constant"]] = Field(
        "cosine", description="shape of the learning rate; step: a tenth after each of the milestones"
    )
    milestones: Advanced[tuple[Share, ...]] = Field(
        (0.67, 0.89), description="shares of the steps after which decay=step lowers the rate"
    )
    clip_norm: Advanced[float] = Field(5.0, ge=0, description="largest gradient norm; 0: no clipping")
    ema: float = Field(0.0, ge=0, lt=1, description="decay of the moving average of the weights; 0: none")
    closing_steps: int = Field(
        0, ge=0, description="number of last steps on whole pictures, only flipped and transposed"
    )

    @property
    def closing_from(self) -> float:
        """Share of the steps after which the closing steps begin."""
        return (self.steps - self.closing_steps) / self.steps

    @model_validator(mode="after")
    def _longer_than_its_end(self) -> "ScheduleConfig":
        if self.closing_steps >= self.steps:
            raise ValueError(
                f"closing_steps={self.closing_steps} leaves none of {self.steps} steps before them; raise steps or "
                "lower closing_steps"
            )
        return self


WEIGHTS = (
    "backbone weights to start from: a file (safetensors, or a state dict of torch) with torchvision's or timm's "
    "names, or of a detector; zoo:NAME; pretrained: timm's own, fetched by it"
)


class TeacherConfig(ScheduleConfig, TeacherFileConfig):
    """The large detector: one that the run trains, or a file (`kind`)."""

    kind: Annotated[str, InTable(TEACHERS)] = Field(
        "detector", description="detector: trained by the run; onnx: teacher.file as it is, never trained"
    )
    backbone: BackboneName = Field("resnet18/4", description="family and width divisor, or timm:NAME")
    detector: Annotated[str, InTable(ARCHITECTURES)] | None = Field(
        None, description="the teacher's architecture; null: detector.architecture"
    )
    scale: Advanced[Literal[1, 2, 4]] = Field(
        1, description="how many times as high and wide as the student it sees its pictures; 2: mimic over scales"
    )
    weights: str | None = Field(None, description=WEIGHTS)
    frozen_stages: Advanced[int] = Field(
        0, ge=0, le=64, description="first stages of the backbone that keep their weights"
    )
    frozen_norm: Advanced[bool] = Field(False, description="the backbone's batch norms keep their published statistics")
    min_map: float = Field(0.3, ge=0, le=1, description="mAP@0.5 on val below which a teacher is refused as too weak")

    @model_validator(mode="after")
    def _frozen(self) -> "TeacherConfig":
        if not self.weights and (self.frozen_stages or self.frozen_norm):
            raise ValueError("teacher.frozen_stages and frozen_norm keep published weights: set teacher.weights too")
        return self

    @model_validator(mode="after")
    def _outputs(self) -> "TeacherConfig":
        if self.kind == "detector":  # who sets one of these means another kind, and is told so
            return self
        check_outputs(self)
        if self.size and self.maps:
            raise ValueError("teacher.size differs from data.size only without a map: leave out size, or maps")
        return self


class QuantizedTeacherConfig(FineTuningConfig):
    """The fine-tuning of the teacher on its own quantized map."""

    steps: int = Field(200, ge=0, description="optimizer steps; 0: quantize without fine-tuning")
    optimizer: Literal["adamw", "sgd"] = Field("adamw", description="sgd: with a momentum of 0.9")
    weight_decay: Advanced[float] = Field(1e-2, ge=0, description="on weights of convolutions and linear layers only")


class StudentConfig(ScheduleConfig):
    """The very tiny detector. Every arm (scratch, mimic, quantization mimic) has this same schedule."""

    learning_rate: float = Field(6e-3, gt=0, description="peak learning rate; fewer channels need a higher one")
    backbone: BackboneName = Field("resnet18/16", description="family and width divisor, or timm:NAME")
    weights: str | None = Field(None, description=WEIGHTS)
    quantize_map: bool = Field(False, description="every student's own heads see its map quantized by the teacher's s")


class RunConfig(Section):
    """Where the run goes and how it computes."""

    dir: str | None = Field(None, description="run folder; null: runs/NAME")
    threads: int = Field(0, ge=0, le=1024, description="CPU threads; 0: one for each core that is idle")
    device: Literal["auto", "cpu"] = Field("auto", description="auto: a GPU where there is one")
    bank_mib: Advanced[int] = Field(
        8192,
        ge=0,
        description="largest teacher bank, MiB on disk; if it would be larger, the teacher runs in every step",
    )
    precision: Advanced[Literal["auto", "fp32", "bf16"]] = Field(
        "auto", description="auto: bf16 for wide networks where it pays"
    )
    report: bool = Field(
        True, description="whether the run ends with report.html; `qmimic report` writes it at any time"
    )
    trackers: tuple[Annotated[str, InTable(TRACKERS)], ...] = Field(
        ("tensorboard",), description="where all numbers go besides the log: " + ", ".join(TRACKERS)
    )


class Int8Config(FineTuningConfig):
    """A detector on integers: how its grids are found, how it is trained on them, and when it is refused."""

    images: Advanced[int] = Field(
        128, ge=1, le=4096, description="training images on which the maps' scales are chosen"
    )
    max_loss: Share = Field(
        0.01, description="largest loss of mAP@0.5 on val by int8; more is trained away on the grids, or refused"
    )
    steps: int = Field(300, ge=0, description="optimizer steps on the grids, if int8 costs more; 0: none")
    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate")
