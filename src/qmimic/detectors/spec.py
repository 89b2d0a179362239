"""The description of a detector: all that is needed to build it before its weights are loaded."""

from typing import Annotated

from pydantic import Field

from qmimic.config import DetectorConfig, InputSize, Side


class DetectorSpec(DetectorConfig):
    """The recipe's detector settings with what a run fills in; kept in every detector file."""

    backbone: str = Field(description="family and width divisor")
    classes: tuple[str, ...] = Field(min_length=1, description="class names; the index is the label")
    size: InputSize = Field(description="height and width that images are fitted into, pixels")
    anchors: tuple[tuple[Side, Side], ...] = Field(min_length=1, description="anchor widths and heights, pixels")
    channels: dict[str, Annotated[int, Field(ge=1)]] | None = Field(
        None, description="channels left of pruned layers, by the layer's name"
    )
