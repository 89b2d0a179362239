"""`qmimic predict`: what a detector finds, drawn."""

import argparse
from pathlib import Path

from qmimic.cli.completion import complete, detectors
from qmimic.cli.grammar import Commands, add_json


def add(commands: Commands) -> None:
    """Add to the command line's grammar."""
    predict = commands.add_parser("predict", help="draw what a detector finds in pictures")
    detector = predict.add_argument("detector", type=Path, help="a .safetensors file of a run")
    complete(detector, detectors)
    predict.add_argument("images", type=Path, nargs="+")
    predict.add_argument("--out", type=Path, required=True, help="folder for the drawn pictures")
    predict.add_argument("--min-score", type=float, default=0.4, help="0..1")
    add_json(predict)
    predict.set_defaults(run=_predict)


def _predict(options: argparse.Namespace) -> int:
    from qmimic.cli.output import Output
    from qmimic.detectors.prediction import draw_predictions

    out, pictures = Output(options), []
    for one in draw_predictions(options.detector, options.images, options.out, options.min_score):
        out.result(f"{one.picture}: {len(one.objects)} objects, drawn in {one.drawing}")
        pictures.append({"picture": one.picture, "drawing": one.drawing, "detections": one.objects})
    out.end({"pictures": pictures})
    return 0
