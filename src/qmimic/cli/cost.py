"""`qmimic cost`: what a detector costs, by its backbone."""

import argparse

from qmimic.cli.completion import complete
from qmimic.cli.grammar import OVERRIDES, Commands, add_json

READ = tuple(
    f"detector.{name}" for name in ("architecture", "levels", "output_stride", "head_width", "roi_size", "post_nms")
)


def add(commands: Commands) -> None:
    """Add to the command line's grammar."""
    cost = commands.add_parser(
        "cost", help="what a detector costs by its backbone, and other convolutions at equal cost"
    )
    cost.add_argument("backbone", help="family and width divisor, such as resnet18/16")
    cost.add_argument("--size", type=int, nargs=2, metavar=("H", "W"), default=(128, 128), help="image size, pixels")
    overrides = cost.add_argument(
        "--set", dest="overrides", nargs="+", default=[], metavar=OVERRIDES, help=f"recipe keys: {', '.join(READ)}"
    )
    complete(overrides, lambda _: [f"{key}=" for key in READ])
    add_json(cost)
    cost.set_defaults(run=_cost)


def _cost(options: argparse.Namespace) -> int:
    from qmimic.api import build_detector
    from qmimic.cli.output import Output, table
    from qmimic.config import load_recipe
    from qmimic.config.reading import named_keys, refuse_keys
    from qmimic.detectors.build import equal_cost, mac_count, parameter_count
    from qmimic.run.effects import refuse_idle
    from qmimic.tables import BACKBONES, parse_backbone

    family, _ = parse_backbone(options.backbone)
    refuse_keys(options.overrides, READ, "cost", "only what decides a detector's layers and their number of regions")
    recipe = load_recipe(None, options.overrides)
    refuse_idle(recipe, named_keys(options.overrides), "--set")
    detector = build_detector(options.backbone, ("object",), tuple(options.size), config=recipe.detector)
    names = [equal_cost(detector.spec, other) for other in BACKBONES if other.startswith(f"{family}_")]
    costs = []
    for name in (options.backbone, *names):
        own = build_detector(name, ("object",), detector.spec.size, config=recipe.detector)
        costs.append({"backbone": name, "macs": mac_count(own), "parameters": parameter_count(own)})
    out = Output(options)
    rows = [(one["backbone"], f"{one['macs'] / 1e6:.2f}", f"{one['parameters']:,}") for one in costs]
    out.result(table(("backbone", "MMACs", "parameters"), rows))
    out.end({"size": list(detector.spec.size), "backbones": costs})
    return 0
