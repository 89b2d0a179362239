"""The structure of a timm network, read from its graph (torch.fx), not from names."""

import operator
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import Conv2dSame, get_notrace_functions, is_notrace_module
from torch import fx, nn

from qmimic.contracts import ChannelGroup, FusedPair
from qmimic.detectors.batch_norm import BatchNormAct2d
from qmimic.detectors.convolution import Conv2d

FOLDABLE = (nn.Conv2d, Conv2d, Conv2dSame)  # others change their weights before they use them
NOT_BELOW_0 = (nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.Hardsigmoid)
# These mix no channels, and give no value below 0 where they read none.
BY_CHANNEL = (nn.MaxPool2d, nn.AvgPool2d, nn.Identity, nn.Dropout)
ACTIVATIONS = (*NOT_BELOW_0, nn.SiLU, nn.Hardswish, nn.GELU, nn.LeakyReLU)
SUMS: tuple[Callable[..., Any], ...] = (operator.add, operator.iadd, torch.add)
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
    once = all(count == 1 for count in calls.values())
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
    return (
        node.op == "call_function"
        and node.target in (*SUMS, operator.mul, F.pad, torch.cat)
        and bool(_inputs(node))
        and all(_not_below_0(network, one) for one in _inputs(node))
    )


def _channel_groups(network: nn.Module, graph: fx.Graph) -> tuple[ChannelGroup, ...] | None:
    """Channels that must be pruned together: a convolution makes new ones, a sum ties those of its terms."""
    group_of: dict[fx.Node, int] = {}
    groups: list[ChannelGroup | None] = []  # None: joined to an earlier one

    def add(place: int, producers: tuple[str, ...] = (), consumers: tuple[str, ...] = ()) -> None:
        found = groups[place]
        assert found is not None
        groups[place] = found.joined(ChannelGroup(producers, consumers))

    for node in graph.nodes:
        before = _inputs(node)
        module = network.get_submodule(str(node.target)) if node.op == "call_module" else None
        name = str(node.target)
        if node.op in ("placeholder", "output"):
            continue
        if isinstance(module, nn.Conv2d) and type(module) in FOLDABLE and module.groups == 1:
            if before[0] in group_of:  # the image's channels are in no group
                add(group_of[before[0]], consumers=(name,))
            group_of[node] = len(groups)
            groups.append(ChannelGroup((name,), ()))
        elif isinstance(module, nn.BatchNorm2d) and before[0] in group_of:
            group_of[node] = group_of[before[0]]
            add(group_of[node], producers=(name,))
        elif isinstance(module, (*BY_CHANNEL, *ACTIVATIONS)) or (
            node.op == "call_function" and node.target in (*RELUS, F.pad)
        ):
            if before[0] in group_of:
                group_of[node] = group_of[before[0]]
        elif node.op == "call_function" and node.target in SUMS and len(before) == 2 and set(before) <= set(group_of):
            first, second = sorted(group_of[one] for one in before)
            group_of[node] = first
            if first != second:
                one, other = groups[first], groups[second]
                assert one is not None
                assert other is not None
                groups[first], groups[second] = one.joined(other), None
                group_of.update({key: first for key, place in group_of.items() if place == second})
        else:
            return None
    for level, node in enumerate(_levels(graph)):
        if node not in group_of:
            return None
        found = groups[group_of[node]]
        assert found is not None
        groups[group_of[node]] = found.joined(ChannelGroup((), (), (level,)))
    return tuple(group for group in groups if group is not None)
