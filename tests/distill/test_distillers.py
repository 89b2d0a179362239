"""What holds for every distiller, and each against its paper's equation, written out with loops in float64."""

import dataclasses
import math

import pytest
import torch
from distill_cases import (
    CASES,
    DRAWING,
    NAMED,
    ONE_STAGE,
    SIZE,
    STRIDE,
    TRUTH,
    loss_and_maps,
    made,
    maps,
    said,
    target_of,
    view_of,
)
from hypothesis import given
from hypothesis import strategies as st

from qmimic.config import MimicConfig, recipe_from
from qmimic.contracts import Features
from qmimic.distill.bank import Bank, layout_of
from qmimic.distill.distiller import Sides, StudentView, TeacherView
from qmimic.distill.pearson import standardized
from qmimic.errors import InputError
from qmimic.tables import DISTILLERS, MODES


class Recorder:
    """A config that knows which of its settings were read."""

    def __init__(self, config: MimicConfig) -> None:
        self.of, self.seen = config, set[str]()

    def __getattr__(self, name: str) -> object:
        self.seen |= {name} & set(MimicConfig.model_fields)
        return getattr(self.of, name)


WAYS = ({}, {"regions": "map"}, {"regions": "student", "sampling": "balanced"}, {"pooling": "crop"})


def ways(name: str, sides: Sides) -> list[dict[str, object]]:
    """Those of the ways that a distiller can go between these sides."""
    found = []
    for switches in WAYS:
        try:
            made(name, sides, **switches)
        except (InputError, ValueError):
            continue
        if set(switches) <= DISTILLERS[name].reads:
            found.append(switches)
    return found


@pytest.mark.parametrize("name", DISTILLERS)
def test_a_distiller_reads_the_settings_that_it_says_it_reads(name: str) -> None:
    shared = {"mode", "settings", "weight", "share", "map_steps", "last_step"}
    seen: set[str] = set()
    for sides in [sides for own, sides in CASES if own == name]:
        for switches in ways(name, sides):
            config = Recorder(MimicConfig(distiller=name, **switches))
            distiller = DISTILLERS[name](config, sides)
            distiller.loss(view_of(distiller, maps(1, 2)), target_of(distiller, maps(2, 5)))
            seen |= config.seen
    assert seen - shared == DISTILLERS[name].reads


@pytest.mark.parametrize("name", DISTILLERS)
def test_what_a_distiller_does_not_read_is_refused(name: str) -> None:
    others = {
        "distance": "cell", "normalize": "paper", "adaptor_relu": False, "order": "quantize_pool", "pooling": "crop",
        "regions": "student", "with_truth": False, "region_count": 7,
        "region_size": 3,
    }  # fmt: skip
    assert set(others) | {"sampling"} == set().union(*(DISTILLERS[one].reads for one in DISTILLERS))
    for setting, value in others.items():
        own = {"distiller": name, setting: value}
        if setting in DISTILLERS[name].reads:
            assert getattr(recipe_from({"mimic": own}, "own").mimic, setting) == value
        else:
            with pytest.raises(InputError, match=f"mimic.{setting} has no effect with mimic.distiller={name}; leave"):
                recipe_from({"mimic": own}, "own")
    with pytest.raises(InputError, match=r"mimic\.settings\.wrong: "):
        recipe_from({"mimic": {"distiller": name, "settings": {"wrong": 1}}}, "own")


def test_a_distiller_s_own_settings_are_checked_and_used() -> None:
    for wrong, hint in (({"temprature": 1}, "did you mean temperature"), ({"temperature": 0}, "needs more than 0")):
        with pytest.raises(InputError, match=hint):
            recipe_from({"mimic": {"distiller": "channel_wise", "settings": wrong}}, "own")
    teacher, student = maps(2, 5), maps(3, 5)
    cold, paper, usual = (
        made("channel_wise", settings=own).map_loss(teacher, student, TRUTH, 0)
        for own in ({"temperature": 1}, {"temperature": 4}, {})
    )
    assert float(paper) == float(usual) != float(cold)


@pytest.mark.parametrize(("name", "sides"), CASES, ids=NAMED)
def test_a_distiller_leaves_the_chance_of_others_alone(
    name: str, sides: Sides, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(5)
    after = torch.rand(1)
    torch.manual_seed(5)
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda seed: pytest.fail("a script's GPU is seeded anew"))
    made(name, sides)
    assert torch.equal(torch.rand(1), after)


@pytest.mark.parametrize(("name", "sides"), CASES, ids=NAMED)
def test_a_distiller_gives_one_target_for_one_view_and_a_gradient_to_the_student(name: str, sides: Sides) -> None:
    for switches in ways(name, sides):
        distiller = made(name, sides, **switches)
        first, second = (target_of(distiller, maps(2, 5)) for _ in range(2))
        assert all(torch.equal(first[key], second[key]) for key in first)
        assert all(len(one) == 2 and not one.requires_grad for one in first.values())
        assert set(distiller.grids()) <= set(first)
        student = maps(1, 2).requires_grad_()
        distiller.loss(view_of(distiller, student), first).backward()
        assert student.grad is not None
        assert student.grad.isfinite().all()
        assert student.grad.abs().sum() > 0


@pytest.mark.parametrize(("name", "sides"), CASES, ids=NAMED)
def test_a_distiller_is_the_same_for_one_seed(name: str, sides: Sides) -> None:
    def loss(seed: int) -> float:
        distiller = made(name, sides)
        return distiller.loss(view_of(distiller, maps(1, 2), seed), target_of(distiller, maps(2, 5))).item()

    assert loss(3) == loss(3)
    assert (loss(3) != loss(4)) == (name in DRAWING)


@pytest.mark.parametrize(("name", "sides"), CASES, ids=NAMED)
@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "none"])
def test_a_bank_gives_the_loss_that_the_target_gave(name: str, sides: Sides, mode: str, tmp_path: object) -> None:
    distiller = made(name, sides, mode=mode)
    target = target_of(distiller, maps(2, 5))
    bank = Bank(tmp_path / "bank.bin", 2, layout_of([target], distiller.grids()))
    rows = torch.arange(2)
    bank.get(rows, lambda: target)
    kept = bank.get(rows, lambda: pytest.fail("the bank has these"))
    assert set(kept) == set(target)
    assert all(torch.equal(kept[key], target[key]) for key in target)


def test_channel_wise_is_its_equation() -> None:
    loss, teacher, student, _ = loss_and_maps("channel_wise")
    temperature, total = 4.0, 0.0
    for image in range(2):
        for channel in range(5):
            wanted = [math.exp(v / temperature) for v in teacher[image, channel].flatten().tolist()]
            own = [math.exp(v / temperature) for v in student[image, channel].flatten().tolist()]
            for a, b in zip(wanted, own, strict=True):
                p, q = a / sum(wanted), b / sum(own)
                total += p * math.log(p / q)
    assert loss == pytest.approx(temperature**2 / 5 * total / 2, rel=1e-4)


def test_pearson_is_one_minus_the_correlation_of_each_channel() -> None:
    # Cao et al., eq. 3: the mean squared difference of standardized maps is 2 (1 - r), so half of it is 1 - r.
    loss, teacher, student, _ = loss_and_maps("pearson")
    correlations = [
        float(torch.corrcoef(torch.stack([teacher[:, c].flatten(), student[:, c].flatten()]))[0, 1]) for c in range(5)
    ]
    assert loss == pytest.approx(1 - sum(correlations) / 5, rel=1e-3)


@pytest.mark.parametrize("mode", ["mimic", "quantization"])
def test_pearson_s_gradient_is_bounded_where_a_channel_does_not_vary(mode: str) -> None:
    """Behind Q a channel may be constant whose map is not: its gradient must not be divided by next to nothing."""
    distiller = made("pearson", mode=mode)
    teacher, student = maps(1, 5), (0.01 * maps(2, 2)).requires_grad_()
    distiller.loss(view_of(distiller, student), target_of(distiller, teacher)).backward()
    assert student.grad is not None
    assert student.grad.abs().max() < 100


@given(st.floats(-100, 100), st.integers(1, 40))
def test_pearson_does_not_divide_the_rounding_of_a_mean(value: float, side: int) -> None:
    constant = torch.full((4, 1, side, side + 1), value, requires_grad=True)
    (standardized(constant) * torch.rand(4, 1, side, side + 1)).sum().backward()
    assert standardized(constant).abs().max() < 1e-3
    assert constant.grad is not None
    assert constant.grad.abs().max() < 2


def test_pearson_does_not_depend_on_the_scale_of_the_maps() -> None:
    distiller = made("pearson", mode="mimic")
    teacher, student = maps(2, 5), maps(3, 5)
    one, other = (distiller.map_loss(k * teacher + k, student, TRUTH, 0) for k in (1, 7))
    assert float(one) == pytest.approx(float(other), rel=1e-3)


@pytest.mark.parametrize(("name", "sides"), CASES, ids=NAMED)
@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "none"])
def test_a_channel_that_does_not_vary_has_a_gradient(name: str, sides: Sides, mode: str) -> None:
    """As one has whose values all lie on one level of Q."""
    distiller = made(name, sides, mode=mode)
    student = (maps(1, 2) * 0 + 1).requires_grad_()
    loss = distiller.loss(view_of(distiller, student), target_of(distiller, maps(2, 5)))
    loss.backward()
    gradients = [one.grad for one in (student, *distiller.parameters()) if one.grad is not None]
    assert gradients
    assert all(bool(own.isfinite().all()) for own in gradients)


def test_outputs_of_an_unsure_teacher_count_as_in_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes with an image each: the mean of their losses is the loss of both images."""
    distiller = made("outputs", mode="mimic")
    student, teacher = said(maps(1, 2)), said(maps(2, 2)) - torch.tensor([0.0, 9.0]).view(2, 1, 1)

    def loss(rows: slice) -> float:
        features = Features.of([maps(2, 5)[rows]], [STRIDE])
        target = distiller.target(TeacherView(features, None, lambda: teacher[rows]), TRUTH)
        generator = torch.Generator().manual_seed(0)
        return float(distiller.loss(StudentView(features, None, TRUTH, generator, dense=student[rows]), target))

    whole = loss(slice(None))
    sure = sum(float(teacher[one, :2].sigmoid().amax(0).sum()) for one in (0, 1))
    monkeypatch.setattr("qmimic.distill.outputs.mean_over", lambda own: own * 0 + sure / 2)
    assert (loss(slice(0, 1)) + loss(slice(1, 2))) / 2 == pytest.approx(whole, rel=1e-4)


def test_outputs_is_its_equation() -> None:
    distiller = made("outputs", mode="mimic")
    student, teacher = said(maps(1, 2)), said(maps(2, 2)) - 0.5
    target = distiller.target(TeacherView(Features.of([maps(2, 5)], [STRIDE]), None, lambda: teacher), TRUTH)
    view = StudentView(
        Features.of([maps(1, 2)], [STRIDE]), None, TRUTH, torch.Generator().manual_seed(0), dense=student
    )
    classes = boxes = rivals = total = 0.0
    columns = SIZE[1] // STRIDE

    def box(sides: list[float], place: int) -> list[float]:
        x, y = (place % columns + 0.5) * STRIDE, (place // columns + 0.5) * STRIDE
        left, top, right, bottom = (STRIDE * math.exp(min(4.0, max(-4.0, side))) for side in sides)
        return [x - left, y - top, x + right, y + bottom]

    def giou(a: list[float], b: list[float]) -> float:
        def area(one: list[float]) -> float:
            return max(0.0, one[2] - one[0]) * max(0.0, one[3] - one[1])

        inner = area([max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])])
        hull = area([min(a[0], b[0]), min(a[1], b[1]), max(a[2], b[2]), max(a[3], b[3])])
        union = area(a) + area(b) - inner
        return inner / union - (hull - union) / hull

    for image in range(2):
        for place in range(student.shape[2]):
            own, theirs = student[image, :, place].double().tolist(), teacher[image, :, place].double().tolist()
            best = 0.0
            for s, t in zip(own[:2], theirs[:2], strict=True):
                p, q = 1 / (1 + math.exp(-s)), 1 / (1 + math.exp(-t))
                classes += (q - p) ** 2 * -(q * math.log(p) + (1 - q) * math.log(1 - p))
                best = max(best, q)
            total += best
            shares = [[math.exp(z) / sum(map(math.exp, side[:2])) for z in side[:2]] for side in (own, theirs)]
            rivals += best * sum(q * math.log(q / p) for p, q in zip(*shares, strict=True))
            boxes += best * (1 - giou(box(own[2:], place), box(theirs[2:], place)))
    assert distiller.loss(view, target).item() == pytest.approx((classes + 2 * boxes + rivals / 2) / total, rel=1e-4)


def test_outputs_of_common_levels_are_compared_and_two_stages_have_none() -> None:
    sides = dataclasses.replace(ONE_STAGE, student_strides=(8, 16), student_channels=(2, 2))
    distiller = DISTILLERS["outputs"](MimicConfig(distiller="outputs"), sides)
    fine = torch.randn(2, 6, 12 * 16, generator=torch.Generator().manual_seed(0))
    coarse = said(maps(2, 2))
    target = distiller.target(TeacherView(Features.of([maps(2, 5)], [STRIDE]), None, lambda: coarse), TRUTH)
    features = Features.of([torch.zeros(2, 2, 12, 16), maps(1, 2)], [8, 16])
    view = StudentView(features, None, TRUTH, torch.Generator(), dense=torch.cat([fine, coarse], 2))
    # The same outputs on the level that both have: no box is off, and scores are the teacher's own.
    moved = dataclasses.replace(view, dense=torch.cat([fine + 1, coarse], 2))
    assert distiller.loss(view, target) == distiller.loss(moved, target)
    other = dataclasses.replace(view, dense=torch.cat([fine, coarse + 1], 2))
    assert distiller.loss(other, target) > distiller.loss(view, target)
    for dense, missing in (((False, True), "student"), ((True, False), "teacher")):
        with pytest.raises(InputError, match=f"and the {missing} is not one"):
            DISTILLERS["outputs"](MimicConfig(distiller="outputs"), dataclasses.replace(ONE_STAGE, dense=dense))
