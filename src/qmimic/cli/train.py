"""`qmimic train` and `qmimic schema`: from a recipe to a run folder."""

import argparse
import json
from dataclasses import asdict
from pathlib import Path

from qmimic.cli.completion import complete, keys, recipes
from qmimic.cli.grammar import OVERRIDES, Commands, add_json


def add(commands: Commands) -> None:
    """Add to the command line's grammar."""
    train = commands.add_parser(
        "train",
        help="train a recipe: teacher, quantized teacher, student, baselines",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        more=_keys,
    )
    recipe = train.add_argument(
        "recipe", type=Path, help="a YAML file, or the name of an embedded recipe, such as demo"
    )
    complete(recipe, recipes)
    overrides = train.add_argument("overrides", nargs="*", metavar=OVERRIDES, help="changes to the recipe; see below")
    complete(overrides, keys)
    add_json(train)
    train.set_defaults(run=_train, resumes=True)
    schema = commands.add_parser("schema", help="print the recipe's JSON schema, for editors")
    schema.set_defaults(run=_schema)


def _keys() -> str:
    from qmimic.config import embedded_recipes, settings

    keys = "\n".join(f"  {one.key:<34} {one}" for one in settings())
    return f"embedded recipes: {', '.join(embedded_recipes())}\n\nkeys, with their defaults:\n{keys}"


def _train(options: argparse.Namespace) -> int:
    from accelerate import PartialState

    from qmimic.api import write_report_of
    from qmimic.cli.output import Output, table
    from qmimic.config import recipe_text
    from qmimic.run.effects import recipe_to_train
    from qmimic.run.train import SHORT_COLUMNS, short_rows, train
    from qmimic.tables import taught_by

    recipe = recipe_to_train(options.recipe, options.overrides)
    out = Output(options)
    out.detail(f"The resolved recipe; the run goes to {recipe.folder}:\n{recipe_text(recipe)}")
    with out.watching() as watcher:
        result = train(recipe, watcher)
        page = write_report_of(result, recipe, watcher)
    if not PartialState().is_main_process:
        return 0
    how = taught_by(recipe.mimic.mode, recipe.mimic.distiller)
    title = f"{recipe.name}, val split, seed {recipe.seed}; student: {how}"
    out.result(table(SHORT_COLUMNS, short_rows(result.results), title, words=2), *result.remarks)
    if recipe.published:
        listed = ", ".join(f"{name.replace('_', ' ')} {figure}" for name, figure in recipe.published.items())
        out.result(f"Published by others, in %: {listed}.")
    out.result(f"Table: {result.folder / 'results.md'}   pictures: {result.folder / 'examples.png'}")
    if page:
        out.result(f"Report: {page}")
    out.result(f"To ship: {result.best}")
    networks = [asdict(one) for one in result.results]
    files = {"folder": result.folder, "student": result.student, "best": result.best}
    out.end({**files, "networks": networks, "remarks": list(result.remarks)})
    return 0


def _schema(options: argparse.Namespace) -> int:
    from qmimic.config import Recipe

    print(json.dumps(Recipe.model_json_schema(), indent=1))
    return 0
