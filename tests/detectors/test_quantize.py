"""Quantizers against the paper's equation, evaluated literally over the whole dictionary in exact fractions."""

import itertools
import math
from collections.abc import Sequence
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.ops import roi_pool as torchvision_roi_pool

from qmimic.config import QuantizerConfig
from qmimic.detectors.quantize import DICTIONARIES, Quantizer, absolute_stride


def uniform(f: Tensor, stride: Tensor, upper: int | None = None) -> Tensor:
    return DICTIONARIES["uniform"].values(DICTIONARIES["uniform"].levels(f, stride, upper), stride)


def power_of_two(f: Tensor, stride: Tensor, upper: int | None = None) -> Tensor:
    return DICTIONARIES["power_of_two"].values(DICTIONARIES["power_of_two"].levels(f, stride, upper), stride)


KINDS = {"uniform": uniform, "power_of_two": power_of_two}
DYADIC = [2.0**-6, 0.25, 0.5, 0.75, 1.0, 3.0]  # strides whose multiples and midpoints are exact in float32

floats = st.floats(-4, 70, width=32)


def dictionary(kind: str, stride: Fraction, at_least: Fraction, upper: int | None) -> list[Fraction]:
    """D, from 0 up to its highest level, or well past `at_least` if it has none."""
    if kind == "uniform":
        levels = (k * stride for k in itertools.count())
    else:
        levels = itertools.chain([Fraction(0)], (2**k * stride for k in itertools.count()))
    if upper is not None:
        return list(itertools.islice(levels, upper + 1))
    found = []
    for level in levels:
        found.append(level)
        if level > 2 * at_least + 2 * stride:
            return found
    return found


def equation(value: float, levels: Sequence[Fraction]) -> Fraction:
    """Q(f) = b if (a + b)/2 < f <= (b + c)/2; the first level has no lower neighbour, the last no upper one."""
    f = Fraction(value)
    for place, b in enumerate(levels):
        above_lower = place == 0 or (levels[place - 1] + b) / 2 < f
        below_upper = place == len(levels) - 1 or f <= (b + levels[place + 1]) / 2
        if above_lower and below_upper:
            return b
    raise AssertionError("the equation covers every number")


def expected(kind: str, values: Tensor, stride: float, upper: int | None) -> Tensor:
    levels = dictionary(kind, Fraction(stride), Fraction(max(0.0, float(values.max()))), upper)
    return torch.tensor([float(equation(value, levels)) for value in values.tolist()])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stride", DYADIC)
@pytest.mark.parametrize("upper", [None, 1, 2, 5])
def test_quantizer_obeys_the_equation_around_and_on_every_midpoint(kind: str, stride: float, upper: int | None) -> None:
    levels = dictionary(kind, Fraction(stride), Fraction(20) * Fraction(stride), None)
    midpoints = torch.tensor([float((a + b) / 2) for a, b in itertools.pairwise(levels)])
    infinity = torch.tensor(math.inf)
    beside = [torch.nextafter(midpoints, infinity), torch.nextafter(midpoints, -infinity)]
    values = torch.cat([midpoints, *beside, torch.tensor([float(level) for level in levels])])
    values = torch.cat([values, -values])
    assert torch.equal(KINDS[kind](values, torch.tensor([stride]), upper), expected(kind, values, stride, upper))


@pytest.mark.parametrize("kind", KINDS)
@given(values=st.lists(floats, min_size=1, max_size=12), stride=st.sampled_from(DYADIC[1:]), upper=st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_quantizer_obeys_the_equation_on_any_numbers(kind: str, values: list[float], stride: float, upper: int) -> None:
    f = torch.tensor(values)
    for limit in (None, upper):
        assert torch.equal(KINDS[kind](f, torch.tensor([stride]), limit), expected(kind, f, stride, limit))


@pytest.mark.parametrize("kind", KINDS)
@given(value=st.floats(-4, 12, width=32), stride=st.floats(0.125, 8, width=32))
@settings(max_examples=100, deadline=None)
def test_quantizer_obeys_the_equation_for_any_stride_up_to_rounding(kind: str, value: float, stride: float) -> None:
    f, s = torch.tensor([value]), torch.tensor([stride])
    levels = dictionary(kind, Fraction(stride), Fraction(max(0.0, value)), None)
    quantized = KINDS[kind](f, s).item()
    # float32 knows neither the levels nor the midpoints better than this.
    slack = Fraction(abs(value) + stride) * Fraction(1, 2**21)
    answers = {equation(float(Fraction(value) + shift), levels) for shift in (-slack, Fraction(0), slack)}
    assert any(abs(quantized - float(answer)) <= float(slack) for answer in answers)


@pytest.mark.parametrize("kind", KINDS)
@given(level=st.integers(0, 12), sixtyfourths=st.integers(1, 4000))
@settings(max_examples=100, deadline=None)
def test_ties_that_float32_can_hold_go_down_for_any_stride(kind: str, level: int, sixtyfourths: int) -> None:
    stride = Fraction(sixtyfourths, 64)
    levels = dictionary(kind, stride, Fraction(0), level + 1)
    tie = torch.tensor([float((levels[level] + levels[level + 1]) / 2)])
    assert KINDS[kind](tie, torch.tensor([float(stride)])).item() == levels[level]


@pytest.mark.parametrize("stride", [0.1, 0.3, 1.0 / 3, 0.7, 1.1])
def test_uniform_sends_the_rounded_midpoint_of_float32_levels_down(stride: float) -> None:
    s = torch.tensor([stride])
    levels = torch.arange(400) * s
    midpoints = (levels[1:] + levels[:-1]) / 2
    assert torch.equal(uniform(midpoints, s), levels[:-1])
    assert torch.equal(uniform(torch.nextafter(midpoints, torch.tensor(math.inf)), s), levels[1:])


@pytest.mark.parametrize("kind", KINDS)
def test_quantizing_twice_changes_nothing(kind: str) -> None:
    s = torch.tensor([0.37])
    once = KINDS[kind](torch.linspace(-1, 60, 5001), s)
    assert torch.equal(KINDS[kind](once, s), once)


@pytest.mark.parametrize("kind", KINDS)
def test_quantizing_keeps_the_order(kind: str) -> None:
    quantized = KINDS[kind](torch.linspace(-1, 60, 5001), torch.tensor([0.37]))
    assert (quantized.diff() >= 0).all()


def test_hand_computed_levels() -> None:
    f = torch.tensor([-3.0, 0.0, 0.5, 0.51, 1.5, 1.6, 2.9, 3.1, 5.9, 6.1, 100.0])
    one = torch.tensor([1.0])
    assert uniform(f, one).tolist() == [0, 0, 0, 1, 1, 2, 3, 3, 6, 6, 100]
    assert uniform(f, one, 3).tolist() == [0, 0, 0, 1, 1, 2, 3, 3, 3, 3, 3]
    assert power_of_two(f, one).tolist() == [0, 0, 0, 1, 1, 2, 2, 4, 4, 8, 128]
    assert power_of_two(f, one, 3).tolist() == [0, 0, 0, 1, 1, 2, 2, 4, 4, 4, 4]
    assert power_of_two(f, one, 1).tolist() == [0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(2, 3), (2, 3, 4, 5), (2, 3, 6)])
def test_strides_per_channel_belong_to_dimension_one(kind: str, shape: tuple[int, ...]) -> None:
    per_channel = torch.tensor([0.5, 1.0, 3.0])
    f = torch.randn(shape, generator=torch.Generator().manual_seed(0)) * 5
    quantized = Quantizer(QuantizerConfig(kind=kind, per_channel=True), per_channel)(f)
    for channel, stride in enumerate(per_channel.tolist()):
        flat = f[:, channel].flatten()
        assert torch.equal(quantized[:, channel].flatten(), expected(kind, flat, stride, None))


@pytest.mark.parametrize("kind", KINDS)
def test_gradient_passes_straight_through_everywhere(kind: str) -> None:
    f = torch.tensor([[-2.0, -0.1, 0.0, 0.5, 0.7, 2.2, 50.0]]).T.requires_grad_()
    weights = torch.tensor([[3.0, -1.0, 4.0, 1.0, -5.0, 9.0, 2.0]]).T
    quantizer = Quantizer(QuantizerConfig(kind=kind, upper=3), torch.tensor([1.0]))
    (quantizer(f) * weights).sum().backward()
    assert torch.equal(f.grad, weights)


def test_gradient_of_a_nonlinear_loss_is_that_of_full_precision_at_the_quantized_map() -> None:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(2, 3, 4, 4, generator=generator), torch.randn(5, 3, 1, 1, generator=generator)
    weight.requires_grad_()
    f = torch.nn.functional.conv2d(x, weight)
    quantized = Quantizer(QuantizerConfig(), torch.tensor([0.5]))(f)
    quantized.pow(3).sum().backward()
    # d/dw sum Q^3 = 3 Q^2 df/dw, with df/dw that of the convolution alone.
    by_hand = torch.einsum("bohw,bihw->oi", 3 * quantized.detach().square(), x)
    torch.testing.assert_close(weight.grad[:, :, 0, 0], by_hand)


def test_plain_quantizers_carry_no_gradient() -> None:
    f = torch.ones(3, requires_grad=True)
    assert not uniform(f, torch.tensor([1.0])).requires_grad
    assert not power_of_two(f, torch.tensor([1.0])).requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_the_input_is_left_as_it_was(kind: str) -> None:
    f = torch.linspace(-2, 9, 50)
    before = f.clone()
    Quantizer(QuantizerConfig(kind=kind), torch.tensor([1.0]))(f[:, None])
    assert torch.equal(f, before)


def test_the_map_keeps_its_type() -> None:
    quantizer = Quantizer(QuantizerConfig(), torch.tensor([1.0]))
    quantized = quantizer(torch.tensor([[0.4, 1.7]], dtype=torch.bfloat16).T)
    assert quantized.dtype == torch.bfloat16
    assert quantized.flatten().tolist() == [0.0, 2.0]


def test_the_stride_is_kept_in_the_state() -> None:
    state = Quantizer(QuantizerConfig(), torch.tensor(0.75)).state_dict()
    assert {name: value.tolist() for name, value in state.items()} == {"stride": [0.75]}


def test_a_relative_stride_counts_in_the_rms_of_the_whole_map() -> None:
    rms = torch.tensor([3.0, 4.0, 0.0])
    stride = absolute_stride(QuantizerConfig(stride=0.5), rms)
    assert stride.shape == (1,)
    assert stride.item() == pytest.approx(0.5 * math.sqrt((9 + 16 + 0) / 3))


def test_an_absolute_stride_is_the_number_itself() -> None:
    rms = torch.tensor([3.0, 4.0])
    assert absolute_stride(QuantizerConfig(stride=0.5, relative=False), rms).tolist() == [0.5]
    per_channel = QuantizerConfig(stride=0.5, relative=False, per_channel=True)
    assert absolute_stride(per_channel, rms).tolist() == [0.5, 0.5]


def test_a_dead_channel_gets_the_stride_of_the_whole_map() -> None:
    rms = torch.tensor([3.0, 4.0, 0.0])
    stride = absolute_stride(QuantizerConfig(stride=2.0, per_channel=True), rms)
    assert stride.tolist() == pytest.approx([6.0, 8.0, 2 * math.sqrt(25 / 3)])


@pytest.mark.parametrize("per_channel", [False, True])
def test_a_dead_map_still_gets_a_stride_above_zero(per_channel: bool) -> None:
    assert (absolute_stride(QuantizerConfig(per_channel=per_channel), torch.zeros(4)) > 0).all()


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 10**6), upper=st.sampled_from([None, 2]))
@settings(max_examples=15, deadline=None)
def test_max_pooling_of_regions_commutes_with_quantization(kind: str, seed: int, upper: int | None) -> None:
    generator = torch.Generator().manual_seed(seed)
    f = torch.randn(2, 3, 8, 9, generator=generator) * 3
    corner = torch.rand(6, 2, generator=generator) * 6
    boxes = torch.cat([corner, corner + torch.rand(6, 2, generator=generator) * 8], 1)
    rois = torch.cat([torch.tensor([[0.0], [1.0]]).repeat(3, 1), boxes], 1)
    quantizer = Quantizer(QuantizerConfig(kind=kind, upper=upper, per_channel=True), torch.tensor([0.3, 1.0, 2.7]))
    quantized_first = torchvision_roi_pool(quantizer(f), rois, 3)
    assert torch.equal(quantized_first, quantizer(torchvision_roi_pool(f, rois, 3)))


@pytest.mark.parametrize("kind", KINDS)
@given(values=st.lists(floats, min_size=1, max_size=40), stride=st.floats(0.01, 5), upper=st.none() | st.integers(1, 9))
@settings(max_examples=60, deadline=None)
def test_levels_are_whole_numbers_that_give_the_values_back(
    kind: str, values: list[float], stride: float, upper: int | None
) -> None:
    f = torch.tensor(values)
    quantizer = Quantizer(QuantizerConfig(kind=kind, upper=upper), torch.tensor([stride]))
    levels = quantizer.levels(f.view(1, 1, -1))
    assert torch.equal(levels, levels.round())
    assert float(levels.min()) >= 0
    assert upper is None or float(levels.max()) <= upper
    quantized = quantizer(f.view(1, 1, -1))
    assert torch.equal(quantizer.values(levels), quantized)
    assert torch.equal(quantizer(quantized), quantized)  # Q(Q(f)) = Q(f): a stored map stays what it is


@pytest.mark.parametrize("kind", ["uniform", "power_of_two"])
def test_a_map_in_bf16_is_quantized_by_the_exact_stride(kind: str) -> None:
    """A stride of 0.3 is none of bf16's numbers; rounded, it would send one entry in fifty to another level."""
    quantizer = Quantizer(QuantizerConfig(kind=kind), torch.tensor([0.3]))
    values = torch.linspace(0, 30, 4000).bfloat16().view(4, 1, 10, 100)
    assert torch.equal(quantizer(values), quantizer(values.float()).bfloat16())
