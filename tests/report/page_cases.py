"""A page as a browser's parser sees it, and names that have to be escaped."""

from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path

EVIL = "<script>alert(1)</script>"
CLASSES = (EVIL, "$x^{ & \"'")  # a tag, and what matplotlib would read as mathematics


@dataclass
class Page(HTMLParser):
    """What a page holds.

    Attributes:
        tags: every opening tag with its attributes.
        text: by section id, all text in it, spaces squeezed; under "" that outside of sections.
        rows: of every table its rows of cells' texts, by caption.
    """

    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    text: dict[str, str] = field(default_factory=dict)
    rows: dict[str, list[list[str]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()
        self._section, self._caption, self._cell, self._open = "", "", False, ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        own = dict(attrs)
        self.tags.append((tag, own))
        if tag == "section":
            self._section = own["id"] or ""
        elif tag == "caption":
            self._caption, self._open = "", "caption"
        elif tag == "tr":
            self.rows.setdefault(self._caption, []).append([])
        elif tag in ("td", "th"):
            self.rows[self._caption][-1].append("")
            self._open = "cell"

    def handle_endtag(self, tag: str) -> None:
        if tag == "section":
            self._section = ""
        if tag in ("caption", "td", "th"):
            self._open = ""

    def handle_data(self, data: str) -> None:
        words = " ".join(data.split())
        self.text[self._section] = f"{self.text.get(self._section, '')} {words}".strip()
        if self._open == "caption":
            self._caption = f"{self._caption} {words}".strip()
        elif self._open == "cell":
            self.rows[self._caption][-1][-1] = f"{self.rows[self._caption][-1][-1]} {words}".strip()

    def table(self, start: str) -> list[list[str]]:
        """The rows, head first, of the table whose caption starts like this."""
        return next(rows for caption, rows in self.rows.items() if caption.startswith(start))


def read_page(path: Path) -> Page:
    page = Page()
    page.feed(path.read_text(encoding="utf-8"))
    page.close()
    return page
