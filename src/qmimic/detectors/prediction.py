"""A detector on single pictures."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from qmimic.data.images import read_image, upright
from qmimic.data.letterbox import letterbox, letterbox_file
from qmimic.detections import Detections
from qmimic.detectors.detector import Detector
from qmimic.detectors.evaluation import unpad
from qmimic.detectors.files import load_detector
from qmimic.draw import draw
from qmimic.errors import InputError
from qmimic.files import replacing


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
    size = detector.spec.size
    if isinstance(image, Image.Image):
        pixels, placed = letterbox(upright(image), size)
    else:
        pixels, placed = letterbox_file(Path(image), size)
    found = unpad(detector.detect(torch.from_numpy(pixels).permute(2, 0, 1)[None].to(detector.device)), 0)
    return placed.restored(found.keep(found.scores >= min_score))


@dataclass(frozen=True)
class Drawn:
    """A picture, what was found in it as plain values (boxes x1, y1, x2, y2 in its pixels), and its drawing."""

    picture: Path
    objects: list[dict[str, Any]]
    drawing: Path


def draw_predictions(detector: Path, images: Sequence[Path], out: Path, min_score: float) -> Iterator[Drawn]:
    """Draw what a detector finds in pictures, one PNG for each.

    Args:
        detector: its file.
        images: files of pictures.
        out: folder for the drawings, made if it is missing; a drawing is named like its picture.
        min_score: detections below this score are left out, 0..1.

    Yields:
        A picture, as soon as its drawing is there.

    Raises:
        InputError: two drawings would have one name, or one could replace a picture; the score is not from
            0 to 1; a file cannot be read or written.
    """
    if not 0 <= min_score <= 1:
        raise InputError(f"--min-score {min_score:g} is not a score; give a number from 0 to 1.")
    names = [path.stem for path in images]
    for path in images:
        if names.count(path.stem) > 1:
            raise InputError(
                f"Several pictures are named {path.stem}, and one drawing would replace the other; "
                "draw them one folder at a time."
            )
        if path.parent.resolve() == out.resolve():
            raise InputError(
                f"--out {out} is the folder of {path}, and a drawing could replace a picture; name another."
            )
    loaded, _ = load_detector(detector)
    for path in images:
        found = predict(loaded, path, min_score)
        target = out / f"{path.stem}.png"
        with replacing(target) as temporary:
            draw(read_image(path), found, loaded.spec.classes, min_score).save(temporary)
        triples = zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True)
        names_of = loaded.spec.classes
        objects = [{"box": box, "class": names_of[label], "score": own} for box, own, label in triples]
        yield Drawn(path, objects, target)
