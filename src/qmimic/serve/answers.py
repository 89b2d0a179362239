"""The JSON that the endpoints give; its descriptions become the OpenAPI file."""

from pydantic import BaseModel, Field

from qmimic.serve.labels import Detection


class Refusal(BaseModel):
    """Every answer that is no success."""

    error: str = Field(description="one sentence that names the fix")


class Model(BaseModel):
    """A detector that is served."""

    name: str = Field(description="to name it by in `?model=`")
    run: str = Field(description="run or folder that it came with")
    engine: str
    precision: str = Field(description="fp32 or int8")
    backbone: str = Field(description="family and width divisor")
    classes: list[str] = Field(description="the index is the label")
    size: tuple[int, int] = Field(description="height and width that pictures are fitted into")
    parameters: int
    bytes: int = Field(description="size of its file")
    map50: float | None = Field(description="mAP@0.5 on the run's val split, 0..1; null if the file does not say")
    min_score: float = Field(description="the detector's own threshold; it gives nothing below")


class Allowed(BaseModel):
    """Limits of a request."""

    bytes: int = Field(description="of one picture's file")
    pixels: int = Field(description="of one picture")
    at_once: int = Field(description="pictures that are computed at once; others wait for their turn")


class Models(BaseModel):
    """All that is served."""

    models: list[Model]
    side_by_side: list[str] = Field(description="names to begin with: teacher, student, int8")
    reports: list[str] = Field(description="names of runs that have a page under /reports/")
    limits: Allowed


class Found(BaseModel):
    """What a model says of a picture."""

    model: str
    width: int = Field(description="of the picture as a person sees it (EXIF rotation applied), pixels")
    height: int
    milliseconds: float = Field(description="from the fitted pixels to the boxes, on one thread")
    detections: list[Detection] = Field(description="in falling order of score")
