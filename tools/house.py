"""The house of docs/architecture.md: its floors as that page lists them, its arrows from the imports in the code.

    python tools/house.py        # redraws docs/pictures/house.svg

The list of floors is the first indented block of the page. `upward` lists every import that breaks its one rule; the
tests require that there are none.
"""

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
PACKAGE = ROOT / "src" / "qmimic"
PICTURE = ROOT / "docs" / "pictures" / "house.svg"
OUTSIDE = {"__init__", "__main__"}  # the doors: they may import from any floor

ROW, GAP, LEFT, WIDTH = 30, 8, 16, 620  # pixels
# Colour-blind safe (Okabe and Ito), by thirds of the house.
COLOURS = ("#0072B2", "#009E73", "#D55E00")


@dataclass(frozen=True)
class Floor:
    """A floor: its modules, and what the page says about them."""

    modules: tuple[str, ...]
    text: str


@dataclass(frozen=True)
class Import:
    """A file imports from a module."""

    file: Path
    user: str
    used: str


def floors(page: str) -> list[Floor]:
    """The floors that a page lists, from the top down."""
    block: list[str] = []
    for line in page.splitlines():
        if line.startswith("    "):
            block.append(line.strip())
        elif block:
            break
    return [_floor(line) for line in block]


def _floor(line: str) -> Floor:
    modules, rest = [], line
    while True:  # names and commas first, words after them
        name, _, rest = rest.partition(" ")
        modules.append(name.rstrip(","))
        rest = rest.lstrip()
        if not name.endswith(","):
            return Floor(tuple(modules), rest)


def imports(package: Path) -> Iterator[Import]:
    """Every import from one module of a package to another, even inside functions; a folder counts as one module."""
    for file in sorted(package.rglob("*.py")):
        user = file.relative_to(package).parts[0].removesuffix(".py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
                names = [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            for name in names:
                top, *inner = name.split(".")
                if top == package.name and inner and inner[0] != user and user not in OUTSIDE:
                    yield Import(file, user, inner[0])


def upward(house: list[Floor], found: list[Import]) -> list[str]:
    """Imports that lead up, or to a neighbour on the same floor (except the lowest), and modules without a floor."""
    place = {module: number for number, floor in enumerate(house) for module in floor.modules}
    ground = len(house) - 1
    wrong = []
    for one in found:
        unknown = [name for name in (one.user, one.used) if name not in place]
        if unknown:
            wrong.append(f"{one.file}: {unknown[0]} has no floor")
        elif place[one.used] < place[one.user] or place[one.used] == place[one.user] != ground:
            wrong.append(f"{one.file}: {one.user} imports {one.used}, which is not on a lower floor")
    return wrong


def drawing(house: list[Floor], found: list[Import]) -> str:
    """The house as SVG; readable on dark pages too, since it has its own background."""
    place = {module: number for number, floor in enumerate(house) for module in floor.modules}
    files = Counter({(place[one.user], place[one.used]): 0 for one in found})
    for user, used, _ in {(place[one.user], place[one.used], one.file) for one in found}:
        files[user, used] += 1
    height = len(house) * (ROW + GAP) + GAP
    right = LEFT + WIDTH
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {right + 190} {height}" '
        'font-family="sans-serif" font-size="13" role="img" aria-label="Floors of the package and their imports">',
        f'<rect width="{right + 190}" height="{height}" rx="6" fill="#ffffff"/>',
    ]
    for (user, used), count in sorted(files.items()):
        if user == used:
            continue
        start, end = (GAP + number * (ROW + GAP) + ROW / 2 for number in (user, used))
        bend = right + 20 + 150 * ((used - user) / len(house)) ** 0.5 * 1.3
        thick, low, colour = min(1 + count / 4, 5), end - 3, COLOURS[3 * user // len(house)]
        parts.append(
            f'<path d="M{right} {start:g}C{bend:.0f} {start:g} {bend:.0f} {low:g} {right + 7} {low:g}" fill="none" '
            f'stroke="{colour}" stroke-opacity=".45" stroke-width="{thick:g}"/>'
            f'<path d="M{right + 1} {low:g}l8 -4v8z" fill="{colour}"/>'
        )
    for number, floor in enumerate(house):
        top = GAP + number * (ROW + GAP)
        colour = COLOURS[3 * number // len(house)]
        names = ", ".join(floor.modules)
        text = f'<tspan font-weight="bold" fill="{colour}">{escape(names)}</tspan>'
        if len(names) + len(floor.text) < 95:
            text += f'<tspan fill="#333333" dx="10">{escape(floor.text)}</tspan>'
        parts.append(
            f'<rect x="{LEFT}" y="{top}" width="{WIDTH}" height="{ROW}" rx="4" fill="#f6f8fa" stroke="{colour}"/>'
            f'<text x="{LEFT + 10}" y="{top + 19.5:g}">{text}</text>'
        )
    return "\n".join([*parts, "</svg>", ""])


def main() -> int:
    """Draw; if imports lead up, print them and return 1."""
    house, found = floors(PAGE.read_text(encoding="utf-8")), list(imports(PACKAGE))
    wrong = upward(house, found)
    print(*wrong, sep="\n", end="\n" if wrong else "")
    if wrong:
        return 1
    PICTURE.write_text(drawing(house, found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
