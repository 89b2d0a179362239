"""The mimic loss, its switches and its regions, against hand-computed numbers and the equations."""

import itertools
import math
from types import SimpleNamespace
from typing import cast

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision import ops

from qmimic.config import MimicConfig, QuantizerConfig, fingerprint, recipe_from
from qmimic.contracts import Features, Proposals
from qmimic.data.loader import Loader
from qmimic.data.targets import IGNORED, PADDING, Targets
from qmimic.detectors.build import build
from qmimic.detectors.quantize import Quantizer
from qmimic.distill.distiller import Sides, StudentView, TeacherView
from qmimic.distill.matching import MatchCounts, RegionPair, region_pairs
from qmimic.distill.mimic import Mimic, cell_distance, mean_of_regions, squared_distance
from qmimic.distill.regions import balanced, choose_regions, random_regions
from qmimic.distill.teacher import DetectorTeacher
from qmimic.errors import InputError
from qmimic.tables import DISTANCES, MODES, Distance
from tiny_detectors import some_images, tiny_spec

STRIDE, CHANNELS, BINS = 16, 3, 5
SIZE = (96, 128)
# The modes' names say which sides are quantized: (teacher's, student's).
QUANTIZES = {
    mode: (mode in ("quantization", "teacher_only"), mode in ("quantization", "student_only"))
    for mode in MODES
    if mode != "none"
}


def whole_numbers(f: Tensor) -> Tensor:
    """Q for the dictionary {0, 1, 2, ...}, written from the equation: ties down, negative values to 0."""
    return torch.ceil(f.double() - 0.5).clamp(min=0).float()


def maps(seed: int, channels: int = CHANNELS, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, SIZE[0] // STRIDE, SIZE[1] // STRIDE, generator=generator) * 2


def regions_of(seed: int, count: int = 4, batch: int = 2) -> Proposals:
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(batch, count, 2, generator=generator) * 60
    boxes = torch.cat([corner, corner + 8 + torch.rand(batch, count, 2, generator=generator) * 50], -1)
    valid = torch.ones(batch, count, dtype=torch.bool)
    valid[-1, -2:] = False
    return Proposals(boxes, valid)


def made(
    config: MimicConfig, student: int, teacher: int, stride: float = 1.0, rms: float = 1.0, seed: int = 0
) -> Mimic:
    """A mimic between maps of so many channels, with this s."""
    quantizer = Quantizer(QuantizerConfig(), torch.tensor([stride]))
    outputs = (STRIDE,)
    return Mimic(config, Sides((student,), (teacher,), outputs, outputs, (torch.tensor(rms),), quantizer, SIZE, seed))


def identity_mimic(rms: float = 1.0, stride: float = 1.0, **switches: object) -> Mimic:
    """A mimic whose adaptor hands the map on as it is."""
    mimic = made(MimicConfig(**switches), CHANNELS, CHANNELS, stride, rms)
    with torch.no_grad():
        mimic.adaptors[0].weight.copy_(torch.eye(CHANNELS)[..., None, None])
    return mimic


def loss_of(mimic: Mimic, student: Tensor, teacher: Tensor, regions: Proposals | None) -> Tensor:
    """L_m of two maps."""
    return mimic.loss_to(student, mimic.teacher_side(teacher, regions), regions)


def pooled(features: Tensor, regions: Proposals, pooling: str, bins: int = BINS) -> Tensor:
    """Regions of a map by torchvision, [B, P, C, k, k]."""
    boxes = list(regions.boxes)
    if pooling == "align":
        flat = ops.roi_align(features, boxes, bins, 1 / STRIDE, sampling_ratio=2, aligned=True)
    else:
        flat = ops.roi_pool(features, boxes, bins, 1 / STRIDE)
    return flat.unflatten(0, regions.valid.shape)


def paper_loss(teacher: Tensor, student: Tensor, valid: Tensor) -> float:
    """1/(2N) times the sum of squared distances, one region after the other."""
    total, count = 0.0, 0
    for image, place in itertools.product(*map(range, valid.shape)):
        if valid[image, place]:
            total += (teacher[image, place] - student[image, place]).double().square().sum().item()
            count += 1
    return total / (2 * count)


def mimic_loss(teacher: Tensor, student: Tensor, valid: Tensor) -> Tensor:
    """L_m as the paper writes it."""
    return mean_of_regions(squared_distance(teacher, student, torch.ones(1)), valid)


def test_mimic_loss_of_two_regions_by_hand() -> None:
    teacher = torch.tensor([[[1.0, 2.0], [0.0, 4.0]]])
    student = torch.tensor([[[0.0, 4.0], [3.0, 4.0]]])
    both = torch.tensor([[True, True]])
    # Squares: 1 + 4 and 9 + 0; 14 / (2 * 2), or 9 / (2 * 1) where the second alone counts.
    assert mimic_loss(teacher, student, both).item() == 3.5
    assert mimic_loss(teacher, student, torch.tensor([[False, True]])).item() == 4.5
    assert mimic_loss(teacher, student, ~both).item() == 0.0


def test_gradient_of_mimic_loss_is_the_difference_over_the_number_of_regions() -> None:
    teacher = torch.randn(2, 3, 4, 5, 5, generator=torch.Generator().manual_seed(0))
    student = torch.zeros_like(teacher).requires_grad_()
    valid = torch.tensor([[True, False, True], [True, True, False]])
    mimic_loss(teacher, student, valid).backward()
    torch.testing.assert_close(student.grad, -teacher / 4 * valid[..., None, None, None])


def test_gradient_of_no_regions_is_zero() -> None:
    student = torch.ones(1, 2, 3, requires_grad=True)
    mimic_loss(torch.zeros(1, 2, 3), student, torch.zeros(1, 2, dtype=torch.bool)).backward()
    assert not student.grad.any()


@pytest.mark.parametrize("pooling", ["align", "pool"])
@pytest.mark.parametrize("bins", [1, 3, 7])
def test_regions_have_the_bins_of_the_recipe(bins: int, pooling: str) -> None:
    mimic = identity_mimic(mode="mimic", pooling=pooling, normalize="paper", adaptor_relu=False, region_size=bins)
    regions, student, teacher = regions_of(3), maps(0), maps(1)
    wanted = paper_loss(*(pooled(one, regions, pooling, bins) for one in (teacher, student)), regions.valid)
    assert loss_of(mimic, student, teacher, regions).item() == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize("pooling", ["align", "pool"])
@pytest.mark.parametrize("order", ["quantize_pool", "pool_quantize"])
@pytest.mark.parametrize("mode", QUANTIZES)
def test_every_mode_quantizes_its_own_sides_in_the_order_of_the_recipe(mode: str, order: str, pooling: str) -> None:
    mimic = identity_mimic(mode=mode, order=order, pooling=pooling, normalize="paper", adaptor_relu=False)
    regions = regions_of(3)
    sides = []
    student, teacher = maps(1), maps(2)
    for features, quantize in zip((teacher, student), QUANTIZES[mode], strict=True):
        if quantize and order == "quantize_pool":
            features = whole_numbers(features)
        region = pooled(features, regions, pooling)
        sides.append(whole_numbers(region) if quantize and order == "pool_quantize" else region)
    expected = paper_loss(*sides, regions.valid)
    assert loss_of(mimic, student, teacher, regions).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("order", ["quantize_pool", "pool_quantize"])
def test_the_adaptor_sees_regions_as_the_equation_has_it_or_the_map(order: str) -> None:
    mimic = made(MimicConfig(order=order, normalize="paper"), 2, CHANNELS, seed=4)
    student, teacher, regions = maps(1, channels=2), maps(2), regions_of(3)
    weight = mimic.adaptors[0].weight[:, :, 0, 0].detach()

    def r(features: Tensor, letters: str) -> Tensor:
        return torch.einsum(f"oi,{letters.replace('c', 'i')}->{letters.replace('c', 'o')}", weight, features).clamp(0)

    if order == "pool_quantize":
        own = whole_numbers(r(pooled(student, regions, "align"), "bpchw"))
        taught = whole_numbers(pooled(teacher, regions, "align"))
    else:
        own = pooled(whole_numbers(r(student, "bchw")), regions, "align")
        taught = pooled(whole_numbers(teacher), regions, "align")
    expected = paper_loss(taught, own, regions.valid)
    assert loss_of(mimic, student, teacher, regions).item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("mode", QUANTIZES)
@given(seed=st.integers(0, 10**6), relu=st.booleans())
@settings(max_examples=10, deadline=None)
def test_the_whole_map_is_one_region_of_each_image(mode: str, seed: int, relu: bool) -> None:
    mimic = identity_mimic(mode=mode, regions="map", normalize="paper", adaptor_relu=relu)
    student, teacher = maps(seed), maps(seed + 1)
    seen = student.relu() if relu else student
    sides = [whole_numbers(f) if q else f for f, q in zip((teacher, seen), QUANTIZES[mode], strict=True)]
    expected = (sides[0] - sides[1]).double().square().sum().item() / (2 * len(student))
    assert loss_of(mimic, student, teacher, None).item() == pytest.approx(expected, rel=1e-4)


def test_with_max_pooling_the_order_does_not_matter() -> None:
    student, teacher, regions = maps(1), maps(2), regions_of(3)
    losses = {
        loss_of(identity_mimic(order=order, pooling="pool", normalize="paper"), student, teacher, regions).item()
        for order in ("quantize_pool", "pool_quantize")
    }
    assert len(losses) == 1


def test_the_relu_stands_between_adaptor_and_quantizer() -> None:
    student = maps(1)
    assert torch.equal(identity_mimic(adaptor_relu=True).adapt(student), student.clamp(min=0))
    assert torch.equal(identity_mimic(adaptor_relu=False).adapt(student), student)


def test_with_relu_no_gradient_reaches_entries_that_the_adaptor_made_negative() -> None:
    for relu in (True, False):
        student = torch.full((1, CHANNELS, 6, 8), -1.0, requires_grad=True)
        loss_of(identity_mimic(adaptor_relu=relu), student, maps(2, batch=1).abs() + 1, None).backward()
        assert bool(student.grad.any()) is not relu


def test_the_adaptor_is_a_linear_map_of_the_channels() -> None:
    mimic = made(MimicConfig(adaptor_relu=False), 2, 5, seed=4)
    student = maps(1, channels=2)
    by_hand = torch.einsum("oi,bihw->bohw", mimic.adaptors[0].weight[:, :, 0, 0], student)
    torch.testing.assert_close(mimic.adapt(student), by_hand + mimic.adaptors[0].bias[:, None, None])


def test_the_adaptor_depends_on_its_seed_alone() -> None:
    def adaptor(seed: int) -> Tensor:
        torch.rand(seed + 1)  # chance elsewhere is at another place each time
        return made(MimicConfig(), 2, 5, seed=seed).adaptors[0].weight

    assert torch.equal(adaptor(3), adaptor(3))
    assert not torch.equal(adaptor(3), adaptor(4))


@pytest.mark.parametrize("mode", QUANTIZES)
def test_the_loss_by_entry_is_the_mean_of_squares_over_the_squared_rms(mode: str) -> None:
    student, teacher, regions = maps(1), maps(2), regions_of(3)
    paper = loss_of(identity_mimic(mode=mode, normalize="paper"), student, teacher, regions).item()
    entry = loss_of(identity_mimic(mode=mode, normalize="entry", rms=1.5), student, teacher, regions).item()
    assert entry == pytest.approx(2 * paper / (CHANNELS * BINS * BINS) / 1.5**2, rel=1e-5)


@pytest.mark.parametrize("whole_map", [False, True])
@pytest.mark.parametrize("mode", QUANTIZES)
@given(power=st.integers(-6, 6))
@settings(max_examples=8, deadline=None)
def test_the_loss_by_entry_does_not_depend_on_the_unit_of_the_maps(mode: str, whole_map: bool, power: int) -> None:
    regions = None if whole_map else regions_of(3)
    unit = 2.0**power
    one = loss_of(identity_mimic(mode=mode), maps(1), maps(2), regions)
    scaled = loss_of(identity_mimic(mode=mode, rms=unit, stride=unit), maps(1) * unit, maps(2) * unit, regions)
    assert scaled.item() == pytest.approx(one.item(), rel=1e-4)


def test_gradients_reach_student_and_adaptor_but_not_the_teacher() -> None:
    student, teacher = maps(1).requires_grad_(), maps(2).requires_grad_()
    mimic = identity_mimic()
    loss_of(mimic, student, teacher, regions_of(3)).backward()
    assert student.grad.any()
    assert mimic.adaptors[0].weight.grad.any()
    assert teacher.grad is None


def test_gradient_of_quantization_mimic_is_straight_through() -> None:
    student = maps(1).requires_grad_()
    teacher = maps(2)
    loss_of(identity_mimic(normalize="paper", adaptor_relu=False), student, teacher, None).backward()
    difference = whole_numbers(student.detach()) - whole_numbers(teacher)
    torch.testing.assert_close(student.grad, difference / len(student))


def test_equal_maps_cost_nothing() -> None:
    same = maps(1)
    for mode in QUANTIZES:
        if mode in ("mimic", "quantization"):
            assert loss_of(identity_mimic(mode=mode, adaptor_relu=False), same, same, regions_of(3)).item() == 0


def test_half_precision_maps_give_a_float32_loss() -> None:
    mimic = identity_mimic()
    with torch.autocast("cpu", torch.bfloat16):
        loss = loss_of(mimic, maps(1).bfloat16(), maps(2).bfloat16(), regions_of(3))
    assert loss.dtype == torch.float32
    assert math.isfinite(loss.item())


def test_what_a_bank_keeps_does_not_depend_on_how_the_student_is_computed() -> None:
    mimic = identity_mimic()
    wanted = mimic.teacher_side(maps(2), regions_of(3))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(mimic.teacher_side(maps(2), regions_of(3)), wanted)


@pytest.mark.parametrize("pooling", ["align", "pool", "crop"])
@pytest.mark.parametrize("order", ["pool_quantize", "quantize_pool"])
def test_behind_the_adaptor_all_is_float32(pooling: str, order: str) -> None:
    """A map that bf16 holds exactly, and an r that changes nothing: bf16 must not change the loss either."""
    mimic = identity_mimic(mode="quantization", pooling=pooling, order=order, adaptor_relu=False)
    student, teacher = maps(1).bfloat16(), maps(2)
    given = mimic.teacher_side(teacher, regions_of(3))
    wanted = mimic.loss_to(student.float(), given, regions_of(3))
    with torch.autocast("cpu", torch.bfloat16):
        found = mimic.loss_to(student, given, regions_of(3))
    torch.testing.assert_close(found, wanted, rtol=(2e-2 if order == "pool_quantize" else 1e-5), atol=0)


def pair_of(teacher: Tensor, student: Tensor, valid: Tensor) -> RegionPair:
    """Regions whose values are their own levels."""
    return RegionPair(teacher, student, teacher, student, valid)


def test_matches_by_hand() -> None:
    teacher = torch.tensor([[[0.0, 1.0, 2.0, 0.0], [5.0, 5.0, 5.0, 5.0]]])
    student = torch.tensor([[[0.0, 1.0, 3.0, 1.0], [5.0, 5.0, 5.0, 5.0]]])
    first_only = pair_of(teacher, student, torch.tensor([[True, False]])).counts()
    assert first_only == MatchCounts(entries=4, matched=2, nonzero=2, nonzero_matched=1, near=2)
    assert (first_only.ratio, first_only.nonzero_ratio, first_only.near_ratio) == (0.5, 0.5, 0.5)
    assert pair_of(teacher, student, torch.tensor([[True, True]])).counts() == MatchCounts(8, 6, 6, 5, 6)
    assert pair_of(teacher, student, torch.tensor([[False, False]])).counts() == MatchCounts()
    assert pair_of(teacher, student, torch.tensor([[True, True]])).near_shares().tolist() == [0.5, 1.0]


def test_near_is_what_the_paper_counts() -> None:
    # |f_t - f_s| < 0.3 in the map's own units, whatever the levels: 0.2 off counts, 0.3 and more does not.
    teacher = torch.tensor([[[0.0, 1.0, 2.0, 4.0]]])
    student = torch.tensor([[[0.2, 0.75, 2.4, 3.0]]])
    pair = RegionPair(teacher, student, torch.zeros(1, 1, 4), torch.ones(1, 1, 4), torch.tensor([[True]]))
    assert pair.counts() == MatchCounts(entries=4, near=2)


@pytest.mark.parametrize("distance", ["squared", "cell"])
def test_near_is_counted_of_what_the_loss_compares(distance: str) -> None:
    """By the distance to a cell the student is not quantized, and so it is not for counting what is near."""
    student, teacher = build(tiny_spec(size=SIZE), 0).eval(), build(tiny_spec(size=SIZE), 1).eval()
    quantizer = Quantizer(QuantizerConfig(), torch.tensor([0.5]))
    config = MimicConfig(distance=distance, regions="ground_truth", adaptor_relu=False)
    ones = (torch.ones(()),)
    mimic = Mimic(config, Sides.between(student, DetectorTeacher(teacher, bf16=False), ones, quantizer, seed=0))
    batch = SimpleNamespace(images=some_images(0, 2, SIZE), targets=TRUTH)
    loader = cast(Loader, SimpleNamespace(once=lambda: iter([batch])))
    (pair,) = region_pairs(student, DetectorTeacher(teacher, bf16=False), mimic, loader)
    on_grid = [bool((2 * side == (2 * side).round()).all()) for side in (pair.teacher, pair.student)]
    assert on_grid == [True, distance == "squared"]
    near = ((pair.teacher - pair.student).abs() < 0.3)[pair.valid].sum()
    assert pair.counts().near == int(near)


def test_an_all_zero_student_matches_zeros_and_nothing_else() -> None:
    teacher = torch.tensor([[[0.0, 0.0, 0.0, 2.0]]])
    counts = pair_of(teacher, torch.zeros_like(teacher), torch.tensor([[True]])).counts()
    assert counts.ratio == 0.75
    assert counts.nonzero_ratio == 0.0


def test_match_counts_add_up_over_batches() -> None:
    assert MatchCounts(8, 6, 4, 2, 1) + MatchCounts(2, 1, 1, 1, 2) == MatchCounts(10, 7, 5, 3, 3)
    assert MatchCounts().ratio == MatchCounts().nonzero_ratio == MatchCounts().near_ratio == 0.0


@pytest.mark.parametrize("mode", QUANTIZES)
def test_levels_are_of_quantized_regions_whatever_the_mode_trains(mode: str) -> None:
    student, teacher, regions = maps(1), maps(2), regions_of(3)
    mimic = identity_mimic(mode=mode, order="pool_quantize", pooling="pool")
    of_teacher, of_student = mimic.sides_of(student, teacher, regions)
    torch.testing.assert_close(
        mimic.quantizer.levels_inside(of_teacher), whole_numbers(pooled(teacher, regions, "pool"))
    )
    torch.testing.assert_close(
        mimic.quantizer.levels_inside(of_student), whole_numbers(pooled(F.relu(student), regions, "pool"))
    )
    assert torch.equal(
        mimic.quantizer.values_inside(mimic.quantizer.levels_inside(of_teacher)), mimic.quantizer(of_teacher)
    )


TRUTH = Targets(
    torch.tensor([[[0.0, 0.0, 10.0, 10.0], [5.0, 5.0, 30.0, 30.0], [1.0, 1.0, 3.0, 3.0]], [[0.0, 0.0, 0.0, 0.0]] * 3]),
    torch.tensor([[2, IGNORED, 0], [PADDING] * 3]),
)
PROPOSALS = Proposals(
    torch.arange(2 * 3 * 4).float().view(2, 3, 4) + 100, torch.tensor([[True, True, False], [True, True, True]])
)


def chosen(count: int = 10, proposals: Proposals | None = PROPOSALS, **switches: object) -> list[list[list[float]]]:
    """The valid regions of every image, after a check that the others are padding at the end."""
    config = MimicConfig(region_count=count, **switches)
    regions = choose_regions(config, proposals, TRUTH, SIZE, torch.Generator().manual_seed(0))
    assert regions.boxes.shape == (2, count, 4)
    falling = regions.valid.int().diff(dim=1)
    assert (falling <= 0).all()
    return [boxes[valid].tolist() for boxes, valid in zip(regions.boxes, regions.valid, strict=True)]


REAL = [[0.0, 0.0, 10.0, 10.0], [1.0, 1.0, 3.0, 3.0]]


@pytest.mark.parametrize("whose", ["teacher", "student"])
def test_regions_of_a_detector_are_its_proposals_behind_the_objects(whose: str) -> None:
    first, second = PROPOSALS.boxes.tolist()
    assert chosen(regions=whose, with_truth=False) == [first[:2], second]
    assert chosen(regions=whose, with_truth=True) == [REAL + first[:2], second]
    assert chosen(3, regions=whose, with_truth=True) == [[*REAL, first[0]], second]
    assert chosen(1, regions=whose, with_truth=True) == [REAL[:1], second[:1]]


@pytest.mark.parametrize("with_truth", [False, True])
def test_ground_truth_regions_are_the_real_objects_alone(with_truth: bool) -> None:
    assert chosen(proposals=None, regions="ground_truth", with_truth=with_truth) == [REAL, []]
    assert chosen(1, proposals=None, regions="ground_truth", with_truth=with_truth) == [REAL[:1], []]


def test_random_regions_fill_every_image_and_objects_come_first() -> None:
    first, second = chosen(6, proposals=None, regions="random", with_truth=True)
    assert first[:2] == REAL
    assert (len(first), len(second)) == (6, 6)
    first, second = chosen(6, proposals=None, regions="random", with_truth=False)
    assert REAL[0] not in first
    assert (len(first), len(second)) == (6, 6)


@given(st.integers(0, 10**6), st.integers(32, 300), st.integers(32, 300))
@settings(max_examples=25, deadline=None)
def test_random_regions_lie_inside_the_image_and_are_no_crumbs(seed: int, height: int, width: int) -> None:
    regions = random_regions(3, 20, (height, width), torch.Generator().manual_seed(seed))
    x1, y1, x2, y2 = regions.boxes.unbind(-1)
    assert regions.valid.shape == (3, 20)
    assert regions.valid.all()
    assert min(x1.min(), y1.min()) >= 0
    assert x2.max() <= width + 1e-3
    assert y2.max() <= height + 1e-3
    assert ((x2 - x1) >= width / 8 - 1e-3).all()
    assert ((y2 - y1) >= height / 8 - 1e-3).all()


def test_random_regions_depend_on_the_generator_alone() -> None:
    a, b, c = (random_regions(2, 5, SIZE, torch.Generator().manual_seed(seed)).boxes for seed in (1, 1, 2))
    assert torch.equal(a, b)
    assert not torch.equal(a, c)


def test_another_distance_is_a_line_in_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    teacher, student = (torch.rand(2, 3, 4, 5, 5, generator=generator) for _ in range(2))
    valid = torch.tensor([[True, True, False], [True, False, False]])

    def absolute(teacher: Tensor, student: Tensor, stride: Tensor) -> Tensor:
        return (teacher - student).abs().sum((2, 3, 4))

    by_hand = sum(float((teacher[b, p] - student[b, p]).abs().sum()) for b, p in ((0, 0), (0, 1), (1, 0))) / 6
    assert float(mean_of_regions(absolute(teacher, student, torch.ones(1)), valid)) == pytest.approx(by_hand, rel=1e-5)
    monkeypatch.setitem(DISTANCES, "absolute", Distance(absolute))
    mimic = identity_mimic(distance="absolute", mode="mimic", normalize="paper", adaptor_relu=False)
    whole = float((student[:, 0, :3] - teacher[:, 0, :3]).abs().sum()) / 4
    assert mimic.loss_to(student[:, 0, :3], teacher[:, :1, :3], None).item() == pytest.approx(whole, rel=1e-5)


def test_a_distance_belongs_to_the_key_of_a_student() -> None:
    assert fingerprint(MimicConfig()) == fingerprint(MimicConfig(distance="squared"))
    assert fingerprint(MimicConfig()) != fingerprint(MimicConfig(distance="cell"))


@pytest.mark.parametrize("stride", [torch.tensor([0.4]), torch.tensor([0.2, 0.4, 0.8])])
def test_the_cell_distance_is_the_distance_to_the_border_of_the_teacher_s_cell(stride: Tensor) -> None:
    # The equation itself, entry by entry in float64; inside the cell both the loss and its gradient are 0.
    generator = torch.Generator().manual_seed(3)
    s = stride.double().expand(3).tolist()
    levels = torch.randint(0, 4, (2, 2, 3, 2, 2), generator=generator).double()
    teacher = levels * torch.tensor(s).double().view(3, 1, 1)
    student = (teacher + torch.randn(teacher.shape, generator=generator, dtype=torch.float64) / 2).requires_grad_()
    by_hand = torch.zeros(2, 2, dtype=torch.float64)
    inside = torch.zeros_like(teacher, dtype=torch.bool)
    for place in itertools.product(*map(range, teacher.shape)):
        outside = abs(float(teacher[place]) - float(student[place].detach())) - s[place[2]] / 2
        by_hand[place[:2]] += max(0.0, outside) ** 2
        inside[place] = outside <= 0
    found = cell_distance(teacher, student, stride.double())
    torch.testing.assert_close(found.detach(), by_hand)
    found.sum().backward()
    assert student.grad is not None
    assert inside.any()
    assert not student.grad[inside].any()
    assert student.grad[~inside].all()


def test_normalize_region_divides_each_region_by_its_dimension_in_absolute_units() -> None:
    # Li et al., eq. 5: 1/(2N) sum 1/m_i ||u_i - v_i||^2, whatever the map's rms.
    mimic = identity_mimic(rms=7.0, mode="mimic", normalize="region", adaptor_relu=False)
    student, teacher, regions = maps(0), maps(1), regions_of(2)
    own, wanted = (pooled(features, regions, "align").double() for features in (student, teacher))
    places = [(b, p) for b, p in itertools.product(range(2), range(4)) if regions.valid[b, p]]
    by_hand = sum(float((wanted[at] - own[at]).square().mean()) for at in places) / (2 * len(places))
    assert loss_of(mimic, student, teacher, regions).item() == pytest.approx(by_hand, rel=1e-4)


@pytest.mark.parametrize("normalize", ["paper", "region", "entry"])
@pytest.mark.parametrize("mode", QUANTIZES)
def test_cropped_regions_are_the_entries_of_the_map_as_they_lie(mode: str, normalize: str) -> None:
    # Region by region with slices, as Li et al. take them from the map; m_i is each region's own dimension.
    mimic = identity_mimic(rms=1.5, mode=mode, normalize=normalize, pooling="crop", adaptor_relu=False)
    student, teacher, regions = maps(0), maps(1), regions_of(2)
    sides = [whole_numbers(one) if q else one for one, q in zip((teacher, student), QUANTIZES[mode], strict=True)]
    total, count = 0.0, 0
    for image, place in itertools.product(*map(range, regions.valid.shape)):
        if regions.valid[image, place]:
            x1, y1, x2, y2 = [math.floor(v / STRIDE + 0.5) for v in regions.boxes[image, place].tolist()]
            t, s = (one[image, :, y1 : y2 + 1, x1 : x2 + 1].double() for one in sides)
            squares = (t - s).square()
            total += float(squares.sum() if normalize == "paper" else squares.mean())
            count += 1
    by_hand = total / (2 * count) * (2 / 1.5**2 if normalize == "entry" else 1)
    assert loss_of(mimic, student, teacher, regions).item() == pytest.approx(by_hand, rel=1e-4)


def test_a_region_that_leaves_the_map_still_has_an_entry() -> None:
    mimic = identity_mimic(pooling="crop", normalize="region", mode="mimic", adaptor_relu=False)
    boxes = torch.tensor([[[300.0, 300.0, 310.0, 320.0], [0.0, 0.0, 1.0, 1.0]]])
    loss = loss_of(mimic, maps(0, batch=1), maps(1, batch=1), Proposals(boxes, torch.ones(1, 2, dtype=torch.bool)))
    assert math.isfinite(loss.item())


@given(seed=st.integers(0, 10**6), count=st.integers(2, 40), others=st.integers(0, 30))
@settings(max_examples=25, deadline=None)
def test_balanced_regions_are_as_many_without_an_object_as_with_one(seed: int, count: int, others: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    truth = Targets(torch.tensor([[[10.0, 10.0, 50.0, 50.0], [60.0, 20.0, 90.0, 70.0]]]), torch.tensor([[0, 1]]))
    near = truth.boxes[:, torch.randint(0, 2, (12,), generator=generator)]
    near = near + torch.rand(near.shape, generator=generator) * 4
    far = torch.rand(1, others, 2, generator=generator) * 80
    boxes = torch.cat([near, torch.cat([far, far + 6], -1)], 1)
    valid = torch.rand(boxes.shape[:2], generator=generator) > 0.3
    found = balanced(Proposals(boxes, valid), truth, count, torch.Generator().manual_seed(seed))
    overlap = ops.box_iou(found.boxes[0][found.valid[0]], truth.boxes[0]).amax(1) if found.valid.any() else None
    positive = int((overlap >= 0.5).sum()) if overlap is not None else 0
    negative = int((overlap < 0.5).sum()) if overlap is not None else 0
    usable = int(valid[0, :12].sum()), int(valid[0, 12:].sum())
    drawn = min(max(1, count // 2), usable[0])
    assert positive == negative == min(drawn, usable[1], count - drawn)


def test_levels_of_one_stride_are_compared_and_the_others_left_alone() -> None:
    quantizer = Quantizer(QuantizerConfig(), torch.tensor([1.0]))
    rms = (torch.tensor(2.0), torch.tensor(3.0))
    sides = Sides((2, 3, 4), (5, 6), (8, 16, 32), (16, 32), rms, quantizer, SIZE, seed=0)
    mimic = Mimic(MimicConfig(regions="map", mode="mimic", adaptor_relu=False), sides)
    assert mimic.pairs == ((1, 0), (2, 1))
    generator = torch.Generator().manual_seed(0)

    def levels(channels: tuple[int, ...], strides: tuple[int, ...]) -> Features:
        shapes = zip(channels, strides, strict=True)
        return Features.of([torch.randn(2, c, 96 // s, 128 // s, generator=generator) for c, s in shapes], strides)

    student, teacher = levels((2, 3, 4), (8, 16, 32)), levels((5, 6), (16, 32))
    target = mimic.target(TeacherView(teacher, None), TRUTH)
    loss = mimic.loss(StudentView(student, None, TRUTH, generator), target)
    by_hand = [
        float((mimic.adapt(student.maps[own], place) - teacher.maps[other]).square().mean().detach())
        / float(rms[other]) ** 2
        for place, (own, other) in enumerate(mimic.pairs)
    ]
    assert loss.item() == pytest.approx(sum(by_hand) / 2, rel=1e-4)


def test_networks_without_a_stride_in_common_are_refused() -> None:
    quantizer = Quantizer(QuantizerConfig(), torch.tensor([1.0]))
    sides = Sides((2, 3), (5,), (8, 32), (16,), (torch.ones(()),), quantizer, SIZE, seed=0)
    with pytest.raises(InputError, match="strides 8, 32 and the teacher's 16"):
        Mimic(MimicConfig(), sides)


@pytest.mark.parametrize(("key", "name", "near"), [("distiller", "mimik", "mimic"), ("distance", "sqared", "squared")])
def test_an_unknown_name_is_refused_with_the_nearest(key: str, name: str, near: str) -> None:
    with pytest.raises(InputError, match=f"Unknown mimic.{key} '{name}'; did you mean {near}\\?"):
        recipe_from({"mimic": {key: name}}, "own.yaml")
