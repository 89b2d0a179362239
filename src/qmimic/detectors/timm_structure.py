"""The structure of a timm network, read from its graph (torch.fx), not from names."""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame, activations, get_notrace_functions, is_notrace_module
from torch import Tensor, fx, nn

from qmimic.contracts import ChannelGroup, FusedPair
from qmimic.detectors.batch_norm import BatchNormAct2d
from qmimic.detectors.convolution import Conv2d, is_depthwise

FOLDABLE = (nn.Conv2d, Conv2d, Conv2dSame)  # others change their weights before they use them
# These give no 0 where they read 0.
GATES = (nn.Sigmoid, nn.Hardsigmoid, activations.Sigmoid, activations.HardSigmoid)
NOT_BELOW_0 = (nn.ReLU, nn.ReLU6, *GATES)
# These mix no channels, and give no value below 0 where they read none.
BY_CHANNEL = (nn.MaxPool2d, nn.AvgPool2d, nn.Identity, nn.Dropout)
ACTIVATIONS = (
    *(*NOT_BELOW_0, nn.SiLU, nn.Hardswish, nn.GELU, nn.LeakyReLU),
    *(activations.Swish, activations.HardSwish, activations.GELU),
)
SUMS: tuple[Callable[..., Any], ...] = (operator.add, operator.iadd, torch.add)
PRODUCTS: tuple[Callable[..., Any], ...] = (operator.mul, operator.imul, torch.mul)
RELUS: tuple[Callable[..., Any], ...] = (F.relu, F.relu6, torch.relu, torch.relu_)


@dataclass(frozen=True)
class Structure:
    """Names of modules of a network by what they do.

    Attributes:
        pixel_layers: convolutions that read the image; none if anything else reads it too.
        pairs: convolutions, each with the batch norm that alone takes its output and takes nothing else.
        single_norms: the other batch norms.
        groups: channels that can be pruned together, with the levels whose maps they are; None if unknown.
        signed: layers with weights, and whether their inputs have values below 0; None if unknown.
    """

    pixel_layers: tuple[str, ...]
    pairs: tuple[FusedPair, ...]
    single_norms: tuple[str, ...]
    groups: tuple[ChannelGroup, ...] | None
    signed: dict[str, bool] | None


def structure_of(network: nn.Module) -> Structure:
    """Read a network; if torch.fx cannot follow it, all its batch norms are single and nothing else is known."""
    norms = [name for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)]
    graph = graph_of(network)
    if graph is None:
        return Structure((), (), tuple(norms), None, None)
    calls: dict[str, int] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            calls[str(node.target)] = calls.get(str(node.target), 0) + 1
    pairs = []
    for node in graph.nodes:
        if node.op != "call_module" or node.target not in norms:
            continue
        before = _inputs(node)[0]
        conv = str(before.target)
        own = before.op == "call_module" and type(network.get_submodule(conv)) in FOLDABLE
        if own and len(before.users) == calls[conv] == calls[str(node.target)] == 1:
            pairs.append(FusedPair(conv, str(node.target)))
    single = tuple(name for name in norms if name not in {pair.norm for pair in pairs})
    pixels = _pixel_layers(network, graph)
    once = all(calls.get(name, 0) <= 1 for name, module in network.named_modules() if list(module.parameters(False)))
    groups = _channel_groups(network, graph) if pixels and once and not single else None
    signed: dict[str, bool] | None = {} if pixels and once else None
    for node in graph.nodes if signed is not None else ():
        module = network.get_submodule(str(node.target)) if node.op == "call_module" else None
        if isinstance(module, nn.Conv2d | nn.Linear) and signed is not None and node.target not in pixels:
            signed[str(node.target)] = not _not_below_0(network, _inputs(node)[0])
    return Structure(pixels, tuple(pairs), single, groups, signed)


def levels_below_0(network: nn.Module) -> tuple[bool, ...]:
    """For each level of a network, whether its map has values below 0; if the network cannot be followed, True."""
    graph = graph_of(network)
    return () if graph is None else tuple(not _not_below_0(network, node) for node in _levels(graph))


def graph_of(network: nn.Module) -> fx.Graph | None:
    """The graph of a network, with layers as nodes; None if its control flow depends on its data."""
    try:
        return _Tracer().trace(network)
    except Exception:  # a stranger's code may do anything with a stand-in for a tensor
        return None


class _Tracer(fx.Tracer):
    """Follows a network down to its layers, but not into them."""

    def __init__(self) -> None:
        super().__init__(autowrap_functions=tuple(get_notrace_functions()))

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is a layer: it has weights of its own, or no children."""
        whole = isinstance(m, nn.Conv2d | nn.Linear | nn.BatchNorm2d) or not any(True for _ in m.children())
        return whole or is_notrace_module(type(m))


def _pixel_layers(network: nn.Module, graph: fx.Graph) -> tuple[str, ...]:
    (image,) = (node for node in graph.nodes if node.op == "placeholder")
    found, ahead = [], list(image.users)
    while ahead:
        node = ahead.pop(0)
        if node.op == "call_function" and node.target is F.pad:  # padding with the mean colour, 0
            ahead += node.users
            continue
        conv = network.get_submodule(str(node.target)) if node.op == "call_module" else None
        if not isinstance(conv, nn.Conv2d) or type(conv) not in FOLDABLE or conv.groups != 1:
            return ()
        found.append(str(node.target))
    return tuple(found)


def _inputs(node: fx.Node) -> list[fx.Node]:
    """The nodes that a node reads, in order."""
    return [one for one in node.args if isinstance(one, fx.Node)]


def _levels(graph: fx.Graph) -> list[fx.Node]:
    """The nodes that give the network's levels."""
    (output,) = (node for node in graph.nodes if node.op == "output")
    (given,) = output.args
    assert isinstance(given, list | tuple)
    return [node for node in given if isinstance(node, fx.Node)]


def _not_below_0(network: nn.Module, node: fx.Node) -> bool:
    """Whether a node's output is known to be at least 0, from the kind of the node."""
    if node.op == "call_module":
        module = network.get_submodule(str(node.target))
        last = module.act if isinstance(module, BatchNormAct2d) else module
        return isinstance(last, NOT_BELOW_0) or (
            isinstance(module, BY_CHANNEL) and _not_below_0(network, _inputs(node)[0])
        )
    if node.op == "call_function" and node.target in RELUS:
        return True
    if _is_global_mean(node):
        return _not_below_0(network, _inputs(node)[0])
    return (
        node.op == "call_function"
        and node.target in (*SUMS, *PRODUCTS, F.pad, torch.cat)
        and bool(_inputs(node))
        and all(_not_below_0(network, one) for one in _inputs(node))
    )


def _channel_groups(network: nn.Module, graph: fx.Graph) -> tuple[ChannelGroup, ...] | None:
    """Channels that must be pruned together; None where a node may do with channels what this does not know."""
    found = _Groups(network)
    for node in graph.nodes:
        if node.op not in ("placeholder", "output") and not found.follow(node):
            return None
    levels = _levels(graph)
    return found.with_levels(levels) if found.give(levels) else None


class _Groups:
    """Which nodes of a graph have the same channels.

    A convolution makes new ones, a depthwise one passes them on, sums and products tie those of their terms. A channel
    can go only if what reads it would read 0 in its place: a gate gives 0.5, so it counts only as a factor.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._groups: list[ChannelGroup | None] = []  # None: joined to an earlier one
        self._of: dict[fx.Node, int] = {}  # the image's channels are in none
        self._gates: set[fx.Node] = set()  # not 0 where their channel is 0

    def follow(self, node: fx.Node) -> bool:
        """Take the next node in; False if it is of an unknown kind."""
        before = _inputs(node)
        module = self._network.get_submodule(str(node.target)) if node.op == "call_module" else None
        name = str(node.target)
        function = node.target if node.op == "call_function" else None
        gated = [one in self._gates for one in before]
        last = module.act if isinstance(module, BatchNormAct2d) else module
        if isinstance(last, GATES) or (all(gated) if function in PRODUCTS else any(gated)):
            self._gates.add(node)
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d) and any(gated):
            return False
        convolution = module if isinstance(module, nn.Conv2d) and type(module) in FOLDABLE else None
        if convolution and convolution.groups == 1:
            self._add(before[0], ChannelGroup((), (name,)))
            self._of[node] = len(self._groups)
            self._groups.append(ChannelGroup((name,), ()))
        elif isinstance(module, nn.BatchNorm2d) or (convolution and is_depthwise(convolution)):
            self._add(before[0], ChannelGroup((name,), ()))
            return self._pass_on(node)
        elif isinstance(module, (*BY_CHANNEL, *ACTIVATIONS)) or function in RELUS or _is_spatial(node):
            self._pass_on(node)
        elif function in (*SUMS, *PRODUCTS):
            return len(before) == 2 and self.know(before) and self._tie(node, before[0], before[1])
        else:
            return False
        return True

    def know(self, nodes: list[fx.Node]) -> bool:
        """Whether the channels of all of these nodes are in a group."""
        return set(nodes) <= set(self._of)

    def give(self, levels: list[fx.Node]) -> bool:
        """Whether these nodes' channels are in a group, and 0 where they are taken away."""
        return self.know(levels) and not set(levels) & self._gates

    def with_levels(self, levels: list[fx.Node]) -> tuple[ChannelGroup, ...]:
        """The groups, with the levels whose maps these nodes give."""
        for level, node in enumerate(levels):
            self._add(node, ChannelGroup((), (), (level,)))
        return tuple(group for group in self._groups if group is not None)

    def _at(self, place: int) -> ChannelGroup:
        found = self._groups[place]
        assert found is not None, "nodes of a joined group belong to the earlier one"
        return found

    def _add(self, node: fx.Node, more: ChannelGroup) -> None:
        """Join something to the group of a node, if it has one."""
        if node in self._of:
            place = self._of[node]
            self._groups[place] = self._at(place).joined(more)

    def _pass_on(self, node: fx.Node) -> bool:
        """Put a node into the group of its input; False if that has none."""
        (before, *_) = _inputs(node)
        if before in self._of:
            self._of[node] = self._of[before]
        return before in self._of

    def _tie(self, node: fx.Node, one: fx.Node, other: fx.Node) -> bool:
        """Put a node into the joined group of two; False if one of them is stretched over the other's channels."""
        first, second = sorted((self._of[one], self._of[other]))
        widths = [len(self._weight(self._at(place).name)) for place in (first, second)]
        if widths[0] != widths[1]:
            return False
        self._of[node] = first
        if first != second:
            self._groups[first], self._groups[second] = self._at(first).joined(self._at(second)), None
            self._of.update({key: first for key, place in self._of.items() if place == second})
        return True

    def _weight(self, name: str) -> Tensor:
        module = self._network.get_submodule(name)
        assert isinstance(module, nn.Conv2d), "the first producer of a group is a convolution"
        return module.weight


def _is_spatial(node: fx.Node) -> bool:
    """Whether a node pads places, or is the mean over all of them."""
    if node.op == "call_function" and node.target is F.pad:
        pads = node.args[1] if len(node.args) > 1 else node.kwargs.get("pad")
        return isinstance(pads, list | tuple) and len(pads) <= 4  # two for each axis, the last axes first
    return _is_global_mean(node)


def _is_global_mean(node: fx.Node) -> bool:
    """Whether a node is the mean over a map's places, with the axes kept (squeeze-and-excitation: Hu et al., 2018)."""
    if node.op != "call_method" or node.target != "mean" or not node.kwargs.get("keepdim"):
        return False
    axes = node.args[1] if len(node.args) > 1 else node.kwargs.get("dim")
    return isinstance(axes, list | tuple) and tuple(axes) in ((2, 3), (-2, -1))
