"""A one-stage detector as a `.tflite` of LiteRT (TensorFlow Lite), float or on integers.

The graph ends where exponentials begin: it gives the logits and the logarithms of the sides of all places, and
`qmimic.runtime.places` decodes them. So every interpreter of the format can run it, that of microcontrollers too, and
on integers it has integers from end to end: pixels less 128 in, as int8, and int8 out. (XNNPACK ends the process that
has it turn uint8 into int8.)

The detector's own exported program is walked, not a converter's idea of it: the grids that were trained become the
steps of the tensors as they are. A grid of 0 to 255 lies on int8 as -128 to 127, so nothing is rounded twice.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from qmimic.compress.integer_grids import is_on_grids, with_summands
from qmimic.detectors.detector import Detector
from qmimic.errors import InputError
from qmimic.runtime.litert_engine import parse
from qmimic.ship.network import ShippedNetwork
from qmimic.ship.onnx_file import Exported

try:
    from qmimic.ship.litert_lowering import Lowering
    from qmimic.ship.litert_model import with_properties
except ImportError as error:
    raise InputError("LiteRT is not installed: pip install 'qmimic[litert]'.") from error


def write(exported: Exported, path: Path) -> None:
    """See `qmimic.runtime.formats`. Raises: as `model_of`."""
    path.write_bytes(model_of(exported))


def model_of(exported: Exported, float_ends: bool = False) -> bytes:
    """The bytes of a model.

    Args:
        exported: the detector.
        float_ends: a detector on integers takes its pixels as floats and gives floats, for runtimes that know no int8.

    Raises:
        InputError: the graph has what the format lacks.
    """
    detector = exported.detector
    integers = is_on_grids(detector)
    network = _PlaceOutputs(with_summands(detector) if integers else detector).eval()
    images = torch.zeros(1, *detector.spec.size, 3, dtype=torch.uint8)
    program = torch.export.export(network, (images,)).run_decompositions({})
    return Lowering(program, integers).model(float_ends)


def describe(path: Path, properties: Mapping[str, str]) -> None:
    """See `qmimic.runtime.formats`."""
    path.write_bytes(with_properties(parse(path.read_bytes(), path), properties))


class _PlaceOutputs(nn.Module):
    """From uint8 [1, H, W, 3] to [1, N, K + 4]."""

    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = ShippedNetwork(detector).detector

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        features = self.detector.quantize(self.detector.backbone(self.detector.centred(images)))
        return self.detector.place_outputs(features).transpose(1, 2)
