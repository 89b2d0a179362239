"""The Python face: every name works from `import qmimic`, whatever else of the package was imported before."""

import importlib
import pkgutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console

import qmimic
from qmimic.api import detect
from qmimic.config import DetectorConfig
from qmimic.data.loader import Loader
from qmimic.data.synthetic import digits
from qmimic.detectors.evaluation import channel_rms, detect_all
from qmimic.errors import InputError
from qmimic.training.precision import bf16_by_default
from qmimic.training.progress import Bar


def test_no_module_hides_a_name_of_the_package() -> None:
    for module in pkgutil.walk_packages(qmimic.__path__, "qmimic."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
    for name in ("build_detector", "evaluate", "load_dataset", "load_detector", "load_recipe", "predict", "train"):
        assert isinstance(getattr(qmimic, name), Callable), name
    assert set(qmimic.__all__) >= {"train", "evaluate", "predict", "Recipe", "Sample", "Dataset", "Detections"}
    with pytest.raises(AttributeError, match="qmimic"):
        getattr(qmimic, "no_such" + "_name")


def test_a_detector_is_built_by_name_saved_read_and_used(tmp_path: Path) -> None:
    detector = qmimic.build_detector("resnet18/32", ("cat", "dog"), size=(64, 96)).eval()
    qmimic.save_detector(detector, str(tmp_path / "d.safetensors"), {"note": 1})
    again, notes = qmimic.load_detector(str(tmp_path / "d.safetensors"))
    assert notes == {"note": 1}
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 30, 3), dtype=np.uint8))
    picture.save(tmp_path / "p.png")
    found, same = qmimic.predict(detector, picture), qmimic.predict(again, tmp_path / "p.png")
    assert np.array_equal(found.boxes, same.boxes)
    assert np.array_equal(found.scores, same.scores)
    assert (found.boxes >= 0).all()
    assert (found.boxes <= [30, 50, 30, 50]).all()
    assert (np.diff(found.scores) <= 0).all()
    few = qmimic.predict(detector, picture, min_score=float(np.median(found.scores)))
    assert 0 < len(few.scores) < len(found.scores)


def test_a_whole_split_gives_what_single_pictures_give() -> None:
    dataset = digits(1, 5, 1)
    detector = qmimic.build_detector("resnet18/32", dataset.classes, size=(128, 128)).eval()
    whole = detect_all(detector, Loader(dataset, "val", (128, 128), 3))
    assert list(whole) == [sample.image_id for sample in dataset.splits["val"]]
    for sample in dataset.splits["val"]:
        single = qmimic.predict(detector, dataset.load(sample))
        assert np.allclose(whole[sample.image_id].scores, single.scores, atol=1e-5)


def test_evaluate_refuses_other_classes_and_unknown_splits() -> None:
    detector = qmimic.build_detector("resnet18/32", ("cat",), size=(128, 128)).eval()
    with pytest.raises(qmimic.InputError, match="shows the class 1, 4, 7, which the detector does not know"):
        qmimic.evaluate(detector, digits(1, 1, 1))
    with pytest.raises(qmimic.InputError, match="no split 'test'"):
        qmimic.evaluate(detector, digits(1, 1, 1), "test")
    with pytest.raises(qmimic.InputError, match="did you mean resnet18"):
        qmimic.build_detector("resnet81/4", ("cat",))


def test_channel_rms_is_the_root_mean_square_of_the_raw_map() -> None:
    dataset = digits(6, 0, 0)
    detector = qmimic.build_detector("resnet18/32", dataset.classes, size=(128, 128)).eval()
    loader = Loader(dataset, "train", (128, 128), 4)
    with torch.no_grad():
        maps = torch.cat([detector.raw_features(batch.images).map for batch in loader.once()]).double()
    expected = maps.square().mean((0, 2, 3)).sqrt().float()
    assert torch.allclose(channel_rms(detector, loader), expected, rtol=1e-5)


def test_narrow_networks_stay_in_fp32() -> None:
    assert not bf16_by_default("resnet18/16", torch.device("cpu"))


def test_progress_without_a_terminal_is_a_line_at_each_score(tmp_path: Path) -> None:
    with (tmp_path / "out").open("w", encoding="utf-8") as file, Bar(Console(file=file, width=140)) as bar:
        bar.start("teacher", 20, 10)
        for step in range(11, 21):
            bar.step(step, 16, 2.0)
        bar.scored(20, 0.5)
    lines = (tmp_path / "out").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "teacher: continuing from step 10 of 20."
    assert "step 20/20" in lines[1]
    assert "mAP 50.0" in lines[1]
    assert len(lines) == 2


def test_views_of_several_sizes_and_mirrored_ones_become_one_set() -> None:
    dataset = digits(4, 6, 1)
    detector = qmimic.build_detector("resnet18/16", dataset.classes, size=(128, 128)).eval()
    with torch.no_grad():
        detector.head.scores.weight *= 60
        detector.head.deltas.weight *= 20
    own = detect(detector, dataset)
    both = detect(detector, dataset, flip=True)
    sizes = detect(detector, dataset, sizes=[(128, 128), (192, 192)])
    assert set(own) == set(both) == set(sizes)
    for image_id, found in own.items():
        for merged in (both[image_id], sizes[image_id]):
            assert merged.scores.max() >= found.scores.max()
            assert (np.diff(merged.scores) <= 0).all()
            assert len(merged.boxes) <= detector.spec.max_detections
    alone = detect(detector, dataset, sizes=[(128, 128)])
    for image_id, found in own.items():
        np.testing.assert_allclose(alone[image_id].boxes, found.boxes, atol=1e-3)
    with pytest.raises(InputError, match="does not accept the size 100x128"):
        detect(detector, dataset, sizes=[(100, 128)])


def test_a_one_stage_detector_has_levels_for_the_anchors_sizes() -> None:
    config = DetectorConfig(architecture="one_stage")
    small = qmimic.build_detector("resnet18/16", ("a",), (64, 64), ((12.0, 12.0),), config)
    large = qmimic.build_detector("resnet18/16", ("a",), (64, 64), ((300.0, 300.0),), config)
    assert (small.strides, large.strides) == ((8, 16, 32), (32,))
    wrong = config.model_copy(update={"levels": (32,)})
    with pytest.raises(InputError, match="multiples of 32, and the size is 48 x 64"):
        qmimic.build_detector("resnet18/16", ("a",), (48, 64), config=wrong)
