"""Conversions lose nothing: boxes to the last bit of float32, image files to the last byte."""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from folders import coco_json, contents, picture, sample_of, voc_list, voc_object, voc_xml
from qmimic.cli import main
from qmimic.data import coco, voc, yolo
from qmimic.data.convert import convert
from qmimic.data.formats import WRITERS, load_dataset
from qmimic.data.sample import Dataset
from qmimic.data.synthetic import digits
from qmimic.errors import InputError

READ: dict[str, Callable[[Path], Dataset]] = {"voc": voc.read, "coco": coco.read, "yolo": yolo.read}
SIZES = ((1, 1), (333, 517), (4000, 7))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """A VOC folder with everything: flags, fractions, bad boxes, a union, an image without boxes, odd names."""
    root = tmp_path / "source"
    for seed, name in enumerate(("a", "Ünï çødé.x", "empty")):
        picture(root / "JPEGImages" / f"{name}.{'png' if seed else 'jpg'}", (100 + 7 * seed, 80), seed)
    hard, crowd = "<difficult>1</difficult>", "<crowd>1</crowd>"
    voc_xml(
        root,
        "a",
        voc_object("cat", 1, 1, 100, 80),
        voc_object("dog &amp; &lt;bone&gt;", 3.3, 4.7, 9.1, 10.25, extra=hard),
        voc_object("cat", 50, 50, 50, 50),
        "<size><width>100</width><height>80</height></size>",
    )
    voc_xml(
        root, "Ünï çødé.x", voc_object("猫", -5, 0.5, 200, 90.125, extra=crowd), voc_object("no: 1", 60, 60, 20, 20)
    )
    voc_xml(root, "empty")
    voc_list(root, "train", "a", "empty")
    voc_list(root, "val", "Ünï çødé.x")
    voc_list(root, "trainval", "a", "empty", "Ünï çødé.x")
    return root


def bytes_of(root: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in root.rglob("*") if p.suffix in (".jpg", ".png")}


def without_flags(dataset: Dataset) -> Dataset:
    splits = {
        split: tuple(replace(s, difficult=np.zeros_like(s.difficult), crowd=np.zeros_like(s.crowd)) for s in samples)
        for split, samples in dataset.splits.items()
    }
    return replace(dataset, splits=splits)


@pytest.mark.parametrize("to", WRITERS)
@pytest.mark.parametrize("through", WRITERS)
def test_a_round_trip_keeps_everything(source: Path, tmp_path: Path, through: str, to: str) -> None:
    original = load_dataset(source)
    assert original.defects == ()
    convert(original, tmp_path / "once", through)
    convert(READ[through](tmp_path / "once"), tmp_path / "twice", to)
    for name, folder in ((through, "once"), (to, "twice")):
        found = load_dataset(tmp_path / folder)
        assert found.defects == ()
        expected = without_flags(original) if "yolo" in (name, through) else original
        assert contents(found) == contents(expected)
        assert bytes_of(tmp_path / folder) == bytes_of(source)
        assert all(s.boxes.dtype == np.float32 for samples in found.splits.values() for s in samples)


@pytest.mark.parametrize("to", WRITERS)
def test_labels_of_a_picture_of_another_size_are_refused(source: Path, tmp_path: Path, to: str) -> None:
    voc_xml(source, "empty", "<size><width>80</width><height>114</height></size>")
    with pytest.raises(InputError, match=r"empty: The label says 80 x 114, the image has 114 x 80\..*swapped"):
        convert(load_dataset(source), tmp_path / "out", to)
    assert not (tmp_path / "out").exists()


def test_voc_files_hold_plain_integers(source: Path, tmp_path: Path) -> None:
    convert(load_dataset(source), tmp_path / "out", "voc")
    text = (tmp_path / "out" / "Annotations" / "a.xml").read_text()
    assert "<xmin>1</xmin>" in text
    assert "<xmax>100</xmax>" in text
    assert (tmp_path / "out" / "ImageSets" / "Main" / "train.txt").read_text() == "a\nempty\n"


pixels = st.floats(-500, 20000, width=32).filter(lambda value: value == 0 or abs(value) > 1e-3)
corners = st.lists(st.tuples(pixels, pixels, pixels, pixels), min_size=1, max_size=40)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    return [picture(folder / f"{width}x{height}.png", (width, height)) for width, height in SIZES]


@pytest.mark.parametrize("to", WRITERS)
@settings(max_examples=25, deadline=None)
@given(boxes=corners, which=st.integers(0, len(SIZES) - 1))
def test_any_boxes_come_back_as_the_same_float32(
    pictures: list[Path], to: str, boxes: list[tuple[float, float, float, float]], which: int
) -> None:
    image = pictures[which]
    sample = sample_of(image, boxes, [0] * len(boxes))
    dataset = Dataset("boxes", image.parent, ("thing",), {"train": (sample,)})
    with tempfile.TemporaryDirectory() as folder:
        width, height = SIZES[which]
        shares = np.abs(sample.boxes / np.array([width, height, width, height]))
        if to == "yolo" and shares.max() > 1.99:  # at 2 the reader begins to take them for pixels
            if shares.max() > 2.01:
                with pytest.raises(InputError, match="has a box far outside of its picture"):
                    convert(dataset, Path(folder) / "out", to)
            return
        convert(dataset, Path(folder) / "out", to)
        (found,) = READ[to](Path(folder) / "out").splits["train"]
    assert np.array_equal(found.boxes, sample.boxes)


@pytest.mark.parametrize("name", ["bccd", "raccoon"])
def test_a_real_folder_through_all_formats(real_data: Path, tmp_path: Path, name: str) -> None:
    original = load_dataset(real_data / name)
    dataset = original
    for to in ("coco", "voc", "yolo"):
        convert(dataset, tmp_path / to, to)
        dataset = load_dataset(tmp_path / to)
        expected = without_flags(original) if to == "yolo" else original
        assert contents(dataset) == contents(expected)
        assert dataset.defects == ()
    assert bytes_of(tmp_path / "yolo") == bytes_of(real_data / name)


def test_embedded_data_become_png_files(tmp_path: Path) -> None:
    dataset = digits(train=3, val=2, size=96)
    convert(dataset, tmp_path / "out", "voc")
    found = load_dataset(tmp_path / "out")
    assert contents(found) == contents(dataset)
    for drawn, read in zip(dataset.splits["val"], found.splits["val"], strict=True):
        assert read.image is not None
        with Image.open(read.image) as file:
            assert np.array_equal(np.asarray(file), np.asarray(dataset.load(drawn)))


@pytest.mark.parametrize("to", ["voc", "coco", "yolo"])
def test_a_class_without_a_box_is_kept_or_named(tmp_path: Path, to: str) -> None:
    dataset = replace(digits(train=3, val=2, size=96), classes=(*map(str, range(10)), "x", "y"))
    said = convert(dataset, tmp_path / "out", to)
    kept = {"x", "y"} <= set(load_dataset(tmp_path / "out").classes)
    assert kept == (to != "voc")
    assert ("x, y" in said) == (not kept)


def test_the_command(source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "new" / "out"
    voc_xml(source, "bad", "<object>")
    assert main(["data", "convert", str(source), str(target), "--to", "yolo"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("\n") == 1
    assert "3 images as yolo, 5 boxes" in printed
    assert "2 of them no longer marked as difficult or crowd" in printed
    assert "1 faulty" in printed
    assert main(["data", "convert", str(source), str(target), "--to", "coco"]) == 2
    assert "is not empty" in capsys.readouterr().err
    assert (target / "data.yaml").is_file()
    assert list(target.parent.iterdir()) == [target]


def test_an_empty_folder_or_a_link_to_one_may_be_filled(source: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    convert(load_dataset(source), tmp_path / "link", "coco")
    assert contents(load_dataset(tmp_path / "real")) == contents(load_dataset(source))


@pytest.mark.parametrize("harm", ["missing", "truncated", "empty"])
@pytest.mark.parametrize("to", WRITERS)
def test_a_broken_image_is_refused_and_nothing_is_left(source: Path, tmp_path: Path, harm: str, to: str) -> None:
    image = source / "JPEGImages" / "a.jpg"
    if harm == "missing":
        image.unlink()
    else:
        image.write_bytes(image.read_bytes()[: 0 if harm == "empty" else 1500])
    with pytest.raises(InputError, match="JPEGImages/a"):
        convert(load_dataset(source), tmp_path / "out", to)
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_an_unreadable_image_that_the_reader_passed_over_is_refused(tmp_path: Path) -> None:
    (tmp_path / "in" / "images").mkdir(parents=True)
    (tmp_path / "in" / "labels").mkdir()
    (tmp_path / "in" / "images" / "a.png").write_bytes(b"no image")
    with pytest.raises(InputError, match=r"a\.png"):
        convert(load_dataset(tmp_path / "in"), tmp_path / "out", "voc")


@pytest.mark.parametrize("to", WRITERS)
def test_two_images_of_one_name_are_refused_where_they_would_meet(tmp_path: Path, to: str) -> None:
    samples = [sample_of(picture(tmp_path / folder / "a.png"), [(0, 0, 9, 9)], [0]) for folder in ("x", "y")]
    together = Dataset("twins", tmp_path, ("cat",), {"train": tuple(samples)})
    with pytest.raises(InputError, match="rename one"):
        convert(together, tmp_path / "out", to)
    apart = replace(together, splits={"train": (samples[0],), "val": (samples[1],)})
    if to == "yolo":
        convert(apart, tmp_path / "out", to)
        assert len(list((tmp_path / "out").rglob("a.png"))) == 2
    else:
        with pytest.raises(InputError, match="rename one"):
            convert(apart, tmp_path / "out", to)


def test_an_image_with_two_sets_of_labels_fits_into_coco_alone(tmp_path: Path) -> None:
    image = picture(tmp_path / "a.png")
    splits = {split: (sample_of(image, [(0, 0, 9, side)], [0]),) for split, side in (("train", 5), ("val", 7))}
    dataset = Dataset("two", tmp_path, ("cat",), splits)
    convert(dataset, tmp_path / "coco", "coco")
    assert contents(load_dataset(tmp_path / "coco")) == contents(dataset)
    with pytest.raises(InputError, match="listed twice"):
        convert(dataset, tmp_path / "voc", "voc")


@pytest.mark.parametrize("split", ["..", ".", "", "a/b", "a\n", "../../x"])
@pytest.mark.parametrize("to", WRITERS)
def test_a_split_with_no_name_for_a_folder_is_refused(tmp_path: Path, split: str, to: str) -> None:
    sample = sample_of(picture(tmp_path / "in" / "a.png"), [], [])
    with pytest.raises(InputError, match="split"):
        convert(Dataset("x", tmp_path, (), {split: (sample,)}), tmp_path / "deep" / "out", to)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


@pytest.mark.parametrize("to", WRITERS)
def test_odd_split_names_come_back(tmp_path: Path, to: str) -> None:
    names = ("train", "train2017", "extra_train", "labels", "0")
    splits = {n: (sample_of(picture(tmp_path / "in" / f"{n} {to}.png"), [(1, 2, 3, 4)], [0]),) for n in names}
    dataset = Dataset("x", tmp_path, ("cat",), splits)
    convert(dataset, tmp_path / "out", to)
    assert contents(load_dataset(tmp_path / "out")) == contents(dataset)


@pytest.mark.parametrize("name", ["a.txt", "a", " a.png", "a\x01.png", "a\n.png", "a\udcff.png"])
def test_an_image_name_that_no_reader_finds_is_refused(tmp_path: Path, name: str) -> None:
    image = picture(tmp_path / "a.png").rename(tmp_path / name)
    for to in WRITERS:
        with pytest.raises(InputError, match="rename it"):
            convert(Dataset("x", tmp_path, (), {"train": (sample_of(image, [], []),)}), tmp_path / "out", to)


@pytest.mark.parametrize("name", [" cat", "a\nb", "\x01", "\uffff"])
def test_a_class_name_that_xml_cannot_hold(tmp_path: Path, name: str) -> None:
    image = picture(tmp_path / "in" / "images" / "a.png")
    box = {"image_id": 1, "category_id": 1, "bbox": [1, 1, 5, 5]}
    coco_json(tmp_path / "in", [{"id": 1, "file_name": image.name}], [box], (1, name))
    dataset = load_dataset(tmp_path / "in")
    with pytest.raises(InputError, match="class name"):
        convert(dataset, tmp_path / "voc", "voc")
    for to in ("coco", "yolo"):
        convert(dataset, tmp_path / to, to)
        assert load_dataset(tmp_path / to).classes == (name,)
