"""OpenVINO's files, `.xml` with its `.bin`, on the CPU."""

import hashlib
from collections import deque
from pathlib import Path
from typing import Any

import numpy as np

from qmimic.errors import InputError
from qmimic.files import LARGE, read_bytes
from qmimic.runtime.formats import Arrays, Input, Session, cannot_run, refuse_other_kinds
from qmimic.runtime.metadata import GRAPH_SUM, KEY, SUM, WEIGHTS_SUM


def open_file(path: Path, threads: int, spin: bool) -> Session:
    """See `qmimic.runtime.formats`. `spin` is ignored: its threads always sleep between runs."""
    try:
        import openvino as ov
    except ImportError as error:
        raise InputError("OpenVINO is not installed: pip install 'qmimic[openvino]'.") from error
    weights = path.with_suffix(".bin")
    if not weights.is_file():
        refuse_other_kinds(path)
        raise InputError(f"{weights}, the weights of {path.name}, is missing; copy both files.")
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    try:
        model = ov.Core().read_model(path)
        compiled = ov.Core().compile_model(model, "CPU", settings)
        own = [key for key in (KEY, SUM, WEIGHTS_SUM, GRAPH_SUM) if model.has_rt_info(key)]
        properties = {key: str(model.get_rt_info(key).value) for key in own}
    except Exception as error:  # its exceptions have no narrower common type
        raise cannot_run(path, f"OpenVINO {ov.__version__.partition('-')[0]}", "openvino", error) from error
    written_with = properties.get(WEIGHTS_SUM, "")
    mixed = bool(written_with) and _sum_of(read_bytes(weights, LARGE)) != written_with
    if mixed and _sum_with(path, written_with) == properties.get(GRAPH_SUM):  # the graph is unchanged
        raise InputError(f"{weights} does not belong to {path.name}; copy both files again.")
    names = [value.get_any_name() for value in model.outputs]
    # A request holds the results of its last run, so threads must not share one.
    free: deque[Any] = deque([compiled.create_infer_request()])

    def run(feeds: Arrays) -> Arrays:
        try:
            request = free.pop()
        except IndexError:
            request = compiled.create_infer_request()
        try:
            request.infer(dict(feeds))
            return {name: np.array(request.get_tensor(name).data) for name in names}
        finally:
            free.append(request)

    inputs = {
        value.get_any_name(): Input(
            tuple(side.get_length() if side.is_static else None for side in value.partial_shape),
            np.dtype(value.element_type.to_dtype()),
        )
        for value in model.inputs
    }
    return Session(run, inputs, properties)


def checksum(path: Path) -> str:
    """See `qmimic.runtime.formats`."""
    return _sum_with(path, _sum_of(read_bytes(path.with_suffix(".bin"), LARGE)))


def _sum_with(path: Path, weights: str) -> str:
    """The checksum, if the weights had this one. The last `rt_info` of an `.xml` holds the properties."""
    graph, _, _ = read_bytes(path, LARGE).rpartition(b"<rt_info>")
    return _sum_of(graph.rstrip() + weights.encode())


def _sum_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
