"""`python -m qmimic.runtime MODEL PICTURES`: what a deployed detector finds, as lines, JSON lines or drawings."""

import argparse
import io
import json
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from qmimic.data.images import read_image
from qmimic.data.labels import SUFFIXES
from qmimic.detections import Detections
from qmimic.draw import draw
from qmimic.errors import InputError
from qmimic.files import replacing
from qmimic.runtime.detector import Detector
from qmimic.runtime.video import frames


def grammar() -> argparse.ArgumentParser:
    """The command line's grammar."""
    parser = argparse.ArgumentParser(prog="python -m qmimic.runtime", description=__doc__)
    parser.add_argument("model", type=Path, help="an .onnx file that `qmimic export` wrote")
    parser.add_argument("pictures", type=Path, nargs="*", help="files, or folders of files")
    parser.add_argument("--video", help="a video file, or the number of a camera, instead of pictures")
    parser.add_argument("--min-score", type=float, default=0.4, help="0..1")
    parser.add_argument("--out", type=Path, help="folder for drawings")
    parser.add_argument("--json", action="store_true", help="one JSON object a picture")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, default=1, help="pictures at once, if the file takes any number")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; returns 0, or 2 after bad input, with one sentence on stderr."""
    options = grammar().parse_args(arguments)
    try:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # names of files need not be printable
        _run(options)
    except InputError as error:
        print(f"qmimic: {' '.join(str(error).splitlines())}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the reader of our output has gone
        sys.stderr.close()
        return 2
    except OSError as error:
        print(f"qmimic: {error.filename or 'output'}: {error.strerror or error}; check it.", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("qmimic: interrupted.", file=sys.stderr)
        return 130  # 128 and the signal's number
    return 0


def _run(options: argparse.Namespace) -> None:
    if not 0 <= options.min_score <= 1:
        raise InputError(f"--min-score {options.min_score:g} is no score; give a number from 0 to 1.")
    if options.threads < 1 or options.batch < 1:
        raise InputError("--threads and --batch need 1 or more.")
    if bool(options.pictures) == bool(options.video):
        raise InputError("Name pictures or --video, one of the two.")
    detector = Detector(options.model, options.threads)
    for name, picture, found in _looked_at(detector, options):
        if options.json:
            print(json.dumps(as_json(name, found, detector.metadata.classes)), flush=True)
        else:
            objects = ", ".join(f"{detector.metadata.classes[k]} {s:.2f}" for k, s in _listed(found)) or "nothing"
            print(f"{name}: {objects}", flush=True)
        if options.out:
            image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else read_image(picture)
            with replacing(options.out / f"{Path(name).stem}.png") as temporary:
                draw(image, found, detector.metadata.classes, options.min_score).save(temporary)


def as_json(name: str, found: Detections, classes: Sequence[str]) -> dict[str, Any]:
    """Detections of a picture as plain values: boxes x1, y1, x2, y2 in its pixels."""
    objects = zip(found.boxes.tolist(), _listed(found), strict=True)
    return {
        "picture": name,
        "detections": [
            {"box": [round(side, 2) for side in box], "class": classes[label], "score": round(score, 4)}
            for box, (label, score) in objects
        ],
    }


def _listed(found: Detections) -> list[tuple[int, float]]:
    return list(zip(found.labels.tolist(), found.scores.tolist(), strict=True))


def _looked_at(
    detector: Detector, options: argparse.Namespace
) -> Iterator[tuple[str, Path | NDArray[np.uint8], Detections]]:
    """Names, pictures and what is in them."""
    if options.video:
        for number, frame in enumerate(frames(options.video)):
            yield f"{number:06}", frame, detector(frame, options.min_score)
        return
    paths = [path for given in options.pictures for path in _files(given)]
    names = Counter(path.stem for path in paths)
    twice = next((name for name, times in names.items() if options.out and times > 1), None)
    if twice:
        raise InputError(f"Several pictures are named {twice}, and one drawing would replace the other.")
    if options.out and any(path.parent.resolve() == options.out.resolve() for path in paths):
        raise InputError(f"--out {options.out} holds pictures that a drawing could replace; name another.")
    for path, found in zip(paths, detector.many(paths, options.min_score, options.batch), strict=True):
        yield str(path), path, found


def _files(given: Path) -> list[Path]:
    if not given.is_dir():
        return [given]
    found = sorted(path for path in given.iterdir() if path.suffix.lower() in SUFFIXES)
    if not found:
        raise InputError(f"{given} holds no picture; looked for {' '.join(SUFFIXES)}.")
    return found


if __name__ == "__main__":
    sys.exit(main())
