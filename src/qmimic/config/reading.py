"""From YAML and `key.sub=value` to a checked recipe, or to one sentence on what is wrong with it; and back to YAML."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from qmimic.config.base import Section
from qmimic.config.listing import settings
from qmimic.config.recipe import Recipe
from qmimic.errors import InputError
from qmimic.files import MissingError, read_bytes, write_text
from qmimic.plain_words import in_words
from qmimic.tables import look_up, near, unknown
from qmimic.yaml_text import parse_yaml

MAX_RECIPE_BYTES = 1 << 20


def embedded_recipes() -> dict[str, Path]:
    """The recipes that come with qmimic: names, such as `demo`, and their files."""
    return {path.stem: path for path in sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))}


def recipe_file(path: Path) -> Path:
    """The file of a recipe that is named by its path, or by the name of an embedded one. A file that is there wins.

    Raises:
        InputError: it is not the name of a file, nor of an embedded recipe.
    """
    if path.is_file() or path.suffix or len(path.parts) > 1:
        return path
    return look_up(embedded_recipes(), path.name, "recipe")


def load_recipe(path: Path | str | None, overrides: list[str]) -> Recipe:
    """Read a recipe and apply `key.sub=value` overrides, whose values are YAML.

    Args:
        path: of a YAML file, or the name of an embedded recipe; None: the defaults.
        overrides: changes to it.

    Raises:
        InputError: the file is missing, is not YAML, or has an unknown key (the nearest one is named) or a bad value.
    """
    tree = _tree(overrides, load_tree(recipe_file(Path(path)), "recipe") if path else {})
    return recipe_from(tree, str(path) if path else "the overrides", overrides)


def named_keys(overrides: Sequence[str]) -> list[str]:
    """The dotted keys that `key.sub=value` overrides set, also where a value is a whole section.

    Raises:
        InputError: one of them is not an override.
    """
    return keys_of(_tree(overrides, {}))


def refuse_keys(overrides: Sequence[str], reads: Sequence[str], command: str, reason: str) -> None:
    """Refuse overrides that a command would accept and not use.

    Args:
        overrides: as typed.
        reads: keys that the command reads, and sections of which it reads all.
        command: its name, for the message.
        reason: why it reads no others, a clause.

    Raises:
        InputError: one of the keys is none of these.
    """
    for key in named_keys(overrides):
        if not any(key == one or key.startswith(f"{one}.") for one in reads):
            raise InputError(f"--set {key}: `qmimic {command}` does not use this key, {reason}; leave it out.")


def keys_of(tree: Mapping[str, Any]) -> list[str]:
    """The dotted keys that a recipe's plain values set."""
    return list(_leaves(tree))


def _leaves(tree: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in tree.items():
        field = Recipe.model_fields.get(f"{prefix}{key}")
        kind = field.annotation if field else None
        if isinstance(value, dict) and isinstance(kind, type) and issubclass(kind, Section):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _tree(overrides: Sequence[str], tree: dict[str, Any]) -> dict[str, Any]:
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals or not key:
            raise InputError(
                f"{override[:100]!r} is not an override; write key.sub=value, for example data.root=photos/."
            )
        put(tree, key, parse_yaml(value, override[:100]), override[:100])
    return tree


def load_tree(path: Path, what: str) -> dict[str, Any]:
    """The plain values of a YAML file of `key: value` lines; `what` is how an error calls it.

    Raises:
        InputError: the file is missing, too large, or not such YAML.
    """
    try:
        raw = read_bytes(path, MAX_RECIPE_BYTES)
    except MissingError as error:
        raise InputError(f"Cannot read the {what} {path}: there is no such file; name a YAML file.") from error
    tree = parse_yaml(raw.decode("utf-8", "replace"), str(path))
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise InputError(f"{path} is not a {what}: it needs `key: value` lines.")
    # A section whose lines are all commented out is an empty one: the defaults.
    return {key: value for key, value in tree.items() if value is not None}


def put(tree: dict[str, Any], key: str, value: Any, source: str) -> None:
    """Set a dotted key of a recipe's plain values; `source` is how an error calls the setting.

    Raises:
        InputError: the key goes through a value.
    """
    *parents, leaf = key.split(".")
    node = tree
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise InputError(f"In {source}, {parent} is a value, not a section; see `qmimic train --help`.")
    node[leaf] = value


def recipe_from(tree: dict[str, Any], source: str, overrides: Sequence[str] = ()) -> Recipe:
    """A checked recipe from plain values.

    Args:
        tree: the values, overrides applied.
        source: how an error calls where they stand.
        overrides: what an error blames where the key is theirs.

    Raises:
        InputError: an unknown key, a value of the wrong type, or settings that exclude each other.
    """
    try:
        return Recipe.model_validate(tree)
    except ValidationError as error:
        key = ".".join(str(part) for part in error.errors()[0]["loc"])
        own = (one for one in reversed(overrides) if f"{key}.".startswith(f"{one.partition('=')[0]}."))
        raise InputError(f"In {next(own, source)[:200]}: {explain(error)}") from error


def explain(error: ValidationError) -> str:
    """The first fault of a validation as one sentence that names the key, the fault and the fix."""
    first = error.errors()[0]
    key = ".".join(str(part) for part in first["loc"])
    known = {one.key: one for one in settings()}
    parent, _, last = key.rpartition(".")
    if first["type"] == "extra_forbidden":
        same = [name for name in known if name.rpartition(".")[2] == key]  # the section was forgotten
        meant = same[0] if same else near(key, known)
        hint = f"did you mean {meant}?" if meant else "`qmimic train --help` lists the keys."
        return f"unknown key {key!r}; {hint}"
    words: list[str] = []
    if key not in known and parent in known and not last.isdigit():
        key = parent  # of a union, pydantic adds the kind that it tried, and tells of the others too
        others = [one for one in error.errors()[1:] if one["loc"][:-1] == first["loc"][:-1]]
        words = [one["ctx"]["expected"].replace("'", "") for one in others if one["type"] == "literal_error"]
    given, message = first.get("input"), in_words(first)
    if words:
        message = f"{message} or {' or '.join(words)}"
    if first["type"] == "sentence":
        return message if first["ctx"]["names"] in (key, parent) else f"{key}: {message}"
    if first["type"] == "literal_error" and isinstance(given, str) and key in known:
        return unknown(key, given, known[key].choices)
    if first["type"] == "missing" and last.isdigit():
        return f"{parent}: needs more values than the {last} given."
    if first["type"] in ("tuple_type", "list_type"):
        message, given = message if given is None else f"{message}, such as [{given}, ...]", None
    plain = isinstance(given, str | int | float | bool | list) and first["type"] != "missing"
    shown = f" (given: {given!r})" if plain and len(repr(given)) < 200 else ""
    return f"{key}: {message}{shown}." if key and not message.startswith(key) else f"{message}."


def save_recipe(recipe: Recipe, path: Path) -> None:
    """Write the resolved recipe as YAML."""
    write_text(path, recipe_text(recipe))


def recipe_text(recipe: Recipe) -> str:
    """The resolved recipe as YAML."""
    text: str = yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
    return text
