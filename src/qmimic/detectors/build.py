"""Detectors built from their descriptions, changed copies of them, and their size and cost."""

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from qmimic.config import explain
from qmimic.detectors.batch_norm import BatchNormAct2d, ScaleShift
from qmimic.detectors.channels import keep_channels
from qmimic.detectors.convolution import Reparameterised
from qmimic.detectors.detector import Detector
from qmimic.detectors.seeded import seeded
from qmimic.detectors.spec import DetectorSpec
from qmimic.errors import InputError
from qmimic.tables import ARCHITECTURES

aten = torch.ops.aten


def build(spec: DetectorSpec, seed: int = 0) -> Detector:
    """A detector with fresh weights that depend on the seed alone.

    Raises:
        InputError: the architecture or the backbone is unknown, or the spec's channels do not fit the network.
    """
    with seeded(seed):
        detector: Detector = ARCHITECTURES[spec.architecture].build(spec)
    if spec.channels:
        keep_channels(detector, {name: torch.arange(count) for name, count in spec.channels.items()})
    return detector


def build_unset(spec: DetectorSpec) -> Detector:
    """A detector for weights that come from elsewhere: its own are not drawn, and hold whatever lay in memory.

    Raises: as `build`.
    """
    with _NothingDrawn():
        return build(spec)


class _NothingDrawn(TorchFunctionMode):
    """Leaves weights as they are where random ones would be drawn, which on the meta device loads torch's compiler."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        named = kwargs or {}
        drawn = args[0] if args else named.get("tensor")
        if isinstance(drawn, nn.Parameter) and func.__name__.endswith(("normal_", "uniform_")):
            return drawn
        return func(*args, **named)


def at_size(detector: Detector, size: tuple[int, int]) -> Detector:
    """The same weights for images of another size, in evaluation mode.

    Args:
        detector: any.
        size: height and width that images are fitted into, pixels.

    Raises:
        InputError: the network cannot have this size.
    """
    return with_settings(detector, {"size": size}, f"the size {size[0]}x{size[1]}")


def with_settings(detector: Detector, settings: Mapping[str, object], called: str = "these settings") -> Detector:
    """The same weights in evaluation mode, with other values of settings that no weight depends on.

    Args:
        detector: any.
        settings: values, by name in the detector's spec.
        called: what an error calls them.

    Raises:
        InputError: the detector does not have the setting, or refuses the value.
    """
    kind = type(detector.spec)
    lacking = next((name for name in settings if name not in ARCHITECTURES[detector.spec.architecture].reads), None)
    if lacking:
        raise InputError(f"A detector of architecture {detector.spec.architecture} has no {lacking}; leave it out.")
    try:
        spec = kind.model_validate({**detector.spec.model_dump(), **settings})
    except ValidationError as error:
        raise InputError(f"The detector does not accept {called}: {explain(error)}") from error
    other = build_unset(spec)
    other.quantizer = copy.deepcopy(detector.quantizer)
    other.load_state_dict(detector.state_dict())
    return other.to(detector.device).eval()


def equal_cost(spec: DetectorSpec, family: str) -> str:
    """The backbone of a family with which a detector costs as many multiply-accumulates as another detector.

    Args:
        spec: the other detector.
        family: of backbones, such as `resnet18_separable`.

    Returns:
        `family/n` with the nearest cost, n to a hundredth; the cost can be off by that of one channel.

    Raises:
        InputError: the family is unknown.
    """
    wanted = mac_count(build(spec))

    def cost(hundredths: int) -> int:
        return mac_count(
            build(spec.model_copy(update={"backbone": f"{family}/{hundredths / 100:g}", "channels": None}))
        )

    low, high = 100, 100 * 256  # a larger divisor costs less
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if cost(middle) > wanted else (low, middle)
    best = min((low, high), key=lambda hundredths: abs(cost(hundredths) - wanted))
    return f"{family}/{best / 100:g}"


def fold_batch_norm(detector: Detector) -> Detector:
    """A copy for inference, with every batch norm folded into the convolution before it.

    Raises:
        InputError: the detector has a batch norm and does not declare which convolution precedes it.
    """
    folded = copy.deepcopy(detector).eval()
    if not _norms(folded):  # already folded
        return folded
    for pair in folded.fused_pairs():
        conv, norm = folded.get_submodule(pair.conv), folded.get_submodule(pair.norm)
        if not isinstance(conv, nn.Conv2d) or not isinstance(norm, nn.BatchNorm2d):
            raise InputError(f"{pair.conv} and {pair.norm} are not a convolution and a batch norm: see fused_pairs().")
        plain = conv.plain() if isinstance(conv, Reparameterised) else conv
        put_module(folded, pair.conv, fuse_conv_bn_eval(plain, norm))
        put_module(folded, pair.norm, norm.act if isinstance(norm, BatchNormAct2d) else nn.Identity())
    for name in folded.single_norms():
        norm = folded.get_submodule(name)
        if not isinstance(norm, nn.BatchNorm2d):
            raise InputError(f"{name} is not a batch norm; correct single_norms().")
        put_module(folded, name, ScaleShift(norm))
    if left := _norms(folded):
        raise InputError(f"No fused pair contains {left[0]}: declare it in fused_pairs() of {left[0].split('.')[0]}.")
    return folded


def _norms(detector: Detector) -> list[str]:
    return [name for name, one in detector.named_modules() if isinstance(one, nn.modules.batchnorm._NormBase)]


def put_module(root: nn.Module, name: str, module: nn.Module) -> None:
    """Replace the module of this name by another one."""
    parent, _, own = name.rpartition(".")
    setattr(root.get_submodule(parent), own, module)


def absorb_deviation(detector: Detector) -> None:
    """Move the division by the deviation into the weights that read pixels; the padding stays the mean colour, 0.

    If anything but a convolution reads pixels, the division stays where it is.
    """
    if not (detector.std != 1).any() or not detector.backbone.pixel_layers:
        return
    for name in detector.backbone.pixel_layers:
        layer = detector.backbone.get_submodule(name)
        assert isinstance(layer, nn.Conv2d), f"{name} of the backbone is not a convolution, so it reads no pixels"
        with torch.no_grad():
            layer.weight.div_(detector.std)
    detector.std.fill_(1)
    detector.divides = False


def parameter_count(detector: Detector) -> int:
    """Number of weights in a deployed detector; batch norms count as folded."""
    return sum(parameter.numel() for parameter in fold_batch_norm(detector).parameters())


@contextmanager
def evaluating(detector: Detector) -> Iterator[None]:
    """Evaluation mode, and the mode from before afterwards."""
    training = detector.training
    try:
        detector.eval()
        yield
    finally:
        detector.train(training)


def mac_count(detector: Detector) -> int:
    """Multiply-accumulates of the convolutions and linear layers for one image, including proposals and head.

    Suppression and RoI pooling are left out: their products depend on what the image shows. Batch norms count nothing:
    they need not be folded first.
    """
    image: Tensor = torch.zeros(1, 3, *detector.spec.size, device=detector.device)
    with evaluating(detector), FlopCounterMode(display=False) as counter:
        detector.detect(image)
    counted = {aten.convolution, aten.addmm, aten.mm}
    return int(sum(n for op, n in counter.get_flop_counts()["Global"].items() if op in counted)) // 2
