"""Pruned detectors: which channels there are, and removing some of them."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from qmimic.contracts import ChannelGroup
from qmimic.detectors.convolution import is_depthwise
from qmimic.detectors.detector import Detector
from qmimic.errors import InputError

COUNTS = ((nn.Linear, "out_features"), (nn.BatchNorm2d, "num_features"), (nn.Conv2d, "out_channels"))


def channel_groups(detector: Detector) -> dict[str, ChannelGroup]:
    """All groups of a detector by name, in the order of the data's flow.

    Raises:
        InputError: its backbone has group convolutions, whose channels cannot be removed freely, or a part does not
            declare where the channels of one of its layers go.
    """
    convolutions = [module for module in detector.modules() if isinstance(module, nn.Conv2d)]
    if any(conv.groups > 1 and not is_depthwise(conv) for conv in convolutions):
        raise InputError(
            f"{detector.spec.backbone} has grouped convolutions, which cannot be pruned; take a backbone without "
            "them, such as resnet18/16."
        )
    groups = detector.channel_groups()
    produced = {name for group in groups for name in group.producers}
    consumed = {name for group in groups for name in group.consumers}
    consumed |= {f"backbone.{name}" for name in detector.backbone.pixel_layers}
    for name, module in detector.named_modules():
        within = isinstance(module, nn.BatchNorm2d) or (isinstance(module, nn.Conv2d) and is_depthwise(module))
        declared = name in consumed or (within and name in produced)
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d) and not declared:
            raise InputError(f"No channel group has {name}: declare it in channel_groups() of {name.split('.')[0]}.")
    return {group.name: group for group in groups}


def widths(detector: Detector, groups: Iterable[str]) -> dict[str, int]:
    """How many channels each of these groups has, by name."""
    return {name: len(layer(detector, name).weight) for name in groups}


def layer(detector: Detector, name: str) -> nn.Conv2d | nn.Linear:
    """A convolution or linear layer by its name."""
    module = detector.get_submodule(name)
    assert isinstance(module, nn.Conv2d | nn.Linear), f"{name} is neither a convolution nor a linear layer"
    return module


@torch.no_grad()
def keep_channels(detector: Detector, kept: Mapping[str, Tensor]) -> None:
    """Remove channels from a detector, in place. The result is what it computed with those channels' weights at zero.

    Args:
        detector: any that declares `channel_groups`; its spec says afterwards how many channels are left.
        kept: by group name, int64 [n], the channels that stay; other groups keep all of theirs.

    Raises:
        InputError: a group is unknown, would keep no channel, or has fewer channels.
    """
    groups = channel_groups(detector)
    for name, index in kept.items():
        if name not in groups:
            raise InputError(f"{detector.spec.backbone} has no channel group {name!r} to prune.")
        count = len(layer(detector, name).weight)
        if not 0 < len(index) <= count:
            raise InputError(f"{detector.spec.backbone} cannot keep {len(index)} of the {count} channels {name}.")
        for producer in groups[name].producers:
            _keep_outputs(detector.get_submodule(producer), index)
        for consumer in groups[name].consumers:
            _keep_inputs(layer(detector, consumer), index, count)
        channels = [len(index) if level in groups[name].levels else old for level, old in enumerate(detector.channels)]
        detector.backbone.channels = tuple(channels)
    left = {**(detector.spec.channels or {}), **{name: len(index) for name, index in kept.items()}}
    detector.spec = detector.spec.model_copy(update={"channels": left})


def _keep_outputs(module: nn.Module, index: Tensor) -> None:
    for name in ("weight", "bias", "running_mean", "running_var"):
        value = getattr(module, name, None)
        if value is not None:
            setattr(module, name, _alike(value[index], value))
    if isinstance(module, nn.Conv2d) and is_depthwise(module):
        module.in_channels = module.groups = len(index)
    for kind, attribute in COUNTS:
        if isinstance(module, kind):
            setattr(module, attribute, len(index))


def _keep_inputs(module: nn.Conv2d | nn.Linear, index: Tensor, count: int) -> None:
    weight = module.weight
    if isinstance(module, nn.Conv2d):
        module.weight = _alike(weight[:, index], weight)
        module.in_channels = len(index)
    else:
        module.weight = _alike(weight.unflatten(1, (-1, count))[:, :, index].flatten(1), weight)
        module.in_features = module.weight.shape[1]


def _alike(value: Tensor, old: Tensor) -> Tensor:
    """A copy in the network's memory layout; a parameter if the old value was one."""
    value = value.clone(memory_format=torch.channels_last if value.dim() == 4 else torch.contiguous_format)
    return nn.Parameter(value) if isinstance(old, nn.Parameter) else value
