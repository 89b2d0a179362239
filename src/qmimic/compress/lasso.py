"""Channel pruning by LASSO regression and reconstruction (He, Zhang, Sun, ICCV 2017).

Layer by layer, channels are chosen first: those whose contributions best explain what the layers behind them gave in
the unpruned network,

    min_beta  1/(2N) || Y - sum_i beta_i X_i W_i ||^2 + lambda || beta ||_1

with lambda raised until only as many beta are left as channels may stay (here LARS gives the whole path at once). Then
those layers' weights are refitted to the same Y by least squares. X is what the pruned network gives, so later layers
compensate for what earlier ones lost. Where shortcuts add channels, all layers that read them decide together, each
with its error relative to its Y. Left out: the paper's correction of a residual branch for what the shortcut lost.
"""

import copy
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qmimic.config import PruningConfig
from qmimic.data.loader import Batch
from qmimic.detectors.channels import channel_groups, keep_channels, layer
from qmimic.detectors.detector import Detector
from qmimic.detectors.regions import pad_with_truth

RIDGE = 1e-4  # relative to the inputs' mean square; ties weights to their old values where samples are few


@dataclass(frozen=True)
class Evidence:
    """What a layer of the pruned network reads, and what the unpruned one gave at the same positions.

    Attributes:
        inputs: float64 [N, channels * k], channels outermost; k is the number of kernel entries or bins.
        outputs: float64 [N, outputs], without the bias.
        weights: float64 [outputs, channels * k], of the pruned network's layer.
    """

    inputs: Tensor
    outputs: Tensor
    weights: Tensor


@torch.no_grad()
def prune_by_lasso(
    detector: Detector,
    left: Mapping[str, int],
    config: PruningConfig,
    batches: Iterable[Batch],
    seed: int,
    show: Callable[[int], None],
) -> Detector:
    """Prune a trained detector layer by layer, without training it.

    Args:
        detector: in evaluation mode.
        left: channels that stay, for every group.
        config: how many images, and positions in each, to fit on.
        batches: of training images; only as many are read as `config.images` needs.
        seed: of the positions.
        show: called after each group.

    Returns:
        A pruned copy in evaluation mode.

    Raises:
        InputError: its channels cannot be pruned.
    """
    pruned = copy.deepcopy(detector).eval()
    views = _views(detector, batches, config.images)
    remaining: dict[str, Tensor] = {}  # output channels of the layers whose group is done
    for number, (name, group) in enumerate(channel_groups(detector).items()):
        count = len(layer(pruned, name).weight)
        generator = torch.Generator().manual_seed(seed)
        samples: dict[str, list[tuple[Tensor, Tensor]]] = {user: [] for user in group.consumers}
        for view in views:  # the whole maps of many images would not fit into memory
            own, wanted = _record(pruned, group.consumers, view), _record(detector, group.consumers, view)
            for user, taken in samples.items():
                given, target = own[user].inputs, wanted[user].outputs
                taken.append(_sample(layer(pruned, user), given, target, count, config.places, generator))
        found = {}
        for user, taken in samples.items():
            inputs, outputs = (torch.cat([pair[side] for pair in taken]) for side in (0, 1))
            bias = layer(detector, user).bias
            outputs = outputs if bias is None else outputs - bias.double().cpu()
            outputs = outputs[:, remaining[user]] if user in remaining else outputs
            found[user] = Evidence(inputs, outputs, _by_channel(layer(pruned, user).weight, count).double().cpu())
        kept = choose(list(found.values()), count, left[name])
        keep_channels(pruned, {name: kept})
        for user, evidence in found.items():
            _put_weights(layer(pruned, user), refit(evidence, count, kept), len(kept))
        remaining |= dict.fromkeys(group.producers, kept)
        show(number + 1)
    return pruned


def choose(evidence: list[Evidence], channels: int, count: int) -> Tensor:
    """The channels that LASSO leaves last.

    Args:
        evidence: of the layers that use them.
        channels: how many there are.
        count: how many may stay.

    Returns:
        int64 [count], in order.
    """
    # Imported here: it takes a second, and most runs do not need it.
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import lars_path_gram

    gram, xy = np.zeros((channels, channels)), np.zeros(channels)
    for own in evidence:
        scale = float(own.outputs.square().sum().clamp(min=1e-12))
        # <X_i W_i, X_j W_j> without storing the products, which would take samples x channels x outputs numbers.
        both = (own.inputs.T @ own.inputs) * (own.weights.T @ own.weights)
        gram += both.reshape(channels, -1, channels, len(both) // channels).sum((1, 3)).numpy() / scale
        xy += ((own.inputs.T @ own.outputs) * own.weights.T).reshape(channels, -1).sum(1).numpy() / scale
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of two equivalent channels, one is dropped
        _, _, path = lars_path_gram(xy, gram, n_samples=1, method="lasso", max_iter=8 * channels)
    size = np.abs(path)  # [channels, points of the path], from a large lambda to 0
    enough = np.flatnonzero((size > 0).sum(0) >= count)
    at = size[:, enough[0]] if len(enough) else size[:, -1]
    # Channels that add nothing never enter the path; among them, what each explains alone decides.
    order = np.lexsort((xy**2 / np.maximum(np.diag(gram), 1e-30), at))
    return torch.tensor(sorted(order[-count:].tolist()))


def refit(evidence: Evidence, channels: int, kept: Tensor) -> Tensor:
    """Weights over the kept channels that come nearest to the outputs: float64 [outputs, kept * k]."""
    inputs = evidence.inputs.unflatten(1, (channels, -1))[:, kept].flatten(1)
    weights = evidence.weights.unflatten(1, (channels, -1))[:, kept].flatten(1)
    gram = inputs.T @ inputs
    gram += RIDGE * gram.diagonal().mean().clamp(min=1e-12) * torch.eye(len(gram), dtype=gram.dtype)
    change: Tensor = torch.linalg.solve(gram, inputs.T @ (evidence.outputs - inputs @ weights.T))
    found: Tensor = weights + change.T
    return found


@dataclass(frozen=True)
class _View:
    """A batch of images [B, 3, H, W], and regions [B, P, 4] in them; both networks look at the same."""

    images: Tensor
    rois: Tensor


def _views(detector: Detector, batches: Iterable[Batch], count: int) -> list[_View]:
    """Batches of about `count` images, with the detector's proposals and the ground truth."""
    views: list[_View] = []
    for batch in batches:
        if sum(len(view.images) for view in views) >= count:
            break
        images, targets = batch.images.to(detector.device), batch.targets.to(detector.device)
        proposals = detector.propose(detector.features(images))
        views.append(_View(images, pad_with_truth(proposals.boxes, proposals.valid, targets)[0]))
    return views


@dataclass(frozen=True)
class _Seen:
    """A layer's inputs and outputs."""

    inputs: Tensor
    outputs: Tensor


def _record(detector: Detector, names: tuple[str, ...], view: _View) -> dict[str, _Seen]:
    """Inputs and outputs of these layers when a detector looks at a view."""
    seen: dict[str, _Seen] = {}

    def keep(name: str, _: nn.Module, inputs: tuple[Tensor], outputs: Tensor) -> None:
        seen[name] = _Seen(inputs[0].clone(), outputs.clone())  # the ReLUs behind them work in place

    handles = [layer(detector, name).register_forward_hook(partial(keep, name)) for name in names]
    try:
        features = detector.features(view.images)
        detector.run_heads(features, view.rois)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def _sample(
    module: nn.Conv2d | nn.Linear,
    inputs: Tensor,
    outputs: Tensor,
    channels: int,
    places: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Inputs [N, channels * k] and outputs [N, outputs] of a layer at `places` random positions of each image, float64.

    Args:
        module: the layer.
        inputs: [B, channels, H, W], or [B, P, bins * channels].
        outputs: [B, outputs, H', W'], or [B, P, outputs].
        channels: of the inputs.
        places: how many positions per image; the same ones in all images of the batch.
        generator: chooses them.
    """
    if isinstance(module, nn.Linear):
        row = torch.randint(inputs.shape[1], (places,), generator=generator)
        bins = inputs[:, row].unflatten(2, (-1, channels)).transpose(2, 3)
        return bins.flatten(2).flatten(0, 1).double().cpu(), outputs[:, row].flatten(0, 1).double().cpu()
    ends = [torch.randint(side, (places,), generator=generator) for side in outputs.shape[2:]]
    down, across = (
        end[:, None] * module.stride[axis] + torch.arange(module.kernel_size[axis]) * module.dilation[axis]
        for axis, end in enumerate(ends)
    )
    padded = _padded(module, inputs, outputs)
    patches = padded[:, :, down[:, :, None], across[:, None, :]].transpose(1, 2)  # B, places, channels, k, k
    wanted = outputs[:, :, ends[0], ends[1]].transpose(1, 2)
    return patches.flatten(2).flatten(0, 1).double().cpu(), wanted.flatten(0, 1).double().cpu()


def _padded(module: nn.Conv2d, inputs: Tensor, outputs: Tensor) -> Tensor:
    """A convolution's inputs [B, C, H, W] with the zeros around them that it reads.

    One that declares no padding and still has outputs at the border adds what the kernel lacks, more of it at the far
    side ("same" in TensorFlow, `Conv2dSame` in timm).
    """
    pads: list[int] = []
    for axis in (1, 0):  # as F.pad wants them: the last axis first
        reach = (outputs.shape[2 + axis] - 1) * module.stride[axis] + module.dilation[axis] * (
            module.kernel_size[axis] - 1
        )
        lacking = max(0, reach + 1 - inputs.shape[2 + axis])
        assert isinstance(module.padding, tuple), "padding is a number of entries for each axis"
        before = module.padding[axis] or lacking // 2
        pads += [before, max(before, lacking - before)]
    return F.pad(inputs, pads)


def _by_channel(weight: Tensor, channels: int) -> Tensor:
    """Weights of a layer as [outputs, channels * k], channels outermost, as `_sample` gives its inputs."""
    bins = weight if weight.dim() == 4 else weight.unflatten(1, (-1, channels)).transpose(1, 2)
    return bins.flatten(1)


def _put_weights(module: nn.Conv2d | nn.Linear, weights: Tensor, channels: int) -> None:
    """The inverse of `_by_channel`, into the layer."""
    if isinstance(module, nn.Linear):
        weights = weights.unflatten(1, (channels, -1)).transpose(1, 2)
    module.weight.copy_(weights.reshape(module.weight.shape))
