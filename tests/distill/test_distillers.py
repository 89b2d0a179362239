"""What holds for every distiller, and each against its paper's equation, written out with loops in float64."""

import dataclasses
import math

import pytest
import torch
from torch import Tensor

from qmimic.config import MimicConfig, QuantizerConfig, recipe_from
from qmimic.contracts import Features, Proposals
from qmimic.data.targets import PADDING, Targets
from qmimic.detectors.quantize import Quantizer
from qmimic.distill.bank import Bank, layout_of
from qmimic.distill.distiller import Distiller, Sides, StudentView, TeacherView
from qmimic.distill.map_distiller import MapDistiller
from qmimic.errors import InputError
from qmimic.tables import DISTILLERS, MODES

STRIDE, SIZE = 16, (96, 128)
SIDES = Sides(
    student_channels=(2,),
    teacher_channels=(5,),
    student_strides=(STRIDE,),
    teacher_strides=(STRIDE,),
    rms=(torch.tensor(2.0),),
    quantizer=Quantizer(QuantizerConfig(), torch.tensor([0.5])),
    size=SIZE,
    seed=0,
    dense=(True, True),
)
TRUTH = Targets(
    torch.tensor(
        [[[4.0, 8.0, 60.0, 70.0], [50.0, 5.0, 80.0, 30.0]], [[10.0, 20.0, 100.0, 90.0], [0.0, 0.0, 0.0, 0.0]]]
    ),
    torch.tensor([[0, 1], [1, PADDING]]),
)
REGIONS = Proposals(
    torch.tensor([[[0.0, 0.0, 50.0, 60.0], [30.0, 10.0, 90.0, 80.0]]] * 2), torch.tensor([[True, True], [True, False]])
)


def maps(seed: int, channels: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.relu(torch.randn(2, channels, SIZE[0] // STRIDE, SIZE[1] // STRIDE, generator=generator) * 2)


def said(map_: Tensor) -> Tensor:
    """Outputs of two classes at every place, [2, 6, N], that follow from a map of two channels."""
    return torch.cat([map_, map_.flip(1), map_ / 2], 1).flatten(2)


def made(name: str, **switches: object) -> Distiller:
    """A distiller between these sides."""
    distiller: Distiller = DISTILLERS[name](MimicConfig(distiller=name, **switches), SIDES)
    return distiller


def loss_and_maps(name: str) -> tuple[float, Tensor, Tensor]:
    """A distiller's loss of two unquantized maps, and f_t and r(f_s) in float64."""
    distiller = made(name, mode="mimic", adaptor_relu=False)
    assert isinstance(distiller, MapDistiller)
    student, teacher = maps(1, 2), maps(2, 5)
    target = distiller.target(TeacherView(Features.of([teacher], [STRIDE]), None), TRUTH)
    view = StudentView(Features.of([student], [STRIDE]), None, TRUTH, torch.Generator().manual_seed(0))
    loss = distiller.loss(view, target).item()
    return loss, teacher.double(), distiller.adapt(student).detach().double()


class Recorder:
    """A config that knows which of its settings were read."""

    def __init__(self, config: MimicConfig) -> None:
        self.of, self.seen = config, set[str]()

    def __getattr__(self, name: str) -> object:
        self.seen |= {name} & set(MimicConfig.model_fields)
        return getattr(self.of, name)


@pytest.mark.parametrize("name", DISTILLERS)
def test_a_distiller_reads_the_settings_that_it_says_it_reads(name: str) -> None:
    ways = [{}, {"regions": "map"}, {"regions": "student", "sampling": "balanced"}, {"pooling": "crop"}]
    shared = {"mode", "settings", "weight", "share", "map_steps", "last_step"}
    seen: set[str] = set()
    for switches in [one for one in ways if set(one) <= DISTILLERS[name].reads]:
        config = Recorder(MimicConfig(distiller=name, **switches))
        distiller = DISTILLERS[name](config, SIDES)
        regions = REGIONS if distiller.teacher_regions else None
        teacher = TeacherView(Features.of([maps(2, 5)], [STRIDE]), regions, lambda: said(maps(2, 2)))
        target = distiller.target(teacher, TRUTH)
        regions = REGIONS if distiller.student_regions else None
        source = torch.Generator().manual_seed(0)
        features = Features.of([maps(1, 2)], [STRIDE])
        distiller.loss(StudentView(features, regions, TRUTH, source, dense=said(maps(1, 2))), target)
        seen |= config.seen
    assert seen - shared == DISTILLERS[name].reads


@pytest.mark.parametrize("name", DISTILLERS)
def test_what_a_distiller_does_not_read_is_refused(name: str) -> None:
    others = {
        "distance": "cell", "normalize": "paper", "adaptor_relu": False, "order": "quantize_pool", "pooling": "crop",
        "regions": "student", "with_truth": False, "region_count": 7,
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
    for wrong, said in (({"temprature": 1}, "did you mean temperature"), ({"temperature": 0}, "greater than 0")):
        with pytest.raises(InputError, match=said):
            recipe_from({"mimic": {"distiller": "channel_wise", "settings": wrong}}, "own")
    teacher, student = maps(2, 5), maps(3, 5)
    cold, paper, usual = (
        made("channel_wise", settings=own).map_loss(teacher, student, TRUTH, 0)
        for own in ({"temperature": 1}, {"temperature": 4}, {})
    )
    assert float(paper) == float(usual) != float(cold)


@pytest.mark.parametrize(
    ("name", "switches"),
    [
        (name, switches)
        for name in DISTILLERS
        for switches in ({}, {"regions": "map"}, {"regions": "student", "sampling": "balanced"})
        if set(switches) <= DISTILLERS[name].reads
    ],
)
def test_a_distiller_gives_one_target_for_one_view_and_a_gradient_to_the_student(
    name: str, switches: dict[str, object]
) -> None:
    distiller = DISTILLERS[name](MimicConfig(distiller=name, **switches), SIDES)
    view = TeacherView(
        Features.of([maps(2, 5)], [STRIDE]), REGIONS if distiller.teacher_regions else None, lambda: said(maps(2, 2))
    )
    first, second = (distiller.target(view, TRUTH) for _ in range(2))
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert all(len(one) == 2 and not one.requires_grad for one in first.values())
    assert set(distiller.grids()) <= set(first)
    student = maps(1, 2).requires_grad_()
    own = REGIONS if distiller.student_regions else None
    seen = StudentView(
        Features.of([student], [STRIDE]), own, TRUTH, torch.Generator().manual_seed(0), dense=said(student)
    )
    distiller.loss(seen, first).backward()
    assert student.grad is not None
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("name", DISTILLERS)
@pytest.mark.parametrize("mode", [mode for mode in MODES if mode != "none"])
def test_a_bank_gives_the_loss_that_the_target_gave(name: str, mode: str, tmp_path: object) -> None:
    distiller = made(name, mode=mode)
    view = TeacherView(
        Features.of([maps(2, 5)], [STRIDE]), REGIONS if distiller.teacher_regions else None, lambda: said(maps(2, 2))
    )
    target = distiller.target(view, TRUTH)
    bank = Bank(tmp_path / "bank.bin", 2, layout_of([target], distiller.grids()))
    rows = torch.arange(2)
    bank.get(rows, lambda: target)
    kept = bank.get(rows, lambda: pytest.fail("the bank has these"))
    assert set(kept) == set(target)
    assert all(torch.equal(kept[key], target[key]) for key in target)


def test_channel_wise_is_its_equation() -> None:
    loss, teacher, student = loss_and_maps("channel_wise")
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
    loss, teacher, student = loss_and_maps("pearson")
    correlations = [
        float(torch.corrcoef(torch.stack([teacher[:, c].flatten(), student[:, c].flatten()]))[0, 1]) for c in range(5)
    ]
    assert loss == pytest.approx(1 - sum(correlations) / 5, rel=1e-3)


def test_pearson_does_not_depend_on_the_scale_of_the_maps() -> None:
    distiller = made("pearson", mode="mimic")
    teacher, student = maps(2, 5), maps(3, 5)
    one, other = (distiller.map_loss(k * teacher + k, student, TRUTH, 0) for k in (1, 7))
    assert float(one) == pytest.approx(float(other), rel=1e-3)


def test_outputs_is_its_equation() -> None:
    distiller = made("outputs", mode="mimic")
    student, teacher = said(maps(1, 2)), said(maps(2, 2)) - 0.5
    target = distiller.target(TeacherView(Features.of([maps(2, 5)], [STRIDE]), None, lambda: teacher), TRUTH)
    view = StudentView(
        Features.of([maps(1, 2)], [STRIDE]), None, TRUTH, torch.Generator().manual_seed(0), dense=student
    )
    classes = boxes = total = 0.0
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
            boxes += best * (1 - giou(box(own[2:], place), box(theirs[2:], place)))
    assert distiller.loss(view, target).item() == pytest.approx((classes + 2 * boxes) / total, rel=1e-4)


def test_outputs_of_common_levels_are_compared_and_two_stages_have_none() -> None:
    sides = dataclasses.replace(SIDES, student_strides=(8, 16), student_channels=(2, 2))
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
            DISTILLERS["outputs"](MimicConfig(distiller="outputs"), dataclasses.replace(SIDES, dense=dense))
