"""Nothing is lost: in every reader, what is found is used or left out for a named reason, counted apart from it."""

import os
import random
import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from folders import coco_json, picture, voc_list, voc_object, voc_xml
from qmimic.data.check import check
from qmimic.data.formats import load_dataset, usable
from qmimic.data.sample import Dataset
from qmimic.errors import InputError

WIDER = "wider_face_split/wider_face_train_bbx_gt.txt"
FUZZED = int(os.environ.get("QMIMIC_FUZZ", "400"))  # label files; 10,000 take a minute
REAL = ("bccd", "raccoon", "animals", "deeppcb")


def pictures_below(root: Path) -> int:
    """Picture files, counted without the product."""
    return sum(path.suffix.lower() in (".png", ".jpg") for path in root.rglob("*"))


def hold(dataset: Dataset) -> None:
    """The rule, for all three accounts, against the samples themselves."""
    accounts = dataset.accounted
    assert accounts is not None
    samples = {id(s): s for own in dataset.splits.values() for s in own}.values()
    there = [s for s in samples if s.image is not None and s.image.is_file()]
    for name, used in (
        ("pictures", len({s.image for s in there})),
        ("labels", len(there)),
        ("boxes", sum(len(s.boxes) for s in there)),
    ):
        account = getattr(accounts, name)
        assert account.found == account.used + sum(account.left_out.values())
        assert account.used == used, name
        assert all(count > 0 for count in account.left_out.values())


def voc(root: Path, rng: random.Random) -> tuple[int, int]:
    labels = boxes = 0
    names = [f"{k}" for k in range(rng.randint(1, 8))]
    for name in names:
        if rng.random() < 0.8:
            picture(root / "JPEGImages" / f"{name}.png", (20, 20), int(name))
        if rng.random() < 0.8:
            count = rng.randint(0, 3)
            objects = [voc_object("cat", 1 + k, 1, rng.choice([9, 9, 9, "x"]), 9) for k in range(count)]
            voc_xml(root, name, *objects)
            labels, boxes = labels + 1, boxes + count
    voc_xml(root, "last", voc_object("cat", 1, 1, 9, 9))
    for split in ("train", "val")[: rng.randint(0, 2)]:
        voc_list(root, split, *rng.sample(names, rng.randint(0, len(names))), "gone")
    return labels + 1, boxes + 1


def yolo(root: Path, rng: random.Random) -> tuple[int, int]:
    labels = boxes = 0
    (root / "labels" / "train").mkdir(parents=True)
    for k in range(rng.randint(1, 8)):
        split = rng.choice(["train", "val", "spare"])
        for suffix in [".png", ".jpg"][: rng.choice([0, 1, 1, 1, 2])]:
            picture(root / "images" / split / f"{k}{suffix}", (20, 20), k)
        if rng.random() < 0.8:
            rows = rng.choices(
                ["0 .5 .5 .2 .2", "0 .1 .1 .4 .1 .4 .4", "0 .5 .5 .2", "9 .5 .5 .2 .2"], k=rng.randint(0, 3)
            )
            path = root / "labels" / split / f"{k}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text("\n".join(rows))
            labels, boxes = labels + 1, boxes + len(rows)
    (root / "data.yaml").write_text("train: images/train\nval: images/val\nnames: [cat]\n")
    return labels, boxes


def coco(root: Path, rng: random.Random) -> tuple[int, int]:
    images, boxes = [], []
    for k in range(rng.randint(1, 8)):
        if rng.random() < 0.8:
            picture(root / "images" / f"{k}.png", (20, 20), k)
        if rng.random() < 0.8:
            images.append({"id": rng.choice([k, k, None]), "file_name": f"{k}.png"})
        for _ in range(rng.randint(0, 2)):
            bbox = rng.choice([[1, 1, 5 + len(boxes), 9], [1, 1, 5 + len(boxes), 9], None, [1, 2]])
            boxes.append({"image_id": k, "category_id": rng.choice([1, 1, 7]), "bbox": bbox})
    coco_json(root, images, boxes, (1, "cat"))
    return len(images), len(boxes)


def wider(root: Path, rng: random.Random) -> tuple[int, int]:
    text, labels, boxes = "", 0, 0
    for k in range(rng.randint(1, 5)):
        if rng.random() < 0.8:
            picture(root / "WIDER_train" / "images" / "0--Parade" / f"{k}.jpg", (20, 20), k)
        rows = [rng.choice([f"{j} 2 3 4 0 0 0 0 0 0", f"{j} 2 3"]) for j in range(rng.randint(0, 3))]
        text += f"0--Parade/{k}.jpg\n{len(rows)}\n" + "".join(f"{row}\n" for row in rows or ["0 0 0 0 0 0 0 0 0 0"])
        labels, boxes = labels + 1, boxes + len(rows)
    (root / WIDER).parent.mkdir(parents=True)
    (root / WIDER).write_text(text)
    return labels, boxes


MAKERS: dict[str, Callable[[Path, random.Random], tuple[int, int]]] = {
    "voc": voc, "yolo": yolo, "coco": coco, "wider": wider,
}  # fmt: skip


@pytest.mark.parametrize("layout", MAKERS)
def test_what_is_found_is_used_or_named(tmp_path: Path, layout: str) -> None:
    for seed in range(25):
        root = tmp_path / str(seed)
        root.mkdir()
        labels, boxes = MAKERS[layout](root, random.Random(seed))
        dataset = load_dataset(root)
        accounts = dataset.accounted
        assert accounts is not None
        found = (accounts.pictures.found, accounts.labels.found, accounts.boxes.found)
        assert found == (pictures_below(root), labels, boxes), (seed, dataset.defects)
        hold(dataset)
        for after in (check(dataset, (32, 32)).accounted, usable(dataset, True).accounted):
            assert after is not None
            assert after == usable(dataset, True).accounted
            assert all(own.used >= 0 for own in (after.pictures, after.labels, after.boxes))


@pytest.mark.parametrize("name", REAL)
def test_every_real_set(real_data: Path, name: str) -> None:
    root = real_data / name
    if not root.is_dir():
        pytest.skip(f"{root} is not there")
    dataset = load_dataset(root)
    hold(dataset)
    accounts = dataset.accounted
    assert accounts is not None
    texts = [path.read_text(encoding="utf-8-sig") for path in (root / "Annotations").glob("*.xml")]
    assert accounts.pictures.found == pictures_below(root)
    assert accounts.labels.found == len(texts)
    assert accounts.boxes.found == sum(len(re.findall("<object>", text)) for text in texts)


NASTY = [
    b"", b" ", b"\0", b"nan", b"-1", b"1e999", b"9" * 400, b"\xff\xfe", b"<", b"&x;", b"[", b"{", b"}", b"]", b",",
    b":", b"..", b"/", b"../../..", b"\n\n", b"\r", b"null", b"true", b'"', b"'", b"*a", b"&a",
    b"!!python/object:os.system",    b"\xc3\x28", b"a" * 5000, b"0x10", b"1_0", b"\xe2\x80\xa8", b"%00", b"\\",
]  # fmt: skip


def spoil(content: bytes, rng: random.Random) -> bytes:
    """A few small harms."""
    for _ in range(rng.randint(1, 4)):
        at, width = rng.randrange(len(content) + 1), rng.choice([0, 1, 1, 3, 20])
        kind = rng.random()
        if kind < 0.5:
            content = content[:at] + rng.choice(NASTY) + content[at + width :]
        elif kind < 0.7:
            content = content[:at] + bytes(rng.randrange(256) for _ in range(rng.randint(1, 4))) + content[at + width :]
        elif kind < 0.85:
            content = content[:at]
        else:
            content = content[:at] + content[rng.randrange(len(content) + 1) :] + content[at:]
    return content


@pytest.mark.parametrize("layout", MAKERS)
def test_spoilt_label_files_are_refused_or_accounted_for(tmp_path: Path, layout: str) -> None:
    rng = random.Random(layout)
    root = tmp_path / "data"
    root.mkdir()
    MAKERS[layout](root, random.Random(3))
    labels = sorted(p for p in root.rglob("*") if p.suffix in (".txt", ".xml", ".json", ".yaml"))
    whole = {path: path.read_bytes() for path in labels}
    for number in range(FUZZED // len(MAKERS)):
        path = rng.choice(labels)
        path.write_bytes(spoil(whole[path], rng))
        began = time.monotonic()
        try:
            dataset = load_dataset(root)
            hold(dataset)
            if number % 5 == 0:
                usable(dataset, True)
                check(dataset, (32, 32)).as_text()
        except InputError:
            pass  # one sentence, exit code 2
        assert time.monotonic() - began < 30
        path.write_bytes(whole[path])
