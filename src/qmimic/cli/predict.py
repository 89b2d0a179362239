"""`qmimic predict`: what a detector finds, drawn."""

import argparse
from pathlib import Path

from qmimic.cli.grammar import Commands


def add(commands: Commands) -> None:
    """Add to the command line's grammar."""
    predict = commands.add_parser("predict", help="draw what a detector finds in pictures")
    predict.add_argument("detector", type=Path, help="a .safetensors file of a run")
    predict.add_argument("images", type=Path, nargs="+")
    predict.add_argument("--out", type=Path, required=True, help="folder for the drawn pictures")
    predict.add_argument("--min-score", type=float, default=0.4, help="0..1")
    predict.set_defaults(run=_predict)


def _predict(options: argparse.Namespace) -> int:
    from qmimic.prediction import draw_predictions

    for path, count, target in draw_predictions(options.detector, options.images, options.out, options.min_score):
        print(f"{path}: {count} objects, drawn in {target}")
    return 0
