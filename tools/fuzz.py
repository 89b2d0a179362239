"""Fuzzing: whatever bytes come in, the outcome must be a result or one sentence.

    python tools/fuzz.py                       # 1,000 inputs of each format
    python tools/fuzz.py coco mat --inputs 10000 --seed 7 --corpus found/

Each input is a small good file with a few changes: bits, bytes and blocks are flipped, cut out, doubled and moved, and
pieces that have done harm before are inserted. The same seed gives the same inputs. An input that ends in anything but
a result or an `InputError`, or takes too long, is kept in the corpus as FORMAT/NAME; the tests try these again.
"""

import argparse
import asyncio
import contextlib
import hashlib
import io
import json
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from scipy.io import savemat
from starlette.responses import PlainTextResponse
from starlette.types import Message, Receive, Scope, Send

from qmimic.config import load_recipe
from qmimic.data import index
from qmimic.data.formats import load_dataset, usable
from qmimic.data.images import image_size, read_image
from qmimic.detections import Detections
from qmimic.detectors.architectures import parse_spec
from qmimic.detectors.build import build
from qmimic.detectors.files import load_detector, save_detector
from qmimic.errors import InputError
from qmimic.run.folder import read_stage
from qmimic.run.listing import list_runs
from qmimic.runtime.metadata import SUM, Metadata, as_properties, from_properties
from qmimic.scores.detections_file import read_detections
from qmimic.serve.labels import LabelsWanted, labels_zip
from qmimic.serve.limits import Gate, Limits, RefusedError, picture_size
from qmimic.serve.safety import Safe
from qmimic.training.log import read_log

SECONDS = 10.0  # that one small input may take
# What has done harm before.
PIECES = [
    *(b"NaN", b"-Infinity", b"1e999", b"9" * 400, b"-1", b"0x", b"[" * 200, b'{"a":' * 200, b"\\ud800", b"\0", b"\r"),
    *(
        b"!!int '_'",
        b"!!map x",
        b"!!set [a]",
        b"!!binary x",
        b"&a [*a]",
        b"<<: x",
        b"? ",
        b"1:" * 50,
        b"../",
        b"/dev/zero",
    ),
    *(
        b"<!ENTITY a 'b'>",
        b"&a;",
        b"%!PS-Adobe",
        b"\xff\xda\x00\x08",
        b"\xff\xff\xff\xff",
        b"\xff\xff\xff\x7f",
        b"\x00" * 8,
    ),
    *(
        b"\x0f\x00\x00\x00",
        b"\x0e\x00\x00\x00",
        b"http://[",
        b"localhost/evil",
        b"[red]",
        b"</script>",
        b"\xef\xbb\xbf",
    ),
]


@dataclass(frozen=True)
class Format:
    """What is fuzzed.

    Attributes:
        seeds: good files.
        read: called with bytes and an empty folder; must end in a result or an `InputError`.
    """

    seeds: Callable[[], list[bytes]]
    read: Callable[[bytes, Path], object]


def changed(seed: bytes, chance: random.Random) -> bytes:
    """A file with one to eight changes."""
    content = bytearray(seed)
    for _ in range(chance.choice((1, 1, 1, 2, 3, 8))):
        place = chance.randrange(len(content) + 1)
        length = min(chance.choice((1, 1, 2, 4, 8, 64)), len(content) - place)
        match chance.randrange(8):
            case 0 | 1 if place < len(content):
                content[place] ^= 1 << chance.randrange(8)
            case 2 if place < len(content):
                content[place] = chance.randrange(256)
            case 3:
                del content[place : place + length]
            case 4:
                content[place:place] = content[place : place + length] * chance.choice((1, 3, 50))
            case 5:
                piece = chance.choice(PIECES)
                content[place : place + chance.choice((0, len(piece)))] = piece
            case 6:
                del content[place:]
            case _:
                other = chance.randrange(len(content) + 1)
                content[place:place] = content[other : other + length]
    return bytes(content)


def picture(kind: str, size: tuple[int, int] = (16, 12), **options: Any) -> bytes:
    """A small picture in a format of Pillow."""
    pixels = np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).convert(options.pop("mode", "RGB")).save(file, kind, **options)
    return file.getvalue()


def pictures() -> list[bytes]:
    kinds = [picture(kind) for kind in ("JPEG", "PNG", "GIF", "BMP", "WEBP", "TIFF")]
    kinds += [picture("JPEG", progressive=True), picture("PNG", mode="P"), picture("PNG", mode="L")]
    return [
        *kinds,
        picture("TIFF", compression="jpeg"),
        picture("TIFF", compression="tiff_lzw"),
        picture("JPEG", mode="CMYK"),
    ]


def look(content: bytes, folder: Path) -> None:
    path = folder / "a.jpg"
    path.write_bytes(content)
    with contextlib.suppress(InputError):
        image_size(path)
    read_image(path)
    picture_size(content, Limits())


def dataset(name: str, others: Callable[[Path], object] = lambda _: None) -> Callable[[bytes, Path], object]:
    """Reading a dataset of two pictures in which one label file is a stranger's."""

    def read(content: bytes, folder: Path) -> None:
        for place in ("images/train/a.png", "images/val/b.png", "JPEGImages/a.png", "WIDER_train/images/e/a.jpg"):
            (folder / place).parent.mkdir(parents=True, exist_ok=True)
            (folder / place).write_bytes(PNG)
        others(folder)
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                usable(load_dataset(folder), drop_bad=True)
        finally:
            for path in sorted(folder.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() and not path.is_symlink() else path.unlink()

    return read


def yolo(folder: Path) -> None:
    for place, text in (("data.yaml", YAML), ("labels/train/a.txt", b"0 .5 .5 .5 .5\n"), ("labels/val/b.txt", b"")):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        (folder / place).write_bytes(text)


def xml() -> bytes:
    box = "<bndbox><xmin>1</xmin><ymin>1</ymin><xmax>9</xmax><ymax>9</ymax></bndbox>"
    return (
        "<annotation><filename>a.png</filename><size><width>16</width><height>12</height></size>"
        f"<object><name>cat</name><difficult>0</difficult>{box}</object></annotation>"
    ).encode()


def coco() -> bytes:
    content = {
        "images": [{"id": 1, "file_name": "a.png", "width": 16, "height": 12}],
        "annotations": [{"id": 1, "image_id": 1, "category_id": 1, "bbox": [1, 2.5, 3, 4], "iscrowd": 0}],
        "categories": [{"id": 1, "name": "cat", "supercategory": "animal"}],
    }
    return json.dumps(content).encode()


def mat() -> list[bytes]:
    def cells(*values: object) -> Any:
        made = np.empty((len(values), 1), object)
        for row, value in enumerate(values):
            made[row, 0] = value
        return made

    flags = ("blur", "expression", "illumination", "invalid", "occlusion", "pose")
    content = {
        "event_list": cells("e"),
        "file_list": cells(cells("a")),
        "face_bbx_list": cells(cells(np.array([[1.0, 2, 3, 4], [5, 6, 7, 8]]))),
        **{f"{name}_label_list": cells(cells(np.zeros((2, 1)))) for name in flags},
    }
    made = []
    for packed in (False, True):
        file = io.BytesIO()
        savemat(file, content, do_compression=packed)
        made.append(file.getvalue())
    return made


def recipe(content: bytes, folder: Path) -> None:
    path = folder / "recipe.yaml"
    path.write_bytes(content)
    with contextlib.suppress(InputError):
        load_recipe(path, [])
    load_recipe(None, [content.decode("utf-8", "replace")])


def run(content: bytes, folder: Path) -> None:
    """A folder of runs with a stranger's bytes in every file; it is only listed."""
    own = folder / "runs" / "a"
    (own / "stages" / "student-0123456789ab").mkdir(parents=True, exist_ok=True)
    names = ("results.json", "failed.txt", "stages/student-0123456789ab/result.json")
    for name in (*names, "stages/student-0123456789ab/log.jsonl", "recipe.yaml"):
        (own / name).write_bytes(content)
    (own / "environment.json").write_text('{"qmimic": "1", "torch": "2"}')
    (found,) = list_runs(folder / "runs")
    assert found.name == "a"
    (own / "failed.txt").unlink()
    list_runs(folder / "runs")
    read_stage(own / "stages" / "student-0123456789ab")
    read_log(own / "stages" / "student-0123456789ab" / "log.jsonl")


def detector() -> list[bytes]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.safetensors")
        plain = {"backbone": "resnet18/32", "classes": ("cat",), "size": (32, 32), "anchors": ((8.0, 8.0),)}
        save_detector(build(parse_spec({"architecture": "faster_rcnn", **plain}), 0), path, {"map50": 0.5})
        GOOD[:] = [path.read_bytes()]
    return list(GOOD)


def checkpoint(content: bytes, folder: Path) -> None:
    path = folder / "a.safetensors"
    path.write_bytes(content)
    changed_or_not, _ = load_detector(path)
    if GOOD:  # then the weights must be the good file's, or the change be noticed
        path.write_bytes(GOOD[0])
        whole, _ = load_detector(path)
        for name, tensor in whole.state_dict().items():
            assert torch.equal(tensor, changed_or_not.state_dict()[name]), f"other weights in {name}"


def described() -> list[bytes]:
    made = Metadata(("cat",), (32, 32), 0.05, 0.5, 100, 50, 0.7, "resnet18/32", "faster_rcnn", "fp32", None, "1")
    return [as_properties(made)["qmimic"].encode()]


def description(content: bytes, _: Path) -> None:
    text = content.decode("utf-8", "replace")
    from_properties({"qmimic": text, SUM: hashlib.sha256(text.encode()).hexdigest()}, "a.onnx")


def detections(content: bytes, folder: Path) -> None:
    path = folder / "found.json"
    path.write_bytes(content)
    found = read_detections(path, DIGITS, "val")
    assert all(isinstance(one, Detections) for one in found.values())


def indexed(content: bytes, folder: Path) -> None:
    """Parts of an index, one after another."""
    root = folder / "data"
    if not root.exists():
        root.mkdir()
        (root / "a.png").write_bytes(PNG)
        (root / "instances_train.json").write_bytes(coco())
        index.make(root, drop_bad=True)
    whole = {path: path.read_bytes() for path in (root / index.FOLDER).iterdir()}
    for path, before in whole.items():
        path.write_bytes(content if path.suffix == ".json" else changed(before, random.Random(content)))
        try:
            made = index.read(root, drop_bad=True)
            for samples in made.splits.values():
                list(samples)
        except InputError:
            pass
        finally:
            path.write_bytes(before)


def request(content: bytes, _: Path) -> None:
    """A request's head and body through everything that guards the page."""
    head, _, body = content.partition(b"\n\n")
    first, *lines = head.split(b"\n")
    method, _, path = first.decode("latin-1").partition(" ")
    pairs = [line.partition(b": ") for line in lines]
    headers = [(name.lower(), value) for name, _, value in pairs]
    sent: list[Message] = []

    async def inner(scope: Scope, receive: Receive, send: Send) -> None:
        await PlainTextResponse("fine")(scope, receive, send)

    async def receive() -> Message:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Scope = {"type": "http", "method": method, "path": path, "headers": headers, "query_string": b""}
    asyncio.run(Safe(Gate(inner, Limits()), "127.0.0.1")(scope, receive, send))
    hosts = [value for name, value in headers if name == b"host"]
    local = {b"localhost", b"127.0.0.1", b"[::1]"}
    if sent[0]["status"] == 200:
        assert hosts, "a request without a name was answered"
        assert hosts[0].lower().rsplit(b":", 1)[0] in local or hosts[0].lower() in local, hosts
    else:
        assert sent[0]["status"] in (403, 408, 413, 503), sent[0]["status"]


def labels(content: bytes, _: Path) -> None:
    try:
        wanted = LabelsWanted.model_validate_json(content)
    except ValueError:
        return
    labels_zip(wanted)


PNG = picture("PNG")
YAML = yaml.safe_dump({"train": "images/train", "val": "images/val", "names": ["cat", "dog"]}).encode()
WIDER = b"e/a.jpg\n2\n1 2 3 4 0 0 0 0 0 0 \n5 6 7 8 2 1 0 1 0 0 \n"
RECIPE = b"data: {root: photos, size: [64, 64]}\nteacher: {backbone: resnet18/16, steps: 20}\n"
RECIPE += b"seed: 3\nbaselines: [scratch]\n"
FOUND = b'[{"file_name": "val-0", "category_id": 1, "bbox": [1, 2, 3, 4], "score": 0.5}]'
RESULT = b'{"name": "student", "key": "0123456789ab", "backbone": "resnet18/16", "map50": 0.5, "map07": 0.5, '
RESULT += b'"coco_map": 0.2, "parameters": 5, "macs": 6, "bytes": 7, "mode": "quantization"}'
REQUEST = b"POST /api/detect\nhost: localhost:8000\norigin: http://localhost:8000\ncontent-type: image/png\n\n" + PNG
WANTED = {
    "format": "coco",
    "classes": ["cat"],
    "pictures": [{"name": "a.png", "width": 9, "height": 9, "detections": []}],
}

DIGITS = load_dataset("synthetic:digits")
GOOD: list[bytes] = []
FORMATS = {
    "yolo": Format(lambda: [b"0 0.5 0.5 0.2 0.2\n1 .1 .1 .1 .1\n"], dataset("labels/train/a.txt", yolo)),
    "yolo-yaml": Format(lambda: [YAML], dataset("data.yaml", yolo)),
    "voc": Format(lambda: [xml()], dataset("Annotations/a.xml")),
    "coco": Format(lambda: [coco()], dataset("instances_train.json")),
    "wider": Format(lambda: [WIDER], dataset("wider_face_split/wider_face_train_bbx_gt.txt")),
    "mat": Format(mat, dataset("wider_face_split/wider_face_train.mat")),
    "picture": Format(pictures, look),
    "recipe": Format(lambda: [RECIPE, b"seed=3", b"data.size=[64, 64]"], recipe),
    "run": Format(
        lambda: [RESULT, b'{"stages": [' + RESULT + b'], "remarks": ["a"]}', b'{"step": 1, "loss": 2}\n'], run
    ),
    "checkpoint": Format(detector, checkpoint),
    "description": Format(described, description),
    "detections": Format(lambda: [FOUND], detections),
    "index": Format(
        lambda: [b'{"version": 2, "classes": ["cat"], "splits": ["train"], "drop_bad": true, "stamps": {}}'], indexed
    ),
    "request": Format(lambda: [REQUEST], request),
    "labels": Format(lambda: [json.dumps(WANTED).encode()], labels),
}


def inputs(name: str, seed: int, count: int) -> Iterator[bytes]:
    """The changed files of a format."""
    seeds = FORMATS[name].seeds()
    chance = random.Random(f"{name} {seed}")
    for _ in range(count):
        yield changed(chance.choice(seeds), chance)


def fault(name: str, content: bytes, folder: Path) -> str | None:
    """How an input ends, if neither in a result nor in a sentence."""
    began = time.monotonic()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            FORMATS[name].read(content, folder)
    except (InputError, RefusedError) as error:
        if not str(error).strip() or len(str(error)) > 2000:
            return f"a sentence of {len(str(error))} characters"
    except Exception as error:  # what we are looking for
        return f"{type(error).__name__}: {error}"[:300]
    took = time.monotonic() - began
    return f"it took {took:.1f} s" if took > SECONDS else None


def main() -> int:
    """Fuzz; 1 if anything was found."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("formats", nargs="*", metavar="FORMAT", help="default: all")
    parser.add_argument("--inputs", type=int, default=1000, help="number for each format")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--corpus", type=Path, default=Path("tests/corpus"), help="folder for inputs that fail")
    options = parser.parse_args()
    unknown = [name for name in options.formats if name not in FORMATS]
    if unknown:
        parser.error(f"{unknown[0]} is unknown; known: {', '.join(FORMATS)}")
    code = 0
    for name in options.formats or FORMATS:
        kinds: dict[str, int] = {}
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            for content in inputs(name, options.seed, options.inputs):
                said = fault(name, content, Path(folder))
                if said is not None:
                    kinds[said] = kinds.get(said, 0) + 1
                    if kinds[said] == 1:
                        place = options.corpus / name / hashlib.sha256(content).hexdigest()[:16]
                        place.parent.mkdir(parents=True, exist_ok=True)
                        place.write_bytes(content)
                        print(f"{place}: {said}", flush=True)
        code |= bool(kinds)
        print(
            f"{name}: {options.inputs} inputs, {sum(kinds.values())} faults, {time.monotonic() - began:.0f} s",
            flush=True,
        )
    return code


if __name__ == "__main__":
    sys.exit(main())
