"""A detector as an ONNX file: one graph from uint8 pixels to detections, in standard operators alone."""

import contextlib
import io
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnxscript import opset20

from qmimic.detectors.detector import Detector
from qmimic.runtime.metadata import INPUT, OUTPUTS, REGIONS
from qmimic.ship.network import ShippedNetwork
from qmimic.ship.opset import OPSET, lower

op: Any = opset20  # traced, not run: its types are those of scripts


@dataclass(frozen=True)
class Exported:
    """A detector on its way into files.

    Attributes:
        detector: in evaluation mode, trained or on grids.
        batch: images at once; None: any number.
        suppression: whether detections are suppressed in the graph.
        opset: of the graph.
    """

    detector: Detector
    batch: int | None = 1
    suppression: bool = True
    opset: int = OPSET

    @cached_property
    def graph(self) -> onnx.ModelProto:
        """See `build_graph`; made once and shared by all formats, so copy it before you change it."""
        return build_graph(self)

    def changed(self, **settings: Any) -> Self:
        """The same with other settings; itself, with its graph, if none of them differs."""
        other = replace(self, **settings)
        return self if other == self else other


def build_graph(exported: Exported) -> onnx.ModelProto:
    """The graph of a detector.

    Raises:
        InputError: the detector cannot be exported, see `ShippedNetwork`; or not in this opset.
    """
    model = _traced(exported)
    _integer_weights(model.graph)
    _placed_as_sums(model.graph, exported.detector)
    _without_idle_relus(model.graph)
    _in_few_words(model.graph)
    if exported.opset != OPSET:
        lower(model, exported.opset)
    onnx.checker.check_model(model, full_check=True)
    return model


def _traced(exported: Exported) -> onnx.ModelProto:
    """The graph as torch's exporter writes it. Raises: as `build_graph`, but for the opset."""
    detector, batch = exported.detector, exported.batch
    network = ShippedNetwork(detector, exported.suppression).eval()
    height, width = detector.spec.size
    images = torch.zeros(batch or 2, height, width, 3, dtype=torch.uint8)
    free = None if batch else ({0: torch.export.Dim("batch")},)
    # The exporter thinks aloud; with gradients it would trace a region of its own for all that is without, in vain.
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            network,
            (images,),
            input_names=[INPUT],
            output_names=list(OUTPUTS if exported.suppression else REGIONS),
            opset_version=OPSET,
            dynamic_shapes=free,
            dynamo=True,
            custom_translation_table={
                torch.ops.qmimic.suppress.default: _suppress,
                torch.ops.qmimic.round_to_grid.default: _round_to_grid,
            },
        )
    assert program is not None
    model: onnx.ModelProto = program.model_proto
    return model


def write(exported: Exported, path: Path) -> None:
    """See `qmimic.runtime.formats`. Raises: as `build_graph`."""
    path.write_bytes(exported.graph.SerializeToString())


def describe(path: Path, properties: Mapping[str, str]) -> None:
    """See `qmimic.runtime.formats`."""
    model = onnx.load(path)
    onnx.helper.set_model_props(model, dict(properties))
    path.write_bytes(model.SerializeToString())


def _integer_weights(graph: onnx.GraphProto) -> None:
    """Store what is rounded to a grid as integers: a weight's `QuantizeLinear` is done here, its inverse stays."""
    constants = _constants(graph)
    for node in list(graph.node):
        if node.op_type == "QuantizeLinear" and node.input[0] in constants:
            weight, scale, zero = (constants[name] for name in node.input)
            beside = scale.reshape(-1, *[1] * (weight.ndim - 1)) if scale.ndim else scale
            rounded = np.rint(weight / beside).astype(zero.dtype)
            graph.initializer.append(onnx.numpy_helper.from_array(rounded, node.output[0]))
            graph.node.remove(node)
    _without_unused(graph)


def _placed_as_sums(graph: onnx.GraphProto, detector: Detector) -> None:
    """Write what stands at every place as a sum (see `Detector.placed`); engines add up when they load a file."""
    levels = [own.cpu().numpy() for own in detector.placed()]
    if not levels:
        return
    whole = np.concatenate([own.reshape(-1, own.shape[-1]) for own in levels])
    parts = [
        {"first": own[:, :1, :1], "down": own[:1, :, :1] - own[:1, :1, :1], "across": own[:1, :1] - own[:1, :1, :1]}
        for own in levels
    ]
    summed = [own["first"] + own["down"] + own["across"] for own in parts]
    if not all(np.allclose(own, level, atol=1e-4) for own, level in zip(summed, levels, strict=True)):
        return
    for stored in [one for one in graph.initializer if one.dims[:1] == [len(whole)] and len(one.dims) == 2]:
        value = onnx.numpy_helper.to_array(stored)
        width = value.shape[1]
        starts = range(whole.shape[1] - width + 1)
        start = next((one for one in starts if np.array_equal(value, whole[:, one : one + width])), None)
        if start is None:
            continue
        columns = slice(start, start + width)
        own = [{part: values[..., columns] for part, values in level.items()} for level in parts]
        graph.initializer.remove(stored)
        for place, node in enumerate(_summed(graph, stored.name, own)):
            graph.node.insert(place, node)


def _summed(graph: onnx.GraphProto, name: str, levels: Sequence[Mapping[str, NDArray[Any]]]) -> list[onnx.NodeProto]:
    """Nodes that make a constant of its levels' parts `first`, `down` and `across`, which the graph gets."""
    make, made = onnx.helper.make_node, []
    names = [f"{name}.{level}" for level in range(len(levels))]
    for own, parts in zip(names, levels, strict=True):
        constants = {**parts, "shape": np.array([-1, parts["first"].shape[-1]])}
        graph.initializer.extend(onnx.numpy_helper.from_array(one, f"{own}.{part}") for part, one in constants.items())
        made += [
            make("Add", [f"{own}.first", f"{own}.down"], [f"{own}.rows"]),
            make("Add", [f"{own}.rows", f"{own}.across"], [f"{own}.grid"]),
            make("Reshape", [f"{own}.grid", f"{own}.shape"], [own]),
        ]
    return [*made, make("Concat", names, [name], axis=0)]


def _without_idle_relus(graph: onnx.GraphProto) -> None:
    """Leave out a ReLU of a map of unsigned integers."""
    makers = {name: node for node in graph.node for name in node.output}
    constants = _constants(graph)
    renamed: dict[str, str] = {}
    for node in list(graph.node):
        for place, name in enumerate(node.input):
            node.input[place] = renamed.get(name, name)
        maker = makers.get(node.input[0]) if node.op_type == "Relu" else None
        if maker and maker.op_type == "DequantizeLinear":
            zero = constants[maker.input[2]]
            if zero.dtype == np.uint8 and not zero.any():
                renamed[node.output[0]] = node.input[0]
                graph.node.remove(node)


def _in_few_words(graph: onnx.GraphProto) -> None:
    """Leave out names and shapes that nobody needs to run a graph; in a file of 100 kB they are half of it.

    The exporter also notes the path of every line of code that an operator came from.
    """
    kept = {value.name for value in (*graph.input, *graph.output, *graph.initializer)}
    short: dict[str, str] = {}
    for node in graph.node:
        del node.metadata_props[:]
        node.doc_string = node.name = ""
        for names in (node.input, node.output):
            for place, name in enumerate(names):
                if name and name not in kept:
                    names[place] = short.setdefault(name, f"v{len(short)}")
    del graph.metadata_props[:]
    del graph.value_info[:]
    for value in (*graph.input, *graph.output):
        del value.metadata_props[:]
    for tensor in graph.initializer:
        del tensor.metadata_props[:]


def _constants(graph: onnx.GraphProto) -> dict[str, NDArray[Any]]:
    """Values that a graph holds, by name."""
    nodes = {node.output[0]: node.attribute[0].t for node in graph.node if node.op_type == "Constant"}
    tensors = {**{one.name: one for one in graph.initializer}, **nodes}
    return {name: onnx.numpy_helper.to_array(tensor) for name, tensor in tensors.items() if tensor.data_type}


def _without_unused(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input}
    for tensor in [one for one in graph.initializer if one.name not in used]:
        graph.initializer.remove(tensor)


def _round_to_grid(x: Any, scale: Any, low: int, high: int) -> Any:
    """`qmimic.compress.integer_grids.round_to_grid` by ONNX's own operators, unsigned where nothing is below 0."""
    kind = np.int8 if low else np.uint8
    channels = scale.shape[0]
    if channels == 1:
        scale = op.Squeeze(scale)
        zero = op.Constant(value=onnx.numpy_helper.from_array(np.zeros((), kind)))
    else:
        zero = op.Constant(value=onnx.numpy_helper.from_array(np.zeros(channels, kind)))
    if not low and high < 255:
        x = op.Min(x, op.Mul(scale, op.Constant(value_float=float(high))))
    return op.DequantizeLinear(op.QuantizeLinear(x, scale, zero, axis=0), scale, zero, axis=0)


def _suppress(boxes: Any, valid: Any, threshold: float, most: int) -> Any:
    """`qmimic.boxes.suppress` by ONNX's own operator, which wants scores: the boxes' order is all that there is."""
    count = op.Squeeze(op.Shape(valid, start=1, end=2))
    falling = op.Cast(op.Range(count, op.Constant(value_int=0), op.Constant(value_int=-1)), to=onnx.TensorProto.FLOAT)
    scores = op.Unsqueeze(op.Where(valid, falling, op.Constant(value_float=-1.0)), op.Constant(value_ints=[1]))
    limits = op.Constant(value_int=most), op.Constant(value_float=threshold), op.Constant(value_float=0.0)
    staying = op.NonMaxSuppression(boxes, scores, *limits)
    places = op.Gather(staying, op.Constant(value_ints=[0, 2]), axis=1)  # of [image, class, box]
    none = op.ConstantOfShape(op.Shape(valid), value=_tensor(0.0))
    ones = op.ConstantOfShape(op.Shape(places, start=0, end=1), value=_tensor(1.0))
    return op.Cast(op.ScatterND(none, places, ones), to=onnx.TensorProto.BOOL)


def _tensor(value: float) -> onnx.TensorProto:
    return onnx.helper.make_tensor("value", onnx.TensorProto.FLOAT, [1], [value])
