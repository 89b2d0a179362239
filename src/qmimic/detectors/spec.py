"""The descriptions of detectors: all that it takes to build one before its weights are loaded.

Each architecture has its own; `ARCHITECTURES` in `tables.py` says which.
"""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from qmimic.config import DetectorConfig, InputSize, Levels, Section, Side

Triple = tuple[float, float, float]
Deviations = tuple[Side, Side, Side]


class DetectorSpec(Section):
    """What every detector's description holds; stored in every detector file."""

    architecture: str = Field(description="a name in ARCHITECTURES")
    backbone: str = Field(description="family and width divisor")
    classes: tuple[str, ...] = Field(min_length=1, description="class names; the index is the label")
    size: InputSize = Field(description="height and width that images are fitted into, pixels")
    channels: dict[str, Annotated[int, Field(ge=1)]] | None = Field(
        None, description="channels left of pruned layers, by the layer's name"
    )
    normalisation: tuple[Triple, Deviations] | None = Field(
        None, description="mean and deviation of RGB values 0..255 that the backbone was made for; null: ImageNet's"
    )
    grey: bool = Field(False, description="the network has one input channel: the picture's brightness")
    score_threshold: float = Field(0.02, ge=0, lt=1, description="lowest score of a detection")
    nms_threshold: float = Field(0.5, gt=0, lt=1, description="largest IoU of two detections of a class")
    max_detections: int = Field(100, ge=1, le=1000, description="detections kept per image")


class TwoStageSpec(DetectorConfig, DetectorSpec):
    """A two-stage detector: the recipe's settings, and what a run fills in."""

    output_stride: Literal[16, 8] = Field(16, description="pixels from one entry of the feature map to the next")
    anchors: tuple[tuple[Side, Side], ...] = Field(min_length=1, description="anchor widths and heights, pixels")


class OneStageSpec(DetectorSpec):
    """A one-stage detector on maps of one or several strides."""

    levels: Levels = Field(description="strides of the maps, pixels")
    head_width: int | None = Field(None, ge=1, le=65536, description="channels of neck and heads; null: 256 / divisor")
    # Of a file that says nothing of it, none: it was trained before there was that loss.
    softmax_weight: float = Field(0.0, ge=0, le=100, description="of the loss that tells the classes apart")

    @model_validator(mode="after")
    def _whole_places(self) -> "OneStageSpec":
        coarsest = self.levels[-1]
        if any(side % coarsest for side in self.size):
            height, width = self.size
            raise ValueError(
                f"detector.levels: a level of stride {coarsest} needs sides that are multiples of {coarsest}, and the "
                f"size is {height} x {width}; leave that level out or change data.size"
            )
        return self
