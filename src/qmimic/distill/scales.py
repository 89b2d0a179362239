"""Mimic over scales (Li et al., CVPR 2017, section 3.5): the student sees its pictures smaller than its teacher does.

A distiller knows of one scale alone, the student's. The teacher speaks in the student's pixels, and a map of the
student that is coarser than all of the teacher's is brought up to one of them by a deconvolution, which is trained with
the student and left behind in the end, as the adaptor r is.
"""

from collections.abc import Callable
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init

from qmimic.contracts import Features, Proposals
from qmimic.data.augment import Views
from qmimic.distill.distiller import Heads, TeacherView
from qmimic.distill.teacher import Teacher
from qmimic.errors import InputError


class LargerTeacher:
    """A teacher that sees the pictures `scale` times as large as the student, and speaks in the student's pixels.

    Args:
        teacher: looks at the larger pictures.
        scale: how many times as high and wide they are.
    """

    def __init__(self, teacher: Teacher, scale: int) -> None:
        self.teacher, self.scale = teacher, scale

    @property
    def channels(self) -> tuple[int, ...]:
        """See `Teacher`."""
        return self.teacher.channels

    @property
    def strides(self) -> tuple[int, ...]:
        """See `Teacher`; in pixels of the student's pictures."""
        return tuple(stride // self.scale for stride in self.teacher.strides)

    @property
    def place_strides(self) -> tuple[int, ...]:
        """See `Teacher`; in pixels of the student's pictures."""
        return tuple(stride // self.scale for stride in self.teacher.place_strides)

    @property
    def has_regions(self) -> bool:
        """See `Teacher`."""
        return self.teacher.has_regions

    @property
    def heads(self) -> Heads:
        """See `Teacher`; regions are in pixels of the student's pictures."""
        own = self.teacher.heads
        regions: Callable[[Features, Tensor], tuple[Tensor, Tensor]] | None = None
        if own.regions is not None:
            of_larger = own.regions

            def regions(features: Features, boxes: Tensor) -> tuple[Tensor, Tensor]:
                return of_larger(features, boxes * self.scale)

        return replace(own, regions=regions)

    def look(self, images: Tensor, regions: bool) -> TeacherView:
        """See `Teacher.look`; the images are the larger ones."""
        seen = self.teacher.look(images, regions)
        features = Features.of(seen.features.maps, self.strides)
        found = seen.regions and Proposals(seen.regions.boxes / self.scale, seen.regions.valid)
        return TeacherView(features, found, seen.dense)

    def exact(self) -> "LargerTeacher":
        """See `Teacher.exact`."""
        return LargerTeacher(self.teacher.exact(), self.scale)


def of_scale(teacher: Teacher, scale: int) -> Teacher:
    """A teacher that sees pictures `scale` times as large as its student, as the student's distiller takes it.

    Raises:
        InputError: the stride of one of its maps is no whole number of the student's pixels.
    """
    if odd := [stride for stride in teacher.strides if stride % scale]:
        raise InputError(
            f"With teacher.scale={scale}, the strides of the teacher's maps must be multiples of {scale}; one is "
            f"{odd[0]}. Take a coarser map or a smaller scale."
        )
    return teacher if scale == 1 else LargerTeacher(teacher, scale)


class Enlarger(nn.Module):
    """A deconvolution that brings a student's map to the stride of its teacher's; nothing where a stride is shared.

    Of the student's levels, the finest that is coarser than one of the teacher's is enlarged. It begins as bilinear
    interpolation (Long et al., CVPR 2015).

    Args:
        channels, strides: of the student's levels, strides in growing order, pixels.
        others: strides of the teacher's levels, in the same pixels.

    Attributes:
        strides: of the levels as they are compared.
    """

    def __init__(self, channels: tuple[int, ...], strides: tuple[int, ...], others: tuple[int, ...]) -> None:
        super().__init__()
        self.strides, self.level, self.deconvolution = strides, None, None
        finer = [(level, max(fitting)) for level, own in enumerate(strides) if (fitting := _dividing(own, others))]
        if finer and not set(strides) & set(others):
            level, stride = finer[0]
            self.level = level
            self.strides = (*strides[:level], stride, *strides[level + 1 :])
            self.deconvolution = bilinear(channels[level], strides[level] // stride)

    def forward(self, features: Features) -> Features:
        """The student's levels with one of them enlarged, if one has to be."""
        if self.level is None or self.deconvolution is None:
            return features
        maps = list(features.maps)
        maps[self.level] = self.deconvolution(maps[self.level])
        return Features.of(maps, self.strides)


def bilinear(channels: int, times: int) -> nn.ConvTranspose2d:
    """A deconvolution that enlarges maps [B, C, H, W] by `times`, an even number; bilinear interpolation at first."""
    layer: nn.ConvTranspose2d = skip_init(
        nn.ConvTranspose2d, channels, channels, 2 * times, times, times // 2, bias=False
    )
    side = 1 - (torch.arange(2 * times) + 0.5 - times).abs() / times
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[range(channels), range(channels)] = side[:, None] * side
    return layer


def smaller(views: Views, scale: int) -> Views:
    """The same views for a student that sees them `scale` times smaller: means of `scale` x `scale` pixels."""
    if scale == 1:
        return views
    images = F.avg_pool2d(views.images.float(), scale)
    return replace(views, images=images, targets=replace(views.targets, boxes=views.targets.boxes / scale))


def _dividing(stride: int, others: tuple[int, ...]) -> list[int]:
    return [other for other in others if other < stride and stride % other == 0]
