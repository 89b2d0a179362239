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


def fill(app: Sphinx, docname: str, source: list[str]) -> None:
    """Put what is made by code where a page says `% made: NAME`, and mend links that lead out of docs/."""
    import reference

    for name, make in (("commands", reference.commands), ("recipe", reference.recipe)):
        if f"% made: {name}" in source[0]:
            source[0] = source[0].replace(f"% made: {name}", make())
    # On the site these files are pages; elsewhere the links lead to the files themselves.
    up = "../" * docname.count("/")
    source[0] = re.sub(r"\]\((?:\.\./)+benchmarks/README\.md\)", f"]({up}benchmarks.md)", source[0])
    for name in ("CHANGELOG", "CONTRIBUTING", "SECURITY"):
        source[0] = re.sub(rf"\]\((?:\.\./)+{name}\.md\)", f"]({up}{name.lower()}.md)", source[0])


def literal(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    """Indented formulas and examples in docstrings are literal blocks, as they look."""
    if what != "module" and "" not in lines:
        return
    for number in range(len(lines) - 2):
        ends = lines[number].endswith(":") and not lines[number].endswith("::")
        if ends and not lines[number + 1].strip() and lines[number + 2].startswith("    "):
            lines[number] += ":"


def setup(app: Sphinx) -> None:
    """See Sphinx."""
    app.connect("source-read", fill)
    app.connect("autodoc-process-docstring", literal)
