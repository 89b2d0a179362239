"""From an exported program to a model of LiteRT: one method for each operation of the program."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import Node

from qmimic.errors import InputError
from qmimic.runtime.metadata import INPUT
from qmimic.runtime.places import LOGIT_STEP, SIDE_STEP
from qmimic.ship.litert_model import Steps
from qmimic.ship.litert_values import Value, ValueBuilder

SIDES = 4
OUTPUT_STEPS = Steps((LOGIT_STEP,))
PIXELS = Steps((1.0,), -128)
LOWEST = np.float32(-3.4e38)

aten = torch.ops.aten


class Lowering:
    """A program on its way into a model.

    Args:
        program: of one input, uint8 [1, H, W, 3], and one output.
        integers: the detector is on grids; the model's input is then int8, 128 below the pixel.
    """

    def __init__(self, program: torch.export.ExportedProgram, integers: bool) -> None:
        self.integers = integers
        self.builder = ValueBuilder()
        self.graph = program.graph
        for node in reversed(self.graph.nodes):  # what only checks
            if node.target is aten._assert_tensor_metadata.default:
                self.graph.erase_node(node)
        self.values: dict[Node, Value] = {}
        self.constants: dict[Node, Tensor] = {}
        self.scales: dict[Node, Tensor] = {}  # of constants that lie on grids
        own = {**program.state_dict, **program.constants}
        self.given = {
            spec.arg.name: own[spec.target] for spec in program.graph_signature.input_specs if spec.target is not None
        }
        self.operations: dict[Any, Callable[..., Value]] = {
            aten.conv2d.default: self._conv,
            aten.relu.default: self._relu,
            aten.add.Tensor: self._add,
            aten.sub.Tensor: self._sub,
            aten.matmul.default: self._matmul,
            aten.max_pool2d.default: self._max_pool,
            aten.cat.default: self._cat,
            aten.view.default: self._view,
            aten.permute.default: self._permute,
            aten.transpose.int: self._transpose,
            aten._to_copy.default: self._to_float,
            aten.clone.default: self._same,
            aten.detach.default: self._same,
            aten.div.Tensor: self._arithmetic("DIV", "DivOptions"),
            aten.mul.Tensor: self._arithmetic("MUL", "MulOptions"),
            aten.lt.Scalar: self._arithmetic("LESS", "LessOptions"),
            aten.ceil.default: self._arithmetic("CEIL"),
            aten.clamp.default: self._clamp,
            torch.ops.qmimic.enlarged.default: self._enlarged,
            torch.ops.qmimic.round_to_grid.default: self._round,
        }
        # Rounding to a grid is monotone, so it may as well be done before what only chooses or moves values.
        self.passing = {
            *(aten.relu.default, aten.max_pool2d.default, aten.cat.default, aten.view.default, aten.transpose.int),
            *(aten.permute.default, aten.clone.default, torch.ops.qmimic.enlarged.default),
        }

    def model(self, float_ends: bool = False) -> bytes:
        """The model's bytes.

        Args:
            float_ends: on integers, pixels come as floats, and the outputs leave as floats.

        Raises:
            InputError: the format lacks an operation of the program.
        """
        source = output = -1
        for node in self.graph.nodes:
            if node.op == "placeholder" and node.name in self.given:
                self.constants[node] = self.given[node.name].detach()
            elif node.op == "placeholder":
                order, steps = tuple(range(4)), PIXELS if self.integers else None
                dtype = np.int8 if self.integers else np.uint8
                own = Value(self.builder.tensor(node.meta["val"].shape, dtype, steps, INPUT), order, steps, True)
                source = own.index
                if self.integers and float_ends:
                    source = self.builder.like(own, None).index
                    self.builder.operator("QUANTIZE", [source], own.index, "QuantizeOptions")
                self.values[node] = own
            elif node.op == "output":
                (last,) = node.args[0]
                ends = self._in_order(self.values[last])
                output = self.builder.as_float(ends).index if float_ends else ends.index
            else:
                self._take(node)
        return self.builder.finish(source, output)

    def _take(self, node: Node) -> None:
        if all(one in self.constants for one in node.all_input_nodes):
            arguments: Any = torch.fx.map_arg(node.args, lambda one: self.constants[one])
            if node.target is torch.ops.qmimic.round_to_grid.default:
                self.scales[node] = arguments[1]
            function: Any = node.target
            self.constants[node] = function(*arguments, **node.kwargs)
            return
        operation = self.operations.get(node.target)
        if operation is None:
            raise InputError(f"A .tflite file cannot hold this detector: nothing of the format computes {node.target}.")
        self.values[node] = operation(node, *node.args)

    def _steps_of(self, node: Node) -> Steps | None:
        """The grid on which what a node makes is wanted, if there is one."""
        if not self.integers:
            return None
        if node.target is torch.ops.qmimic.round_to_grid.default:
            arguments: Any = node.args
            _, scale, low, high = arguments
            zero = 0 if low else -128
            return Steps((float(self.constants[scale]),), zero, 0, high + zero)
        found: set[Steps | None] = set()
        for user in node.users:
            if user.op == "output":
                found.add(OUTPUT_STEPS)
            elif user.target in self.passing or user.target is torch.ops.qmimic.round_to_grid.default:
                found.add(self._steps_of(user))
            else:
                return None
        return found.pop() if len(found) == 1 else None

    def _only_relu(self, node: Node) -> bool:
        """Whether all that follows is a ReLU, which an operator can then do itself."""
        return [user.target for user in node.users] == [aten.relu.default]

    # ---- operations

    def _conv(
        self,
        node: Node,
        x: Node,
        weight: Node,
        bias: Node | None = None,
        stride: list[int] | tuple[int, int] = (1, 1),
        padding: list[int] | tuple[int, int] = (0, 0),
        dilation: list[int] | tuple[int, int] = (1, 1),
        groups: int = 1,
    ) -> Value:
        steps, source = self._steps_of(node), self.values[x]
        kernel = self.constants[weight]
        added = self.constants[bias] if bias is not None else torch.zeros(len(kernel))
        scale = self.scales.get(weight)
        if steps == OUTPUT_STEPS:  # sides are written doubled
            double = torch.ones(len(kernel))
            double[-SIDES:] = LOGIT_STEP / SIDE_STEP
            kernel, added = kernel * double.view(-1, 1, 1, 1), added * double
            scale = None if scale is None else scale * double
        whole = steps is not None and scale is not None and source.steps is not None
        source = source if whole else self.builder.as_float(source)
        depthwise = groups > 1 and groups == len(kernel) == self.builder.shape(source.index)[3]
        laid = kernel.permute(1, 2, 3, 0) if depthwise else kernel.permute(0, 2, 3, 1)
        axis = 3 if depthwise else 0
        if whole:
            assert scale is not None
            assert source.steps is not None
            beside = scale.view([-1 if place == axis else 1 for place in range(4)])
            integers = (laid / beside).round().to(torch.int8).numpy()
            weights = self.builder.constant(integers, Steps(tuple(scale.tolist()), 0, axis))
            product = scale.double() * source.steps.scale[0]
            offsets = (added.double() / product).round().to(torch.int32).numpy()
            biases = self.builder.constant(offsets, Steps(tuple(product.float().tolist())))
        else:
            weights = self.builder.constant(laid.float().contiguous().numpy())
            biases = self.builder.constant(added.float().numpy())
        sides = [(kernel.shape[2 + n] - 1) * dilation[n] + 1 for n in range(2)]
        source, same = self.builder.padded(source, sides, stride, padding, np.float32(0))
        relu = not whole and self._only_relu(node) and steps is None
        options = {
            "padding": 0 if same else 1,
            "strideH": stride[0],
            "strideW": stride[1],
            "dilationHFactor": dilation[0],
            "dilationWFactor": dilation[1],
            "fusedActivationFunction": int(relu),
        }
        kind, table = ("DEPTHWISE_CONV_2D", "DepthwiseConv2DOptions") if depthwise else ("CONV_2D", "Conv2DOptions")
        options |= {"depthMultiplier": 1} if depthwise else {}
        result = self._new(node, steps if whole else None)
        self.builder.operator(kind, [source.index, weights, biases], result.index, table, **options)
        return self.builder.cut(result) if whole else self.builder.settled(result, steps)

    def _arithmetic(self, kind: str, options: str = "") -> Callable[..., Value]:
        """An operation on floats, of values, constants with a number for each channel, and numbers."""

        def operation(node: Node, *operands: Node | float) -> Value:
            inputs = [self._operand(one) for one in operands]
            dtype = np.bool_ if node.meta["val"].dtype is torch.bool else np.float32
            result = self._new(node, None, dtype=dtype)
            self.builder.operator(kind, inputs, result.index, options)
            return self.builder.settled(result, self._steps_of(node))

        return operation

    def _operand(self, one: Node | float) -> int:
        if not isinstance(one, Node):
            return self.builder.constant(np.array([one], np.float32))
        if one in self.constants:
            return self.builder.constant(self.constants[one].flatten().float().numpy())
        return self.builder.as_float(self.values[one]).index

    def _clamp(self, node: Node, x: Node, least: float | None = None, most: float | None = None) -> Value:
        result = self.builder.as_float(self.values[x])
        for kind, limit in (("MAXIMUM", least), ("MINIMUM", most)):
            if limit is not None:
                inputs = [result.index, self._operand(limit)]
                result = self._new(node, None)
                self.builder.operator(kind, inputs, result.index, "MaximumMinimumOptions")
        return self.builder.settled(result, self._steps_of(node))

    def _to_float(self, node: Node, x: Node) -> Value:
        source = self.values[x]
        if x.meta["val"].dtype is not torch.bool:
            return source  # pixels stay as they are until they are needed as floats
        result = self._new(node, None)
        self.builder.operator("CAST", [source.index], result.index, "CastOptions")
        return result

    def _sub(self, node: Node, x: Node, mean: Node | float) -> Value:
        steps, source = self._steps_of(node), self.values[x]
        if steps is None or not source.pixels or mean not in self.constants:
            return self._arithmetic("SUB", "SubOptions")(node, x, mean)
        assert isinstance(mean, Node)
        channels = self.constants[mean].flatten().double()
        options = {"padding": 1, "strideH": 1, "strideW": 1}
        if source.mix is None:  # one multiplication a channel by 1, so that each channel has its own bias
            one, count = 127, len(channels)
            kernel, axis = np.full((1, 1, 1, count), one, np.int8), 3
            kind, table = "DEPTHWISE_CONV_2D", "DepthwiseConv2DOptions"
            options |= {"depthMultiplier": 1}
        else:
            one, mixed = _as_fractions(source.mix)
            count, kernel, axis = 1, mixed.reshape(1, 1, 1, -1), 0
            kind, table = "CONV_2D", "Conv2DOptions"
        weights = self.builder.constant(kernel, Steps((1 / one,) * count, 0, axis))
        offsets = (-channels * one).round().to(torch.int32).numpy()
        biases = self.builder.constant(offsets, Steps((1 / one,) * count))
        result = self._new(node, steps)
        self.builder.operator(kind, [source.index, weights, biases], result.index, table, **options)
        return result

    def _matmul(self, node: Node, x: Node, weights: Node) -> Value:
        """Brightness of pixels, which costs nothing yet."""
        source = self.values[x]
        if not source.pixels or weights not in self.constants:
            raise InputError("A .tflite file cannot hold this detector: it multiplies matrices that are not pixels.")
        return replace(source, mix=self.constants[weights])

    def _add(self, node: Node, x: Node, y: Node | float) -> Value:
        steps = self._steps_of(node)
        if y not in self.values:
            return self._arithmetic("ADD", "AddOptions")(node, x, y)
        assert isinstance(y, Node)
        both = [self.values[x], self.values[y]]
        whole = steps is not None and all(one.steps is not None for one in both)
        both = both if whole else [self.builder.as_float(one) for one in both]
        result = self._new(node, steps if whole else None)
        relu = not whole and steps is None and self._only_relu(node)
        inputs = [one.index for one in both]
        self.builder.operator("ADD", inputs, result.index, "AddOptions", fusedActivationFunction=int(relu))
        return self.builder.cut(result) if whole else self.builder.settled(result, steps)

    def _relu(self, node: Node, x: Node) -> Value:
        source = self.values[x]
        unsigned = source.steps is not None and source.steps.zero == -128
        if unsigned or (
            source.steps is None and x.target in (aten.conv2d.default, aten.add.Tensor) and self._only_relu(x)
        ):
            return source
        result = self._new(node, source.steps)
        self.builder.operator("RELU", [source.index], result.index)
        return result

    def _max_pool(
        self,
        node: Node,
        x: Node,
        kernel: list[int],
        stride: list[int],
        padding: list[int] | tuple[int, int] = (0, 0),
    ) -> Value:
        source, same = self.builder.padded(self.values[x], kernel, stride, padding, LOWEST)
        result = self._new(node, source.steps)
        options = {
            "padding": 0 if same else 1,
            "strideH": stride[0],
            "strideW": stride[1],
            "filterHeight": kernel[0],
            "filterWidth": kernel[1],
        }
        self.builder.operator("MAX_POOL_2D", [source.index], result.index, "Pool2DOptions", **options)
        return result

    def _enlarged(self, node: Node, x: Node, times: int) -> Value:
        source = self.values[x]
        height, width = self.builder.shape(source.index)[1:3]
        size = self.builder.constant(np.array([height * times, width * times], np.int32))
        result = self._new(node, source.steps)
        options = {"alignCorners": False, "halfPixelCenters": False}
        inputs = [source.index, size]
        self.builder.operator(
            "RESIZE_NEAREST_NEIGHBOR", inputs, result.index, "ResizeNearestNeighborOptions", **options
        )
        return result

    def _cat(self, node: Node, parts: list[Node], dim: int = 0) -> Value:
        steps = self._steps_of(node)
        own = [self.values[one] for one in parts]
        own = [self.builder.as_float(one) if steps is None else self.builder.settled(one, steps) for one in own]
        result = self._new(node, steps, own[0].order)
        axis = result.order.index(dim % len(result.order))
        self.builder.operator(
            "CONCATENATION", [one.index for one in own], result.index, "ConcatenationOptions", axis=axis
        )
        return result

    def _view(self, node: Node, x: Node, shape: list[int]) -> Value:
        """Places in one row: [B, C, H, W] to [B, C, H W], which lie as [B, H, W, C] and [B, H W, C]."""
        before, after = tuple(x.meta["val"].shape), tuple(node.meta["val"].shape)
        source = self.values[x]
        if len(before) != 4 or after != (*before[:2], before[2] * before[3]) or source.order != (0, 2, 3, 1):
            raise InputError(f"A .tflite file cannot hold this detector: it reshapes {before} to {after}.")
        result = self._new(node, source.steps, (0, 2, 1))
        laid = list(self.builder.shape(result.index))
        inputs = [source.index, self.builder.constant(np.array(laid, np.int32))]
        self.builder.operator("RESHAPE", inputs, result.index, "ReshapeOptions", newShape=laid)
        return result

    def _permute(self, node: Node, x: Node, dims: list[int]) -> Value:
        source = self.values[x]
        return replace(source, order=tuple(list(dims).index(place) for place in source.order))

    def _transpose(self, node: Node, x: Node, one: int, other: int) -> Value:
        dims = list(range(len(self.values[x].order)))
        dims[one], dims[other] = dims[other], dims[one]
        return self._permute(node, x, dims)

    def _same(self, node: Node, x: Node) -> Value:
        return self.values[x]

    def _round(self, node: Node, x: Node, scale: Node, low: int, high: int) -> Value:
        return self.builder.settled(self.values[x], self._steps_of(node))

    # ---- parts of operations

    def _new(
        self, node: Node, steps: Steps | None, order: tuple[int, ...] | None = None, dtype: Any = np.float32
    ) -> Value:
        """A tensor for what a node makes; maps lie with channels last."""
        shape = node.meta["val"].shape
        laid = order or {4: (0, 2, 3, 1), 3: (0, 2, 1)}[len(shape)]
        dtype = dtype if steps is None else np.int8
        return Value(self.builder.tensor([shape[place] for place in laid], dtype, steps), laid, steps)

    def _in_order(self, value: Value) -> Value:
        """A value whose dimensions lie in their order."""
        if value.order != tuple(range(len(value.order))):
            raise InputError("A .tflite file cannot hold this detector: its outputs do not lie in their order.")
        return value


def _as_fractions(weights: Tensor) -> tuple[int, NDArray[np.int8]]:
    """Positive weights [n, 1] as integers up to 127 over one denominator, with the smallest error."""
    exact = weights.flatten().double().numpy()
    most = int(127 / exact.max())
    one = min(range(1, most + 1), key=lambda whole: float(np.abs(np.rint(exact * whole) / whole - exact).max()))
    return one, np.rint(exact * one).astype(np.int8)
