"""What the commands' arguments have in common."""

import argparse
from typing import NoReturn, TypeAlias

from qmimic.errors import InputError

OVERRIDES = "key.sub=value"
Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"  # where a command adds its parser


class Parser(argparse.ArgumentParser):
    """Bad arguments are bad input like any other: one sentence, without the grammar above it."""

    def error(self, message: str) -> NoReturn:
        """See `argparse`."""
        raise InputError(f"{message}; see `{self.prog} --help`.")


def targets(text: str) -> list[str]:
    """Names of formats to ship in, from `--to`. Raises InputError: one is no format."""
    from qmimic.export.ship import TARGETS

    names = list(dict.fromkeys(text.split(",")))
    unknown = next((name for name in names if name not in TARGETS), None)
    if unknown is not None:
        raise InputError(f"--to {unknown} is no format; give one or more of {','.join(TARGETS)}.")
    return names
