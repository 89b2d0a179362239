"""A dataset from a stranger: traps in place of its files, pictures that are none, MATLAB files that harm."""

import io
import json
import os
import re
import resource
import shutil
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat

from cli_cases import Refused, coco
from folders import picture
from qmimic.cli import main
from qmimic.data import index, matlab
from qmimic.data.images import _Room, image_size, look, read_image
from qmimic.data.matlab import read_matlab
from qmimic.errors import InputError, printable, single_line
from time_limit import at_most
from wider_cases import cells, write_mat

POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n0 0 64 64 rectfill\nshowpage\n%%EOF\n"
SECONDS = 20


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_without_palette() -> bytes:
    """A picture of 4 x 4 places in a palette that is not there."""
    header = struct.pack(">IIBBBBB", 4, 4, 8, 3, 0, 0, 0)
    pixels = zlib.compress(b"".join(b"\0" + bytes(4) for _ in range(4)))
    parts = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def yolo(root: Path) -> Path:
    """Two pictures with a label each."""
    for split in ("train", "val"):
        for folder in ("images", "labels"):
            (root / folder / split).mkdir(parents=True)
        Image.new("RGB", (64, 48), "red" if split == "val" else "blue").save(root / "images" / split / f"{split}.png")
        (root / "labels" / split / f"{split}.txt").write_text("0 0.5 0.5 0.5 0.5\n")
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cat]\n")
    return root


def set_trap(path: Path, kind: str) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    elif path.exists():
        path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.symlink_to({"device": "/dev/zero", "loop": path.name, "nowhere": "gone", "outside": "/etc/passwd"}[kind])


PLACES = ("images/train/train.png", "labels/train/train.txt", "data.yaml", "classes.txt", "qmimic-index")


@pytest.mark.parametrize("kind", ["pipe", "device", "loop", "nowhere", "outside"])
@pytest.mark.parametrize("place", PLACES)
def test_a_trap_in_place_of_a_file_is_named_at_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], place: str, kind: str
) -> None:
    root = yolo(tmp_path / "data")
    if place == "classes.txt":
        (root / "data.yaml").write_text("train: images/train\nval: images/val\n")
    set_trap(root / place, kind)
    command = ["data", "index" if place == "qmimic-index" else "check", str(root)]
    with at_most(SECONDS):
        code = main(command)
    shown = capsys.readouterr()
    assert code in (1, 2)
    assert Path(place).name in shown.out + shown.err
    assert "Nothing needs mending" not in shown.out
    assert "root:" not in shown.out + shown.err  # nothing of /etc/passwd
    assert shown.err.count("\n") == (code == 2)


@pytest.mark.parametrize("content", [POSTSCRIPT, png_without_palette(), b"P6 2 2 255\n" + bytes(12)])
def test_what_is_no_picture_starts_no_program_and_is_named_everywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, content: bytes
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("gs", "gswin64c", "djpeg", "xv"):
        (programs / name).write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}:{os.environ['PATH']}")
    root = yolo(tmp_path / "data")
    path = root / "images" / "train" / "train.png"
    path.write_bytes(content)
    for read in (read_image, look, lambda own: look(own, whole=False)):
        with pytest.raises(InputError, match=r"train\.png is not a (picture in a known format|whole image)"):
            read(path)
    assert main(["data", "check", str(root)]) == 1
    assert "unreadable_image" in capsys.readouterr().out
    assert not (tmp_path / "started").exists()


def progressive(scans: int) -> bytes:
    """A JPEG whose last scan comes again and again."""
    file = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(file, "JPEG", progressive=True)
    content = file.getvalue()
    last = content.rindex(b"\xff\xda")
    return content[:last] + content[last:-2] * scans + b"\xff\xd9"


def test_scans_of_a_progressive_jpeg_are_bounded_before_it_is_decoded(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(progressive(1))
    assert read_image(path).size == (64, 64)
    path.write_bytes(progressive(14_000))
    assert image_size(path) == (64, 64)
    with at_most(SECONDS), pytest.raises(InputError, match="over 100 scans"):
        read_image(path)
    # Markers that lie in a segment, such as a thumbnail's, and what follows the end, such as a film, are none.
    plain = progressive(1)
    comment = b"\xff\xfe" + struct.pack(">H", 602) + b"\xff\xda" * 300
    path.write_bytes(plain[:2] + comment + plain[2:] + b"\xff\xda" * 5000)
    assert read_image(path).size == (64, 64)


def test_pixels_in_progress_are_bounded_over_all_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    room, inside, most = _Room(10_000), 0, 0
    guard = threading.Lock()
    taken = room.taken

    @contextmanager
    def counted(pixels: int) -> Iterator[None]:
        nonlocal inside, most
        with taken(pixels):
            with guard:
                inside += pixels
                most = max(most, inside)
            time.sleep(0.01)
            yield
            with guard:
                inside -= pixels

    monkeypatch.setattr(room, "taken", counted)
    monkeypatch.setattr("qmimic.data.images._ROOM", room)
    paths = [tmp_path / f"{number}.bmp" for number in range(12)]
    for path in paths:
        Image.new("RGB", (60, 70)).save(path)
    with ThreadPoolExecutor(8) as pool:
        assert len({found.pixels for found in pool.map(look, paths)}) == 1
    assert most == 2 * 60 * 70


TEXTS = st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF), min_size=1, max_size=5)
NUMBERS = st.lists(st.lists(st.integers(-200, 200), min_size=4, max_size=4), min_size=1, max_size=4)


@given(names=st.lists(TEXTS, min_size=1, max_size=4), numbers=NUMBERS, packed=st.booleans())
def test_matlab_files_are_read_as_scipy_wrote_them(names: list[str], numbers: list[list[int]], packed: bool) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "a.mat")
        kinds = {"d": np.float64, "i": np.int16, "u": np.uint8, "f": np.float32}
        values = {name: np.abs(np.array(numbers)).astype(kind) for name, kind in kinds.items()}
        content = {"names": cells(list(names)), "deep": cells([cells([np.array(numbers, float)])]), **values}
        savemat(path, content, do_compression=packed)
        found = read_matlab(path, {"names", "deep", "d", "i", "u", "f", "absent"})
    assert found.pop("names") == names
    ((deep,),) = found.pop("deep")  # type: ignore[misc]
    np.testing.assert_array_equal(deep, numbers)
    assert found.keys() == values.keys()
    for name, value in values.items():
        np.testing.assert_array_equal(found[name], value)


HARM = {
    "a shape of no end": lambda good: good.replace(struct.pack("<ii", 1, 1), struct.pack("<ii", 1 << 30, 1 << 30)),
    "a length of no end": lambda good: good[:132] + b"\xff\xff\xff\x7f" + good[136:],
    "cut": lambda good: good[:-9],
    "cells in cells": lambda good: good[:128] + nested(200),
    "an unknown class": lambda good: good[:144] + b"\x11" + good[145:],
    "packed": lambda good: good[:128] + bomb(),
    "empty": lambda _: b"",
}


def element(kind: int, body: bytes) -> bytes:
    return struct.pack("<II", kind, len(body)) + body + bytes(-len(body) % 8)


def matrix(kind: int, name: bytes, body: bytes, sides: tuple[int, int] = (1, 1)) -> bytes:
    head = element(6, struct.pack("<II", kind, 0)) + element(5, struct.pack("<ii", *sides)) + element(1, name)
    return element(14, head + body)


def nested(depth: int) -> bytes:
    body = b""
    for level in range(depth):
        body = matrix(1, b"event_list" if level == depth - 1 else b"", body, (1, int(bool(body))))
    return body


def bomb() -> bytes:
    """Two megabytes that become two gigabytes."""
    packer = zlib.compressobj(9)
    parts = [packer.compress(struct.pack("<II", 14, (2 << 30) - 8))]
    parts += [packer.compress(bytes(1 << 20)) for _ in range(2048)] + [packer.flush()]
    body = b"".join(parts)
    return struct.pack("<II", 15, len(body)) + body


@pytest.mark.parametrize("kind", HARM)
def test_a_matlab_file_that_harms_is_one_sentence_in_little_memory(tmp_path: Path, kind: str) -> None:
    root = tmp_path / "data"
    path = root / "wider_face_split" / "wider_face_train.mat"
    write_mat(path, {"e": {"a": {"boxes": np.array([[1.0, 2, 3, 4]])}}})
    path.write_bytes(HARM[kind](path.read_bytes()))
    code = "import sys; from qmimic.data.formats import load_dataset; load_dataset(sys.argv[1])"

    def little() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30))

    done = subprocess.run(
        [sys.executable, "-c", code, str(root)], capture_output=True, text=True, timeout=120, preexec_fn=little
    )
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert re.match(r"qmimic\.errors\.InputError: .*wider_face_train\.mat is (cut short|not of WIDER)", last), last


def test_no_more_values_than_label_files_have(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.mat"
    savemat(path, {"a": cells(["x"] * 50)})
    assert len(read_matlab(path, {"a"})["a"]) == 50
    monkeypatch.setattr(matlab, "MAX_VALUES", 50)
    with pytest.raises(InputError, match="more than 50 values"):
        read_matlab(path, {"a"})


def test_a_picture_that_is_replaced_in_place_is_noticed(tmp_path: Path, refused: Refused) -> None:
    root = coco(tmp_path / "cats")
    path = root / "train" / "train0.png"
    assert main(["data", "index", str(root)]) == 0
    from qmimic.data import index

    samples = index.read(root, drop_bad=False).splits["train"]
    assert samples[0].image == path
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[-20] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    with pytest.raises(InputError, match=r"train0\.png has changed .* run `qmimic data index .*` first"):
        index.read(root, drop_bad=False).splits["train"][0]
    Image.new("RGB", (64, 48)).save(path)
    assert main(["data", "index", str(root)]) == 0  # the remedy
    assert index.read(root, drop_bad=False).splits["train"][0].image == path


def test_a_dataset_that_cannot_be_written_has_its_index_elsewhere_or_none(
    tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = coco(tmp_path / "cats")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    can = os.access
    monkeypatch.setattr(os, "access", lambda path, *rest: can(path, *rest) and Path(path) != root)  # root can do all
    assert main(["data", "index", str(root)]) == 0
    assert "cannot be written" in capsys.readouterr().out
    assert not (root / index.FOLDER).exists()
    assert len(index.read(root, drop_bad=False).splits["train"]) == 4
    shutil.rmtree(tmp_path / "cache")
    assert not index.exists(root)
    (tmp_path / "cache").write_text("no folder")
    assert "Cannot write" in refused("data", "index", root)
    assert main(["data", "check", str(root)]) == 0


STRANGE = (
    "\x1b[31mred",
    "a\u202egpj",
    "[red]x[/red]",
    "two\nNothing needs mending.",
    "<script>x<",
    "bell\x07",
    "\x9b2J",
)


@pytest.mark.parametrize("name", STRANGE)
def test_names_do_nothing_to_a_terminal_and_forge_no_line(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a picture, a class and a split, in what `data check` and training print, and in what they refuse."""
    root = tmp_path / "data"
    stem = name.replace("/", "_")
    boxes = [{"image_id": 0, "category_id": 1, "bbox": [1, 1, 9, 9]}] * 2
    content = {
        "images": [{"id": 0, "file_name": f"{stem}.png"}],
        "annotations": boxes,
        "categories": [{"id": 1, "name": name or "x"}],
    }
    picture(root / "images" / f"{stem}.png", (20, 20))
    (root / f"instances_{stem}.json").write_text(json.dumps(content))
    main(["data", "check", str(root)])
    shown = capsys.readouterr().out
    assert all(sign.isprintable() or sign == "\n" for sign in shown)
    assert shown.count("needs mending.\n") == 1
    main(["train", "demo", f"data.root={root}", f"run.dir={tmp_path / 'run'}"])
    said = capsys.readouterr()
    assert all(sign.isprintable() or sign == "\n" for sign in said.out + said.err)
    assert said.err.count("\n") == 1


@given(st.text())
def test_what_is_printable_has_no_sign_that_does_something(text: str) -> None:
    shown = printable(text)
    assert all(sign.isprintable() or sign == "\n" for sign in shown)
    assert all(sign in shown for sign in text if sign.isprintable())
    assert text.isprintable() == (shown == text) or "\n" in text
    assert single_line(text).isprintable()
