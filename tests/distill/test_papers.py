"""FGFI, MGD, FGD, CrossKD and the two-stage mimic against their papers' equations, written out in loops in float64."""

import dataclasses
import math

import pytest
import torch
import torch.nn.functional as F
from distill_cases import (
    ONE_STAGE,
    REGIONS,
    SIZE,
    STRIDE,
    TRUTH,
    TWO_STAGES,
    answered,
    loss_and_maps,
    made,
    maps,
    said,
    target_of,
    view_of,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from qmimic.contracts import Features
from qmimic.data.targets import IGNORED, PADDING, Targets
from qmimic.distill.distiller import Heads, Sides, StudentView, TeacherView
from qmimic.distill.fine_grained import FineGrained
from qmimic.distill.focal_global import ONE_STAGE as FOCAL_ONE
from qmimic.distill.focal_global import TWO_STAGES as FOCAL_TWO
from qmimic.distill.focal_global import FocalGlobal, scale_mask
from qmimic.distill.masked_generative import MaskedGenerative
from qmimic.errors import InputError

ROWS, COLUMNS = SIZE[0] // STRIDE, SIZE[1] // STRIDE
Box = tuple[float, float, float, float]


def objects(truth: Targets, image: int) -> list[Box]:
    pairs = zip(truth.boxes[image].double().tolist(), truth.labels[image].tolist(), strict=True)
    return [tuple(box) for box, label in pairs if label >= 0]


def iou(a: Box, b: Box) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union


def near(
    truth: Targets, image: int, sizes: dict[int, list[tuple[float, float]]], psi: float
) -> set[tuple[int, int, int]]:
    """Stride, row and column of the places that Wang et al., section 3.1, imitate."""
    anchors = []
    for stride, own in sizes.items():
        for row in range(SIZE[0] // stride):
            for column in range(SIZE[1] // stride):
                x, y = (column + 0.5) * stride, (row + 0.5) * stride
                anchors += [((stride, row, column), (x - w / 2, y - h / 2, x + w / 2, y + h / 2)) for w, h in own]
    found = set()
    for thing in objects(truth, image):
        overlaps = [(place, iou(thing, anchor)) for place, anchor in anchors]
        most = max(value for _, value in overlaps)
        found |= {place for place, value in overlaps if value > psi * most}
    return found


def retina(stride: int, cells: tuple[float, ...] = (4.0, 5.04, 6.35)) -> list[tuple[float, float]]:
    return [(side * stride * r**0.5, side * stride / r**0.5) for side in cells for r in (0.5, 1.0, 2.0)]


@pytest.mark.parametrize("psi", [0.5, 0.8])
@pytest.mark.parametrize("sides", [ONE_STAGE, TWO_STAGES], ids=["settings", "own anchors"])
def test_fine_grained_is_its_equation(sides: Sides, psi: float) -> None:
    loss, teacher, student, _ = loss_and_maps("fine_grained", sides, settings={"threshold": psi})
    sizes = {STRIDE: list(sides.anchors) or retina(STRIDE)}
    total, count = 0.0, 0
    for image in range(2):
        for _, row, column in near(TRUTH, image, sizes, psi):
            count += 1
            total += sum(
                (student[image, c, row, column] - teacher[image, c, row, column]).item() ** 2 for c in range(5)
            )
    assert 0 < count < 2 * ROWS * COLUMNS
    assert loss == pytest.approx(total / (2 * count), rel=1e-4)


def test_fine_grained_of_several_levels_imitates_an_object_where_anchors_fit_it() -> None:
    sides = dataclasses.replace(
        ONE_STAGE, student_channels=(2, 3), teacher_channels=(4, 5), student_strides=(8, 32), teacher_strides=(8, 32),
        rms=(torch.ones(()),) * 2, size=(96, 128),
    )  # fmt: skip
    distiller = made("fine_grained", sides, mode="mimic", adaptor_relu=False)
    assert isinstance(distiller, FineGrained)
    student, teacher = [maps(1, 2, 8), maps(2, 3, 32)], [maps(3, 4, 8), maps(4, 5, 32)]
    target = distiller.target(TeacherView(Features.of(teacher, (8, 32)), None), TRUTH)
    view = StudentView(Features.of(student, (8, 32)), None, TRUTH, torch.Generator())
    sizes = {stride: retina(stride) for stride in (8, 32)}
    total, count = 0.0, 0
    for image in range(2):
        for stride, row, column in near(TRUTH, image, sizes, 0.5):
            place = (8, 32).index(stride)
            own = distiller.adapt(student[place], place).detach().double()
            count += 1
            total += (own - teacher[place].double())[image, :, row, column].square().sum().item()
    assert distiller.loss(view, target).item() == pytest.approx(total / (2 * count), rel=1e-4)


BOXES = st.tuples(st.integers(0, 100), st.integers(0, 70), st.integers(1, 90), st.integers(1, 90))
LABELS = st.sampled_from([0, 1, PADDING, IGNORED])


@settings(max_examples=40, deadline=None)
@given(things=st.lists(st.tuples(BOXES, LABELS), min_size=1, max_size=4), psi=st.sampled_from([0.3, 0.5, 0.9]))
def test_the_places_near_objects_are_those_of_the_paper(things: list[tuple[Box, int]], psi: float) -> None:
    boxes = [[x, y, min(x + w, SIZE[1]), min(y + h, SIZE[0])] for (x, y, w, h), _ in things]
    truth = Targets(torch.tensor([boxes]).float(), torch.tensor([[label for _, label in things]]))
    # Sides whose overlaps meet no threshold by a tie of exact numbers.
    sides = dataclasses.replace(ONE_STAGE, anchors=((37.13, 23.71), (71.3, 64.9)))
    distiller = made("fine_grained", sides, settings={"threshold": psi})
    assert isinstance(distiller, FineGrained)
    (mask,) = distiller.near(truth)
    wanted = near(truth, 0, {STRIDE: list(sides.anchors)}, psi)
    assert {(STRIDE, row, column) for row, column in mask[0].nonzero().tolist()} == wanted


def test_fine_grained_takes_no_anchors_beside_the_student_s_own() -> None:
    with pytest.raises(InputError, match=r"mimic\.settings\.anchor_cells has no effect, since the student has anchors"):
        made("fine_grained", TWO_STAGES, settings={"anchor_cells": [4]})


def test_a_batch_without_objects_imitates_nothing() -> None:
    distiller = made("fine_grained")
    empty = dataclasses.replace(
        view_of(distiller, maps(1, 2)), truth=Targets(torch.zeros(2, 1, 4), torch.full((2, 1), PADDING))
    )
    assert distiller.loss(empty, target_of(distiller, maps(2, 5))).item() == 0


def convolved(x: Tensor, layer: nn.Conv2d) -> Tensor:
    """A 3x3 convolution of a map [C, H, W] by loops over its nine taps."""
    weight, padded = layer.weight.detach().double(), F.pad(x, (1, 1, 1, 1))
    found = layer.bias.detach().double()[:, None, None].expand(-1, *x.shape[1:]).clone()
    for down in range(3):
        for across in range(3):
            part = padded[:, down : down + x.shape[1], across : across + x.shape[2]]
            found += torch.einsum("oc,chw->ohw", weight[:, :, down, across], part)
    return found


@pytest.mark.parametrize(("sides", "share"), [(ONE_STAGE, 0.65), (TWO_STAGES, 0.45)], ids=["one stage", "two stages"])
def test_masked_generative_is_its_equation(sides: Sides, share: float) -> None:
    loss, teacher, student, distiller = loss_and_maps("masked_generative", sides)
    assert isinstance(distiller, MaskedGenerative)
    (generator,) = distiller.generators
    drawn = torch.rand(2, ROWS, COLUMNS, generator=torch.Generator().manual_seed(0))
    total = 0.0
    for image in range(2):
        masked = student[image].clone()
        for row in range(ROWS):
            for column in range(COLUMNS):
                if drawn[image, row, column] < share:
                    masked[:, row, column] = 0
        hidden = convolved(masked, generator[0]).clamp(min=0)
        total += (teacher[image] - convolved(hidden, generator[2])).square().sum().item()
    assert loss == pytest.approx(total / 2, rel=1e-4)


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_so_many_places_are_masked_as_the_setting_says(share: float) -> None:
    distiller = made("masked_generative", settings={"masked": share}, mode="mimic")
    assert isinstance(distiller, MaskedGenerative)
    seen = []
    distiller.generators[0].register_forward_hook(lambda _, args, out: seen.append(args[0]))
    with torch.no_grad():
        distiller.adaptors[0].bias.fill_(9.0)  # so that nothing but the mask gives zeros
    for seed in range(20):
        distiller.loss(view_of(distiller, maps(1, 2), seed), target_of(distiller, maps(2, 5)))
    masked = torch.stack(seen).eq(0).all(2).double().mean().item()
    assert masked == pytest.approx(share, abs=0.05 if 0 < share < 1 else 0)


def focal_terms(teacher: Tensor, student: Tensor, truth: Targets, contexts: tuple[nn.Module, nn.Module]) -> list[float]:
    """Of Yang et al., eq. 9 to 12: the sums that alpha, beta, gamma and lambda weigh, T = 0.5, the mean over images."""
    temperature, images, channels = 0.5, len(teacher), teacher.shape[1]
    sums = [0.0] * 4

    def attend(one: Tensor) -> tuple[list[list[float]], list[float]]:
        strength = [[one[:, r, c].abs().mean().item() / temperature for c in range(COLUMNS)] for r in range(ROWS)]
        total = sum(math.exp(value) for row in strength for value in row)
        places = [[ROWS * COLUMNS * math.exp(value) / total for value in row] for row in strength]
        by_channel = [one[k].abs().mean().item() / temperature for k in range(channels)]
        whole = sum(math.exp(value) for value in by_channel)
        return places, [channels * math.exp(value) / whole for value in by_channel]

    def related(one: Tensor, module: nn.Module) -> Tensor:
        weight = {name: value.detach().double() for name, value in module.state_dict().items()}
        logits = [
            (weight["attend.weight"][0, :, 0, 0] @ one[:, r, c] + weight["attend.bias"][0]).item()
            for r in range(ROWS)
            for c in range(COLUMNS)
        ]
        total = sum(math.exp(value) for value in logits)
        context = sum(math.exp(v) / total * one[:, n // COLUMNS, n % COLUMNS] for n, v in enumerate(logits))
        hidden = weight["first.weight"] @ context + weight["first.bias"]
        hidden = (hidden - hidden.mean()) / (hidden.var(correction=0) + 1e-5).sqrt()
        hidden = (hidden * weight["norm.weight"] + weight["norm.bias"]).clamp(min=0)
        return one + (weight["last.weight"] @ hidden + weight["last.bias"])[:, None, None]

    for image in range(images):
        places, by_channel = attend(teacher[image])
        own_places, own_channels = attend(student[image])
        boxes = objects(truth, image)

        def scale(row: int, column: int, boxes: list[Box] = boxes) -> float | None:
            areas = []
            for x1, y1, x2, y2 in boxes:
                rows = [r for r in range(ROWS) if r * STRIDE < y2 and (r + 1) * STRIDE > y1]
                columns = [c for c in range(COLUMNS) if c * STRIDE < x2 and (c + 1) * STRIDE > x1]
                if row in rows and column in columns:
                    areas.append(len(rows) * len(columns))
            return 1 / min(areas) if areas else None

        scales = [[scale(r, c) for c in range(COLUMNS)] for r in range(ROWS)]
        outside = sum(one is None for row in scales for one in row)
        for r in range(ROWS):
            for c in range(COLUMNS):
                far = sum(
                    by_channel[k] * (teacher[image, k, r, c] - student[image, k, r, c]).item() ** 2
                    for k in range(channels)
                )
                own = scales[r][c]
                sums[0 if own is not None else 1] += far * places[r][c] * (1 / outside if own is None else own)
                sums[2] += abs(places[r][c] - own_places[r][c])
        sums[2] += sum(abs(a - b) for a, b in zip(by_channel, own_channels, strict=True))
        off = related(teacher[image], contexts[0]) - related(student[image], contexts[1])
        sums[3] += off.square().sum().item()
    return [value / images for value in sums]


@pytest.mark.parametrize(("sides", "weights"), [(ONE_STAGE, FOCAL_ONE), (TWO_STAGES, FOCAL_TWO)], ids=["one", "two"])
def test_focal_global_is_its_equation(sides: Sides, weights: tuple[float, ...]) -> None:
    distiller = made("focal_global", sides, mode="mimic", adaptor_relu=False)
    assert isinstance(distiller, FocalGlobal)
    assert tuple(distiller.weights) == weights
    contexts = distiller.teacher_contexts[0], distiller.student_contexts[0]
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for context in contexts:  # they begin by adding nothing
            nn.init.normal_(context.last.weight, generator=generator)
            nn.init.normal_(context.last.bias, generator=generator)
    student, teacher = maps(1, 2), maps(2, 5)
    terms = focal_terms(teacher.double(), distiller.adapt(student).detach().double(), TRUTH, contexts)
    target, view = target_of(distiller, teacher), view_of(distiller, student)
    wanted = sum(weight * term for weight, term in zip(weights, terms, strict=True))
    assert distiller.loss(view, target).item() == pytest.approx(wanted, rel=1e-4)
    for place, name in enumerate(("foreground", "background", "attention", "relation")):
        alone = {one: float(one == name) for one in distiller.weights._fields}
        single = made("focal_global", sides, mode="mimic", adaptor_relu=False, settings=alone)
        single.load_state_dict(distiller.state_dict())
        assert single.loss(view, target).item() == pytest.approx(terms[place], rel=1e-4)


def test_every_object_weighs_the_same_whatever_its_size() -> None:
    boxes = torch.tensor([[[0.0, 0.0, 16.0, 16.0], [32.0, 16.0, 128.0, 96.0], [3.0, 90.0, 4.0, 91.0]]])
    foreground, background = scale_mask(Targets(boxes, torch.tensor([[0, 1, 0]])), STRIDE, (ROWS, COLUMNS))
    assert foreground.sum().item() == pytest.approx(3)
    assert foreground[0, :, 2:].sum().item() == pytest.approx(1)
    assert background.sum().item() == pytest.approx(1)
    everywhere = Targets(torch.tensor([[[0.0, 0.0, SIZE[1], SIZE[0]]]]), torch.tensor([[0]]))
    assert [one.sum().item() for one in scale_mask(everywhere, STRIDE, (ROWS, COLUMNS))] == [pytest.approx(1), 0]


def softmax(values: list[float]) -> list[float]:
    total = sum(math.exp(value) for value in values)
    return [math.exp(value) / total for value in values]


def test_cross_head_of_one_stage_is_its_equation() -> None:
    loss, teacher, student, _ = loss_and_maps("cross_head")
    theirs, crossed = said(teacher), said(student)
    classes = boxes = total = 0.0

    def box(sides: list[float], place: int) -> Box:
        x, y = (place % COLUMNS + 0.5) * STRIDE, (place // COLUMNS + 0.5) * STRIDE
        left, top, right, bottom = (STRIDE * math.exp(min(4.0, max(-4.0, side))) for side in sides)
        return (x - left, y - top, x + right, y + bottom)

    def giou(a: Box, b: Box) -> float:
        hull = (max(a[2], b[2]) - min(a[0], b[0])) * (max(a[3], b[3]) - min(a[1], b[1]))
        areas = [(one[2] - one[0]) * (one[3] - one[1]) for one in (a, b)]
        union = sum(areas) / (1 + iou(a, b))
        return iou(a, b) - (hull - union) / hull

    for image in range(2):
        for place in range(ROWS * COLUMNS):
            own, wanted = crossed[image, :, place].tolist(), theirs[image, :, place].tolist()
            best = 0.0
            for s, t in zip(own[:2], wanted[:2], strict=True):
                p, q = 1 / (1 + math.exp(-s)), 1 / (1 + math.exp(-t))
                classes += abs(q - p) * -(q * math.log(p) + (1 - q) * math.log(1 - p))
                best = max(best, q)
            total += best
            boxes += best * (1 - giou(box(own[2:], place), box(wanted[2:], place)))
    assert loss == pytest.approx((classes + 2 * boxes) / total, rel=1e-4)


@pytest.mark.parametrize("regions", ["teacher", "student", "ground_truth"])
def test_cross_head_of_two_stages_is_its_equation(regions: str) -> None:
    loss, teacher, student, _ = loss_and_maps("cross_head", TWO_STAGES, regions=regions, with_truth=False)
    seen = Targets(TRUTH.boxes, TRUTH.labels)
    boxes, valid = (seen.boxes, seen.labels >= 0) if regions == "ground_truth" else (REGIONS.boxes, REGIONS.valid)
    (z_t, b_t), (z_s, b_s) = (
        answered(Features.of([one], [STRIDE]), boxes) for one in (teacher.float(), student.float())
    )
    classes = distance = weights = 0.0
    for image, region in valid.nonzero().tolist():
        wanted, own = (softmax([v / 3 for v in one[image, region].tolist()]) for one in (z_t, z_s))
        classes += 9 * sum(p * math.log(p / q) for p, q in zip(wanted, own, strict=True))
        scores = softmax(z_t[image, region].tolist())[1:]
        best = scores.index(max(scores))
        off = (b_t - b_s)[image, region, best].abs().mean().item()
        distance, weights = distance + max(scores) * off, weights + max(scores)
    assert loss == pytest.approx(0.5 * classes / int(valid.sum()) + distance / weights, rel=1e-3)


@pytest.mark.parametrize("regions", ["teacher", "student", "ground_truth"])
@pytest.mark.parametrize("weights", [{}, {"features": 0, "logits": 2}, {"boxes": 0.0}])
def test_two_stage_mimic_is_its_equation(regions: str, weights: dict[str, float]) -> None:
    switches = {"regions": regions, "with_truth": False}
    loss, teacher, _, _ = loss_and_maps("two_stage_mimic", TWO_STAGES, settings=weights, **switches)
    feature, *_ = loss_and_maps("mimic", TWO_STAGES, **switches)
    boxes, valid = (TRUTH.boxes, TRUTH.labels >= 0) if regions == "ground_truth" else (REGIONS.boxes, REGIONS.valid)
    of_teacher = answered(Features.of([teacher.float()], [STRIDE]), boxes)
    of_student = answered(Features.of([maps(1, 2)], [STRIDE]), boxes)
    logits = deltas = 0.0
    for image, region in valid.nonzero().tolist():
        z, b = ((a - c)[image, region].double().flatten().tolist() for a, c in zip(of_teacher, of_student, strict=True))
        logits, deltas = logits + sum(v * v for v in z), deltas + sum(v * v for v in b)
    own = {"features": 1.0, "logits": 1.0, "boxes": 1.0} | weights
    wanted = own["features"] * feature + (own["logits"] * logits + own["boxes"] * deltas) / (2 * int(valid.sum()))
    assert loss == pytest.approx(wanted, rel=1e-4)


def test_what_the_heads_say_is_compared_on_the_regions_that_the_map_is() -> None:
    drawn = {"regions": "student", "sampling": "balanced"}  # the regions are drawn once, for both
    alone, *_ = loss_and_maps("two_stage_mimic", TWO_STAGES, settings={"logits": 0, "boxes": 0}, **drawn)
    assert alone == loss_and_maps("mimic", TWO_STAGES, **drawn)[0]


def test_two_stage_mimic_matches_whole_maps_without_heads_first() -> None:
    distiller = made("two_stage_mimic", TWO_STAGES, map_steps=0.5)
    plain = made("mimic", TWO_STAGES, map_steps=0.5)
    view = dataclasses.replace(view_of(distiller, maps(1, 2)), whole_map=True, on_regions=None)
    assert distiller.loss(view, target_of(distiller, maps(2, 5))) == plain.loss(view, target_of(plain, maps(2, 5)))


FILE = dataclasses.replace(ONE_STAGE, dense=(True, False), heads=Heads())


@pytest.mark.parametrize(
    ("name", "sides", "switches", "sentence"),
    [
        ("cross_head", FILE, {}, "this teacher has none to lend"),
        ("cross_head", dataclasses.replace(ONE_STAGE, teacher_strides=(8, 16), teacher_channels=(5, 5)), {},
         "need maps of output strides 8, 16; the student's are 16"),
        ("cross_head", ONE_STAGE, {"map_steps": 0.1}, "no phase of maps alone; set mimic.map_steps=0"),
        ("cross_head", ONE_STAGE, {"regions": "student"}, "mimic.regions has no effect with mimic.distiller=cro"),
        ("cross_head", TWO_STAGES, {"regions": "map"}, "needs regions of a teacher of two stages"),
        ("two_stage_mimic", ONE_STAGE, {}, "and the student has none"),
        ("two_stage_mimic", dataclasses.replace(TWO_STAGES, heads=Heads()), {}, "and the teacher has none"),
        ("two_stage_mimic", dataclasses.replace(TWO_STAGES, second_stage="rfcn"), {}, "those of rfcn"),
        ("two_stage_mimic", TWO_STAGES, {"regions": "map"}, "needs regions: set mimic.regions to another value"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused(name: str, sides: Sides, switches: dict[str, object], sentence: str) -> None:
    with pytest.raises(InputError, match=sentence) as refused:
        made(name, sides, **switches)
    assert "\n" not in str(refused.value)
