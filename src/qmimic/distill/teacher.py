"""The contract of a teacher, and the first kind: a trained detector of ours.

Another kind is a class with the same attributes and `look`, made from the recipe's `teacher` and the size of the
pictures, and a line in `TEACHERS` (tables.py); `OnnxTeacher` is one.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from qmimic.contracts import Features
from qmimic.detections import Detections
from qmimic.detectors.detector import Detector
from qmimic.detectors.evaluation import unpad
from qmimic.distill.distiller import Heads, TeacherView


class Teacher(Protocol):
    """Whoever looks at the student's views and shows what it sees. It is frozen: the same view gives the same answer.

    Attributes:
        channels, strides: of each of its levels, the strides in growing order, pixels.
        place_strides: of the levels of which its views have outputs at every place; empty where it has none.
        has_regions: whether it can show regions.
        heads: what it says of maps like its own; `Heads()` of a teacher that has maps alone.
    """

    @property
    def channels(self) -> tuple[int, ...]: ...

    @property
    def strides(self) -> tuple[int, ...]: ...

    @property
    def place_strides(self) -> tuple[int, ...]: ...

    @property
    def has_regions(self) -> bool: ...

    @property
    def heads(self) -> Heads: ...

    def look(self, images: Tensor, regions: bool) -> TeacherView:
        """What it sees; no gradient.

        Args:
            images: views [B, 3, H, W], RGB, uint8 or float in 0..255.
            regions: whether its regions are wanted too.
        """
        ...

    def exact(self) -> "Teacher":
        """The same teacher computed in float32, for what is measured and not learnt from; itself if it always is."""
        ...


@runtime_checkable
class Labeller(Protocol):
    """A teacher that can label pictures besides.

    Attributes:
        size: height and width of the pictures that it takes for that, pixels.
    """

    size: tuple[int, int]

    def labeller(self, classes: Sequence[str]) -> Callable[[Tensor], list[Detections]]:
        """A function of pictures uint8 [B, 3, H, W] of `size`, RGB: what it finds in each, the best first.

        Args:
            classes: the data's; labels of detections are places in it. Boxes are in pixels of the pictures given.
        """
        ...


class DetectorTeacher:
    """A frozen detector as a teacher; its regions are its proposals, or its detections where it has no proposals.

    Args:
        detector: any; it is put into evaluation mode for good.
        bf16: compute it in bf16.
    """

    def __init__(self, detector: Detector, bf16: bool) -> None:
        self.detector = detector.eval().requires_grad_(False)
        self.bf16 = bf16
        self.size = detector.spec.size

    @property
    def channels(self) -> tuple[int, ...]:
        """See `Teacher`."""
        return self.detector.channels

    @property
    def strides(self) -> tuple[int, ...]:
        """See `Teacher`."""
        return self.detector.strides

    @property
    def place_strides(self) -> tuple[int, ...]:
        """See `Teacher`."""
        return self.detector.place_strides

    has_regions = True

    @property
    def heads(self) -> Heads:
        """See `Teacher`. The heads see maps quantized where the detector has a quantizer."""
        detector = self.detector

        def places(features: Features) -> Tensor:
            with self._precision(features.levels[0].map):
                return detector.place_outputs(detector.quantize(features))

        def regions(features: Features, boxes: Tensor) -> tuple[Tensor, Tensor]:
            with self._precision(features.levels[0].map):
                return detector.region_outputs(detector.quantize(features), boxes)

        stage = detector.second_stage
        return Heads(places if self.place_strides else None, regions if stage else None, stage)

    @torch.no_grad()
    def look(self, images: Tensor, regions: bool) -> TeacherView:
        """See `Teacher.look`."""
        detector = self.detector
        with self._precision(images):
            features = detector.raw_features(images)
            found = detector.propose(detector.quantize(features)) if regions else None

        places = self.heads.places
        return TeacherView(features, found, partial(torch.no_grad()(places), features) if places else None)

    def exact(self) -> "DetectorTeacher":
        """See `Teacher.exact`."""
        return DetectorTeacher(self.detector, bf16=False)

    def _precision(self, like: Tensor) -> torch.autocast:
        return torch.autocast(like.device.type, torch.bfloat16, enabled=self.bf16)

    def labeller(self, classes: Sequence[str]) -> Callable[[Tensor], list[Detections]]:
        """See `Labeller`; it finds what it finds on val, in float32."""
        assert tuple(classes) == self.detector.spec.classes, "the run trained it on these data"

        def find(images: Tensor) -> list[Detections]:
            output = self.detector.detect(images.to(self.detector.device))
            return [unpad(output, row) for row in range(len(images))]

        return find
