"""The runtime: the trained model's pixels and boxes without torch, and clear words about bad files."""

import io
import json
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from cli_cases import coco
from folders import picture
from qmimic.cli import main as qmimic_main
from qmimic.detectors.detector import Detector as TrainedDetector
from qmimic.detectors.prediction import predict
from qmimic.errors import InputError, Notice
from qmimic.runtime import Detector
from qmimic.runtime.__main__ import main
from qmimic.runtime.formats import FORMATS
from qmimic.runtime.metadata import KEY, SUM
from qmimic.ship.onnx_file import Exported
from qmimic.ship.write import describe, write_described
from tiny_detectors import lively, tiny_spec


@pytest.fixture(scope="module")
def trained_one() -> TrainedDetector:
    return lively(tiny_spec(size=(64, 96))).eval()


@pytest.fixture(scope="module")
def models(trained_one: TrainedDetector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`four.onnx` and `any.onnx`, by the number of images that they take."""
    folder = tmp_path_factory.mktemp("models")
    for name, batch in (("four", 4), ("any", None)):
        path = folder / f"{name}.onnx"
        write_described(Exported(trained_one, batch), FORMATS["onnx"], describe(trained_one, {}), path)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five pictures of several shapes, one of them a JPEG that lies on its side."""
    folder = tmp_path_factory.mktemp("photos")
    for k, size in enumerate(((96, 64), (50, 200), (300, 40), (1, 1))):
        picture(folder / f"{k}.png", size, k)
    blocks = Image.fromarray(np.random.default_rng(9).integers(0, 256, (6, 8, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = 6
    blocks.resize((400, 300)).save(folder / "turned.jpg", exif=exif)
    return folder


@pytest.mark.parametrize(("name", "batch"), [("four", None), ("any", None), ("any", 3)])
def test_it_finds_what_the_trained_model_finds(
    trained_one: TrainedDetector, models: Path, photos: Path, name: str, batch: int | None
) -> None:
    paths = sorted(photos.iterdir())
    detector = Detector(models / f"{name}.onnx")
    found = list(detector.many(paths, batch=batch))
    assert len(found) == len(paths)
    assert sum(len(own.scores) for own in found) > 20
    for path, own in zip(paths, found, strict=True):
        wanted = predict(trained_one, path)
        assert own.labels.tolist() == wanted.labels.tolist()
        np.testing.assert_allclose(own.scores, wanted.scores, atol=1e-4)
        np.testing.assert_allclose(own.boxes, wanted.boxes, atol=0.02 * 300 / 64)


def test_a_nearly_black_file_is_said(models: Path, tmp_path: Path) -> None:
    twelve_bits = np.random.default_rng(0).integers(0, 4096, (50, 60)).astype(np.uint16)
    Image.fromarray(twelve_bits).save(tmp_path / "a.png")
    with pytest.warns(
        Notice, match=r"a\.png has almost a single colour: its pixels span 1\d of 255 levels; if it stores"
    ):
        Detector(models / "any.onnx")(tmp_path / "a.png")
    Image.fromarray(16 * twelve_bits).save(tmp_path / "b.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Detector(models / "any.onnx")(tmp_path / "b.png")


def test_files_pictures_and_arrays_are_one(models: Path, photos: Path) -> None:
    detector = Detector(models / "any.onnx")
    path = photos / "1.png"
    with Image.open(path) as image:
        pixels = np.asarray(image.convert("RGB"))
        ways = [detector(path), detector(str(path)), detector(image), detector(pixels)]
    for own in ways[1:]:
        assert np.array_equal(own.boxes, ways[0].boxes)
    few = detector(path, min_score=0.5)
    assert len(few.scores) < len(ways[0].scores)
    assert (few.scores >= 0.5).all()


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((4, 4, 3), np.float32),
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_other_arrays_are_refused(models: Path, array: np.ndarray) -> None:
    with pytest.raises(InputError, match=r"uint8 \[height, width, 3\], RGB; this one is"):
        Detector(models / "any.onnx")(array)


def test_an_edited_description_is_refused(models: Path, tmp_path: Path) -> None:
    def changed(key: str, value: str | None) -> Path:
        model = onnx.load(models / "any.onnx")
        properties = {one.key: one.value for one in model.metadata_props}
        if value is None:
            del properties[key]
        else:
            properties[key] = value
        del model.metadata_props[:]
        onnx.helper.set_model_props(model, properties)
        path = tmp_path / "changed.onnx"
        onnx.save_model(model, path)
        return path

    text = next(one.value for one in onnx.load(models / "any.onnx").metadata_props if one.key == KEY)
    with pytest.raises(InputError, match="was edited and may no longer fit its weights; export the detector again"):
        Detector(changed(KEY, text.replace("cat", "cow")))
    with pytest.raises(InputError, match="was edited"):
        Detector(changed(SUM, "0"))
    with pytest.raises(InputError, match="is not a qmimic detector"):
        Detector(changed(KEY, None))


def test_files_that_are_no_model(tmp_path: Path, models: Path) -> None:
    with pytest.raises(InputError, match="There is no file"):
        Detector(tmp_path / "none.onnx")
    (tmp_path / "text.onnx").write_text("hello")
    whole = (models / "any.onnx").read_bytes()
    (tmp_path / "half.onnx").write_bytes(whole[: len(whole) // 2])
    future = onnx.load(models / "any.onnx")
    future.opset_import[0].version = 999
    (tmp_path / "future.onnx").write_bytes(future.SerializeToString())
    for name in ("text", "half", "future"):
        with pytest.raises(InputError, match="cannot be run by ONNX Runtime") as caught:
            Detector(tmp_path / f"{name}.onnx")
        assert "\n" not in str(caught.value)


def test_the_command_draws_and_prints(
    models: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = str(models / "any.onnx")
    assert main([model, str(photos), "--min-score", "0", "--json", "--out", str(tmp_path), "--batch", "2"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [Path(line["picture"]).name for line in lines] == sorted(path.name for path in photos.iterdir())
    found = Detector(model)(photos / "0.png")
    assert [one["score"] for one in lines[0]["detections"]] == [round(score, 4) for score in found.scores.tolist()]
    assert {one["class"] for line in lines for one in line["detections"]} <= {"cat", "dog", "ox"}
    with Image.open(tmp_path / "turned.png") as drawn:
        assert drawn.size == (300, 400)
    assert main([model, str(photos / "3.png"), "--min-score", "1"]) == 0
    assert capsys.readouterr().out.strip().endswith("3.png: nothing")


def test_the_command_s_bad_input(
    models: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, photo = str(models / "any.onnx"), str(photos / "0.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken.jpg").write_bytes(b"no picture")
    cases = {
        ("none.onnx", photo): "There is no file none.onnx",
        (model, str(tmp_path / "none.png")): "There is no image",
        (model, str(tmp_path / "broken.jpg")): "is not a picture in a known format",
        (model, str(tmp_path / "empty")): "There are no pictures in",
        (model,): "Name either pictures or --video",
        (model, photo, "--video", "0"): "Name either pictures or --video",
        (model, photo, "--min-score", "2"): "is not a score",
        (model, photo, "--threads", "0"): "need 1 or more",
        (model, photo, photo, "--out", str(tmp_path)): "Several pictures are named 0",
        (model, photo, "--out", str(photos)): "could replace",
        (model, "--video", "99"): "The camera 99 gives no picture",
        (model, "--video", str(tmp_path / "none.mp4")): "There is no video",
        (model, "--video", str(tmp_path / "broken.jpg")): "gives no picture",
    }
    for arguments, says in cases.items():
        assert main(arguments) == 2
        said = capsys.readouterr().err.splitlines()[-1]
        assert said.startswith("qmimic: ")
        assert says in said


def test_a_video_is_looked_at_frame_by_frame(models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cv2 = pytest.importorskip("cv2", reason="OpenCV is an option of the runtime")
    film = tmp_path / "film.avi"
    writer = cv2.VideoWriter(str(film), cv2.VideoWriter_fourcc(*"MJPG"), 5, (96, 64))
    for k in range(3):
        writer.write(np.full((64, 96, 3), 60 * k, np.uint8))
    writer.release()
    assert main([str(models / "any.onnx"), "--video", str(film), "--json"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["picture"] for line in lines] == ["000000", "000001", "000002"]


WITHOUT = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {"torch", "torchvision", "pydantic", "yaml", "onnx", "scipy", "rich", "safetensors"}:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Refuse())
"""


def test_neither_torch_nor_anything_of_training_is_needed(models: Path, photos: Path) -> None:
    run = WITHOUT + "from qmimic.runtime.__main__ import main; sys.exit(main(sys.argv[1:]))"
    arguments = [str(models / "any.onnx"), str(photos)]
    done = subprocess.run([sys.executable, "-c", run, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 5


def test_training_without_its_packages_ends_in_a_sentence(tmp_path: Path) -> None:
    run = WITHOUT + "from qmimic.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", run, "data", "check", str(coco(tmp_path / "cats"))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "is needed by this command but is not installed: pip install 'qmimic[train]'" in done.stderr
    assert done.stderr.count("\n") == 1
    assert qmimic_main(["data", "check", str(tmp_path / "cats")]) in (0, 1)


class Sent(io.BytesIO):
    """An open file."""


NOT_SEVERAL = [None, 3, b"a", bytearray(b"a"), memoryview(b"a"), "a.png", Sent(b"a")]


@pytest.mark.parametrize("given", NOT_SEVERAL, ids=[type(one).__name__ for one in NOT_SEVERAL])
def test_what_is_not_several_pictures_is_refused(given: Any, models: Path) -> None:
    with pytest.raises(InputError, match=r"many\(\) takes"):
        list(Detector(models / "any.onnx").many(given))


@pytest.mark.parametrize("number", ["2", 1.5, None, 0, -1])
def test_numbers_that_cannot_be_are_refused(number: Any, models: Path) -> None:
    with pytest.raises(InputError, match="is not a number of threads; give 1 or more"):
        Detector(models / "any.onnx", threads=number)
    if number is not None:
        with pytest.raises(InputError, match="is not possible: "):
            list(Detector(models / "any.onnx").many([np.zeros((9, 9, 3), np.uint8)], batch=number))
    assert Detector(models / "any.onnx", threads=np.int64(1))


def test_an_array_of_too_many_pixels_is_refused(models: Path) -> None:
    with pytest.raises(InputError, match="over 100 million pixels; shrink it"):
        Detector(models / "any.onnx")(np.broadcast_to(np.uint8(0), (10_001, 10_000, 3)))


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"\0\0\0\x1cftypheic", ", but a HEIC picture;"),
        (b"\0\0\0\x1cftypavif", ", but an AVIF picture;"),
        (b"\0\0\0\x20ftypisom", ", but a video;"),
        (b"<svg/>", ", but an SVG picture;"),
        (b"<!DOCTYPE html>", ", but a web page;"),
        (b"", ", but an empty file;"),
        (b"hello", "); convert"),
    ],
)
def test_what_is_not_a_picture_is_called_what_it_is(content: bytes, kind: str, models: Path, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(InputError, match="is not a picture in a known format") as caught:
        Detector(models / "any.onnx")(tmp_path / "a.jpg")
    assert kind in str(caught.value)
