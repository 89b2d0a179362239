"""The site: `make docs` builds it into site/, warnings are errors.

Nothing is fetched, neither while it is built nor by a page that is read: it opens from the disk.
"""

import re
import sys
from importlib.metadata import version as version_of
from pathlib import Path

from sphinx.application import Sphinx

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tools")]

project = "qmimic"
author = "The qmimic authors"
copyright = author
release = version_of("qmimic")
html_title = f"qmimic {release}"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_static_path = ["style"]
html_css_files = ["wide.css"]
html_copy_source = False
html_show_sourcelink = False
exclude_patterns = ["results/**"]  # the tables that results.md is made from
myst_heading_anchors = 3
highlight_language = "text"
default_role = "code"  # docstrings write `name`, as everywhere else here
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_use_rtype = False
napoleon_use_ivar = True
maximum_signature_line_length = 80


PAGES = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md", "SECURITY.md": "security.md"}
PAGES["benchmarks/README.md"] = "benchmarks.md"


def fill(app: Sphinx, docname: str, source: list[str]) -> None:
    """Put what is made by code where a page says `% made: NAME`, a file outside of docs/ where it says `% from: FILE`.

    Links between them are those of the files, which people read where they lie; here they become those of the pages.
    """
    import reference

    made = {"% made: commands": reference.commands, "% made: recipe": reference.recipe}
    for line, make in made.items():
        if line in source[0]:
            source[0] = source[0].replace(line, make())
    up = "../" * docname.count("/")
    if outside := re.fullmatch(r"% from: \.\./(\S+)\s*", source[0]):
        file = ROOT / outside[1]
        app.env.note_dependency(str(file))
        source[0] = file.read_text(encoding="utf-8")
        beside = file.parent.relative_to(ROOT).as_posix()
        source[0] = re.sub(r"\]\((\w+\.png)\)", rf"](../{beside}/\1)", source[0])
        source[0] = source[0].replace("](docs/", "](").replace("](../docs/", "](")
        source[0] = re.sub(r"\]\((\w+\.md)\)", lambda m: f"]({PAGES.get(m[1], m[1])})", source[0])
    for file_name, page in PAGES.items():
        source[0] = re.sub(rf"\]\((?:\.\./)+{re.escape(file_name)}(#[\w-]+)?\)", rf"]({up}{page}\1)", source[0])


def literal(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Indented formulas and examples in docstrings are literal blocks, as they look."""
    if what != "module" and "" not in lines:
        return
    for number in range(len(lines) - 2):
        ends = lines[number].endswith(":") and not lines[number].endswith("::")
        if ends and not lines[number + 1].strip() and lines[number + 2].startswith("    "):
            lines[number] += ":"


# What the theme leaves out for keyboards and screen readers.
ACCESSIBLE = {
    '<aside class="sidebar-drawer">': '<aside class="sidebar-drawer" aria-label="Pages">',
    '<aside class="toc-drawer': '<aside aria-label="On this page" class="toc-drawer',
    'class="caption" role="heading"': 'class="caption" role="heading" aria-level="2"',
    "<pre>": '<pre tabindex="0">',  # long lines scroll
}


def accessible(app: Sphinx, error: Exception | None) -> None:
    """Mend the pages that were written."""
    for page in Path(app.outdir).rglob("*.html"):
        before = text = page.read_text(encoding="utf-8")
        for old, new in ACCESSIBLE.items():
            text = text.replace(old, new)
        if text != before:
            page.write_text(text, encoding="utf-8")


def setup(app: Sphinx) -> None:
    """See Sphinx."""
    app.connect("source-read", fill)
    app.connect("autodoc-process-docstring", literal)
    app.connect("build-finished", accessible)
