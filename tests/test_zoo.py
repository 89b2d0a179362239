"""The zoo: every student is whole, small and as its card says; its name is taken wherever a file is."""

import json
import os
import shutil
import struct
import zlib
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qmimic import zoo
from qmimic.api import detect
from qmimic.cli.entry import main
from qmimic.config import load_recipe
from qmimic.data.chosen import open_dataset
from qmimic.data.splits import VAL
from qmimic.detectors.build import build, mac_count, parameter_count
from qmimic.detectors.files import load_detector, save_detector
from qmimic.detectors.pretrained import load_backbone
from qmimic.errors import InputError
from qmimic.extras import extra_of
from qmimic.runtime import formats
from qmimic.runtime.detector import Detector
from qmimic.runtime.formats import FORMATS
from qmimic.scores.summary import score
from qmimic.ship.onnx_file import Exported
from qmimic.ship.parity import compare
from qmimic.ship.write import describe, ship

RECIPES = Path(__file__).parents[1] / "recipes" / "zoo"
NAMES = sorted(zoo.cards())


def noise(size: tuple[int, int], count: int = 3) -> np.ndarray:
    """Bright and dark blocks, uint8 [N, H, W, 3]."""
    random = np.random.default_rng(0)
    blocks = random.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    rows, columns = (np.arange(side) * 8 // side for side in size)
    return np.ascontiguousarray(blocks[:, rows][:, :, columns])


def test_the_zoo_is_small() -> None:
    files = [path for path in zoo.FOLDER.iterdir() if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 2_000_000
    assert {path.stem for path in files if path.suffix == zoo.DEPLOYED} == set(NAMES)
    assert {path.stem for path in files if path.suffix == zoo.TRAINED} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_student_is_as_its_card_says(name: str) -> None:
    card = zoo.cards()[name]
    shipped = zoo.located(f"zoo:{name}", zoo.DEPLOYED)
    assert shipped.stat().st_size == card.bytes <= 150_000
    trained, notes = load_detector(f"zoo:{name}")
    own = Detector(f"zoo:{name}").metadata
    assert own.precision == "int8"
    assert not own.changed
    assert own.classes == trained.spec.classes == card.classes
    assert own.size == trained.spec.size == card.size
    assert (trained.spec.backbone, trained.spec.grey) == (card.backbone, card.grey)
    assert (parameter_count(trained), mac_count(trained)) == (card.parameters, card.macs)
    assert notes["seed"] == card.seeds[0]
    assert notes["map50"] == pytest.approx(card.map50_float, abs=1e-4)
    assert own.parity["map50"] == pytest.approx(card.map50, abs=1e-3)
    assert card.low <= card.map50 <= card.high
    assert len(card.map50_of_seeds) == len(set(card.seeds))
    assert card.map50_of_seeds[0] == card.map50
    recipe = load_recipe(RECIPES / f"{name}.yaml", [])
    assert card.recipe == f"recipes/zoo/{name}.yaml"
    assert (recipe.student.backbone, recipe.data.size, recipe.seed) == (card.backbone, card.size, card.seeds[0])
    assert recipe.detector.architecture == trained.spec.architecture


@pytest.mark.parametrize("name", NAMES)
def test_a_student_exported_again_detects_what_it_does(name: str, tmp_path: Path) -> None:
    trained, notes = load_detector(f"zoo:{name}")
    again = ship(Exported(trained), describe(trained, notes), FORMATS["onnx"], tmp_path / name, lambda *_: {})
    parity = compare(trained, Detector(again), noise(trained.spec.size))
    assert parity.holds, parity


@pytest.mark.parametrize("name", NAMES)
def test_a_student_scores_on_val_what_its_card_says(name: str) -> None:
    data = load_recipe(RECIPES / f"{name}.yaml", []).data
    if not data.root.startswith("synthetic:"):
        if "QMIMIC_DATA" not in os.environ:
            pytest.skip("QMIMIC_DATA is not set: there is no folder of datasets")
        data = data.model_copy(update={"root": str(Path(os.environ["QMIMIC_DATA"]) / data.root)})
    dataset, card = open_dataset(data), zoo.cards()[name]
    scores = score(dataset, VAL, detect(Path(f"zoo:{name}"), dataset, VAL))
    assert len(dataset.splits[VAL]) == card.images
    assert scores.voc_map50 == pytest.approx(card.map50, abs=0.003)  # another processor rounds otherwise


def test_a_student_starts_from_the_zoo(tmp_path: Path) -> None:
    trained, _ = load_detector("zoo:pcb")
    fresh = build(trained.spec, 7)
    load_backbone(fresh, "zoo:pcb")
    for name, tensor in fresh.backbone.state_dict().items():
        assert torch.equal(tensor, trained.backbone.state_dict()[name])
    assert not torch.equal(next(fresh.head.parameters()), next(trained.head.parameters()))
    finer = build(trained.spec.model_copy(update={"levels": (8,)}), 7)  # what lies behind its level is left
    load_backbone(finer, "zoo:pcb")
    for name, tensor in finer.backbone.state_dict().items():
        assert torch.equal(tensor, trained.backbone.state_dict()[name])
    save_detector(finer, tmp_path / "finer.safetensors", {})
    with pytest.raises(
        InputError, match=r"finer.safetensors ends before .* for its map of stride 32; set detector.levels=\[8\], or"
    ):
        load_backbone(fresh, tmp_path / "finer.safetensors")
    other = build(trained.spec.model_copy(update={"backbone": "resnet18/32"}))
    with pytest.raises(InputError, match=rf"zoo:pcb has the backbone {trained.spec.backbone}.*resnet18/32"):
        load_backbone(other, "zoo:pcb")


@pytest.mark.parametrize(
    "command",
    [
        ["predict", "zoo:pbc", "picture.png", "--out", "out"],
        ["zoo", "pbc"],
        ["bench", "zoo:pbc"],
        ["export", "zoo:pbc", "--out", "out", "--data", "synthetic:digits"],
        ["eval", "zoo:pbc", "--data", "synthetic:digits"],
        ["train", "demo", "student.weights=zoo:pbc"],
        ["serve", "zoo:pbc", "--port", "0"],
    ],
    ids=lambda command: command[0],
)
def test_an_unknown_name_is_refused_with_the_near_one(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(command) == 2
    said = capsys.readouterr().err
    assert "Unknown student of the zoo 'pbc'; did you mean pcb?" in said
    assert len(said.splitlines()) == 1


def test_a_damaged_student_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "zoo"
    shutil.copytree(zoo.FOLDER, folder)
    content = bytearray((folder / "pcb.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "pcb.onnx").write_bytes(content)
    monkeypatch.setattr(zoo, "FOLDER", folder)
    with pytest.raises(InputError, match="damaged: its checksum"):
        Detector("zoo:pcb")
    load_detector("zoo:pcb")  # its other file is whole


def test_predict_and_zoo_print_what_they_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.fromarray(noise((320, 320), 1)[0]).save("picture.png")
    assert main(["predict", "zoo:pcb", "picture.png", "--out", "out", "--json"]) == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["faults"] == []
    assert len(list(Path("out").iterdir())) == 1
    assert main(["predict", "zoo:pcb", "picture.png", "--out", "out"]) == 0  # its own drawing it may replace
    shutil.copyfile("picture.png", "out/picture.png")
    before = Path("out/picture.png").read_bytes()
    assert main(["predict", "zoo:pcb", "picture.png", "--out", "out"]) == 2
    assert "out/picture.png does not say that qmimic drew it" in capsys.readouterr().err
    assert Path("out/picture.png").read_bytes() == before
    huge = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBB", 13, b"IHDR", 20000, 20000, 8, 2, 0, 0, 0)
    Path("out/picture.png").write_bytes(huge + struct.pack(">I", zlib.crc32(huge[12:])))
    assert main(["predict", "zoo:pcb", "picture.png", "--out", "out"]) == 2
    assert main(["zoo", "--json"]) == 0
    students = json.loads(capsys.readouterr().out.splitlines()[-1])["students"]
    assert list(students) == list(zoo.cards())
    assert main(["zoo", "zoo:pcb", "--json"]) == 0
    card = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert card == {"name": "pcb", **json.loads(json.dumps(asdict(zoo.cards()["pcb"])))}


def test_the_page_shows_the_cards_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["zoo"]) == 0
    shown = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    table = shown[: next(place for place, line in enumerate(shown) if line.startswith("int8 files"))]
    assert "\n".join(table) in (Path(__file__).parents[1] / "docs" / "one-stage.md").read_text()


def test_exporting_needs_a_folder_of_ones_own(tmp_path: Path) -> None:
    before = sorted(zoo.FOLDER.iterdir())
    assert main(["export", "zoo:pcb", "--data", "synthetic:digits"]) == 2
    assert main(["export", "zoo:pcb", "--out", str(tmp_path)]) == 2  # without pictures to prove it on
    assert not list(tmp_path.iterdir())
    assert main(["export", "zoo:pcb", "--data", "synthetic:digits", "--out", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"pcb.onnx", "parity.json"}
    assert sorted(zoo.FOLDER.iterdir()) == before


def test_the_extra_of_every_engine_is_known() -> None:
    assert {one.package: extra_of(one.package) for one in FORMATS.values() if one.package} == {
        "onnxruntime": "runtime",
        "openvino": "openvino",
        "executorch": "executorch",
        "ai_edge_litert": "litert",
        "ncnn": "ncnn",
    }


def test_an_engine_that_is_missing_is_said_before_any_file_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = formats.find_spec
    monkeypatch.setattr(formats, "find_spec", lambda name: None if name == "executorch" else found(name))
    out = tmp_path / "out"
    exported = ["export", "zoo:digits", "--data", "synthetic:digits"]
    for command in (exported, ["fit", "synthetic:digits", "--max-ms", "9"]):
        assert main([*command, "--to", "onnx,executorch", "--out", str(out)]) == 2
        assert "ExecuTorch is not installed: pip install 'qmimic[executorch]'." in capsys.readouterr().err
        assert not out.exists()
