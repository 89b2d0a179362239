"""Pictures without labels: which of them are used, and what is refused or said."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cli_cases import coco
from folders import picture
from qmimic.config import DataConfig
from qmimic.data.chosen import dataset_fingerprint, open_dataset, open_with_unlabelled
from qmimic.data.columns import in_columns
from qmimic.data.loader import Chained, Loader, Mixture
from qmimic.data.splits import with_share
from qmimic.data.synthetic import digits
from qmimic.data.unlabelled import Unlabelled
from qmimic.errors import InputError


def used(config: DataConfig) -> tuple[list[str], str]:
    """Names of the pictures that are used, and all that is said of them."""
    _, found = open_with_unlabelled(config)
    assert found is not None
    return [sample.image_id for sample in found.samples], " ".join(found.remarks)


@pytest.fixture
def data(tmp_path: Path) -> DataConfig:
    """Four pictures to train on, four of val, and an empty folder."""
    (tmp_path / "frames").mkdir()
    return DataConfig(root=str(coco(tmp_path / "cats")), unlabelled=str(tmp_path / "frames"))


def test_pictures_of_all_depths_are_used_once_and_the_rest_is_counted(data: DataConfig, tmp_path: Path) -> None:
    frames, cats = tmp_path / "frames", tmp_path / "cats"
    for place, name in enumerate(("b.png", "day/a.png", "day/a.jpg")):
        picture(frames / name, seed=100 + place)
    (frames / "copy.bmp").parent.mkdir(exist_ok=True)
    Image.open(frames / "b.png").save(frames / "copy.bmp")
    Image.open(cats / "train" / "train1.png").save(frames / "labelled.bmp")
    (frames / "phone.heic").write_bytes(b"heic")
    (frames / "b.heic").write_bytes(b"heic")
    (frames / "notes.txt").write_text("no picture")
    (frames / ".hidden.png").write_bytes(b"no data")
    names, said = used(data)
    assert names == ["b.png", "day/a.jpg", "day/a.png"]
    assert "7 found, 3 used, 1 left out (copy in a format not read), 1 left out (format not read)" in said
    assert "1 left out (same picture twice), 1 left out (trained on with labels)" in said


@pytest.mark.parametrize("suffix", [".png", ".bmp"])
def test_pictures_of_val_are_refused_whatever_they_are_called_and_stored_as(
    data: DataConfig, tmp_path: Path, suffix: str
) -> None:
    picture(tmp_path / "frames" / "new.png", seed=100)
    Image.open(tmp_path / "cats" / "val" / "val2.png").save(tmp_path / "frames" / f"holiday{suffix}")
    with pytest.raises(InputError, match=rf"^1 of 2 pictures of .*frames are in val too, the first: holiday{suffix}; "):
        used(data)


def test_a_jpeg_of_val_is_found_beside_pictures_of_other_formats(tmp_path: Path) -> None:
    config = DataConfig(root=str(coco(tmp_path / "cats", suffix=".jpg")), unlabelled=str(tmp_path / "frames"))
    picture(tmp_path / "frames" / "new.png", (64, 48), seed=100)
    Image.open(tmp_path / "cats" / "val" / "val2.jpg").save(tmp_path / "frames" / "same.png")
    with pytest.raises(InputError, match=r"are in val too, the first: same.png"):
        used(config)


def test_pictures_of_val_that_were_saved_again_are_left_out(tmp_path: Path) -> None:
    config = DataConfig(root=str(coco(tmp_path / "cats", suffix=".jpg")), unlabelled=str(tmp_path / "frames"))
    frames = tmp_path / "frames"
    picture(frames / "new.png", (64, 48), seed=100)
    Image.new("RGB", (64, 48), (120, 120, 120)).save(frames / "flat.png")
    for place in range(4):
        own = Image.open(tmp_path / "cats" / "val" / f"val{place}.jpg")
        whole = own.convert("RGB")
        turned = whole.transpose(Image.Transpose.ROTATE_90)
        exif = Image.Exif()
        exif[0x0112] = 6  # to be turned back
        again = {
            "q.jpg": (whole, {"quality": 60}),
            "grey.png": (whole.convert("L"), {}),
            "turned.jpg": (turned, {"exif": exif, "quality": 80}),
            "large.webp": (whole.resize((256, 192), Image.Resampling.BICUBIC), {"quality": 80}),
        }
        for name, (one, how) in again.items():
            one.save(frames / f"{place}-{name}", **how)
    names, said = used(config)
    assert names == ["flat.png", "new.png"]
    assert "18 found, 2 used, 16 left out (looks like one of val)" in said


@pytest.mark.parametrize("how", list(Image.Transpose))
def test_mirrored_and_turned_pictures_of_val_are_left_out(tmp_path: Path, how: Image.Transpose) -> None:
    """A student's own views are mirrored and turned: it would see the picture of val itself."""
    config = DataConfig(root=str(coco(tmp_path / "cats", suffix=".jpg")), unlabelled=str(tmp_path / "frames"))
    picture(tmp_path / "frames" / "new.png", (64, 48), seed=100)
    with Image.open(tmp_path / "cats" / "val" / "val1.jpg") as own:
        own.transpose(how).save(tmp_path / "frames" / "turned.jpg", quality=80)
    assert used(config)[0] == ["new.png"]


def test_a_jpeg_of_val_is_known_at_any_size(tmp_path: Path) -> None:
    """JPEGs are looked at as drafts, whose size depends on the picture's."""
    config = DataConfig(root=str(coco(tmp_path / "cats", suffix=".jpg")), unlabelled=str(tmp_path / "frames"))
    (tmp_path / "frames").mkdir()
    noise = np.random.default_rng(7).integers(0, 256, (8, 2, 9, 12, 3), dtype=np.uint8)
    for place in range(4):
        for split, cells in zip(("train", "val"), noise[place], strict=True):
            own = Image.fromarray(cells).resize((1000, 750), Image.Resampling.BICUBIC)
            own.save(tmp_path / "cats" / split / f"{split}{place}.jpg", quality=92)
            for side in (97, 160, 333, 500, 640, 1500) if split == "val" else ():
                again = own.resize((side, side * 3 // 4), Image.Resampling.BICUBIC)
                again.save(tmp_path / "frames" / f"{place}-{side}.jpg", quality=80)
        Image.fromarray(noise[4 + place, 0]).resize((640, 480)).save(tmp_path / "frames" / f"new{place}.jpg")
    names, said = used(config)
    assert names == [f"new{place}.jpg" for place in range(4)]
    assert "28 found, 4 used, 24 left out (looks like one of val)" in said


def test_pictures_of_drawn_data_are_known_too(tmp_path: Path) -> None:
    drawn = digits()
    (tmp_path / "frames").mkdir()
    for split in ("train", "val"):
        drawn.load(drawn.splits[split][3]).save(tmp_path / "frames" / f"{split}.png")
    config = DataConfig(unlabelled=str(tmp_path / "frames"))
    with pytest.raises(InputError, match=r"1 of 2 pictures of .* are in val too, the first: val.png"):
        used(config)


def test_a_folder_without_pictures_is_refused(data: DataConfig, tmp_path: Path) -> None:
    (tmp_path / "frames" / "notes.txt").write_text("no picture")
    with pytest.raises(InputError, match=r"frames holds no picture \(BMP, GIF, JPEG, PNG, TIFF, WEBP\)"):
        used(data)
    with pytest.raises(InputError, match="There is no folder"):
        used(data.model_copy(update={"unlabelled": str(tmp_path / "nothing")}))
    Image.open(tmp_path / "cats" / "train" / "train1.png").save(tmp_path / "frames" / "one.png")
    with pytest.raises(InputError, match=r"has no picture to learn from .*trained on with labels"):
        used(data)


def test_a_damaged_picture_is_named_or_left_out(data: DataConfig, tmp_path: Path) -> None:
    frames = tmp_path / "frames"
    whole = picture(frames / "whole.png", seed=100).read_bytes()
    (frames / "torn.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        InputError, match=r"has 1 pictures that cannot be read, the first: .*torn.png.*drop_bad_boxes=true"
    ):
        used(data)
    names, said = used(data.model_copy(update={"drop_bad_boxes": True}))
    assert names == ["whole.png"]
    assert "1 left out (unreadable image)" in said


def test_no_link_leads_out_of_the_folder(data: DataConfig, tmp_path: Path) -> None:
    picture(tmp_path / "elsewhere" / "secret.png", seed=100)
    picture(tmp_path / "frames" / "own.png", seed=101)
    (tmp_path / "frames" / "folder").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "frames" / "file.png").symlink_to(tmp_path / "elsewhere" / "secret.png")
    with pytest.raises(InputError, match=r"file.png"):
        used(data)
    (tmp_path / "frames" / "file.png").unlink()
    names, said = used(data)
    assert names == ["own.png"]
    assert f"folder is a link out of {tmp_path / 'frames'}, and nothing outside that folder is read" in said
    (tmp_path / "frames" / "own.png").unlink()
    with pytest.raises(InputError, match=r"holds no picture .*folder is a link out of"):
        used(data)


def test_a_labelled_folder_is_taken_for_its_pictures_and_that_is_said(data: DataConfig, tmp_path: Path) -> None:
    other = coco(tmp_path / "dogs", count=2, classes=("dog",))
    for split in ("train", "val"):
        for number in range(2):
            picture(other / split / f"{split}{number}.png", seed=200 + 10 * number + (split == "val"))
    names, said = used(data.model_copy(update={"unlabelled": str(other)}))
    assert len(names) == 4
    assert "also holds labels (coco), which are not read" in said


def test_files_that_are_not_named_as_pictures_are_counted(data: DataConfig, tmp_path: Path) -> None:
    frames = tmp_path / "frames"
    picture(frames / "own.png", seed=101)
    picture(frames / "other.png", seed=102).rename(frames / "other")
    (frames / "film.mp4").write_bytes(b"1")
    (frames / "more").mkdir()
    (frames / "more" / "film.mp4").write_bytes(b"2")
    names, said = used(data)
    assert names == ["own.png"]
    assert "also holds 3 files whose names are no picture's (.mp4, no ending); they are not read." in said


def test_what_is_used_does_not_change_what_is_trained_on_with_labels(data: DataConfig, tmp_path: Path) -> None:
    picture(tmp_path / "frames" / "new.png", seed=100)
    with_, without = open_with_unlabelled(data)[0], open_dataset(data.model_copy(update={"unlabelled": None}))
    assert dataset_fingerprint(with_) == dataset_fingerprint(without)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 60), st.floats(0.01, 1), st.floats(0.01, 1))
def test_a_larger_share_of_labels_holds_a_smaller_one(count: int, one: float, other: float) -> None:
    samples = in_columns({"train": digits(count, 1, 1).splits["train"]}, None)["train"]
    small, large = (with_share(samples, share) for share in sorted((one, other)))
    for (kept, rest), share in zip((small, large), sorted((one, other)), strict=True):
        assert len(kept) == max(1, round(share * count))
        assert sorted(kept.ids + rest.ids) == sorted(samples.ids)
    assert set(small[0].ids) <= set(large[0].ids)
    backwards = in_columns({"train": samples.take(range(count - 1, -1, -1))}, None)["train"]
    assert set(with_share(backwards, one)[0].ids) == set(with_share(samples, one)[0].ids)


def test_the_rest_are_the_pictures_whose_labels_do_not_count() -> None:
    config = DataConfig(label_share=0.25, unlabelled="rest")
    dataset, rest = open_with_unlabelled(config)
    assert isinstance(rest, Unlabelled)
    labelled = {sample.image_id for sample in dataset.splits["train"]}
    assert (len(labelled), len(rest.samples)) == (750, 2250)
    assert labelled.isdisjoint(rest.samples.ids)
    assert all(len(sample.boxes) == 0 for sample in rest.samples)
    assert rest.dataset.load(rest.samples[0]).size == (128, 128)


SIZE = (32, 32)


def loader(count: int, batch: int, split: str = "train") -> Loader:
    return Loader(digits(count, count, count, size=64), split, SIZE, batch)


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.integers(1, 6), st.floats(0.05, 0.95), st.integers(0, 3), st.data())
def test_a_mixture_keeps_its_share_and_both_orders(
    labelled: int, others: int, batch: int, share: float, seed: int, data: st.DataObject
) -> None:
    taken = np.array(sorted(data.draw(st.sets(st.integers(0, others - 1), min_size=1))))
    mixture = Mixture(loader(labelled, batch), loader(others, 1, "select"), taken, share)
    steps = 12
    drawn: Sequence[int] = [index for b in mixture.steps(seed, 0, steps) for index in b.indices.tolist()]
    assert len(drawn) == steps * batch
    second = [index - labelled for index in drawn if index >= labelled]
    assert abs(len(second) - share * len(drawn)) < 1
    assert set(second) <= set(taken.tolist())
    for start in range(0, len(second) - len(taken) + 1, len(taken)):  # every one once before any comes twice
        assert sorted(second[start : start + len(taken)]) == taken.tolist()
    first = [index for index in drawn if index < labelled]
    alone = [index for b in loader(labelled, 1).steps(seed, 0, len(first)) for index in b.indices.tolist()]
    assert first == alone
    # A run that goes on draws what it would have drawn.
    later = [index for b in mixture.steps(seed, 5, steps) for index in b.indices.tolist()]
    assert later == drawn[5 * batch :]


def test_a_mixture_s_pictures_are_those_of_their_samples() -> None:
    first, second = loader(3, 4), loader(5, 1, "select")
    mixture = Mixture(first, second, np.arange(5), 0.5)
    (batch,) = mixture.steps(0, 0, 1)
    for row, index in enumerate(batch.indices.tolist()):
        sample, where = (first.samples[index], first) if index < 3 else (second.samples[index - 3], second)
        assert batch.samples[row].image_id == sample.image_id
        wanted, _ = where.dataset.fitted(sample, SIZE)
        assert (batch.images[row].permute(1, 2, 0).numpy() == wanted).all()


def test_chained_samples_are_one_sequence() -> None:
    first, second = (digits(3, 2, 1).splits[name] for name in ("train", "val"))
    both = Chained(first, second)
    assert list(both) == [*first, *second]
    assert both[-1] is second[-1]
    assert list(both[1:4]) == [*first, *second][1:4]
    with pytest.raises(IndexError):
        both[5]
