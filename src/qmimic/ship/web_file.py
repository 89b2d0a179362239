"""A detector as one HTML file: its model, onnxruntime-web and a page that needs no server and no network.

The package is taken from where npm put it; nothing of it lies here. Its program is packed, and unpacked by the browser.
"""

import base64
import gzip
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import onnx

from qmimic.errors import InputError
from qmimic.files import read_json
from qmimic.runtime.metadata import KEY
from qmimic.runtime.web_engine import MODEL, model_of
from qmimic.ship.onnx_file import Exported, build_graph

PACKAGE = "onnxruntime-web"
VARIABLE = "QMIMIC_NODE_MODULES"
LIBRARY, PROGRAM = "ort.wasm.bundle.min.mjs", "ort-wasm-simd-threaded.wasm"
ABOUT = re.compile(rb'(<script id="about" type="application/json">)([^<]*)(</script>)')
PAGE = Path(__file__).parent / "page"
SERVED = Path(__file__).parents[1] / "serve" / "page"  # whose look it shares


def write(exported: Exported, path: Path) -> None:
    """See `qmimic.runtime.formats`.

    Raises:
        InputError: onnxruntime-web is not there, the batch is not 1, or as `build_graph`.
    """
    if exported.batch != 1:
        raise InputError("A page looks at one picture at a time; leave --batch at 1.")
    folder = package()
    model = build_graph(replace(exported, suppression=True)).SerializeToString()
    program = gzip.compress((folder / PROGRAM).read_bytes(), mtime=0)
    parts = {
        "style": (SERVED / "style.css").read_bytes() + (PAGE / "style.css").read_bytes(),
        "script": b"\n".join(map(_plain, (SERVED / "palette.js", PAGE / "resize.js", PAGE / "page.js"))),
        "library": base64.b64encode((folder / LIBRARY).read_bytes()),
        "program": base64.b64encode(program),
        "model": base64.b64encode(model),
    }
    page = (PAGE / "page.html").read_bytes()
    for name, content in parts.items():
        page = page.replace(b"{{%s}}" % name.encode(), content)
    path.write_bytes(page)


def describe(path: Path, properties: Mapping[str, str]) -> None:
    """Put properties into the model, and what the page shows of them beside it, with the model's checksum."""
    page = path.read_bytes()
    model = onnx.load_from_string(model_of(page, path))
    onnx.helper.set_model_props(model, dict(properties))
    content = model.SerializeToString()
    about = {"sha256": hashlib.sha256(content).hexdigest(), **json.loads(properties[KEY])}
    said = json.dumps(about).replace("<", "\\u003c").encode()
    page = MODEL.sub(lambda found: found[1] + base64.b64encode(content) + found[3], page)
    path.write_bytes(ABOUT.sub(lambda found: found[1] + said + found[3], page))


def package() -> Path:
    """The files of onnxruntime-web: in the folder that QMIMIC_NODE_MODULES names, or as node looks for packages, in
    `node_modules` here or above.

    Raises:
        InputError: they are not there.
    """
    named, here = os.environ.get(VARIABLE), Path.cwd()
    places = [Path(named)] if named else [one / "node_modules" for one in (here, *here.parents)]
    for place in places:
        files = place / PACKAGE / "dist"
        if (files / LIBRARY).is_file() and (files / PROGRAM).is_file():
            return files
    found = next((place / PACKAGE / "package.json" for place in places if (place / PACKAGE).is_dir()), None)
    if found is not None:
        version = read_json(found).get("version", "unknown") if found.is_file() else "unknown"
        raise InputError(
            f"{found.parent} (version {version}) lacks dist/{LIBRARY} or dist/{PROGRAM}: npm install {PACKAGE}@latest."
        )
    looked = f"in {places[0]}" if named else "in node_modules here or in a folder above"
    raise InputError(
        f"{PACKAGE} is not {looked}: npm install {PACKAGE}, or name a node_modules folder that has it in {VARIABLE}."
    )


def _plain(path: Path) -> bytes:
    """A module's text as a part of a script: it neither imports nor exports."""
    text = re.sub(r"^import [^;]*;\n", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return re.sub(r"^export ", "", text, flags=re.MULTILINE).encode()
