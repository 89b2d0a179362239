"""`qmimic cost`: what a backbone costs."""

import argparse

from qmimic.cli.grammar import Commands


def add(commands: Commands) -> None:
    """Add to the command line's grammar."""
    cost = commands.add_parser("cost", help="what a backbone costs, and baselines of other convolutions at equal cost")
    cost.add_argument("backbone", help="family and width divisor, such as resnet18/16")
    cost.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), default=(128, 128), help="image size, pixels")
    cost.set_defaults(run=_cost)


def _cost(options: argparse.Namespace) -> int:
    from qmimic.api import build_detector
    from qmimic.models.backbones import BACKBONES, parse_name
    from qmimic.models.detectors import at_size, equal_cost, mac_count, parameter_count

    family, _ = parse_name(options.backbone)
    detector = at_size(build_detector(options.backbone, ("object",)), tuple(options.size))
    names = [equal_cost(detector.spec, other) for other in BACKBONES if other.startswith(f"{family}_")]
    for name in (options.backbone, *names):
        own = build_detector(name, ("object",), detector.spec.size)
        print(f"{name:<26} {mac_count(own) / 1e6:8.2f} MMACs  {parameter_count(own):>10,} parameters")
    return 0
