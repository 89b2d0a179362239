"""Building a model of LiteRT, tensor by tensor and operator by operator, into the bytes of a `.tflite`."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import flatbuffers
import numpy as np
from ai_edge_litert import schema_py_generated as schema
from numpy.typing import NDArray

MARK = b"TFL3"
TYPES = {
    np.dtype(np.float32): schema.TensorType.FLOAT32,
    np.dtype(np.int32): schema.TensorType.INT32,
    np.dtype(np.uint8): schema.TensorType.UINT8,
    np.dtype(np.int8): schema.TensorType.INT8,
    np.dtype(np.bool_): schema.TensorType.BOOL,
}
# Versions of the operators that take int8; all others are of version 1. Old interpreters refuse what is too new.
INT8_VERSIONS = {
    "ADD": 2,
    "CONCATENATION": 2,
    "CONV_2D": 3,
    "DEPTHWISE_CONV_2D": 3,
    "DEQUANTIZE": 2,
    "MAX_POOL_2D": 2,
    "MINIMUM": 2,
    "PAD": 2,
    "PADV2": 2,
    "QUANTIZE": 2,
    "RELU": 2,
    "RESIZE_NEAREST_NEIGHBOR": 2,
}


@dataclass(frozen=True)
class Steps:
    """What the integers of a tensor stand for: (integer - zero) * scale.

    Attributes:
        scale: one, or one for each entry of dimension `axis`.
        zero: the integer of 0.
        axis: see above.
        top: the highest integer in use.
    """

    scale: tuple[float, ...]
    zero: int = 0
    axis: int = 0
    top: int = 127


class ModelBuilder:
    """A model that grows; tensors are known by their index."""

    def __init__(self) -> None:
        self._tensors: list[Any] = []
        self._buffers: list[Any] = [schema.BufferT()]  # the first is that of tensors without values
        self._operators: list[Any] = []
        self._codes: dict[tuple[str, int], int] = {}
        self._constants: dict[tuple[str, tuple[int, ...], bytes, Steps | None], int] = {}

    def tensor(self, shape: Sequence[int], dtype: Any, steps: Steps | None = None, name: str = "") -> int:
        """A tensor without values."""
        tensor = schema.TensorT(shape=list(shape), type=TYPES[np.dtype(dtype)], name=name or f"t{len(self._tensors)}")
        if steps is not None:
            zeros = [steps.zero] * len(steps.scale)
            tensor.quantization = schema.QuantizationParametersT(
                scale=list(steps.scale), zeroPoint=zeros, quantizedDimension=steps.axis
            )
        self._tensors.append(tensor)
        return len(self._tensors) - 1

    def constant(self, values: NDArray[Any], steps: Steps | None = None) -> int:
        """A tensor with these values; the same ones are kept once."""
        data = np.ascontiguousarray(values)
        key = (data.dtype.str, data.shape, data.tobytes(), steps)
        if key not in self._constants:
            index = self.tensor(data.shape, data.dtype, steps)
            self._tensors[index].buffer = len(self._buffers)
            self._buffers.append(schema.BufferT(data=np.frombuffer(data.tobytes(), np.uint8)))
            self._constants[key] = index
        return self._constants[key]

    def operator(self, kind: str, inputs: Sequence[int], output: int, options: str = "", **values: Any) -> int:
        """Add an operator of one output, which is returned.

        Args:
            kind: its name in the format.
            inputs, output: indices of tensors.
            options, values: name of its table of options, and the options.
        """
        integers = any(self._tensors[index].type == schema.TensorType.INT8 for index in (*inputs, output))
        version = INT8_VERSIONS.get(kind, 1) if integers else 1
        code = self._codes.setdefault((kind, version), len(self._codes))
        made = schema.OperatorT(opcodeIndex=code, inputs=list(inputs), outputs=[output])
        if options:
            made.builtinOptionsType = getattr(schema.BuiltinOptions, options)
            made.builtinOptions = getattr(schema, f"{options}T")(**values)
        self._operators.append(made)
        return output

    def shape(self, index: int) -> tuple[int, ...]:
        """The shape of a tensor."""
        return tuple(self._tensors[index].shape)

    def finish(self, source: int, output: int) -> bytes:
        """The bytes of the model from one tensor to another."""
        codes = []
        for kind, version in self._codes:
            number = getattr(schema.BuiltinOperator, kind)
            codes.append(
                schema.OperatorCodeT(builtinCode=number, deprecatedBuiltinCode=min(number, 127), version=version)
            )
        graph = schema.SubGraphT(
            tensors=self._tensors, inputs=[source], outputs=[output], operators=self._operators, name="main"
        )
        return packed(schema.ModelT(version=3, operatorCodes=codes, subgraphs=[graph], buffers=self._buffers))


def packed(model: Any) -> bytes:
    """The bytes of a model (`ModelT`)."""
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(model.Pack(builder), MARK)
    return bytes(builder.Output())


def with_properties(model: Any, properties: Mapping[str, str]) -> bytes:
    """The bytes of a model (`ModelT`) that says this of itself, and nothing else."""
    for entry in model.metadata or []:
        model.buffers[entry.buffer].data = None
    while model.buffers[-1].data is None and len(model.buffers) > 1:
        model.buffers.pop()
    model.metadata = []
    for name, value in properties.items():
        model.metadata.append(schema.MetadataT(name=name, buffer=len(model.buffers)))
        model.buffers.append(schema.BufferT(data=np.frombuffer(value.encode(), np.uint8)))
    return packed(model)
