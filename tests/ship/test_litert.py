"""A `.tflite`: the trained detector in float, its trained grids on integers, decoding, and files that are none."""

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qmimic.compress.integer_grids import (
    Grid,
    WeightGrid,
    calibrate,
    grid_names,
    is_on_grids,
    keep_float,
    prepare_qat,
    with_summands,
)
from qmimic.config import QuantizerConfig
from qmimic.detectors.one_stage import OneStage, boxes_at, place_grid
from qmimic.detectors.quantize import Quantizer
from qmimic.errors import InputError
from qmimic.runtime import Detector as ShippedDetector
from qmimic.runtime import places
from qmimic.runtime.detector import ChangedFileWarning
from qmimic.runtime.formats import FORMATS
from qmimic.ship.onnx_file import Exported
from qmimic.ship.parity import compare
from qmimic.ship.write import describe, write_described
from tiny_detectors import lively, one_stage, some_images, tiny_spec

litert = pytest.importorskip("ai_edge_litert.interpreter")
schema = pytest.importorskip("ai_edge_litert.schema_py_generated")
BACKBONES = ("resnet18/16", "repvgg/16", "yunet/32", "vgg16/32")


def on_grids(**settings: object) -> OneStage:
    detector = one_stage(**settings).eval()
    found = prepare_qat(detector)
    calibrate(found, [some_images(7, 4, detector.spec.size)])
    assert isinstance(found, OneStage)
    return found


def written(detector: OneStage, path: Path) -> ShippedDetector:
    write_described(Exported(detector), FORMATS["litert"], describe(detector, {}), path)
    return ShippedDetector(path)


def outputs(path: Path, images: np.ndarray) -> np.ndarray:
    """What the file's own graph gives, by the plain kernels, as integers or floats."""
    kind = litert.OpResolverType.BUILTIN_REF
    model = litert.Interpreter(str(path), experimental_op_resolver_type=kind)
    model.allocate_tensors()
    (taken,), (given,) = model.get_input_details(), model.get_output_details()
    found = []
    for image in images:
        model.set_tensor(
            taken["index"], image[None] if taken["dtype"] == np.uint8 else (image[None] ^ 128).view(np.int8)
        )
        model.invoke()
        found.append(model.get_tensor(given["index"])[0])
    return np.stack(found)


STEPS = np.where(np.arange(7) < 3, places.LOGIT_STEP, places.SIDE_STEP)


def simulated(detector: OneStage, images: np.ndarray) -> np.ndarray:
    """What training on grids computes, as far as the file's integers reach."""
    whole = with_summands(detector) if is_on_grids(detector) else detector
    with torch.no_grad():
        features = whole.features(torch.from_numpy(images).permute(0, 3, 1, 2))
        values = whole.place_outputs(features).transpose(1, 2).numpy()
    return np.clip(values, -128 * STEPS, 127 * STEPS)


def rms(values: np.ndarray) -> float:
    return float(np.sqrt((values**2).mean()))


def pictures(detector: OneStage, count: int = 6) -> np.ndarray:
    return some_images(3, count, detector.spec.size).permute(0, 2, 3, 1).contiguous().numpy()


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("levels", [(8, 16, 32), (16,)])
def test_a_float_file_detects_as_the_trained_model(backbone: str, levels: tuple[int, ...], tmp_path: Path) -> None:
    detector = one_stage(backbone=backbone, levels=levels).eval()
    found = compare(detector, written(detector, tmp_path / "a.tflite"), pictures(detector))
    assert found.holds, found


def test_a_grey_network_reads_brightness_in_float_and_on_integers(tmp_path: Path) -> None:
    detector = one_stage(grey=True).eval()
    images = pictures(detector)
    found = compare(detector, written(detector, tmp_path / "a.tflite"), images)
    assert found.holds, found
    whole = on_grids(grey=True)
    written(whole, tmp_path / "b.tflite")
    wanted = simulated(whole, images)
    assert rms(outputs(tmp_path / "b.tflite", images) * STEPS - wanted) < 0.7 * rms(
        wanted - simulated(detector, images)
    )
    pixels_float = keep_float(whole, next(name for name in grid_names(whole) if name.startswith("backbone")))
    assert isinstance(pixels_float, OneStage)
    written(pixels_float, tmp_path / "c.tflite")
    assert rms(outputs(tmp_path / "c.tflite", images) * STEPS - wanted) < rms(wanted)


@pytest.mark.parametrize("upper", [None, 3])
def test_a_quantized_map_is_in_the_file(upper: int | None, tmp_path: Path) -> None:
    detector = one_stage(levels=(16,)).eval()
    detector.quantizer = Quantizer(QuantizerConfig(upper=upper), torch.tensor([0.3]))
    found = compare(detector, written(detector, tmp_path / "a.tflite"), pictures(detector))
    assert found.detections > 50
    assert found.score_difference < 1e-3  # a value at a midpoint may round either way
    fixed = prepare_qat(detector)
    calibrate(fixed, [some_images(7, 4, detector.spec.size)])
    assert isinstance(fixed, OneStage)
    written(fixed, tmp_path / "b.tflite")
    images = pictures(detector)
    wanted = simulated(fixed, images)
    assert rms(outputs(tmp_path / "b.tflite", images) * STEPS - wanted) < rms(wanted - simulated(detector, images))


@pytest.mark.parametrize("backbone", BACKBONES)
def test_the_grids_of_training_are_the_file_s(backbone: str, tmp_path: Path) -> None:
    detector = on_grids(backbone=backbone)
    path = tmp_path / "a.tflite"
    written(detector, path)
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    own = [one for one in model.subgraphs[0].tensors if one.quantization is not None]
    scales = {float(scale) for one in own for scale in one.quantization.scale}
    for grid in (one for one in with_summands(detector).modules() if isinstance(one, Grid)):
        assert np.float32(grid.scale.item()) in scales
    weights = [one for one in detector.modules() if isinstance(one, WeightGrid)]
    data = [model.buffers[one.buffer].data for one in own if one.type == schema.TensorType.INT8]
    kept = [one.view(np.int8) for one in data if one is not None and len(one) > 3]
    assert len(kept) == len(weights)  # all but the ones that subtract the mean
    assert all(np.abs(one).max() == 63 for one in kept)
    assert {one.type for one in own} <= {schema.TensorType.INT8, schema.TensorType.INT32}


@pytest.mark.parametrize("backbone", BACKBONES)
def test_integers_compute_what_was_simulated(backbone: str, tmp_path: Path) -> None:
    detector = on_grids(backbone=backbone)
    path = tmp_path / "a.tflite"
    written(detector, path)
    images = pictures(detector)
    found = outputs(path, images)
    assert found.dtype == np.int8
    wanted, exact = simulated(detector, images), simulated(one_stage(backbone=backbone).eval(), images)
    # These detectors amplify a value that rounds the other way from layer to layer, but less than rounding itself does.
    assert rms(found * STEPS - wanted) < 0.7 * rms(wanted - exact) < 0.15 * rms(exact)


def test_a_part_that_stays_float_is_float_in_the_file(tmp_path: Path) -> None:
    detector = on_grids()
    some = [name for name in grid_names(detector) if "layer3.0" in name or name.startswith("head.out.1")]
    assert len(some) > 1
    mixed = keep_float(detector, *some)
    assert isinstance(mixed, OneStage)
    path = tmp_path / "a.tflite"
    written(mixed, path)
    model = schema.ModelT.InitFromPackedBuf(path.read_bytes(), 0)
    assert schema.TensorType.FLOAT32 in {one.type for one in model.subgraphs[0].tensors}
    images = pictures(detector)
    wanted, exact = simulated(mixed, images), simulated(one_stage().eval(), images)
    assert rms(outputs(path, images) * STEPS - wanted) < 0.7 * rms(wanted - exact)


@settings(deadline=None)
@given(st.sampled_from([(8,), (8, 16, 32), (16, 64)]), st.integers(0, 1000))
def test_places_are_decoded_as_in_training(levels: tuple[int, ...], seed: int) -> None:
    detector = one_stage(levels=(8,))
    size = (64, 128)
    metadata = describe(detector, {})
    metadata = type(metadata)(**{**vars(metadata), "levels": levels, "size": size})
    grid = place_grid(size, levels)
    np.testing.assert_array_equal(places.place_grid(size, levels), grid.numpy())
    assert places.place_count(metadata) == len(grid)
    raw = torch.randn(2, len(grid), 7, generator=torch.Generator().manual_seed(seed)) * 4
    boxes, scores = places.decode(raw.numpy(), metadata)
    np.testing.assert_allclose(scores, raw[..., :3].sigmoid().numpy(), atol=1e-6)
    np.testing.assert_allclose(boxes[:, :, 0], boxes_at(grid, raw[..., 3:]).numpy(), rtol=1e-5, atol=1e-3)
    whole = (raw * torch.tensor([16.0] * 3 + [32.0] * 4)).round().clamp(-128, 127).to(torch.int8)
    boxes, scores = places.decode(whole.numpy(), metadata)
    real = whole.float() / torch.tensor([16.0] * 3 + [32.0] * 4)
    np.testing.assert_allclose(scores, real[..., :3].sigmoid().numpy(), atol=1e-6)
    wanted = boxes_at(grid, real[..., 3:]).numpy()
    np.testing.assert_allclose(boxes[:, :, 0], wanted, atol=1 / 32 + 1e-3)  # sixteenths of a pixel


def test_two_stages_and_batches_are_refused(tmp_path: Path) -> None:
    two = lively(tiny_spec()).eval()
    with pytest.raises(
        InputError, match=r"LiteRT's \.tflite holds detectors that say at every place .*architecture=one_stage"
    ):
        write_described(Exported(two), FORMATS["litert"], describe(two, {}), tmp_path / "a.tflite")
    one = one_stage().eval()
    with pytest.raises(InputError, match="takes one picture at a time; leave --batch at 1"):
        write_described(Exported(one, batch=4), FORMATS["litert"], describe(one, {}), tmp_path / "a.tflite")


def test_files_that_are_no_detector_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "a.tflite"
    path.write_bytes(b"\0" * 64)
    with pytest.raises(InputError, match="is not a model of LiteRT"):
        ShippedDetector(path)
    from qmimic.ship.litert_model import ModelBuilder

    builder = ModelBuilder()
    source = builder.tensor((1, 4), np.float32)
    last = builder.operator("RELU", [source], builder.tensor((1, 4), np.float32))
    path.write_bytes(builder.finish(source, last))
    with pytest.raises(InputError, match=r"another TensorFlow Lite model, which takes t0 float32 \[1, 4\]"):
        ShippedDetector(path)


def test_a_changed_file_is_called_changed_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    detector = on_grids(backbone="yunet/32")
    path = tmp_path / "a.tflite"
    written(detector, path)
    whole = path.read_bytes()
    model = schema.ModelT.InitFromPackedBuf(whole, 0)
    largest = max(range(1, 30), key=lambda place: len(model.buffers[place].data))
    place = whole.index(model.buffers[largest].data.tobytes())
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
    with pytest.warns(ChangedFileWarning):
        assert ShippedDetector(path).metadata.changed
    generator = np.random.default_rng(0)
    said: list[str] = []
    for _ in range(60):
        damaged = bytearray(whole)
        for place in generator.integers(0, len(whole), 3):
            damaged[place] = generator.integers(256)
        path.write_bytes(bytes(damaged[: generator.integers(len(whole) // 2, len(whole) + 1)]))
        try:
            with warnings.catch_warnings(action="ignore"):
                ShippedDetector(path)
        except InputError as error:
            said.append(str(error))
    assert len(said) > 30
    assert all(str(path) in one for one in said)
