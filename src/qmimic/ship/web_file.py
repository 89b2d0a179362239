"""A detector as one HTML file: its model, an engine for browsers and a page that needs no server and no network.

LiteRT.js is the faster engine, and takes detectors of one stage; onnxruntime-web takes all. The packages are taken from
where npm put them; nothing of them lies here. What is large is packed, and unpacked by the browser.
"""

import base64
import gzip
import hashlib
import importlib.util
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from html import escape
from pathlib import Path

import onnx

from qmimic.errors import InputError
from qmimic.files import read_json
from qmimic.runtime import litert_engine
from qmimic.runtime.formats import Session
from qmimic.runtime.metadata import KEY
from qmimic.runtime.web_engine import MODEL, model_of
from qmimic.ship import page_in_node
from qmimic.ship.onnx_file import Exported

VARIABLE = "QMIMIC_NODE_MODULES"


@dataclass(frozen=True)
class BrowserEngine:
    """What runs models in a browser.

    Attributes:
        name: as a person calls it.
        package: of npm, and the first to be there.
        script: of the page, that knows it.
        library: its modules, of which the page makes one, each below `node_modules`.
        parts: its other files, below the package, by the name that the page has for them.
    """

    name: str
    package: str
    script: str
    library: tuple[str, ...]
    parts: Mapping[str, str]


ONNXRUNTIME = BrowserEngine(
    "onnxruntime-web",
    "onnxruntime-web",
    "onnxruntime.js",
    ("onnxruntime-web/dist/ort.wasm.bundle.min.mjs",),
    {"program": "dist/ort-wasm-simd-threaded.wasm"},
)
LITERT = BrowserEngine(
    "LiteRT.js",
    "@litertjs/core",
    "litert.js",
    ("@litertjs/wasm-utils/dist/index.js", "@litertjs/core/dist/index.js"),
    {
        "loader": "wasm/litert_wasm_internal.js",
        "program": "wasm/litert_wasm_internal.wasm",
        "loader-compat": "wasm/litert_wasm_compat_internal.js",  # for browsers without relaxed SIMD
        "program-compat": "wasm/litert_wasm_compat_internal.wasm",
    },
)
ABOUT = re.compile(rb'(<script id="about" type="application/json">)([^<]*)(</script>)')
PAGE = Path(__file__).parent / "page"
SERVED = Path(__file__).parents[1] / "serve" / "page"  # whose look it shares


def write(exported: Exported, path: Path) -> None:
    """See `qmimic.runtime.formats`.

    Raises:
        InputError: no engine is there, or as `build_graph`.
    """
    engine, folder = engine_for(exported)
    if engine is LITERT:
        from qmimic.ship import litert_file

        model = litert_file.model_of(exported, float_ends=True)
    else:
        model = exported.changed(suppression=True).graph.SerializeToString()
    scripts = SERVED / "palette.js", PAGE / "parts.js", PAGE / "resize.js", PAGE / engine.script, PAGE / "page.js"
    parts = {
        "style": (SERVED / "style.css").read_bytes() + (PAGE / "style.css").read_bytes(),
        "script": b"\n".join(_plain(one) for one in scripts),
        "engine": _elements(engine, folder),
        "model": base64.b64encode(model),
    }
    page = (PAGE / "page.html").read_bytes()
    for name, content in parts.items():
        page = page.replace(b"{{%s}}" % name.encode(), content)
    path.write_bytes(page)


def _elements(engine: BrowserEngine, folder: Path) -> bytes:
    """An engine as elements of a page."""
    version = escape(str(read_json(folder / engine.package / "package.json").get("version", "")))
    library = b"\n".join(_module(folder / one) for one in engine.library)
    packed = {
        "library": library,
        **{id: (folder / engine.package / one).read_bytes() for id, one in engine.parts.items()},
    }
    return b"\n".join(
        b'  <script id="%s" type="text/plain" data-name="%s">%s</script>'
        % (name.encode(), f"{engine.name} {version}".encode(), base64.b64encode(gzip.compress(content, mtime=0)))
        for name, content in packed.items()
    )


def describe(path: Path, properties: Mapping[str, str]) -> None:
    """Put properties into the model, and what the page shows of them beside it, with the model's checksum."""
    page = path.read_bytes()
    own = model_of(page, path)
    if litert_engine.is_model(own):
        from qmimic.ship.litert_model import with_properties

        content = with_properties(litert_engine.parse(own, path), properties)
    else:
        model = onnx.load_from_string(own)
        onnx.helper.set_model_props(model, dict(properties))
        content = model.SerializeToString()
    about = {"sha256": hashlib.sha256(content).hexdigest(), **json.loads(properties[KEY])}
    said = json.dumps(about).replace("<", "\\u003c").encode()
    page = MODEL.sub(lambda found: found[1] + base64.b64encode(content) + found[3], page)
    path.write_bytes(ABOUT.sub(lambda found: found[1] + said + found[3], page))


def own_session(path: Path, session: Session) -> Session | None:
    """See `qmimic.runtime.formats`: in Node.js."""
    return page_in_node.session(path, session)


def engine_for(exported: Exported) -> tuple[BrowserEngine, Path]:
    """The fastest engine that is there and runs a detector, and the folder that has its packages.

    Raises:
        InputError: there is none.
    """
    fast = bool(exported.detector.place_strides) and importlib.util.find_spec("ai_edge_litert") is not None
    if not fast:
        return ONNXRUNTIME, packages(ONNXRUNTIME)
    try:
        return LITERT, packages(LITERT)
    except InputError as error:
        try:
            return ONNXRUNTIME, packages(ONNXRUNTIME)
        except InputError:
            raise error from None


def packages(engine: BrowserEngine) -> Path:
    """The `node_modules` that has an engine: what QMIMIC_NODE_MODULES names, or as node looks for it, here or above.

    Raises:
        InputError: it is nowhere.
    """
    named, here = os.environ.get(VARIABLE), Path.cwd()
    places = [Path(named)] if named else [one / "node_modules" for one in (here, *here.parents)]
    for place in places:
        if not _missing(engine, place):
            return place
    for place in places:
        about = place / engine.package / "package.json"
        if about.parent.is_dir():
            version = read_json(about).get("version", "unknown") if about.is_file() else "unknown"
            has, latest = f"{about.parent} (version {version})", f"{engine.package}@latest"
            raise InputError(f"{has} lacks {_missing(engine, place)}: npm install {latest}.")
    looked = f"in {places[0]}" if named else "in node_modules here or in a folder above"
    raise InputError(
        f"{engine.package} is not {looked}: npm install {engine.package}, or name a node_modules folder that has it in "
        f"{VARIABLE}."
    )


def _missing(engine: BrowserEngine, folder: Path) -> str:
    """The first file of an engine that a folder lacks; empty: it has all."""
    files = *engine.library, *(f"{engine.package}/{one}" for one in engine.parts.values())
    return next((one for one in files if not (folder / one).is_file()), "")


def _module(path: Path) -> bytes:
    """A module as one that others can follow in the same text: the last alone exports."""
    text = path.read_text(encoding="utf-8")
    text = re.sub(r'^import \{[^}]*\} from "@litertjs/[^"]*";$', "", text, flags=re.MULTILINE)
    if path.parts[-3] == "wasm-utils":
        text = re.sub(r"^export \{[^}]*\};$", "", text, flags=re.MULTILINE)
    return re.sub(r"^//# sourceMappingURL=.*$", "", text, flags=re.MULTILINE).encode()


def _plain(path: Path) -> bytes:
    """A module's text as a part of a script: it neither imports nor exports."""
    text = re.sub(r"^import [^;]*;\n", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return re.sub(r"^export ", "", text, flags=re.MULTILINE).encode()
