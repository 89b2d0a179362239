"""`qmimic eval` and `qmimic score`: scores of a detector, or of detections from anywhere."""

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from qmimic.cli.completion import complete, detectors
from qmimic.cli.grammar import Commands, add_json
from qmimic.errors import single_line

if TYPE_CHECKING:
    from qmimic.data.sample import Dataset
    from qmimic.scores.summary import Scores


def add(commands: Commands) -> None:
    """Add to the command line's grammar."""
    evaluate = commands.add_parser("eval", help="score a detector, trained or deployed, on a split")
    detector = evaluate.add_argument(
        "detector", type=Path, help="a trained (.safetensors) or deployed file, or zoo:NAME"
    )
    complete(detector, detectors)
    evaluate.add_argument("--data", required=True, help="folder of a dataset, or synthetic:digits")
    evaluate.add_argument("--split", default="val")
    evaluate.add_argument("--detections", type=Path, help="also write the detections to this JSON file")
    evaluate.add_argument("--widerface", type=Path, help="also write them to this folder as WIDER FACE's text files")
    evaluate.add_argument(
        "--sizes",
        type=_size,
        nargs="+",
        default=[],
        metavar="HxW",
        help="run on the images at each of these sizes, pixels",
    )
    evaluate.add_argument("--flip", action="store_true", help="run on the mirrored images too")
    add_json(evaluate)
    evaluate.set_defaults(run=_evaluate)
    score = commands.add_parser("score", help="score detections from any program on a labelled split")
    truth = score.add_mutually_exclusive_group(required=True)
    truth.add_argument("--data", help="folder of a dataset")
    truth.add_argument("--widerface", type=Path, help="folder of WIDER FACE's ground truth, four .mat files")
    score.add_argument("--split", default="val", help="of --data")
    score.add_argument(
        "--detections",
        type=Path,
        required=True,
        help="COCO results, or what qmimic.runtime or predict print with --json; for WIDER FACE a folder",
    )
    add_json(score)
    score.set_defaults(run=_score)


def _size(text: str) -> tuple[int, int]:
    height, cross, width = text.partition("x")
    if not (cross and height.isdecimal() and width.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a size; write height x width, such as 480x640")
    return int(height), int(width)


def _evaluate(options: argparse.Namespace) -> int:
    from qmimic.api import classes_of, detect, open_detector
    from qmimic.data.formats import load_dataset
    from qmimic.data.splits import samples_of, with_classes
    from qmimic.scores.detections_file import coco_ids, write_detections
    from qmimic.scores.summary import score
    from qmimic.scores.widerface import write_detections as write_widerface

    detector = open_detector(options.detector)
    dataset = load_dataset(options.data)
    samples_of(dataset, options.split)  # report a wrong split first
    _say_split(dataset, options.split)
    dataset = with_classes(dataset, classes_of(detector))
    found = detect(detector, dataset, options.split, options.sizes, options.flip)
    if options.detections:
        write_detections(options.detections, found, dataset.classes, coco_ids(dataset, options.split))
    if options.widerface:
        write_widerface(options.widerface, found)
    return _print_scores(score(dataset, options.split, found), options.json)


def _say_split(dataset: "Dataset", split: str) -> None:
    from qmimic.data.splits import said_of

    said = said_of(dataset, split)
    if said:
        print(said)


def _score(options: argparse.Namespace) -> int:
    if options.widerface:
        return _score_widerface(options)
    from qmimic.data.formats import load_dataset
    from qmimic.scores.detections_file import read_detections
    from qmimic.scores.summary import score

    dataset = load_dataset(options.data)
    _say_split(dataset, options.split)
    found = read_detections(options.detections, dataset, options.split)
    return _print_scores(score(dataset, options.split, found), options.json)


def _score_widerface(options: argparse.Namespace) -> int:
    from qmimic.scores.widerface import LEVELS, read_detections, read_truth, widerface_ap

    truth = read_truth(options.widerface)
    found, said = read_detections(options.detections, truth)
    scores = widerface_ap(truth, found)
    values = {level: getattr(scores, level) for level in LEVELS}
    print("   ".join(f"{level} {100 * value:.1f}" for level, value in values.items()))
    print(f"{scores.detections:,} detections, lowest score {scores.lowest_score:g}", *said, sep="\n")
    if options.json:
        print(json.dumps(values))
    return 0


def _print_scores(scores: "Scores", as_json: bool) -> int:
    for name, own in scores.per_class.items():
        print(f"{single_line(name):<20} VOC07 {100 * own.ap07:5.1f}   VOC {100 * own.ap:5.1f}   boxes {own.positives}")
    mean = (
        f"VOC07 {100 * scores.voc07_map50:5.1f}   VOC {100 * scores.voc_map50:5.1f}   COCO {100 * scores.coco_map:5.1f}"
    )
    print(f"{'mean':<20} {mean}")
    if as_json:
        print(json.dumps(scores.as_json()))
    return 0
