"""`qmimic completion`: shell completion of commands, options, recipes, their keys and values, and runs."""

import argparse
import os
from collections.abc import Callable, Iterable
from pathlib import Path

from qmimic.cli.grammar import Commands, Parser

SHELLS = {
    "bash": 'eval "$(qmimic completion bash)"   # in ~/.bashrc',
    "zsh": 'eval "$(qmimic completion zsh)"    # in ~/.zshrc, after compinit',
    "fish": "qmimic completion fish | source     # in ~/.config/fish/config.fish",
}


def add(commands: Commands) -> None:
    """Add to the command line's grammar."""
    completion = commands.add_parser(
        "completion",
        help="let the shell complete commands, recipes, their keys and runs",
        epilog="\n".join(SHELLS.values()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    completion.add_argument("shell", choices=list(SHELLS), help="the shell to print the script for")
    completion.set_defaults(run=_completion)


def _completion(options: argparse.Namespace) -> int:
    from argcomplete.shell_integration import shellcode

    print(shellcode(["qmimic"], shell=options.shell))
    return 0


def asked() -> bool:
    """Whether the shell is asking for completions."""
    return "_ARGCOMPLETE" in os.environ


def answer(grammar: Parser) -> None:
    """Print the completions of the command line that the shell put into the environment, and exit."""
    import argcomplete

    argcomplete.autocomplete(grammar, always_complete_options=False)


def complete(argument: argparse.Action, names: Callable[[str], Iterable[str]]) -> None:
    """Set how an argument is completed, given what has been typed so far. Files need no completer."""

    def completer(prefix: str, **_: object) -> list[str]:
        return [name for name in names(prefix) if name.startswith(prefix)]

    argument.completer = completer  # type: ignore[attr-defined]


def files(prefix: str, *suffixes: str) -> list[str]:
    """Folders, and files with these suffixes, that begin with the prefix."""
    folder = Path(prefix if prefix.endswith("/") else Path(prefix).parent)
    head = "" if "/" not in prefix else prefix[: prefix.rindex("/") + 1]
    try:
        children = sorted(folder.expanduser().iterdir())
    except OSError:
        return []
    folders = [f"{head}{one.name}/" for one in children if one.is_dir() and not one.name.startswith(".")]
    return folders + [f"{head}{one.name}" for one in children if one.suffix in suffixes and one.is_file()]


def recipes(prefix: str) -> list[str]:
    """Embedded recipes and YAML files."""
    from qmimic.config import embedded_recipes

    return [*embedded_recipes(), *files(prefix, ".yaml", ".yml")]


def keys(prefix: str) -> list[str]:
    """Recipe keys with the equals sign; after it the values, if they can be listed."""
    from qmimic.config import settings

    key, equals, _ = prefix.partition("=")
    known = {one.key: one.choices for one in settings() if one.default is not None}
    return [f"{key}={value}" for value in known.get(key, ())] if equals else [f"{name}=" for name in known]


def detectors(prefix: str) -> list[str]:
    """Files of trained detectors."""
    return files(prefix, ".safetensors")


def runs_in(prefix: str) -> list[str]:
    """Folders, and names of runs in runs/."""
    try:
        names = sorted(one.name for one in Path("runs").iterdir() if one.is_dir())
    except OSError:
        names = []
    return [*names, *files(prefix)]
