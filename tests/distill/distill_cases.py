"""Maps, sides and views for the tests of distillers: small, seeded, and of one stage or two."""

import dataclasses

import torch
from torch import Tensor

from qmimic.config import MimicConfig, QuantizerConfig
from qmimic.contracts import Features, Proposals
from qmimic.data.targets import PADDING, Targets
from qmimic.detectors.quantize import Quantizer
from qmimic.detectors.roi_pooling import roi_align
from qmimic.distill.distiller import Distiller, Heads, Sides, StudentView, Target, TeacherView
from qmimic.tables import DISTILLERS

STRIDE, SIZE = 16, (96, 128)
DRAWING = {"masked_generative"}  # distillers that draw random numbers by default
TRUTH = Targets(
    torch.tensor(
        [[[4.0, 8.0, 60.0, 70.0], [50.0, 5.0, 80.0, 30.0]], [[10.0, 20.0, 100.0, 90.0], [0.0, 0.0, 0.0, 0.0]]]
    ),
    torch.tensor([[0, 1], [1, PADDING]]),
)
REGIONS = Proposals(
    torch.tensor([[[0.0, 0.0, 50.0, 60.0], [30.0, 10.0, 90.0, 80.0]]] * 2), torch.tensor([[True, True], [True, False]])
)


def maps(seed: int, channels: int, stride: int = STRIDE) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.relu(torch.randn(2, channels, SIZE[0] // stride, SIZE[1] // stride, generator=generator) * 2)


def said(map_: Tensor) -> Tensor:
    """Outputs of two classes at every place, [2, 6, N], that follow from the first two channels of a map."""
    two = map_[:, :2]
    return torch.cat([two, two.flip(1), two / 2], 1).flatten(2)


def answered(features: Features, boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [2, P, 3] and deltas [2, P, 2, 4] of regions, that follow from what a map has there."""
    pooled = roi_align(features.map, boxes, 2, STRIDE).mean((3, 4))
    mixed = torch.cat([pooled, pooled.flip(2), pooled.square()], 2)
    return mixed[..., :3], torch.stack([mixed[..., :4], mixed[..., 1:5] / 2], 2)


ONE_STAGE = Sides(
    student_channels=(2,),
    teacher_channels=(5,),
    student_strides=(STRIDE,),
    teacher_strides=(STRIDE,),
    rms=(torch.tensor(2.0),),
    quantizer=Quantizer(QuantizerConfig(), torch.tensor([0.5])),
    size=SIZE,
    seed=0,
    dense=(True, True),
    heads=Heads(places=lambda features: torch.cat([said(one) for one in features.maps], 2)),
)
TWO_STAGES = dataclasses.replace(
    ONE_STAGE,
    dense=(False, False),
    anchors=((30.0, 20.0), (60.0, 64.0)),
    second_stage="faster_rcnn",
    heads=Heads(regions=answered, second_stage="faster_rcnn"),
)
# Every distiller between every two networks that it takes.
CASES = [
    (name, sides)
    for name in DISTILLERS
    for stages, sides in (("one", ONE_STAGE), ("two", TWO_STAGES))
    if (name, stages) not in {("outputs", "two"), ("two_stage_mimic", "one")}
]
NAMED = [f"{name}-{'one' if sides is ONE_STAGE else 'two'}" for name, sides in CASES]


def made(name: str, sides: Sides = ONE_STAGE, **switches: object) -> Distiller:
    """A distiller between two sides."""
    distiller: Distiller = DISTILLERS[name](MimicConfig(distiller=name, **switches), sides)
    return distiller


def target_of(distiller: Distiller, teacher: Tensor) -> Target:
    """What a teacher with this map leaves."""
    regions = REGIONS if distiller.teacher_regions else None
    return distiller.target(TeacherView(Features.of([teacher], [STRIDE]), regions, lambda: said(teacher)), TRUTH)


def view_of(distiller: Distiller, student: Tensor, seed: int = 0) -> StudentView:
    """What a student with this map shows."""
    features = Features.of([student], [STRIDE])
    regions = REGIONS if distiller.student_regions else None
    source = torch.Generator().manual_seed(seed)
    return StudentView(
        features, regions, TRUTH, source, dense=said(student), on_regions=lambda boxes: answered(features, boxes)
    )


def loss_and_maps(name: str, sides: Sides = ONE_STAGE, **switches: object) -> tuple[float, Tensor, Tensor, Distiller]:
    """A distiller's loss of two unquantized maps, f_t and r(f_s) in float64, and the distiller."""
    distiller = made(name, sides, mode="mimic", adaptor_relu=False, **switches)
    student, teacher = maps(1, 2), maps(2, 5)
    loss = distiller.loss(view_of(distiller, student), target_of(distiller, teacher)).item()
    return loss, teacher.double(), distiller.adapt(student).detach().double(), distiller
