"""A detector's detections on a split, and the size of its map's values."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from qmimic.boxes import suppress_by_label
from qmimic.contracts import BatchDetections, Features
from qmimic.data.loader import Loader
from qmimic.detections import Detections
from qmimic.detectors.detector import Detector
from qmimic.detectors.spec import DetectorSpec


def detect_all(detector: Detector, loader: Loader, mirrored: bool = False) -> dict[str, Detections]:
    """Detections in every image of a loader's split, by image id, boxes in pixels of the original images.

    Args:
        detector: of the loader's size.
        loader: of the split.
        mirrored: look at the images mirrored left-right; the boxes are for the images as they are.
    """
    width = detector.spec.size[1]
    found: dict[str, Detections] = {}
    for batch in loader.once():
        images = batch.images.flip(3) if mirrored else batch.images
        output = detector.detect(images.to(detector.device))
        for row, (sample, placed) in enumerate(zip(batch.samples, batch.placed, strict=True)):
            one = unpad(output, row)
            if mirrored:
                left, top, right, bottom = one.boxes.T
                one = replace(one, boxes=np.stack([width - right, top, width - left, bottom], 1))
            found[sample.image_id] = placed.restored(one)
    return found


def merge(views: list[dict[str, Detections]], config: DetectorSpec) -> dict[str, Detections]:
    """Detections from several views of the same images as one set, suppressed by class as for a single view.

    Args:
        views: by image id, boxes in pixels of the original images.
        config: the suppression's IoU, and how many detections stay.
    """
    found = {}
    for image_id in views[0]:
        together = [view[image_id] for view in views]
        boxes, scores, labels = (
            np.concatenate([getattr(own, name) for own in together]) for name in ("boxes", "scores", "labels")
        )
        coordinates, confidences, kinds = (torch.from_numpy(values) for values in (boxes, scores, labels))
        order = suppress_by_label(coordinates, confidences, kinds, config.nms_threshold)
        found[image_id] = Detections(boxes, scores, labels).keep(order[: config.max_detections].numpy())
    return found


def unpad(output: BatchDetections, row: int) -> Detections:
    """The valid detections of one image of a batch, boxes in pixels of the network's input."""
    valid = output.valid[row]

    def plain(values: Tensor) -> Tensor:
        return values[row][valid].cpu()

    return Detections(plain(output.boxes).numpy(), plain(output.scores).numpy(), plain(output.labels).numpy())


@torch.no_grad()
def level_rms(levels: Callable[[Tensor], Features], loader: Loader, batches: int = 16) -> tuple[Tensor, ...]:
    """Root mean square of each channel of a network's levels on a split's first images; for each level float32 [C].

    Args:
        levels: computes them from images uint8 [B, 3, H, W].
        loader: of the split.
        batches: how many to read.
    """
    squares: list[Tensor] = []
    entries: list[int] = []
    for _, batch in zip(range(batches), loader.once(), strict=False):
        maps = [one.cpu().double() for one in levels(batch.images).maps]
        squares = squares or [torch.zeros(1)] * len(maps)
        entries = entries or [0] * len(maps)
        squares = [sum_ + own.square().sum((0, 2, 3)) for sum_, own in zip(squares, maps, strict=True)]
        entries = [count + own[:, 0].numel() for count, own in zip(entries, maps, strict=True)]
    return tuple((own / count).sqrt().float() for own, count in zip(squares, entries, strict=True))


def channel_rms(detector: Detector, loader: Loader) -> Tensor:
    """The same for a detector's raw levels, concatenated: float32 [sum of C]."""
    return torch.cat(level_rms(lambda images: detector.raw_features(images.to(detector.device)), loader))
