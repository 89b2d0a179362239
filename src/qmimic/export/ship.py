"""From a trained detector's file to deployed ones that were proved to agree with it."""

import json
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

import onnx

from qmimic.config import load_recipe
from qmimic.data.formats import load_dataset
from qmimic.data.sample import Dataset
from qmimic.errors import InputError
from qmimic.export.onnx_file import build_graph
from qmimic.export.parity import MAX_BOX_DIFFERENCE, MAX_SCORE_DIFFERENCE, Parity, compare, pictures
from qmimic.files import replacing, write_text
from qmimic.models.checkpoint import load_detector
from qmimic.models.two_stage import Detector
from qmimic.runtime.detector import Detector as ShippedDetector
from qmimic.runtime.metadata import Metadata, as_properties


def export(path: Path, out: Path | None, data: str | None, batch: int | None) -> tuple[Path, Parity]:
    """Write a detector as ONNX, after the parity gate, with `parity.json` beside it.

    Args:
        path: the detector's file.
        out: folder; None: `deploy` beside the detector.
        data: dataset whose pictures the gate looks at; None: that of the `recipe.yaml` beside the detector.
        batch: images that the graph takes at once; None: any number.

    Returns:
        The ONNX file, and how far it is from the trained model.

    Raises:
        InputError: the detector or the data cannot be read, the file differs from the trained model, or the disk is
            full. Then no ONNX file was written.
    """
    detector, notes = load_detector(path)
    dataset = load_dataset(data) if data else _own_data(path)
    if not any(len(samples) for samples in dataset.splits.values()):
        raise InputError(f"{dataset.name} has no image to compare on; name other --data.")
    images = pictures(dataset, detector.spec.size)
    out = out or path.parent / "deploy"
    target = out / f"{path.stem}.onnx"
    model = build_graph(detector, batch)
    metadata = describe(detector, notes)
    with replacing(target) as temporary:
        _save(model, metadata, temporary)
        parity = compare(detector, ShippedDetector(temporary), images)
        if not parity.detections:
            raise InputError(
                f"{path.name} finds nothing in {parity.pictures} pictures, so nothing can be proved; train it."
            )
        if not parity.holds:
            raise InputError(
                f"{target.name} would not detect as {path.name} does: scores differ by {parity.score_difference:.2g} "
                f"(allowed: {MAX_SCORE_DIFFERENCE:g}), boxes by {parity.box_difference:.2g} pixels "
                f"({MAX_BOX_DIFFERENCE:g}), and {parity.unmatched} of {parity.detections} detections have no "
                "counterpart; nothing was written; please report this detector."
            )
        _save(model, replace(metadata, parity=asdict(parity)), temporary)
    figures = out / "parity.json"
    try:
        before = json.loads(figures.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        before = {}
    others = before if isinstance(before, dict) else {}
    write_text(figures, json.dumps({**others, target.name: asdict(parity)}, indent=1))
    return target, parity


def describe(detector: Detector, notes: dict[str, object]) -> Metadata:
    """What a deployed file says of a detector."""
    spec, quantizer = detector.spec, detector.quantizer
    return Metadata(
        classes=spec.classes,
        size=spec.size,
        score_threshold=spec.score_threshold,
        nms_threshold=spec.nms_threshold,
        backbone=spec.backbone,
        architecture=spec.architecture,
        precision="fp32",
        grid=tuple(quantizer.stride.tolist()) if quantizer else None,
        version=version("qmimic"),
        training=notes,
    )


def _save(model: onnx.ModelProto, metadata: Metadata, path: Path) -> None:
    onnx.helper.set_model_props(model, as_properties(metadata))
    path.write_bytes(model.SerializeToString())


def _own_data(path: Path) -> Dataset:
    recipe = path.parent / "recipe.yaml"
    if not recipe.is_file():
        raise InputError(f"There is no recipe.yaml beside {path} that names its data; name them by --data FOLDER.")
    return load_dataset(load_recipe(recipe, []).data.root)
