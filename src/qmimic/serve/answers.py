"""The JSON that the endpoints give; its descriptions become the OpenAPI file."""

from pydantic import BaseModel, Field

from qmimic.serve.labels import Detection


class Refusal(BaseModel):
    """Any answer other than success."""

    error: str = Field(description="one sentence that says what to do")


class Model(BaseModel):
    """A detector that is served."""

    name: str = Field(description="its name, as in `?model=`")
    run: str = Field(description="run or folder that it belongs to")
    engine: str
    precision: str = Field(description="fp32 or int8")
    backbone: str = Field(description="family and width divisor")
    classes: list[str] = Field(description="the index is the label")
    size: tuple[int, int] = Field(description="height and width that pictures are fitted into")
    parameters: int
    bytes: int = Field(description="size of its file")
    map50: float | None = Field(description="mAP@0.5 on the run's val split, 0..1; null if the file does not say")
    min_score: float = Field(description="the detector's own threshold; it gives no detections below it")


class Allowed(BaseModel):
    """Limits of a request."""

    bytes: int = Field(description="of a picture's file, at most")
    pixels: int = Field(description="of a picture, at most")
    at_once: int = Field(description="pictures computed at once; others wait their turn")


class Models(BaseModel):
    """All that is served."""

    models: list[Model]
    side_by_side: list[str] = Field(description="models to show first: teacher, student, int8")
    reports: list[str] = Field(description="names of runs that have a page under /reports/")
    limits: Allowed


class Found(BaseModel):
    """What a model finds in a picture."""

    model: str
    width: int = Field(description="of the picture as displayed (EXIF rotation applied), pixels")
    height: int
    milliseconds: float = Field(description="from the resized pixels to the boxes, on one thread")
    detections: list[Detection] = Field(description="in falling order of score")
