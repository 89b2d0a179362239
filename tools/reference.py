"""Reference pages that cannot become stale: commands from their parsers, recipe keys from the recipe's own types.

`docs/conf.py` inserts them into the pages that have a line `% made: commands` or `% made: recipe`.
"""

import argparse
from collections.abc import Iterator

from qmimic.cli.entry import parser
from qmimic.config import settings
from qmimic.runtime.__main__ import grammar


def commands() -> str:
    """Every command of `qmimic` as Markdown: what it does, its usage, its arguments."""
    own = [*_leaves(parser(), ("qmimic",)), (("python -m qmimic.runtime",), grammar())]
    return "\n".join(line for path, one in own for line in _command(path, one))


def recipe() -> str:
    """Every key of a recipe as Markdown tables, one per section."""
    sections: dict[str, list[str]] = {"": []}
    heads = {"": "The run"}
    for one in settings():
        section, _, _ = one.key.rpartition(".")
        if one.default is None:
            heads[one.key], sections[one.key] = f"`{one.key}`", [f"{one.about}\n"]
            continue
        listed = one.choices if one.choices != ("true", "false") else ()
        choices = f"; one of {', '.join(f'`{name}`' for name in listed)}" if listed else ""
        said = f"{'*advanced*: ' if one.advanced else ''}{_cell(one.about)}{choices}"
        sections[section].append(f"| `{one.key}` | `{one.default or ' '}` | {said} |")
    lines = []
    for section, rows in sections.items():
        words = [row for row in rows if not row.startswith("|")]
        table = [row for row in rows if row.startswith("|")]
        lines += [f"## {heads[section]}", "", *words, "| key | default | what |", "|---|---|---|", *table, ""]
    return "\n".join(lines)


def _leaves(
    own: argparse.ArgumentParser, path: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], argparse.ArgumentParser]]:
    """A parser and its subcommands that do something, each with the words that lead to it."""
    inner = [action for action in own._actions if isinstance(action, argparse._SubParsersAction)]
    if not inner:
        yield path, own
    for action in inner:
        for name, below in action.choices.items():
            yield from _leaves(below, (*path, name))


def _command(path: tuple[str, ...], own: argparse.ArgumentParser) -> Iterator[str]:
    yield f"## {' '.join(path)}\n"
    said = _help_of(path) if path[0] == "qmimic" else "what a deployed detector finds, without torch"
    if said:
        yield f"{said[0].upper()}{said[1:]}.\n"
    usage = " ".join(own.format_usage().removeprefix("usage: ").split())
    yield f"```text\n{usage}\n```\n"
    rows = [action for action in own._actions if action.dest != "help"]
    if rows:
        yield "| argument | what |\n|---|---|"
    for action in rows:
        name = ", ".join(action.option_strings) or str(action.metavar or action.dest)
        default = action.default
        shown = "" if default in (None, False, [], "", argparse.SUPPRESS) else f" [{_plain(default)}]"
        choices = f"one of {', '.join(map(str, action.choices))}" if action.choices else ""
        yield f"| `{_cell(name)}` | {_cell('; '.join(filter(None, (action.help, choices))) + shown)} |"
    yield ""


def _help_of(path: tuple[str, ...]) -> str:
    """A command's description in its parent parser's list."""
    own = parser()
    said = ""
    for name in path[1:]:
        action = next(a for a in own._actions if isinstance(a, argparse._SubParsersAction))
        said = next((str(choice.help) for choice in action._choices_actions if choice.dest == name), "")
        own = action.choices[name]
    return said


def _plain(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
