"""Panels of a report as inline SVG: text stays text, and the colours are the page's own, light or dark.

Each is as wide as a phone, so that a page can show several side by side. Each network has its own colour (of Okabe and
Ito), line style and marker, so that none is recognised by colour alone.
"""

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure

WIDTH = 3.5  # inches: 336 CSS pixels
# Placeholders for the page's colours while a figure is drawn; no other colour is used.
PAGE_COLOURS = {
    "#111111": "var(--ink)",
    "#666666": "var(--muted)",
    "#dddddd": "var(--rule)",
    "#0072b2": "var(--blue)",
    "#d55e00": "var(--vermillion)",
    "#009e73": "var(--green)",
    "#cc79a7": "var(--purple)",
    "#e69f00": "var(--orange)",
    "#56b4e9": "var(--sky)",
}
INK, MUTED, RULE, BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY = PAGE_COLOURS
SETTINGS = {
    "svg.fonttype": "none",
    "text.parse_math": False,  # a class may be called $x$
    "font.size": 8.5,
    "axes.titlesize": 9,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "lines.linewidth": 1.5,
    "legend.frameon": False,
}


@dataclass(frozen=True)
class Style:
    """How a network is drawn in every figure of a page: colour, dashes and marker of matplotlib."""

    colour: str
    dashes: str
    marker: str


FIXED = {
    "teacher": Style(INK, "-", "s"),
    "quantized teacher": Style(MUTED, "--", "D"),
    "scratch": Style(VERMILLION, "-", "v"),
    "mimic": Style(GREEN, "-.", "^"),
}
STUDENT = Style(BLUE, "-", "o")
OTHERS = [
    Style(PURPLE, ":", "P"),
    Style(ORANGE, "--", "X"),
    Style(SKY, "-.", "<"),
    Style(PURPLE, "--", ">"),
    Style(ORANGE, ":", "h"),
    Style(SKY, "-", "p"),
]


@dataclass(frozen=True)
class Panel:
    """A figure of one panel: the SVG, and its description for readers who cannot see it."""

    svg: str
    label: str


def styles(titles: Sequence[str]) -> dict[str, Style]:
    """The style of each network; unusual networks take the remaining styles in turn."""
    others = iter(OTHERS * (1 + len(titles) // len(OTHERS)))
    found = {}
    for title in titles:
        usual = STUDENT if title.startswith("student") else FIXED.get(title.partition(" (")[0])
        found[title] = usual or next(others)
    return found


@contextmanager
def panel(name: str, height: float, width: float = WIDTH) -> Iterator[tuple[Axes, list[str]]]:
    """Axes to draw on, and a list that receives the SVG at the end.

    Args:
        name: unique on the page; ids inside the SVG are made from it.
        height, width: inches.
    """
    # Drawing happens on saving, so everything runs inside these settings.
    with mpl.rc_context({**SETTINGS, "svg.hashsalt": name}):
        figure = Figure(figsize=(width, height), layout="constrained")
        figure.patch.set_visible(False)
        axes = figure.subplots()
        axes.patch.set_visible(False)
        out: list[str] = []
        yield axes, out
        raw = io.StringIO()
        with warnings.catch_warnings():  # about glyphs that our font lacks; the reader's font has them
            warnings.simplefilter("ignore", UserWarning)
            figure.savefig(raw, format="svg", metadata={"Date": None})
    out.append(_for_page(raw.getvalue(), name))


def _for_page(svg: str, name: str) -> str:
    """An SVG file for inlining: without header and metadata, with the page's colours and unique ids."""
    svg = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    colours = re.compile("|".join(PAGE_COLOURS), re.IGNORECASE)

    def own(match: re.Match[str]) -> str:
        """A tag; the text between tags is labels and stays as it is."""
        tag = re.sub(r' (width|height)="[^"]*pt"', "", match[0]) if match[0].startswith("<svg") else match[0]
        tag = re.sub(r'( id="|xlink:href="#|url\(#)', rf"\1{name}-", tag)
        return colours.sub(lambda found: PAGE_COLOURS[found[0].lower()], tag)

    return re.sub(r"<[^>]+>", own, svg)


def swatch(style: Style) -> Markup:
    """A style's line and marker, for a legend in the page."""
    dashes = {"-": "", "--": "5 3", "-.": "6 2 1.5 2", ":": "1.5 2.5"}[style.dashes]
    marks = {
        "o": '<circle cx="14" cy="6" r="3.4"/>',
        "s": '<rect x="10.8" y="2.8" width="6.4" height="6.4"/>',
        "D": '<path d="M14 1.8 18.2 6 14 10.2 9.8 6Z"/>',
        "v": '<path d="M10 2.8h8L14 10Z"/>',
        "^": '<path d="M10 9.2h8L14 2Z"/>',
        "<": '<path d="M17.6 2v8L10.4 6Z"/>',
        ">": '<path d="M10.4 2v8L17.6 6Z"/>',
        "P": '<path d="M12.6 2h2.8v2.6H18v2.8h-2.6V10h-2.8V7.4H10V4.6h2.6Z"/>',
        "X": '<path d="M11.3 2 14 4.6 16.7 2 18 3.3 15.4 6 18 8.7 16.7 10 14 7.4 11.3 10 10 8.7 12.6 6 10 3.3Z"/>',
        "h": '<path d="M14 1.8 17.6 3.9v4.2L14 10.2 10.4 8.1V3.9Z"/>',
        "p": '<path d="M14 1.8 18 4.8 16.5 9.6h-5L10 4.8Z"/>',
    }
    colour = PAGE_COLOURS[style.colour]
    return Markup(
        f'<svg class="swatch" viewBox="0 0 28 12" aria-hidden="true" style="color:{colour}">'
        f'<path d="M0 6H28" fill="none" stroke="currentColor" stroke-width="2" stroke-dasharray="{dashes}"/>'
        f'<g fill="currentColor">{marks[style.marker]}</g></svg>'
    )
