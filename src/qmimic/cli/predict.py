"""`qmimic predict`: draw what a detector finds."""

import argparse
import sys
from pathlib import Path

from qmimic.cli.completion import complete, detectors
from qmimic.cli.grammar import Commands, add_json


def add(commands: Commands) -> None:
    """Add to the command line's grammar."""
    predict = commands.add_parser("predict", help="draw what a detector finds in pictures")
    detector = predict.add_argument(
        "detector", type=Path, help="a trained (.safetensors) or deployed file, or zoo:NAME"
    )
    complete(detector, detectors)
    predict.add_argument("images", type=Path, nargs="+", help="picture files, or folders of them")
    predict.add_argument("--out", type=Path, default=Path("drawn"), help="folder for the drawn pictures (drawn/)")
    predict.add_argument("--min-score", type=float, default=0.4, help="0..1")
    add_json(predict)
    predict.set_defaults(run=_predict)


def _predict(options: argparse.Namespace) -> int:
    from qmimic.cli.output import Output
    from qmimic.runtime.drawing import Finder, looked_at, pictures_of
    from qmimic.runtime.formats import is_deployed
    from qmimic.runtime.pictures import score_limit

    least = score_limit(options.min_score)
    out, plain, faults = Output(options), [], []

    def fault(sentence: str) -> None:
        faults.append(sentence)
        print(f"qmimic: {sentence}", file=sys.stderr)

    finder: Finder
    if is_deployed(options.detector):
        from qmimic.runtime.detector import Detector

        finder = Detector(options.detector)
    else:
        from qmimic.detectors.prediction import TrainedFinder

        finder = TrainedFinder(options.detector)
    pictures = pictures_of(options.images, fault)
    for one in looked_at(finder, pictures, options.out, least, fault):
        objects = one.detections.as_plain(finder.classes)
        out.result(f"{one.picture}: {len(objects)} objects, drawn in {one.drawing}")
        plain.append({"picture": one.picture, "drawing": one.drawing, "detections": objects})
    out.end({"pictures": plain, "faults": faults})
    return 1 if faults else 0
