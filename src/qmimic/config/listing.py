"""Every key of a recipe: for the help, the reference, refusals and the shell's completion."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from types import UnionType
from typing import Literal, Union, get_args, get_origin

from pydantic.fields import FieldInfo

from qmimic.config.base import ADVANCED, InTable, Section
from qmimic.config.recipe import Recipe

BOOLEAN = ("true", "false")


@dataclass(frozen=True)
class Setting:
    """A key of a recipe, or a section of it.

    Attributes:
        key: dotted.
        about: a sentence without its stop.
        default: as one would type it; None of a section.
        choices: the values that it may have; none where they cannot be listed.
        advanced: whether hardly anybody needs it.
    """

    key: str
    about: str
    default: str | None = None
    choices: tuple[str, ...] = ()
    advanced: bool = False

    def __str__(self) -> str:
        """What the help says of it."""
        if self.default is None:
            return self.about
        listed = f"; one of {', '.join(self.choices)}" if self.choices not in ((), BOOLEAN) else ""
        return f"{'advanced: ' if self.advanced else ''}{self.about} [{self.default}{listed}]"


def settings(section: type[Section] = Recipe, prefix: str = "") -> Iterator[Setting]:
    """Every section and key of a recipe, in order."""
    for name, field in section.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, Section):
            yield Setting(prefix + name, (kind.__doc__ or "").splitlines()[0])
            yield from settings(kind, f"{prefix}{name}.")
            continue
        default = "null" if field.default is None else _plain(field.default)
        advanced = ADVANCED in field.metadata
        yield Setting(prefix + name, field.description or "", default, _choices(field), advanced)


def _choices(field: FieldInfo) -> tuple[str, ...]:
    either = get_args(field.annotation) if get_origin(field.annotation) in (Union, UnionType) else ()
    told = [*field.metadata, *(one for kind in either for one in getattr(kind, "__metadata__", ()))]
    tables = [one.table for one in told if isinstance(one, InTable)]
    if tables:
        return tuple(tables[0])
    if field.annotation is bool:
        return BOOLEAN
    kinds = [kind for kind in (either or (field.annotation,)) if kind is not type(None)]
    if any(get_origin(kind) is not Literal for kind in kinds):
        return ()
    return tuple(str(one) for kind in kinds for one in get_args(kind))


def _plain(value: object) -> str:
    return json.dumps(value) if not isinstance(value, str) else value
