"""`qmimic cost`: what a backbone costs."""

import argparse

from qmimic.cli.grammar import Commands, add_json


def add(commands: Commands) -> None:
    """Add to the command line's grammar."""
    cost = commands.add_parser("cost", help="what a backbone costs, and other convolutions at equal cost")
    cost.add_argument("backbone", help="family and width divisor, such as resnet18/16")
    cost.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), default=(128, 128), help="image size, pixels")
    add_json(cost)
    cost.set_defaults(run=_cost)


def _cost(options: argparse.Namespace) -> int:
    from qmimic.api import build_detector
    from qmimic.cli.output import Output, table
    from qmimic.detectors.build import at_size, equal_cost, mac_count, parameter_count
    from qmimic.tables import BACKBONES, parse_backbone

    family, _ = parse_backbone(options.backbone)
    detector = at_size(build_detector(options.backbone, ("object",)), tuple(options.size))
    names = [equal_cost(detector.spec, other) for other in BACKBONES if other.startswith(f"{family}_")]
    costs = []
    for name in (options.backbone, *names):
        own = build_detector(name, ("object",), detector.spec.size)
        costs.append({"backbone": name, "macs": mac_count(own), "parameters": parameter_count(own)})
    out = Output(options)
    rows = [(one["backbone"], f"{one['macs'] / 1e6:.2f}", f"{one['parameters']:,}") for one in costs]
    out.result(table(("backbone", "MMACs", "parameters"), rows))
    out.end({"size": list(detector.spec.size), "backbones": costs})
    return 0
