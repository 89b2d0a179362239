"""The network that ships: a trained detector from the pixels of an image to its detections, as one module."""

import torch
from torch import Tensor, nn

from qmimic.compress.integer_grids import freeze
from qmimic.detectors.build import absorb_deviation, fold_batch_norm
from qmimic.detectors.detector import Detector
from qmimic.errors import InputError


class ShippedNetwork(nn.Module):
    """A detector whose input are pictures as they lie in memory, and whose outputs are plain tensors.

    The runtime fits a picture into the input; all else is in here, normalisation and suppression too.

    Args:
        detector: in evaluation mode, trained or on grids; it is copied.
        suppression: False leaves thresholds and suppression of detections to the runtime.

    Raises:
        InputError: no exporter can write the detector's map or its pooling.
    """

    def __init__(self, detector: Detector, suppression: bool = True) -> None:
        super().__init__()
        if detector.quantizer is not None and detector.quantizer.config.kind == "power_of_two":
            raise InputError(
                "A map quantized to powers of two cannot be exported yet; export a detector without "
                "student.quantize_map, or one of quantizer.kind=uniform."
            )
        detector.export_parts()  # refuses what no format can write
        self.suppression = suppression
        self.detector = fold_batch_norm(detector).requires_grad_(False).cpu()
        absorb_deviation(self.detector)  # saves a pass over the image
        freeze(self.detector)

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Detections, those of an image in falling order of score.

        Args:
            images: uint8 [N, H, W, 3], RGB, of the detector's size.

        Returns:
            Boxes float32 [N, D, 4], xyxy in pixels of the input; scores float32 [N, D], below 0 where an image has
            fewer than D; classes int64 [N, D]. Without suppression, boxes [N, P, K or 1, 4] and scores [N, P, K] of
            regions, below 0 where there is none.
        """
        detector = self.detector
        features = detector.quantize(detector.backbone(detector.centred(images)))
        if not self.suppression:
            return detector.score_boxes(features)
        found = detector.detect_on(features)
        return found.boxes, found.scores, found.labels
