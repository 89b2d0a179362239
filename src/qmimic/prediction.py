"""A detector on single pictures."""

from pathlib import Path

import torch
from PIL import Image

from qmimic.data.images import read_image
from qmimic.data.letterbox import letterbox
from qmimic.detections import Detections
from qmimic.evaluation import unpad
from qmimic.models.detectors import Detector


def predict(detector: Detector, image: Image.Image | Path | str, min_score: float = 0.0) -> Detections:
    """Detections in one picture.

    Args:
        detector: in evaluation mode.
        image: a picture, or the file of one.
        min_score: detections below this score are left out.

    Returns:
        Boxes xyxy in pixels of the picture as a person sees it (EXIF rotation applied).

    Raises:
        InputError: the file is missing, truncated, too large or not an image.
    """
    picture = image.convert("RGB") if isinstance(image, Image.Image) else read_image(Path(image))
    pixels, placed = letterbox(picture, detector.spec.size)
    found = unpad(detector.detect(torch.from_numpy(pixels).permute(2, 0, 1)[None].to(detector.anchors.device)), 0)
    keep = found.scores >= min_score
    return Detections(placed.undo(found.boxes)[keep], found.scores[keep], found.labels[keep])
