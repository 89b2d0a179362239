"""`qmimic train` and `qmimic schema`: a recipe to a run folder."""

import argparse
import json
from pathlib import Path

from qmimic.cli.grammar import OVERRIDES, Commands


def add(commands: Commands) -> None:
    """Add to the command line's grammar."""
    from qmimic.config import settings

    keys = "\n".join(f"  {key:<34} {text}" for key, text in settings())
    train = commands.add_parser(
        "train",
        help="recipe to run folder: teacher, quantized teacher, student, baselines",
        epilog=f"keys, with their defaults:\n{keys}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    train.add_argument("recipe", type=Path, help="a YAML file, such as recipes/bccd.yaml")
    train.add_argument("overrides", nargs="*", metavar=OVERRIDES, help="changes to the recipe, listed below")
    train.set_defaults(run=_train, resumes=True)
    schema = commands.add_parser("schema", help="print the recipe's JSON schema, for editors")
    schema.set_defaults(run=_schema)


def _train(options: argparse.Namespace) -> int:
    from accelerate import PartialState
    from rich.table import Table

    from qmimic.config import load_recipe
    from qmimic.pipeline.run import COLUMNS, rows, train
    from qmimic.training.progress import Bar, Screen

    recipe = load_recipe(options.recipe, options.overrides)
    console = Screen()
    if not console.is_terminal:
        console.width = 140  # a file or a pipe has no width of its own
    with Bar(console) as bar:
        result = train(recipe, bar)
    if not PartialState().is_main_process:
        return 0
    table = Table(*COLUMNS, title=f"{recipe.name}, val split, seed {recipe.seed} (mAP and matching in %)")
    for row in rows(result.results):
        table.add_row(*row)
    console.print(table)
    for remark in result.remarks:
        console.print(remark, highlight=False, soft_wrap=True)
    console.print(f"Table: {result.folder / 'results.md'}   pictures: {result.folder / 'examples.png'}", soft_wrap=True)
    if result.report:
        console.print(f"Report: {result.report}", highlight=False, soft_wrap=True)
    console.print(f"To ship: {result.student}", highlight=False, soft_wrap=True)
    return 0


def _schema(options: argparse.Namespace) -> int:
    from qmimic.config import Recipe

    print(json.dumps(Recipe.model_json_schema(), indent=1))
    return 0
