"""A one-stage detector as ncnn's files: a text of layers, the weights, and a description.

The ONNX graph is translated operator by operator. Up to suppression it holds few of them, and what comes out is the
same to the byte every time. pnnx, ncnn's own converter, knows nothing of the grids that a detector was trained on.

On integers, ncnn multiplies int8 from -127 to 127, and has no zero points. A map on a grid of 0 to 255 steps is moved
down by 127 steps before a convolution, whose bias gives them back: nothing is rounded twice, and of all steps only the
highest is cut. Where something else than a convolution reads the map, it is rounded to its grid in float.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from qmimic.errors import InputError
from qmimic.runtime.metadata import INPUT, WEIGHTS_SUM
from qmimic.runtime.ncnn_engine import WEIGHTS, beside
from qmimic.ship.onnx_file import Exported
from qmimic.ship.opset import OPSET

MAGIC = 7767517
FLOATS, BYTES = b"\0\0\0\0", (0x000D4B38).to_bytes(4, "little")  # before weights: how they are stored
SHIFT = 127  # steps by which an unsigned map is moved down; ncnn has -127 to 127
ADD, SUB, MUL, MIN = 0, 1, 2, 5  # kinds of ncnn's BinaryOp
EXP, ROUND = 7, 18  # and of its UnaryOp
RELU = 1  # kind of activation
ARRAY = -23300  # less its number: the key of a parameter that is an array

Values = NDArray[Any]


def write(exported: Exported, path: Path) -> None:
    """See `qmimic.runtime.formats`.

    Raises:
        InputError: the graph has an operator that is not translated.
    """
    graph = exported.changed(batch=1, suppression=False, opset=OPSET).graph.graph
    text, weights = _Translation(graph).files()
    path.write_text(text, encoding="ascii")
    beside(path, WEIGHTS).write_bytes(weights)


def describe(path: Path, properties: Mapping[str, str]) -> None:
    """Write beside the layers, as JSON, what the files are to say of themselves, and their checksum."""
    weights = hashlib.sha256(beside(path, WEIGHTS).read_bytes()).hexdigest()
    own = {**properties, WEIGHTS_SUM: weights}
    beside(path, ".json").write_text(json.dumps(own), encoding="utf-8")


@dataclass(frozen=True)
class _Grid:
    """A map on its way through `QuantizeLinear` and back: where it came from, and its steps."""

    source: str
    scale: float
    low: int
    high: int


@dataclass(frozen=True)
class _Weights:
    """Integers [outputs, ...] and the scale of each output."""

    integers: Values
    scale: Values

    @property
    def floats(self) -> Values:
        return self.integers.astype(np.float32) * self.scale.reshape(-1, *[1] * (self.integers.ndim - 1))


@dataclass
class _Layer:
    kind: str
    inputs: list[str]
    outputs: list[str]
    parameters: dict[int, object] = field(default_factory=dict)
    weights: bytes = b""


class _Translation:
    """Layers of a graph, in its order. A map [1, C, H, W] becomes one of C, H, W; [1, N, K] one of N, K."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.layers: list[_Layer] = []
        self.constants: dict[str, Values] = {one.name: onnx.numpy_helper.to_array(one) for one in graph.initializer}
        self.renamed: dict[str, str] = {}  # of what costs no layer
        self.grids: dict[str, _Grid] = {}
        self.weights: dict[str, _Weights] = {}
        self.brightness: set[str] = set()  # pixels in grey
        self.readers = Counter(name for node in graph.node for name in node.input)
        self.outputs = {value.name for value in graph.output}
        (taken,) = graph.input
        _, height, width, channels = (one.dim_value for one in taken.type.tensor_type.shape.dim)
        self._add("Input", [], INPUT, {0: width, 1: height, 2: channels})
        for node in graph.node:
            self._translate(node)

    def files(self) -> tuple[str, bytes]:
        """The text of layers, and their weights."""
        layers = _split([_with_outputs(one, self.renamed, self.outputs) for one in self.layers])
        blobs = sum(len(one.outputs) for one in layers)
        lines = [str(MAGIC), f"{len(layers)} {blobs}"]
        for number, one in enumerate(layers):
            given = " ".join(_parameter(key, value) for key, value in sorted(one.parameters.items()))
            named = " ".join([*one.inputs, *one.outputs])
            lines.append(f"{one.kind} l{number} {len(one.inputs)} {len(one.outputs)} {named} {given}".rstrip())
        return "\n".join(lines) + "\n", b"".join(one.weights for one in layers)

    def _translate(self, node: onnx.NodeProto) -> None:
        if all(name in self.constants for name in node.input if name):
            values = ReferenceEvaluator(node).run(None, {name: self.constants[name] for name in node.input if name})
            if node.op_type == "DequantizeLinear" and node.output[0] not in self.constants:
                integers, scale, _ = (self.constants[name] for name in node.input)
                self.weights[node.output[0]] = _Weights(integers, np.broadcast_to(scale, len(integers)))
            self.constants.update(zip(node.output, map(np.asarray, values), strict=True))
            return
        try:
            translate = TRANSLATIONS[node.op_type]
        except KeyError:
            raise InputError(
                f"ncnn files have no {node.op_type}, which this detector needs; export it to onnx or openvino."
            ) from None
        translate(self, node, _attributes(node))

    def _add(
        self, kind: str, inputs: Sequence[str], output: str, parameters: dict[int, object], weights: bytes = b""
    ) -> str:
        self.layers.append(_Layer(kind, list(inputs), [output], parameters, weights))
        return output

    def _blob(self, name: str) -> str:
        """The blob of a value: a constant gets a layer, a map on a grid is rounded to it."""
        if name in self.renamed:
            return self._blob(self.renamed[name])
        if name in self.grids:
            return self._rounded(name, self.grids[name])
        if name in self.constants and not any(name in one.outputs for one in self.layers):
            value = self.constants[name].astype(np.float32)
            sides: dict[int, object] = dict(enumerate(reversed(value.shape)))
            return self._add("MemoryData", [], name, sides, value.tobytes())
        return name

    def _rounded(self, name: str, grid: _Grid) -> str:
        if not any(name in one.outputs for one in self.layers):
            steps = self._binary(MUL, grid.source, 1 / grid.scale, f"{name}_steps")
            whole = self._add("UnaryOp", [steps], f"{name}_whole", {0: ROUND})
            cut = self._add("Clip", [whole], f"{name}_cut", {0: float(grid.low), 1: float(grid.high)})
            self._binary(MUL, cut, grid.scale, name)
        return name

    def _binary(self, kind: int, blob: str, number: float, output: str) -> str:
        return self._add("BinaryOp", [blob], output, {0: kind, 1: 1, 2: number})

    def _same(self, node: onnx.NodeProto, _: dict[str, Any]) -> None:
        self.renamed[node.output[0]] = node.input[0]

    def _arithmetic(self, node: onnx.NodeProto, _: dict[str, Any]) -> None:
        kind = {"Add": ADD, "Sub": SUB, "Mul": MUL, "Min": MIN}[node.op_type]
        first, second = node.input
        value = self.constants.get(second)
        if value is not None and value.size == 1:
            self._binary(kind, self._blob(first), float(value.reshape(-1)[0]), node.output[0])
        elif value is not None and value.ndim == 4 and value.size == value.shape[1] and kind in (ADD, SUB):
            bias = value.reshape(-1).astype(np.float32) * (-1 if kind == SUB else 1)  # one number for each channel
            self._add("Bias", [self._blob(first)], node.output[0], {0: bias.size}, bias.tobytes())
        else:
            self._add("BinaryOp", [self._blob(first), self._blob(second)], node.output[0], {0: kind})

    def _multiply(self, node: onnx.NodeProto, _: dict[str, Any]) -> None:
        """Colours times weights is brightness: the one product of matrices that a detector of one stage has."""
        blob, values = self._blob(node.input[0]), self.constants.get(node.input[1])
        if blob != INPUT or values is None or values.shape[1] != 1:
            raise InputError(
                "ncnn files have no such MatMul, which this detector needs; export it to onnx or openvino."
            )
        stored = FLOATS + values.astype(np.float32).tobytes()
        self._add("Convolution", [blob], node.output[0], {0: 1, 1: 1, 6: values.size}, stored)
        self.brightness.add(node.output[0])

    def _quantize(self, node: onnx.NodeProto, _: dict[str, Any]) -> None:
        scale, zero = (self.constants[name] for name in node.input[1:])
        limits = np.iinfo(zero.dtype)
        self.grids[node.output[0]] = _Grid(self._blob(node.input[0]), float(scale), limits.min, limits.max)

    def _dequantize(self, node: onnx.NodeProto, _: dict[str, Any]) -> None:
        self.grids[node.output[0]] = self.grids[node.input[0]]

    def _convolve(self, node: onnx.NodeProto, given: dict[str, Any]) -> None:
        source, weight = node.input[:2]
        values = self.constants[weight]
        outputs, (high, wide), group = len(values), values.shape[2:], given["group"]
        top, left, bottom, right = given["pads"]
        bias = self.constants[node.input[2]].astype(np.float32) if len(node.input) > 2 else np.zeros(outputs, "f4")
        grid, integers = self.grids.get(source), self.weights.get(weight)
        parameters: dict[int, object] = {0: outputs, 1: wide, 11: high}
        parameters |= {2: given["dilations"][1], 12: given["dilations"][0]}
        parameters |= {3: given["strides"][1], 13: given["strides"][0]}
        parameters |= {5: 1, 6: values.size, **({7: group} if group > 1 else {})}
        if grid is not None and integers is not None:
            blob, cut = grid.source, grid.low == 0
            if cut:  # padding is of the map as it was, and ncnn pads with 0 only
                blob = self._shifted(source, grid, (top, bottom, left, right))
                top = left = bottom = right = 0
                sums = integers.floats.sum((1, 2, 3), dtype=np.float64)
                bias = (bias + SHIFT * grid.scale * sums).astype(np.float32)
            parameters |= {8: 1}
            content = integers.integers.astype(np.int8).tobytes()
            stored = BYTES + content + bytes(-len(content) % 4) + bias.tobytes()
            stored += (1 / integers.scale).astype(np.float32).tobytes() + np.float32(1 / grid.scale).tobytes()
        else:
            blob, stored = self._blob(source), FLOATS + values.astype(np.float32).tobytes() + bias.tobytes()
        parameters |= {4: left, 15: right, 14: top, 16: bottom}
        self._add("ConvolutionDepthWise" if group > 1 else "Convolution", [blob], node.output[0], parameters, stored)

    def _shifted(self, name: str, grid: _Grid, pads: tuple[int, int, int, int]) -> str:
        """A map on an unsigned grid, padded and moved down."""
        shifted = f"{name}_pad{'_'.join(map(str, pads))}"
        if not any(shifted in one.outputs for one in self.layers):
            blob = grid.source
            if any(pads):
                sides: dict[int, object] = dict(enumerate(pads))
                blob = self._add("Padding", [blob], f"{shifted}_low", {**sides, 4: 0, 5: 0.0})
            self._binary(SUB, blob, SHIFT * grid.scale, shifted)
        return shifted

    def _relu(self, node: onnx.NodeProto, _: dict[str, Any]) -> None:
        source, output = node.input[0], node.output[0]
        maker = next((one for one in self.layers if one.outputs == [source]), None)
        if maker and maker.kind.startswith("Convolution") and self.readers[source] == 1:
            maker.outputs, maker.parameters[9] = [output], RELU
        else:
            self._add("ReLU", [self._blob(source)], output, {})

    def _pool(self, node: onnx.NodeProto, given: dict[str, Any]) -> None:
        (high, wide), (down, across) = given["kernel_shape"], given["strides"]
        top, left, bottom, right = given["pads"]
        parameters: dict[int, object] = {0: 0, 1: wide, 11: high, 2: across, 12: down}
        parameters |= {3: left, 14: right, 13: top, 15: bottom, 5: 0 if given["ceil_mode"] else 1}
        self._add("Pooling", [self._blob(node.input[0])], node.output[0], parameters)

    def _unary(self, node: onnx.NodeProto, _: dict[str, Any]) -> None:
        kind, parameters = {"Exp": ("UnaryOp", {0: EXP}), "Sigmoid": ("Sigmoid", {})}[node.op_type]
        self._add(kind, [self._blob(node.input[0])], node.output[0], dict(parameters))

    def _clip(self, node: onnx.NodeProto, _: dict[str, Any]) -> None:
        low, high = (float(self.constants[name]) for name in node.input[1:])
        self._add("Clip", [self._blob(node.input[0])], node.output[0], {0: low, 1: high})

    def _reshape(self, node: onnx.NodeProto, _: dict[str, Any]) -> None:
        sides = self.constants[node.input[1]].tolist()[1:]
        self._add("Reshape", [self._blob(node.input[0])], node.output[0], dict(enumerate(reversed(sides))))

    def _concat(self, node: onnx.NodeProto, given: dict[str, Any]) -> None:
        axis = given["axis"] - 1 if given["axis"] > 0 else given["axis"]
        self._add("Concat", [self._blob(name) for name in node.input], node.output[0], {0: axis})

    def _slice(self, node: onnx.NodeProto, _: dict[str, Any]) -> None:
        start, end, axis = (int(self.constants[name][0]) for name in node.input[1:4])
        ranges = {9: [start], 10: [min(end, np.iinfo(np.int32).max)], 11: [axis - 1]}
        self._add("Crop", [self._blob(node.input[0])], node.output[0], dict(ranges))

    def _transpose(self, node: onnx.NodeProto, given: dict[str, Any]) -> None:
        source = self.renamed.get(node.input[0], node.input[0])
        if source in (INPUT, *self.brightness):  # what ncnn makes of pixels has its channels first, and is float
            self._same(node, given)
        elif list(given["perm"]) == [0, 2, 1]:
            self._add("Permute", [self._blob(node.input[0])], node.output[0], {0: 1})
        else:
            raise InputError(f"ncnn files have no transposition {given['perm']}, which this detector needs.")


def _with_outputs(layer: _Layer, renamed: Mapping[str, str], outputs: set[str]) -> _Layer:
    """A layer whose blob has the name of the graph's output that is the same values."""
    final = {source: name for name, source in renamed.items() if name in outputs}
    layer.outputs = [final.get(name, name) for name in layer.outputs]
    layer.inputs = [final.get(name, name) for name in layer.inputs]
    return layer


def _split(layers: list[_Layer]) -> list[_Layer]:
    """Layers of which each reads a blob of its own: ncnn wants a copy for each reader."""
    readers = Counter(name for one in layers for name in one.inputs)
    taken: Counter[str] = Counter()
    found = []
    for one in layers:
        names = [
            f"{name}_{taken[name] + place}" if readers[name] > 1 else name
            for name, place in ((name, one.inputs[:spot].count(name)) for spot, name in enumerate(one.inputs))
        ]
        taken.update(one.inputs)
        found.append(_Layer(one.kind, names, one.outputs, one.parameters, one.weights))
        for output in one.outputs:
            if readers[output] > 1:
                copies = [f"{output}_{number}" for number in range(readers[output])]
                found.append(_Layer("Split", [output], copies))
    return found


def _attributes(node: onnx.NodeProto) -> dict[str, Any]:
    return {one.name: onnx.helper.get_attribute_value(one) for one in node.attribute}


def _parameter(key: int, value: object) -> str:
    """As ncnn reads it: a float has a point and an exponent, an array its length and a key below 0."""
    if isinstance(value, list):
        return f"{ARRAY - key}={','.join(map(str, (len(value), *value)))}"
    return f"{key}={value:.9e}" if isinstance(value, float) else f"{key}={value}"


TRANSLATIONS: Mapping[str, Callable[[_Translation, onnx.NodeProto, dict[str, Any]], None]] = {
    "Add": _Translation._arithmetic,
    "Cast": _Translation._same,
    "Clip": _Translation._clip,
    "Concat": _Translation._concat,
    "Conv": _Translation._convolve,
    "DequantizeLinear": _Translation._dequantize,
    "Exp": _Translation._unary,
    "MatMul": _Translation._multiply,
    "MaxPool": _Translation._pool,
    "Min": _Translation._arithmetic,
    "Mul": _Translation._arithmetic,
    "QuantizeLinear": _Translation._quantize,
    "Relu": _Translation._relu,
    "Reshape": _Translation._reshape,
    "Sigmoid": _Translation._unary,
    "Slice": _Translation._slice,
    "Sub": _Translation._arithmetic,
    "Transpose": _Translation._transpose,
    "Unsqueeze": _Translation._same,
}
