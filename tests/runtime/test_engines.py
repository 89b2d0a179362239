"""Every engine gives every picture its own boxes: in threads, copies, other processes and forks; and knows its file."""

import copy
import multiprocessing
import pickle
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qmimic.detectors.detector import Detector as TrainedDetector
from qmimic.errors import InputError
from qmimic.runtime import Detector
from qmimic.runtime.detector import ChangedFileWarning
from qmimic.runtime.formats import FORMATS, Format, format_of
from qmimic.runtime.onnx_engine import checksum
from qmimic.ship.onnx_file import Exported
from qmimic.ship.web_file import ONNXRUNTIME, packages
from qmimic.ship.write import describe, write_described
from tiny_detectors import lively, one_stage, some_images, tiny_spec

PACKAGES = {
    "onnx": "onnxruntime",
    "openvino": "openvino",
    "executorch": "executorch",
    "litert": "ai_edge_litert",
    "ncnn": "ncnn",
    "web": "onnxruntime",
}
THREADS = 4


def any_detector(kind: Format, seed: int = 0) -> TrainedDetector:
    """One that the format can hold."""
    return (lively(tiny_spec(), seed) if not kind.by_places else one_stage(seed)).eval()


@pytest.fixture(scope="module", params=list(FORMATS))
def shipped(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of each format of the table whose engine is installed."""
    pytest.importorskip(PACKAGES[request.param])
    if request.param == "web":
        try:
            packages(ONNXRUNTIME)
        except InputError as error:
            pytest.skip(str(error))
    kind = FORMATS[request.param]
    detector = any_detector(kind)
    path = tmp_path_factory.mktemp(request.param) / f"model{kind.suffixes[0]}"
    write_described(Exported(detector), kind, describe(detector, {}), path)
    return path


def test_programs_of_an_older_qmimic_are_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pictures: list[np.ndarray]
) -> None:
    """Their methods had names of their own."""
    pytest.importorskip("executorch")
    detector, found = lively(tiny_spec()).eval(), []
    for name in ("new", "old"):
        write_described(Exported(detector), FORMATS["executorch"], describe(detector, {}), tmp_path / f"{name}.pte")
        found.append(rows(Detector(tmp_path / f"{name}.pte"), pictures[0]))
        monkeypatch.setattr("qmimic.ship.executorch_file.EXTRACT", "look")
        monkeypatch.setattr("qmimic.ship.executorch_file.CLASSIFY", "judge")
    assert found[0] == found[1] != []


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    return list(some_images(5, 6).permute(0, 2, 3, 1).contiguous().numpy())


def rows(detector: Detector, picture: np.ndarray) -> list[list[float]]:
    found = detector(picture)
    return np.column_stack([found.boxes, found.scores, found.labels]).tolist()


def test_threads_share_a_detector(shipped: Path, pictures: list[np.ndarray]) -> None:
    detector = Detector(shipped)
    wanted = [rows(detector, picture) for picture in pictures]
    assert len({str(one) for one in wanted}) == len(pictures)  # else nothing could be mixed up
    places = [place for _ in range(25) for place in range(len(pictures))]
    with ThreadPoolExecutor(THREADS) as pool:
        found = list(pool.map(lambda place: rows(detector, pictures[place]), places))
    assert found == [wanted[place] for place in places]


def test_results_are_the_caller_s(shipped: Path, pictures: list[np.ndarray]) -> None:
    detector = Detector(shipped)
    first = detector.raw(pictures[0][None])
    kept = [values.copy() for values in first]
    detector.raw(pictures[1][None])
    for own, before in zip(first, kept, strict=True):
        np.testing.assert_array_equal(own, before)


def test_copies_find_the_same(
    shipped: Path, pictures: list[np.ndarray], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(shipped.parent)
    detector = Detector(shipped.name, threads=2)  # a relative path
    wanted = rows(detector, pictures[0])
    text = pickle.dumps(detector)
    monkeypatch.chdir(tmp_path)
    for other in (copy.deepcopy(detector), copy.copy(detector), pickle.loads(text)):
        assert rows(other, pictures[0]) == wanted
        assert other.metadata == detector.metadata
        assert other.engine._options == (2, False)


def test_a_pickled_detector_is_not_loaded_from_another_file(shipped: Path, tmp_path: Path) -> None:
    kind = format_of(shipped)
    for own in kind.files(shipped):
        (tmp_path / own.name).write_bytes(own.read_bytes())
    text = pickle.dumps(Detector(tmp_path / shipped.name))
    other = any_detector(kind, seed=1)
    write_described(Exported(other), kind, describe(other, {"seed": 1}), tmp_path / shipped.name)
    with pytest.raises(InputError, match="has changed since its detector was copied"):
        pickle.loads(text)


def asked(detector: Detector, picture: np.ndarray, queue: "multiprocessing.SimpleQueue[object]") -> None:
    queue.put(rows(detector, picture))


@pytest.mark.parametrize("method", ["spawn", "fork"])
@pytest.mark.parametrize("threads", [1, 2])
def test_other_processes(shipped: Path, pictures: list[np.ndarray], method: str, threads: int) -> None:
    detector = Detector(shipped, threads)
    wanted = rows(detector, pictures[0])
    context = multiprocessing.get_context(method)
    queue = context.SimpleQueue()
    child = context.Process(target=asked, args=(detector, pictures[0], queue))
    child.start()
    child.join(120)
    ended = child.exitcode == 0
    child.kill()
    assert ended, "the child waits forever"
    assert queue.get() == wanted


def test_what_it_says_holds_for_the_graph_that_was_proved(shipped: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not Detector(shipped).metadata.changed


@pytest.fixture(scope="module")
def proved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    detector = lively(tiny_spec()).eval()
    path = tmp_path_factory.mktemp("proved") / "model.onnx"
    metadata = replace(describe(detector, {"stage": "student"}), parity={"score_difference": 1e-6})
    write_described(Exported(detector), FORMATS["onnx"], metadata, path)
    return path


def requantized(path: Path, out: Path) -> None:
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(path, out, weight_type=QuantType.QUInt8)


def another_weight(path: Path, out: Path) -> None:
    model = onnx.load(path)
    one = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    values = onnx.numpy_helper.to_array(one).copy()
    values.flat[0] = np.nextafter(values.flat[0], np.float32(np.inf))
    one.CopyFrom(onnx.numpy_helper.from_array(values, one.name))
    onnx.save(model, out)


def another_node(path: Path, out: Path) -> None:
    model = onnx.load(path)
    next(node for node in model.graph.node if node.op_type == "NonMaxSuppression").doc_string = "tuned"
    onnx.save(model, out)


def another_opset(path: Path, out: Path) -> None:
    model = onnx.load(path)
    model.opset_import[0].version += 1
    onnx.save(model, out)


@pytest.mark.parametrize("change", [requantized, another_weight, another_node, another_opset])
def test_a_changed_graph_loads_and_is_called_changed(
    proved: Path, tmp_path: Path, change: Callable[[Path, Path], None]
) -> None:
    assert (Detector(proved).metadata.precision, Detector(proved).metadata.changed) == ("fp32", False)
    out = tmp_path / "model.onnx"
    change(proved, out)
    with pytest.warns(ChangedFileWarning, match=r"model\.onnx was changed since it was proved"):
        metadata = Detector(out).metadata
    assert (metadata.precision, metadata.parity, metadata.changed) == ("unknown", {}, True)
    assert metadata.classes == ("cat", "dog", "ox")


def test_what_does_not_change_the_graph_does_not_count(proved: Path, tmp_path: Path) -> None:
    model = onnx.load(proved)
    model.producer_name = "somebody"
    model.metadata_props.add(key="note", value="by hand")
    onnx.save(model, tmp_path / "model.onnx")
    assert not Detector(tmp_path / "model.onnx").metadata.changed


@given(st.integers(0, 2**32), st.binary(max_size=40))
def test_the_checksum_is_that_of_the_fields_as_protobuf_reads_them(version: int, name: bytes) -> None:
    model = onnx.ModelProto()
    model.graph.doc_string = name.decode("latin-1")
    model.opset_import.add(domain="", version=version)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "a.onnx"
        path.write_bytes(model.SerializeToString())
        first = checksum(path)
        model.producer_name, model.ir_version = name.decode("latin-1"), 9
        path.write_bytes(model.SerializeToString())
        assert checksum(path) == first
        model.graph.name = "x"
        path.write_bytes(model.SerializeToString())
        assert checksum(path) != first
        path.write_bytes(name)  # whatever it is, it ends
        checksum(path)


def test_a_changed_openvino_file_is_called_changed(tmp_path: Path) -> None:
    openvino = pytest.importorskip("openvino")
    detector = lively(tiny_spec()).eval()
    path = tmp_path / "a.xml"
    write_described(Exported(detector), FORMATS["openvino"], describe(detector, {}), path)
    model = openvino.Core().read_model(path)
    out = tmp_path / "b.xml"
    openvino.save_model(model, out, compress_to_fp16=True)
    with pytest.warns(ChangedFileWarning):
        assert Detector(out).metadata.precision == "unknown"
