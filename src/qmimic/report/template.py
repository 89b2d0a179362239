"""The report's templates, which escape what they are given, and their number formats."""

import math
from collections.abc import Callable
from importlib.metadata import version
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from qmimic.scores.bootstrap import Interval
from qmimic.scores.statistics import Estimate

NONE = "\N{EN DASH}"


def environment() -> Environment:
    """The environment of the templates: escaping, and the filters for numbers."""
    found = Environment(
        loader=PackageLoader("qmimic.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    found.globals["version"] = version("qmimic")
    found.filters |= {
        "percent": percent,
        "gain": gain,
        "mean_gain": mean_gain,
        "points": points,
        "count": count,
        "millions": lambda value: _number(value, lambda own: f"{own / 1e6:.1f}"),
        "kilobytes": lambda value: _number(value, lambda own: f"{own / 1000:.0f}"),
        "ms": lambda value: _number(value, lambda own: f"{own:.2f}"),
        "svg": labelled,
    }
    return found


def percent(value: float | None) -> str:
    """A share in per cent, to one decimal."""
    return _number(value, lambda own: f"{100 * own:.1f}")


def count(value: int | None) -> str:
    """A whole number with its digits in groups of three."""
    return _number(value, lambda own: f"{own:,.0f}")


def gain(value: Interval | None) -> str:
    """A difference in percentage points with its interval, as in `+1.2 [-0.3, +2.7]`."""
    if value is None or math.isnan(value.value):
        return NONE
    return f"{_signed(value.value)} [{_signed(value.low)}, {_signed(value.high)}]"


def mean_gain(value: Estimate | None) -> str:
    """A mean difference in percentage points with its interval over repetitions."""
    return NONE if value is None else gain(Interval(value.mean, value.mean - value.margin, value.mean + value.margin))


def points(value: float | None) -> str:
    """A difference in percentage points."""
    return _number(value, _signed)


def labelled(svg: str, label: str) -> Markup:
    """One of our figures, with a label for readers who cannot see it."""
    head = Markup('<svg role="img" aria-label="{}"').format(label)
    return Markup(svg.replace("<svg", str(head), 1))  # matplotlib escapes what it writes


def _signed(value: float) -> str:
    return f"{100 * value:+.1f}".replace("-", "\N{MINUS SIGN}")


def _number(value: Any, text: Callable[[float], str]) -> str:
    known = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    return text(value) if known else NONE
