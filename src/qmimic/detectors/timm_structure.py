"""What a network of timm consists of, read from its graph (torch.fx) and not from its names."""

from dataclasses import dataclass

import torch.nn.functional as F
from timm.layers import Conv2dSame, get_notrace_functions, is_notrace_module
from torch import fx, nn

from qmimic.detectors.convolution import Conv2d

FOLDABLE = (nn.Conv2d, Conv2d, Conv2dSame)  # others change their weights before they use them


@dataclass(frozen=True)
class Structure:
    """Names of modules of a network by what they do.

    Attributes:
        pixel_layers: convolutions that read the image; none if anything else reads it too.
        pairs: convolutions, and the batch norm that takes the output of each and nothing else's.
        single_norms: the other batch norms.
    """

    pixel_layers: tuple[str, ...]
    pairs: tuple[tuple[str, str], ...]
    single_norms: tuple[str, ...]


def structure_of(network: nn.Module) -> Structure:
    """Read a network; of one that torch.fx cannot follow, all batch norms are single and no layer reads pixels."""
    norms = [name for name, module in network.named_modules() if isinstance(module, nn.BatchNorm2d)]
    graph = graph_of(network)
    if graph is None:
        return Structure((), (), tuple(norms))
    calls: dict[str, int] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            calls[str(node.target)] = calls.get(str(node.target), 0) + 1
    pairs = []
    for node in graph.nodes:
        if node.op != "call_module" or node.target not in norms:
            continue
        (before,) = node.args
        conv = str(before.target)
        own = before.op == "call_module" and type(network.get_submodule(conv)) in FOLDABLE
        if own and len(before.users) == calls[conv] == calls[str(node.target)] == 1:
            pairs.append((conv, str(node.target)))
    taken = {norm for _, norm in pairs}
    return Structure(_pixel_layers(network, graph), tuple(pairs), tuple(name for name in norms if name not in taken))


def graph_of(network: nn.Module) -> fx.Graph | None:
    """The graph of a network with layers as its nodes; None if its control flow depends on what it computes."""
    try:
        return _Tracer().trace(network)
    except Exception:  # whatever a stranger's code does with a stand-in for a tensor
        return None


class _Tracer(fx.Tracer):
    """Follows a network down to its layers, and to no layer's inside."""

    def __init__(self) -> None:
        super().__init__(autowrap_functions=tuple(get_notrace_functions()))

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        """Whether a module is a layer: it has weights of its own, or nothing below it."""
        whole = isinstance(m, nn.Conv2d | nn.Linear | nn.BatchNorm2d) or not any(True for _ in m.children())
        return whole or is_notrace_module(type(m))


def _pixel_layers(network: nn.Module, graph: fx.Graph) -> tuple[str, ...]:
    (image,) = (node for node in graph.nodes if node.op == "placeholder")
    found, ahead = [], list(image.users)
    while ahead:
        node = ahead.pop(0)
        if node.op == "call_function" and node.target is F.pad:  # of the mean colour, 0
            ahead += node.users
            continue
        conv = network.get_submodule(str(node.target)) if node.op == "call_module" else None
        if not isinstance(conv, nn.Conv2d) or type(conv) not in FOLDABLE or conv.groups != 1:
            return ()
        found.append(str(node.target))
    return tuple(found)
