"""Nobody but the few modules that check opens, decodes or parses what strangers made: the source is walked."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import qmimic

PACKAGE = Path(qmimic.__file__).parent
# What may stand where, and why nothing of a stranger goes that way there.
ALLOWED = {
    "files/reading.py": "the one way in",
    "files/writing.py": "the one way out",
    "yaml_text.py": "the one parser of YAML",
    "detectors/pretrained.py": "torch's reader of tensors alone, out of an open file",
    "data/images.py": "the one reader of pictures, out of an open file",
    "data/index.py": "maps an array out of an open file, writes into a folder that is being built",
    "data/records.py": "maps a file that it has opened as one of ours, removes one that it has just made",
    "data/download.py": "what it has just fetched itself, with published checksums",
    "data/yolo.py": "writes into a folder that is being built",
    "data/coco.py": "writes into a folder that is being built",
    "data/voc.py": "writes into a folder that is being built",
    "study/schedule.py": "removes banks from a study's own folder, by names that we give, through no link",
    "serve/app.py": "files of the package",
    "run/lock.py": "a folder's handle, for its lock",
    "run/cleaning.py": "removes what a person was shown and agreed to, and no link",
    "run/train.py": "removes the note of a failure",
    "training/state.py": "removes checkpoints, by names that it gives",
    "training/trackers.py": "removes the tracker's folder of the same stage",
    "cli/installation.py": "its own child's answer, and the kernel's files",
    "report/latency.py": "the kernel's files",
    "bench/measure.py": "the kernel's files, its own child's answer",
    "ship/onnx_file.py": "what it has just exported, in a folder of its own",
    "ship/openvino_file.py": "what it has just exported, in a folder of its own",
    "ship/executorch_file.py": "what it has just exported, in a folder of its own",
    "ship/litert_file.py": "what it has just exported, in a folder of its own",
    "ship/ncnn_file.py": "what it has just exported, in a folder of its own",
    "ship/web_file.py": "what it has just exported, templates of the package, the library that the person installed",
    "ship/page_in_node.py": "the answers of its own child, which runs the page that was just written",
    "ship/c_source.py": "the file that its engine has just opened and checked, a template of the package",
}
CALLS = {
    *("open", "read_bytes", "read_text", "write_bytes", "write_text", "unlink", "rmtree", "touch"),
    *("load", "loads", "memmap", "fromfile", "loadmat", "safe_open", "imread"),
}
# Names that are harmless, or are the one way's own.
OWN = {"files", "webbrowser", "torch.hub"}
PARSERS = {"json", "yaml", "np", "numpy", "pickle", "torch", "onnx", "Image", "scipy", "zipfile", "tarfile", "os"}


def raw(source: str) -> Iterator[tuple[int, str]]:
    """Line and spelling of every call that opens, parses or removes by itself."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        target = node.func
        if isinstance(target, ast.Name) and target.id in ("open", "safe_open", "loadmat"):
            yield node.lineno, target.id
        elif isinstance(target, ast.Attribute) and target.attr in CALLS:
            owner = ast.unparse(target.value)
            parses = target.attr in ("load", "loads", "open", "memmap", "fromfile")
            if owner in OWN or (parses and target.attr != "open" and owner not in PARSERS):
                continue  # some object's own method, such as a picture's `load`
            yield node.lineno, f"{owner}.{target.attr}"


def test_strangers_files_are_opened_in_one_place() -> None:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE).as_posix()
        calls = [f"{name}:{line} {call}" for line, call in raw(path.read_text(encoding="utf-8"))]
        if calls:
            found[name] = calls
    assert [call for name, calls in found.items() if name not in ALLOWED for call in calls] == []
    assert sorted(set(ALLOWED) - set(found)) == []  # the list does not outlive its reasons


@pytest.mark.parametrize(
    "line",
    [
        "open(path)",
        "path.open('rb')",
        "Path(path).read_text()",
        "path.read_bytes()",
        "np.load(path)",
        "json.load(file)",
        "json.loads(text)",
        "Image.open(path)",
        "os.open(path, 0)",
        "shutil.rmtree(path)",
        "yaml.load(text, Loader)",
        "torch.load(path)",
    ],
)
def test_the_walk_finds_them(line: str) -> None:
    assert [number for number, _ in raw(f"import os\nasd = {line}\n")] == [2]
    assert list(raw("from qmimic import files\nfiles.read_text(path)\nread_text(path)\npicture.load()\n")) == []


def test_each_promise_names_a_test_that_is_there() -> None:
    root = PACKAGE.parents[1]
    page = root / "SECURITY.md"
    if not page.is_file():
        pytest.skip("an installed package has no SECURITY.md")
    named = re.findall(r"`(tests/[a-z_/]+\.py)::(test_[a-z0-9_]+)`", page.read_text(encoding="utf-8"))
    assert len(named) >= 15
    missing = [f"{file}::{name}" for file, name in named if f"def {name}(" not in (root / file).read_text()]
    assert missing == []
