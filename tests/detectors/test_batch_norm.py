"""Batch norm of few channels against torch's own."""

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from qmimic.detectors.batch_norm import BatchNorm2d

LAYOUTS = [torch.channels_last, torch.contiguous_format]


def pair(channels: int, momentum: float = 0.1) -> tuple[BatchNorm2d, nn.BatchNorm2d]:
    """Ours and torch's with the same weights and statistics, none of them 0 or 1."""
    generator = torch.Generator().manual_seed(channels)
    ours, torchs = BatchNorm2d(channels, momentum=momentum), nn.BatchNorm2d(channels, momentum=momentum)
    with torch.no_grad():
        for tensor in (ours.weight, ours.bias, ours.running_mean):
            tensor.copy_(torch.randn(channels, generator=generator))
        ours.running_var.copy_(torch.rand(channels, generator=generator) + 0.5)
    torchs.load_state_dict(ours.state_dict())
    return ours, torchs


def run(norm: nn.BatchNorm2d, x: Tensor) -> dict[str, Tensor]:
    """Outputs, gradients and state after one step."""
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    out = norm(x)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(9))
    (out * weights).sum().backward()
    state = {name: value.clone() for name, value in norm.state_dict().items()}
    return {"out": out.detach(), "x": x.grad, "to_weight": norm.weight.grad, "to_bias": norm.bias.grad, **state}


def check_same(ours: nn.BatchNorm2d, torchs: nn.BatchNorm2d, x: Tensor, tolerance: float = 1e-5) -> None:
    mine, theirs = run(ours, x), run(torchs, x)
    scales = {name: value.abs().max().clamp(min=1) for name, value in theirs.items()}
    scaled = ({name: value / scales[name] for name, value in results.items()} for results in (mine, theirs))
    torch.testing.assert_close(*scaled, atol=tolerance, rtol=tolerance)


def images(seed: int, shape: tuple[int, int, int, int], layout: torch.memory_format) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).contiguous(memory_format=layout)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", range(1, 10))
def test_training_equals_torch(channels: int, layout: torch.memory_format) -> None:
    check_same(*pair(channels), images(0, (4, channels, 12, 10), layout) * 3 + 1)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("channels", [1, 3, 8])
def test_evaluation_equals_torch(channels: int, layout: torch.memory_format) -> None:
    ours, torchs = pair(channels)
    check_same(ours.eval(), torchs.eval(), images(0, (4, channels, 12, 10), layout))


@given(
    seed=st.integers(0, 10**6),
    channels=st.integers(1, 9),
    batch=st.integers(1, 5),
    height=st.integers(1, 9),
    width=st.integers(2, 9),
)
@settings(max_examples=40, deadline=None)
def test_training_equals_torch_for_any_shape(seed: int, channels: int, batch: int, height: int, width: int) -> None:
    # Of two pixels that happen to be alike, the gradient is ill-conditioned: at least eight.
    batch = max(batch, -(-8 // (height * width)))
    check_same(*pair(channels), images(seed, (batch, channels, height, width), torch.channels_last), 1e-3)


@pytest.mark.parametrize("mean", [100.0, -1000.0])
@pytest.mark.parametrize("channels", [1, 2, 4, 7])
def test_large_means_do_not_cancel_the_variance(channels: int, mean: float) -> None:
    x = images(0, (4, channels, 16, 16), torch.channels_last) + mean
    ours, _ = pair(channels)
    out = ours(x).detach().double()
    wide = x.double()
    centred = wide - wide.mean((0, 2, 3), keepdim=True)
    exact = centred / (centred.square().mean((0, 2, 3), keepdim=True) + ours.eps).sqrt()
    exact = exact * ours.weight.detach().view(1, -1, 1, 1) + ours.bias.detach().view(1, -1, 1, 1)
    torch.testing.assert_close(out, exact, atol=2e-3, rtol=1e-3)


@pytest.mark.parametrize("channels", [2, 8])
def test_a_constant_channel_gives_its_bias(channels: int) -> None:
    x = torch.full((2, channels, 8, 8), 7.0).contiguous(memory_format=torch.channels_last)
    ours, _ = pair(channels)
    torch.testing.assert_close(ours(x)[1, :, 3, 3], ours.bias, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("momentum", [0.01, 0.5])
def test_running_statistics_follow_torch_over_several_steps(momentum: float) -> None:
    ours, torchs = pair(4, momentum)
    for step in range(5):
        x = images(step, (2, 4, 6, 6), torch.channels_last) * (step + 1)
        ours(x)
        torchs(x)
    for name, value in torchs.state_dict().items():
        torch.testing.assert_close(ours.state_dict()[name], value, atol=1e-5, rtol=1e-5)


def test_the_layout_of_the_images_is_kept() -> None:
    out = pair(4)[0](images(0, (2, 4, 6, 6), torch.channels_last))
    assert out.is_contiguous(memory_format=torch.channels_last)


def test_half_precision_equals_torch() -> None:
    ours, torchs = pair(4)
    x = images(0, (2, 4, 6, 6), torch.channels_last).bfloat16()
    assert torch.equal(ours(x), torchs(x))


def test_it_survives_a_deep_copy_and_a_state_dict() -> None:
    ours, _ = pair(4)
    again = copy.deepcopy(ours)
    again.load_state_dict(ours.state_dict())
    x = images(0, (2, 4, 6, 6), torch.channels_last)
    assert torch.equal(again(x), ours(x))
