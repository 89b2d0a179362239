"""Values of a program as tensors of a model of LiteRT: as floats, on grids, padded.

Maps lie with their channels last, as the format wants them. A value remembers how its dimensions lie, so that a
transposition costs nothing.
"""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from qmimic.ship.litert_model import ModelBuilder, Steps


@dataclass(frozen=True)
class Value:
    """A tensor of the model that stands for a value of the program.

    Attributes:
        index: of the tensor.
        order: the dimensions of the program's value in the order in which they lie in the tensor.
        steps: of its integers; None: float.
        pixels: as the picture came: uint8, or 128 less as int8.
        mix: weights [channels, 1] by which the channels are still to be summed, once it is known on which grid.
    """

    index: int
    order: tuple[int, ...]
    steps: Steps | None = None
    pixels: bool = False
    mix: Tensor | None = None


class ValueBuilder(ModelBuilder):
    """A model that grows by values."""

    def like(self, value: Value, steps: Steps | None) -> Value:
        """A tensor without values that lies as another one, of floats or on a grid."""
        dtype = np.float32 if steps is None else np.int8
        return Value(self.tensor(self.shape(value.index), dtype, steps), value.order, steps)

    def as_float(self, value: Value) -> Value:
        """A value as floats; channels that are still to be summed are summed."""
        if value.mix is not None:
            whole = self.as_float(replace(value, mix=None))
            kernel = self.constant(value.mix.float().numpy().reshape(1, 1, 1, -1))
            none = self.constant(np.zeros(1, np.float32))
            index = self.tensor((*self.shape(whole.index)[:3], 1), np.float32)
            sides = {"padding": 1, "strideH": 1, "strideW": 1}
            self.operator("CONV_2D", [whole.index, kernel, none], index, "Conv2DOptions", **sides)
            return Value(index, value.order)
        if value.steps is None and not value.pixels:
            return value
        result = self.like(value, None)
        kind, options = ("CAST", "CastOptions") if value.steps is None else ("DEQUANTIZE", "DequantizeOptions")
        self.operator(kind, [value.index], result.index, options)
        return result

    def settled(self, value: Value, steps: Steps | None) -> Value:
        """A value on a grid; it stays as it is where it lies there, or where no grid is wanted."""
        if steps is None or value.steps == steps:
            return value
        result = self.like(value, steps)
        self.operator("QUANTIZE", [value.index], result.index, "QuantizeOptions")
        return self.cut(result)

    def cut(self, value: Value) -> Value:
        """Values above a grid's highest integer become that integer."""
        assert value.steps is not None
        if value.steps.top == 127:
            return value
        top = self.constant(np.array([value.steps.top], np.int8), value.steps)
        result = self.like(value, value.steps)
        self.operator("MINIMUM", [value.index, top], result.index, "MaximumMinimumOptions")
        return result

    def padded(
        self,
        value: Value,
        kernel: list[int],
        stride: list[int] | tuple[int, int],
        padding: list[int] | tuple[int, int],
        filler: np.float32,
    ) -> tuple[Value, bool]:
        """A map with what an operator is to find around it, and whether it is to pad by the format's own rule."""
        shape = self.shape(value.index)
        around, same = [], True
        for side, size, step, before in zip(shape[1:3], kernel, stride, padding, strict=True):
            count = (side + 2 * before - size) // step + 1
            needed = max((count - 1) * step + size - side, 0)
            same &= before == needed // 2 and count == -(-side // step)
            around.append((before, max(needed - before, 0)))
        if same or not any(map(any, around)):
            return value, same
        sides = np.array([(0, 0), *around, (0, 0)], np.int32)
        shape = tuple(side + sum(more) for side, more in zip(shape, sides.tolist(), strict=True))
        dtype: Any = np.float32 if value.steps is None else np.int8
        padded = Value(self.tensor(shape, dtype, value.steps), value.order, value.steps)
        inputs = [value.index, self.constant(sides)]
        if filler == 0:
            self.operator("PAD", inputs, padded.index, "PadOptions")
            return padded, False
        lowest = np.array([filler if value.steps is None else -128], dtype)
        inputs.append(self.constant(lowest, value.steps))
        self.operator("PADV2", inputs, padded.index, "PadV2Options")
        return padded, False
