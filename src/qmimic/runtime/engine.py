"""What computes a deployed file: one engine a format, from named arrays to named arrays."""

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from qmimic.errors import InputError
from qmimic.files import is_there, open_file, read_json
from qmimic.runtime.metadata import INPUT, JUDGE, KEY, LOOK, REGIONS, SUM, WEIGHTS_SUM, from_properties
from qmimic.runtime.suppression import propose

Arrays = Mapping[str, NDArray[Any]]
ONNX_TYPES = {"tensor(uint8)": np.uint8, "tensor(float)": np.float32, "tensor(int64)": np.int64}


@dataclass(frozen=True)
class Input:
    """What a graph takes: its shape, None where any number will do, and its type."""

    shape: tuple[int | None, ...]
    dtype: np.dtype[Any]


@dataclass(frozen=True)
class Engine:
    """A file that was loaded.

    Attributes:
        run: from inputs to outputs, by name.
        inputs: by name.
        properties: what the file says of itself.
    """

    run: Callable[[Arrays], Arrays]
    inputs: Mapping[str, Input]
    properties: Mapping[str, str]


def onnx_runtime(path: Path, threads: int) -> Engine:
    """An ONNX file by ONNX Runtime on the CPU."""
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError("ONNX Runtime is not installed: pip install 'qmimic[runtime]'.") from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3  # its warnings are for those who build graphs
    try:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        inputs = {
            value.name: Input(
                tuple(side if isinstance(side, int) else None for side in value.shape),
                np.dtype(ONNX_TYPES[value.type]),
            )
            for value in session.get_inputs()
        }
    except Exception as error:  # ONNX Runtime's exceptions have no common type but this
        raise _cannot(path, f"ONNX Runtime {onnxruntime.__version__}", "onnxruntime", error) from error
    names = [value.name for value in session.get_outputs()]

    def run(feeds: Arrays) -> Arrays:
        return dict(zip(names, session.run(names, dict(feeds)), strict=True))

    return Engine(run, inputs, session.get_modelmeta().custom_metadata_map)


def openvino(path: Path, threads: int) -> Engine:
    """An OpenVINO file, `.xml` with its `.bin`, on the CPU."""
    try:
        import openvino as ov
    except ImportError as error:
        raise InputError("OpenVINO is not installed: pip install 'qmimic[openvino]'.") from error
    weights = path.with_suffix(".bin")
    if not weights.is_file():
        raise InputError(f"{weights}, the weights of {path.name}, is missing; copy both files.")
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    try:
        model = ov.Core().read_model(path)
        request = ov.Core().compile_model(model, "CPU", settings).create_infer_request()
        own = [key for key in (KEY, SUM, WEIGHTS_SUM) if model.has_rt_info(key)]
        properties = {key: str(model.get_rt_info(key).value) for key in own}
    except Exception as error:  # the same
        raise _cannot(path, f"OpenVINO {ov.__version__.partition('-')[0]}", "openvino", error) from error
    if WEIGHTS_SUM in own and _sum_of(weights) != properties[WEIGHTS_SUM]:
        raise InputError(f"{weights} is not the file that {path.name} was written with; copy both files again.")
    names = [value.get_any_name() for value in model.outputs]

    def run(feeds: Arrays) -> Arrays:
        request.infer(dict(feeds))
        # Copies: the request writes its next results to the same place.
        return {name: np.array(request.get_tensor(name).data) for name in names}

    inputs = {
        value.get_any_name(): Input(
            tuple(side.get_length() if side.is_static else None for side in value.partial_shape),
            np.dtype(value.element_type.to_dtype()),
        )
        for value in model.inputs
    }
    return Engine(run, inputs, properties)


def executorch(path: Path, threads: int) -> Engine:
    """An ExecuTorch program, `.pte` with its `.json`, by the interpreter for trying programs out; it needs torch.

    Its two methods and the suppression between them are one run; a detector of one stage has one method.
    """
    try:
        import torch
        from executorch.extension.pybindings import portable_lib
        from executorch.runtime import Runtime
    except ImportError as error:
        raise InputError("ExecuTorch is not installed: pip install 'qmimic[executorch]'.") from error
    said = path.with_suffix(".json")
    try:
        properties = read_json(said)
        if _sum_of(path) != properties.get(WEIGHTS_SUM):
            raise InputError(f"{path} is not the file that {said.name} was written with; copy both files again.")
    except AttributeError as error:
        raise InputError(f"{said}, the description of {path.name}, cannot be read; copy both files.") from error
    metadata = from_properties(properties, path)
    try:
        portable_lib._unsafe_reset_threadpool(threads)  # XNNPACK's, which torch's own number does not govern
        program = Runtime.get().load_program(path)
        look = program.load_method(LOOK)
        judge = program.load_method(JUDGE) if JUDGE in program.method_names else None
    except Exception as error:  # the same
        raise _cannot(path, "ExecuTorch", "executorch", error) from error

    def run(feeds: Arrays) -> Arrays:
        seen = look.execute([torch.from_numpy(feeds[INPUT])])
        if judge is None:
            scores, boxes = seen
            return dict(zip(REGIONS, (boxes.numpy(), scores.numpy()), strict=True))
        features, candidates = seen
        regions, valid = propose(candidates.numpy()[0], metadata)
        scores, boxes = judge.execute([features, torch.from_numpy(regions)[None]])
        counted = np.where(valid[:, None], scores.numpy()[0], np.float32(-1))
        return dict(zip(REGIONS, (boxes.numpy(), counted[None]), strict=True))

    return Engine(run, {INPUT: Input((1, *metadata.size, 3), np.dtype(np.uint8))}, properties)


ENGINES: dict[str, Callable[[Path, int], Engine]] = {".onnx": onnx_runtime, ".xml": openvino, ".pte": executorch}


def load(path: Path, threads: int) -> Engine:
    """Load a file with the engine of its suffix.

    Raises:
        InputError: there is no such file, its engine is not installed or cannot run it.
    """
    if path.suffix not in ENGINES:
        raise InputError(f"{path} is no deployed detector; its name ends in one of {' '.join(ENGINES)}.")
    if not is_there(path):
        raise InputError(f"There is no file {path}; name a file that `qmimic export` wrote.")
    open_file(path).close()  # a named pipe would keep an engine waiting
    return ENGINES[path.suffix](path, threads)


def _sum_of(path: Path) -> str:
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _cannot(path: Path, engine: str, package: str, error: Exception) -> InputError:
    reason = " ".join(str(error).split())[:200]
    return InputError(f"{path} cannot be run by {engine} ({reason}); copy or export it again, or upgrade {package}.")
