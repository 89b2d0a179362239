"""Mimic over scales: the teacher in the student's pixels, the student's smaller views, and the deconvolution."""

from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from qmimic.config import AugmentConfig, MimicConfig, QuantizerConfig
from qmimic.contracts import Features
from qmimic.data.augment import Views
from qmimic.data.targets import Targets
from qmimic.detectors.quantize import Quantizer
from qmimic.distill.distiller import Sides
from qmimic.distill.mimic import Mimic
from qmimic.distill.scales import Enlarger, LargerTeacher, bilinear, of_scale, smaller
from qmimic.distill.teacher import DetectorTeacher
from qmimic.errors import InputError
from qmimic.training.step import DetectionObjective, DistillationObjective, StepGenerators
from tiny_detectors import lively, tiny_spec

SCALE = 2
LARGE = (192, 192)


def large_images(seed: int) -> Tensor:
    return torch.randint(0, 256, (2, 3, *LARGE), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


def a_teacher() -> DetectorTeacher:
    return DetectorTeacher(lively(tiny_spec(backbone="resnet18/8", size=LARGE)), bf16=False)


@pytest.mark.parametrize("times", [2, 4])
def test_the_deconvolution_begins_as_bilinear_interpolation(times: int) -> None:
    map_ = torch.randn(2, 3, 6, 5, generator=torch.Generator().manual_seed(0))
    wanted = F.interpolate(map_, scale_factor=times, mode="bilinear", align_corners=False)
    found = bilinear(3, times)(map_)
    assert found.shape == wanted.shape
    inside = (..., slice(times, -times), slice(times, -times))  # beyond the border it sees zeros
    torch.testing.assert_close(found[inside], wanted[inside])


@pytest.mark.parametrize(
    ("own", "others", "wanted"),
    [
        ((16,), (8,), (8,)),
        ((32,), (8, 16), (16,)),
        ((8,), (8,), (8,)),
        ((8, 16, 32), (4, 8, 16), (8, 16, 32)),  # two are shared: nothing to enlarge
        ((16, 32), (4, 8), (8, 32)),
        ((8,), (16,), (8,)),  # finer than the teacher's: nobody can help
    ],
)
def test_one_level_is_enlarged_where_no_stride_is_shared(
    own: tuple[int, ...], others: tuple[int, ...], wanted: tuple[int, ...]
) -> None:
    enlarger = Enlarger((3,) * len(own), own, others)
    features = Features.of([torch.rand(1, 3, 64 // stride, 64 // stride) for stride in own], own)
    shown = enlarger(features)
    assert tuple(level.stride for level in shown.levels) == enlarger.strides == wanted
    assert [one.shape[-1] for one in shown.maps] == [64 // stride for stride in wanted]
    for before, after, old, new in zip(features.maps, shown.maps, own, wanted, strict=True):
        assert (before is after) == (old == new)


def test_smaller_views_by_hand() -> None:
    images = torch.zeros(1, 3, 4, 4, dtype=torch.uint8)
    images[0, 0, :2, :2] = torch.tensor([[1, 2], [3, 5]])
    views = Views(images, Targets(torch.tensor([[[2.0, 4.0, 6.0, 8.0]]]), torch.tensor([[1]])), None)
    seen = smaller(views, SCALE)
    assert seen.images[0, 0].tolist() == [[2.75, 0], [0, 0]]
    assert seen.targets.boxes.tolist() == [[[1, 2, 3, 4]]]
    assert seen.targets.labels is views.targets.labels
    assert smaller(views, 1) is views


@torch.no_grad()
def test_a_larger_teacher_speaks_in_the_students_pixels() -> None:
    own, images = a_teacher(), large_images(1)
    larger = LargerTeacher(own, SCALE)
    assert larger.strides == tuple(stride // SCALE for stride in own.strides)
    assert larger.channels == own.channels
    plain, seen = own.look(images, True), larger.look(images, True)
    assert torch.equal(seen.features.map, plain.features.map)
    assert plain.regions is not None
    assert seen.regions is not None
    torch.testing.assert_close(seen.regions.boxes * SCALE, plain.regions.boxes)
    assert torch.equal(seen.regions.valid, plain.regions.valid)
    assert own.heads.regions is not None
    assert larger.heads.regions is not None
    of_own = own.heads.regions(plain.features, plain.regions.boxes)
    for theirs, ours in zip(of_own, larger.heads.regions(seen.features, seen.regions.boxes), strict=True):
        torch.testing.assert_close(theirs, ours)
    assert of_scale(own, 1) is own
    assert isinstance(larger.exact(), LargerTeacher)


@pytest.mark.parametrize("regions", ["map", "teacher", "student"])
def test_a_step_learns_what_two_networks_see_at_two_sizes(regions: str) -> None:
    teacher = of_scale(a_teacher(), SCALE)
    student = lively(tiny_spec(size=(96, 96))).train()
    enlarger = Enlarger(student.channels, student.strides, teacher.strides)
    quantizer = Quantizer(QuantizerConfig(), torch.tensor([0.5]))
    config = MimicConfig(mode="mimic", weight=1.0, regions=regions, normalize="paper")
    sides = Sides(
        student.channels,
        teacher.channels,
        enlarger.strides,
        teacher.strides,
        (torch.tensor(1.0),),
        quantizer,
        (96, 96),
        0,
    )
    still = AugmentConfig(flip=0, scale=(1, 1), shift=0, colour=0)
    objective = DistillationObjective(
        student, Mimic(config, sides), teacher, None, config, still, scale=SCALE, enlarger=enlarger
    )
    images = large_images(2)
    targets = Targets(
        torch.tensor([[[20.0, 30.0, 120.0, 150.0]], [[10.0, 10.0, 90.0, 170.0]]]), torch.tensor([[0], [1]])
    )

    def generators() -> StepGenerators:
        return StepGenerators(torch.Generator().manual_seed(3), torch.Generator().manual_seed(4))

    found = objective(images, targets, generators(), 0.0)
    # Detection is that of the small pictures alone.
    small = Targets(targets.boxes / SCALE, targets.labels)
    alone = DetectionObjective(student, still)(F.avg_pool2d(images.float(), SCALE), small, generators(), 0.0)
    for name, loss in alone.items():
        torch.testing.assert_close(found[name], loss)
    # Every entry of the whole map, by the equation: 1/(2N) sum || f_t - r(f_s) ||^2 in float64.
    if regions == "map":
        own = enlarger.deconvolution(student.raw_features(F.avg_pool2d(images.float(), SCALE)).map)
        adapted = objective.distiller.adapt(own).double()
        seen = teacher.look(images, False).features.map.double()
        torch.testing.assert_close(found["distillation"].double(), (seen - adapted).square().sum() / (2 * len(images)))
    found["distillation"].backward()
    assert enlarger.deconvolution.weight.grad.abs().sum() > 0
    assert all(one.grad is None for one in teacher.teacher.detector.parameters())


@pytest.mark.parametrize(("strides", "scale"), [((2,), 4), ((6, 12), 4), ((3,), 2)])
def test_maps_between_the_students_pixels_are_refused(strides: tuple[int, ...], scale: int) -> None:
    teacher = SimpleNamespace(strides=strides)
    with pytest.raises(InputError, match=rf"must be multiples of {scale}; one is {strides[0]}"):
        of_scale(teacher, scale)
    assert of_scale(teacher, 1) is teacher
