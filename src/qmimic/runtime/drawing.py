"""What a detector finds in files, one after the other, listed and drawn. Files that cannot be read are named."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from qmimic.data.images import read_image
from qmimic.data.labels import READ
from qmimic.detections import Detections
from qmimic.draw import draw
from qmimic.errors import InputError
from qmimic.files import open_file, replacing

MARK = "Software", "qmimic"  # in every drawing, as a PNG's text
HEAD = 512  # bytes, in which that text stands
NAMED = 5  # most files that a sentence names
BESIDE = (".txt", ".xml", ".json", ".yaml", ".yml", ".csv", ".md")  # files that often lie beside pictures

Fault = Callable[[str], None]


class Finder(Protocol):
    """A detector of any kind: its classes, and for each of several pictures its detections or an error."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Class names; the index is the label."""
        ...

    def each(
        self, pictures: Iterable[Path], min_score: float = 0.0, batch: int | None = None
    ) -> Iterator[Detections | InputError]:
        """For each picture, detections of at least a score in pixels of the picture as displayed, or the error."""
        ...


@dataclass(frozen=True)
class Found:
    """A picture and what was found in it.

    Attributes:
        picture: its file.
        detections: boxes in pixels of the picture.
        drawing: the drawing's file; None if there is none.
    """

    picture: Path
    detections: Detections
    drawing: Path | None


def pictures_of(given: Sequence[Path], fault: Fault) -> list[Path]:
    """All pictures to look at: files as given, and the pictures in folders, by name.

    Args:
        given: files and folders.
        fault: called with a sentence on skipped files of a folder, except texts such as labels.

    Raises:
        InputError: a folder holds no picture.
    """
    found: list[Path] = []
    for path in given:
        if not path.is_dir():
            found.append(path)
            continue
        inside = sorted(one for one in path.iterdir() if not one.name.startswith("."))
        pictures = [one for one in inside if one.suffix.lower() in READ]
        if not pictures:
            raise InputError(f"There are no pictures in {path}; looked for {' '.join(READ)}.")
        unknown = [one for one in inside if one.suffix.lower() not in (*READ, *BESIDE)]
        others = [one.name + ("/" if one.is_dir() else "") for one in unknown]
        if others:
            more = f" and {len(others) - NAMED} more" if len(others) > NAMED else ""
            names = ", ".join(others[:NAMED]) + more
            fault(f"{len(others)} entries of {path} are not pictures that qmimic reads and were skipped: {names}.")
        found += pictures
    return found


def looked_at(
    finder: Finder,
    pictures: Sequence[Path],
    out: Path | None,
    min_score: float,
    fault: Fault,
    batch: int | None = None,
) -> Iterator[Found]:
    """Pictures with what a detector finds in them; each is drawn if `out` is given.

    Args:
        finder: the detector.
        pictures: files.
        out: folder for the drawings, made if it is missing; a drawing is a PNG named like its picture.
        min_score: detections below this score are left out, 0..1.
        batch: pictures computed at once; None: the detector's choice.
        fault: called with a sentence for each picture that cannot be read, and at the end with their number.

    Raises:
        InputError: no picture could be read; two drawings would have the same name, or one could replace a picture;
            or a drawing cannot be written.
    """
    if out:
        _check_names(pictures, out)
    failed: list[InputError] = []
    for path, found in zip(pictures, finder.each(pictures, min_score, batch), strict=True):
        if isinstance(found, InputError):
            failed.append(found)
            if len(pictures) > 1:
                fault(str(found))
            continue
        drawing = out / f"{path.stem}.png" if out else None
        if drawing:
            save_drawing(draw(read_image(path), found, finder.classes, min_score), drawing)
        yield Found(path, found, drawing)
    if failed and len(failed) == len(pictures):
        raise failed[0] if len(failed) == 1 else InputError(f"None of the {len(failed)} pictures could be read.")
    if failed:
        fault(f"{len(failed)} of {len(pictures)} pictures could not be read.")


def save_drawing(picture: Image.Image, path: Path) -> None:
    """Write a drawing as a PNG that says who drew it, so that a later one may take its place.

    Raises:
        InputError: something else lies there, or it cannot be written.
    """
    require_own_drawing(path)
    with replacing(path) as temporary:
        mark = PngInfo()
        mark.add_text(*MARK)
        picture.save(temporary, format="PNG", pnginfo=mark)


def require_own_drawing(path: Path) -> None:
    """Check that a drawing there would replace nothing but one of ours. Raises: InputError: it would."""
    if not os.path.lexists(path):
        return
    try:
        with open_file(path, path.parent) as file:
            own = "\0".join(MARK).encode() in file.read(HEAD)
    except (InputError, OSError):
        own = False
    if not own:
        raise InputError(
            f"{path} does not say that qmimic drew it, and would be overwritten; choose another --out, or move it."
        )


def _check_names(pictures: Sequence[Path], out: Path) -> None:
    twice = next((name for name, times in Counter(path.stem for path in pictures).items() if times > 1), None)
    if twice:
        raise InputError(
            f"Several pictures are named {twice}, and one drawing would replace the other; "
            "draw them one folder at a time."
        )
    if any(path.parent.resolve() == out.resolve() for path in pictures):
        raise InputError(
            f"--out {out} is a folder of the pictures, where a drawing could replace one; name another folder."
        )
    for path in pictures:
        require_own_drawing(out / f"{path.stem}.png")
