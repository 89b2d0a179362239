"""The documentation as the tests read it: every command, Python block and YAML block, page by page."""

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parents[2]
OUTSIDE = ("README.md", "CONTRIBUTING.md", "SECURITY.md", "benchmarks/README.md")
PAGES = sorted([*(ROOT / name for name in OUTSIDE), *(ROOT / "docs").rglob("*.md")])
# A line of a code block that begins with one of these is a command.
PROGRAMS = ("qmimic", "python", "pip", "make", "docker", "accelerate", "torchrun", "cc", "scp", "curl")
ASSIGNMENT = re.compile(r"[A-Z_]+=\S+")
PLAIN = ("", "sh", "console", "bash", "shell")  # blocks that may hold commands; the others are output or files


@dataclass(frozen=True)
class Command:
    """A command of a page: its words, without comment and without variables set for it."""

    page: Path
    line: int
    words: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}: {shlex.join(self.words)}"


@dataclass(frozen=True)
class Block:
    """A block of code of a page."""

    page: Path
    line: int
    language: str
    text: str


def blocks(page: Path) -> list[Block]:
    """All code blocks of a page, indented ones with the language ""."""
    tokens = MarkdownIt().parse(page.read_text(encoding="utf-8"))
    return [
        Block(page, (token.map or [0])[0] + 1, token.info.split(" ")[0], token.content)
        for token in tokens
        if token.type in ("fence", "code_block")
    ]


def inline(page: Path) -> list[str]:
    """All code that stands within sentences and tables."""
    text = MarkdownIt("commonmark").enable("table").parse(page.read_text(encoding="utf-8"))
    return [child.content for token in text for child in token.children or () if child.type == "code_inline"]


def commands(page: Path) -> list[Command]:
    """The commands of a page, in order."""
    found = []
    for block in blocks(page):
        if block.language not in PLAIN:
            continue
        for number, line in enumerate(block.text.splitlines()):
            first = line.strip().removeprefix("$ ").split(" ")
            while first and ASSIGNMENT.fullmatch(first[0]):
                first.pop(0)
            if first and first[0] in PROGRAMS:
                words = shlex.split(" ".join(first), comments=True)
                words = words[: words.index("|")] if "|" in words else words  # what it is piped into is another's
                found.append(Command(page, block.line + number, tuple(words)))
    return found
