"""`python -m qmimic.runtime MODEL PICTURES`: what a deployed detector finds, as lines, JSON lines or drawings."""

import argparse
import io
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from qmimic.detections import Detections
from qmimic.draw import draw
from qmimic.errors import InputError, notices_said
from qmimic.runtime.detector import Detector
from qmimic.runtime.drawing import Fault, looked_at, pictures_of, require_own_drawing, save_drawing
from qmimic.runtime.formats import suffixes
from qmimic.runtime.video import frames

EXIT_FAULTS, EXIT_BAD_INPUT, EXIT_INTERRUPTED = 1, 2, 130  # 128 and the signal's number


def grammar() -> argparse.ArgumentParser:
    """The command line's grammar."""
    parser = argparse.ArgumentParser(prog="python -m qmimic.runtime", description=__doc__)
    parser.add_argument("model", type=Path, help=f"a file of `qmimic export` ({' '.join(suffixes())}), or zoo:NAME")
    parser.add_argument("pictures", type=Path, nargs="*", help="picture files, or folders of them")
    parser.add_argument(
        "--video", help="instead of pictures: a video file, rtsp:// or http:// stream, /dev/videoN or a camera's number"
    )
    parser.add_argument("--min-score", type=float, default=0.4, help="0..1")
    parser.add_argument("--out", type=Path, help="folder for drawings")
    parser.add_argument("--json", action="store_true", help="one JSON object per picture")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--batch", type=int, help="pictures computed at once, if the file takes any number")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0; 1 if pictures or frames could not be read, or files were skipped; 2 after bad input; 130 after Ctrl-C.
        A sentence on stderr says why.
    """
    options = grammar().parse_args(arguments)
    faults: list[str] = []

    def fault(sentence: str) -> None:
        faults.append(sentence)
        _complain(sentence)

    try:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # file names need not be printable
        with notices_said():
            _run(options, fault)
    except InputError as error:
        _complain(str(error))
        return EXIT_BAD_INPUT
    except BrokenPipeError:  # the reader of our output is gone
        sys.stderr.close()
        return EXIT_BAD_INPUT
    except OSError as error:
        _complain(f"{error.filename or 'output'}: {error.strerror or error}; check the path and its permissions.")
        return EXIT_BAD_INPUT
    except KeyboardInterrupt:
        _complain("interrupted.")
        return EXIT_INTERRUPTED
    return EXIT_FAULTS if faults else 0


def _run(options: argparse.Namespace, fault: Fault) -> None:
    detector = _loaded(options)
    for name, found in _looked_at(detector, options, fault):
        if options.json:
            plain = {"picture": name, "detections": found.as_plain(detector.classes)}
            print(json.dumps(plain), flush=True)
        else:
            listed = zip(found.labels.tolist(), found.scores.tolist(), strict=True)
            objects = ", ".join(f"{detector.classes[k]} {s:.2f}" for k, s in listed) or "nothing"
            print(f"{name}: {objects}", flush=True)


def _complain(sentence: str) -> None:
    print(f"qmimic: {' '.join(sentence.splitlines())}", file=sys.stderr)


def _loaded(options: argparse.Namespace) -> Detector:
    if not 0 <= options.min_score <= 1:
        raise InputError(f"--min-score {options.min_score:g} is not a score; give a number from 0 to 1.")
    if options.threads < 1 or (options.batch is not None and options.batch < 1):
        raise InputError("--threads and --batch need 1 or more.")
    if bool(options.pictures) == (options.video is not None):
        raise InputError("Name either pictures or --video.")
    if options.video is not None and options.batch:
        raise InputError("--batch is only for pictures, since frames of a video are computed one by one; leave it out.")
    return Detector(options.model, options.threads)


def _looked_at(detector: Detector, options: argparse.Namespace, fault: Fault) -> Iterator[tuple[str, Detections]]:
    """Names of pictures or frames, with what was found in each."""
    if options.video is None:
        pictures = pictures_of(options.pictures, fault)
        for one in looked_at(detector, pictures, options.out, options.min_score, fault, options.batch):
            yield str(one.picture), one.detections
        return
    for path in sorted(options.out.glob(f"{'[0-9]' * 6}.png")) if options.out else ():
        require_own_drawing(path)  # before the first frame
    for number, frame in frames(options.video, fault):
        found = detector(frame, options.min_score)
        if options.out:
            drawing = draw(Image.fromarray(frame), found, detector.classes, options.min_score)
            save_drawing(drawing, options.out / f"{number:06}.png")
        yield f"{number:06}", found


if __name__ == "__main__":
    sys.exit(main())
