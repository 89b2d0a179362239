"""The site builds without a warning, asks nothing of anybody outside, and its reference is complete."""

import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
from pages import ROOT

from qmimic.cli.entry import COMMANDS
from qmimic.config import settings


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-b", "html", "-d", str(target / "d")]
    done = subprocess.run(
        [*command, str(ROOT / "docs"), str(target / "s")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return target / "s"


class Loaded(HTMLParser):
    """What a browser fetches when it shows a page: not where links lead."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        values = dict(attributes)
        self.found += [str(values[name]) for name in ("src", "srcset", "data", "poster") if values.get(name)]
        if tag == "link":
            self.found.append(str(values.get("href")))


def test_nothing_is_fetched_from_outside(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        loaded = Loaded()
        loaded.feed(page.read_text(encoding="utf-8"))
        for address in loaded.found:
            assert not re.match(r"(\w+:)?//", address), f"{page.name} fetches {address}"
            name = address.partition("?")[0].partition("#")[0]
            assert not name or (page.parent / name).exists(), f"{page.name} lacks {name}"
    for style in site.rglob("*.css"):
        assert not re.search(r"(url\(|@import)\s*['\"]?(https?:)?//", style.read_text(encoding="utf-8")), style.name


def test_every_command_and_key_has_its_entry(site: Path) -> None:
    said = re.sub(r"<[^>]+>", "", (site / "reference" / "commands.html").read_text(encoding="utf-8"))
    for command in COMMANDS:
        name = command.__name__.rpartition(".")[2].replace("evaluate", "eval")
        assert f"qmimic {name}" in said
    for option in ("--max-kb", "--drop-bad", "--against", "python -m qmimic.runtime"):
        assert option in said
    recipe = (site / "reference" / "recipe.html").read_text(encoding="utf-8")
    missing = [one.key for one in settings() if f">{one.key}<" not in recipe]
    assert not missing


def test_the_python_names_are_documented(site: Path) -> None:
    import qmimic

    text = (site / "reference" / "python.html").read_text(encoding="utf-8")
    for name in qmimic.__all__:
        assert f'id="qmimic.{name}"' in text, name


def test_search_works_from_the_disk(site: Path) -> None:
    index = (site / "searchindex.js").read_text(encoding="utf-8")
    assert index.startswith("Search.setIndex(")  # a script, not something to fetch
    assert "tutorial" in index


def test_what_scrolls_takes_the_focus_and_what_is_one_of_several_has_a_name(site: Path) -> None:
    pages = [path.read_text(encoding="utf-8") for path in site.rglob("*.html")]
    assert any("<pre" in page for page in pages)
    for page in pages:
        assert re.findall(r"<pre(?! tabindex)", page) == []
        assert re.findall(r"<aside(?![^>]*aria-label)", page) == []
        assert re.findall(r'role="heading"(?! aria-level)', page) == []
