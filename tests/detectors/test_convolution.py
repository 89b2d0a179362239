"""The detours give what torch's own convolution gives: outputs, and gradients to weights, bias and input."""

import pytest
import torch
from torch import Tensor, nn

from qmimic.detectors.convolution import Conv2d


def gradients(layer: nn.Conv2d, x: Tensor, wants_input: bool) -> list[Tensor]:
    x = x.clone(memory_format=torch.preserve_format).requires_grad_(wants_input)
    out = layer(x)
    weighted = (out * torch.linspace(-1, 2, out.numel()).view_as(out)).sum()
    inputs = [*layer.parameters(), *([x] if wants_input else [])]
    return [out.detach(), *torch.autograd.grad(weighted, inputs)]


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=["channels last", "contiguous"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize(
    ("inputs", "outputs", "kernel", "stride", "padding", "dilation", "wants_input"),
    [
        (3, 4, 7, 2, 3, 1, False),  # the first layer of resnet18/16 packs two outputs
        (3, 2, 7, 2, 3, 1, False),
        (3, 1, 7, 2, 3, 1, False),
        (3, 3, 7, 2, 3, 1, False),
        (3, 2, 3, 1, 1, 1, False),  # that of vgg16/32
        (3, 4, 7, 2, 3, 1, True),  # with a gradient to its input it does not pack
        (3, 16, 7, 2, 3, 1, False),
        (6, 5, 3, 1, 2, 2, True),  # the last stage at output stride 16, and 8
        (6, 5, 3, 1, 4, 4, True),
        (3, 5, 1, 2, 0, 1, True),  # a shortcut
    ],
)
def test_training_detours_equal_torch(
    inputs: int,
    outputs: int,
    kernel: int,
    stride: int,
    padding: int,
    dilation: int,
    wants_input: bool,
    bias: bool,
    layout: torch.memory_format,
) -> None:
    torch.manual_seed(0)
    own = Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=bias).train()
    reference = nn.Conv2d(inputs, outputs, kernel, stride, padding, dilation, bias=bias)
    reference.load_state_dict(own.state_dict())
    x = torch.randn(2, inputs, 16, 32).contiguous(memory_format=layout)
    # The reference sees torch's default layout: oneDNN's strided 1x1 convolution corrupts the heap in the other.
    wanted = gradients(reference, x.contiguous(), wants_input)
    for ours, theirs in zip(gradients(own, x, wants_input), wanted, strict=True):
        assert ours.shape == theirs.shape
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))


@pytest.mark.parametrize("size", [(15, 17), (16, 18), (2, 2)])
def test_sizes_that_do_not_divide_take_the_plain_way(size: tuple[int, int]) -> None:
    for own in (Conv2d(3, 2, 7, 2, 3), Conv2d(3, 2, 3, 1, 2, 2)):
        x = torch.randn(1, 3, *size)
        assert torch.allclose(own.train()(x), own.eval()(x), atol=1e-5)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=["channels last", "contiguous"])
@pytest.mark.parametrize(
    ("channels", "groups", "stride", "dilation"),
    [(4, 4, 1, 1), (5, 5, 2, 1), (8, 8, 1, 2), (3, 3, 1, 4), (6, 2, 1, 1), (8, 2, 2, 1), (10, 2, 1, 2)],
)
def test_grouped_convolutions_equal_torchs_in_float64(
    channels: int, groups: int, stride: int, dilation: int, layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    own = Conv2d(channels, channels, 3, stride, dilation, dilation, groups=groups, bias=False).train()
    reference = nn.Conv2d(channels, channels, 3, stride, dilation, dilation, groups=groups, bias=False).double()
    reference.load_state_dict(own.state_dict())
    x = torch.randn(2, channels, 16, 32).contiguous(memory_format=layout)
    wanted = gradients(reference, x.double().contiguous(), True)
    for ours, theirs in zip(gradients(own, x, True), wanted, strict=True):
        assert torch.allclose(ours.double(), theirs, rtol=1e-4, atol=1e-4 * float(theirs.abs().max()))
    # Images, and every map where nothing is learnt, need no gradient.
    assert torch.allclose(own(x), reference(x.double()).float(), rtol=1e-4, atol=1e-5)
