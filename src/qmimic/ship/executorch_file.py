"""A detector as an ExecuTorch program, for phones and other devices of its runtime (C++, Java, Swift).

Of the mobile formats that are still maintained it is the one that takes torch's own exported programs: LiteRT would
need a second converter and a second set of rules for the same network. ExecuTorch has no suppression, so a program has
two methods, and the suppressions between and after them are the caller's, as `qmimic.runtime` does them in numpy:

    extract:          images uint8 [1, H, W, 3] -> map [1, C, h, w], candidates [1, K, 4] in falling order of objectness
    classify_regions: map, regions [1, P, 4] -> scores [1, P, classes], boxes [1, P, classes or 1, 4]

A detector of one stage has one method:

    forward: images uint8 [1, H, W, 3] -> scores [1, N, classes], boxes [1, N, 1, 4] of all places
"""

import contextlib
import hashlib
import io
import json
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from qmimic.contracts import ExportParts, Features
from qmimic.detectors.detector import Detector
from qmimic.errors import InputError
from qmimic.runtime.metadata import CLASSIFY, EXTRACT, FORWARD, WEIGHTS_SUM
from qmimic.ship.network import ShippedNetwork
from qmimic.ship.onnx_file import Exported


def write(exported: Exported, path: Path) -> None:
    """Write a float detector as a `.pte` file whose convolutions are XNNPACK's.

    Args:
        exported: with a batch of 1.
        path: of the file.

    Raises:
        InputError: ExecuTorch is not installed.
    """
    try:
        from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
        from executorch.exir import to_edge_transform_and_lower
    except ImportError as error:
        raise InputError("ExecuTorch is not installed: pip install 'qmimic[executorch]'.") from error
    # Its passes know one order of memory.
    detector = ShippedNetwork(exported.detector).detector.to(memory_format=torch.contiguous_format)
    images = torch.zeros(1, *detector.spec.size, 3, dtype=torch.uint8)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
        warnings.simplefilter("ignore")
        programs = _programs(detector, images)
        edge = to_edge_transform_and_lower(programs, partitioner=[XnnpackPartitioner()])
        path.write_bytes(edge.to_executorch().buffer)


def describe(path: Path, properties: Mapping[str, str]) -> None:
    """Write beside a program, as JSON, what it is to say of itself, and its checksum."""
    own = {**properties, WEIGHTS_SUM: hashlib.sha256(path.read_bytes()).hexdigest()}
    path.with_suffix(".json").write_text(json.dumps(own), encoding="utf-8")


def _programs(detector: Detector, images: Tensor) -> dict[str, torch.export.ExportedProgram]:
    """The methods by name."""
    parts = detector.export_parts()
    if parts is None:
        return {FORWARD: torch.export.export(_ScoreBoxes(detector).eval(), (images,))}
    extract, classify = _Extract(detector, parts).eval(), _ClassifyRegions(detector, parts).eval()
    features, _ = extract(images)
    regions = torch.zeros(1, parts.regions, 4)
    return {
        EXTRACT: torch.export.export(extract, (images,)),
        CLASSIFY: torch.export.export(classify, (features, regions)),
    }


class _Seeing(nn.Module):
    def __init__(self, detector: Detector) -> None:
        super().__init__()
        self.detector = detector

    def features(self, images: Tensor) -> Features:
        return self.detector.quantize(self.detector.backbone(self.detector.centred(images).contiguous()))


class _ScoreBoxes(_Seeing):
    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        boxes, scores = self.detector.score_boxes(self.features(images))
        return scores, boxes


class _Extract(_Seeing):
    def __init__(self, detector: Detector, parts: ExportParts) -> None:
        super().__init__(detector)
        self.parts = parts

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        features = self.features(images)
        return features.map, self.parts.candidates(features)


class _ClassifyRegions(nn.Module):
    def __init__(self, detector: Detector, parts: ExportParts) -> None:
        super().__init__()
        self.detector, self.parts = detector, parts

    def forward(self, features: Tensor, regions: Tensor) -> tuple[Tensor, Tensor]:
        return self.parts.classify_regions(Features.of([features], self.detector.strides), regions)
