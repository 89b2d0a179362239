"""What the tests keep of torch's exporter is given for equal networks alone."""

import torch

from qmimic.config import QuantizerConfig
from qmimic.detectors.detector import Detector
from qmimic.detectors.quantize import Quantizer
from qmimic.ship.onnx_file import Exported
from tiny_detectors import lively, tiny_spec
from traced_once import digest


def quantized(**settings: object) -> Detector:
    detector = lively(tiny_spec()).eval()
    detector.quantizer = Quantizer(QuantizerConfig.model_validate(settings), torch.tensor([0.25]))
    return detector


def test_networks_are_told_apart_by_every_setting_and_weight() -> None:
    plain, powers = quantized(), quantized(kind="power_of_two")
    assert digest(Exported(plain)) == digest(Exported(quantized()))
    moved = quantized()
    with torch.no_grad():
        next(moved.parameters())[0, 0, 0, 0] += 1e-6
    others = [Exported(powers), Exported(moved), Exported(plain, None), Exported(plain, suppression=False)]
    others.append(Exported(lively(tiny_spec()).eval()))
    assert len({digest(one) for one in (Exported(plain), *others)}) == 6
