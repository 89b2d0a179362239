"""From a detector to deployed files that were proved before they took their place."""

import json
import os
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from qmimic.compress.integer_grids import is_on_grids, map_grids
from qmimic.detectors.build import mac_count, parameter_count
from qmimic.detectors.detector import Detector
from qmimic.detectors.rpn import NMS_IOU
from qmimic.errors import InputError
from qmimic.files import read_json, replacing, write_text
from qmimic.runtime.detector import Detector as ShippedDetector
from qmimic.runtime.formats import Format
from qmimic.runtime.metadata import GRAPH_SUM, Metadata, as_properties
from qmimic.ship.onnx_file import Exported

PARITY = "parity.json"  # the proofs of a folder's files, by name

Proof = Callable[[ShippedDetector, str], Mapping[str, Any]]


def ship(exported: Exported, metadata: Metadata, kind: Format, path: Path, prove: Proof) -> Path:
    """Write a detector in a format, with the proof of it in the file and in `parity.json` beside it.

    Args:
        exported: the detector.
        metadata: of the detector, without proof.
        kind: the format.
        path: of the file, without suffix.
        prove: called with the file as it would ship and its name; gives figures, or raises InputError.

    Returns:
        The file that a runtime opens.

    Raises:
        InputError: the proof fails, or the disk is full. Then nothing was written.
    """
    first, *others = (path.with_name(path.name + suffix) for suffix in kind.suffixes)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{path.name[:16]}-", dir=path.parent) as folder:
            temporary = Path(folder) / first.name
            write_described(exported, kind, metadata, temporary)
            shipped = ShippedDetector(temporary)
            engine = shipped.engine
            if kind.elsewhere:
                engine.session = kind.own_session(temporary, engine.session) or engine.session
            figures = dict(prove(shipped, first.name))
            if kind.elsewhere:
                figures["engine"] = engine.session.engine
            label(temporary, kind, replace(metadata, parity=figures))
            for own in (*others, first):  # the one that a runtime opens last, so that it never finds half
                with replacing(own) as place:
                    (Path(folder) / own.name).replace(place)
    except OSError as error:
        reason = error.strerror or str(error)
        raise InputError(f"Cannot write {first}: {reason}; free some space or choose another folder.") from error
    _note(path.parent / PARITY, first.name, figures)
    return first


def require_own_file(kind: Format, path: Path) -> None:
    """Check that a file can be written without overwriting one that `ship` did not write.

    Args:
        kind: the format.
        path: of the file, without suffix.

    Raises:
        InputError: there is one that neither the folder's proofs name nor says of itself that it is a detector of ours;
            or the file of proofs is something else.
    """
    proofs, names = path.parent / PARITY, [path.name + suffix for suffix in kind.suffixes]
    found = next((name for name in names if os.path.lexists(path.parent / name)), None)
    if found and names[0] not in _proofs(proofs) and not _is_ours(path.parent / names[0]):
        raise InputError(
            f"{path.parent / found} is no detector that qmimic wrote, and would be overwritten; choose another folder "
            "with --out, or move it."
        )
    if os.path.lexists(proofs) and not _proofs(proofs):
        raise InputError(
            f"{proofs} is not qmimic's list of proofs, and would be overwritten; choose another folder with --out, or "
            "move it."
        )


def _is_ours(path: Path) -> bool:
    try:
        ShippedDetector(path)
    except InputError:
        return False
    return True


def label(path: Path, kind: Format, metadata: Metadata) -> None:
    """Put into a file of a format what it says of itself, and of which graph and weights it says it."""
    properties = as_properties(metadata)
    kind.describe(path, properties)  # which may write the graph in other words
    kind.describe(path, {**properties, GRAPH_SUM: kind.checksum(path)})


def write_described(exported: Exported, kind: Format, metadata: Metadata, path: Path) -> None:
    """Write a detector in a format without proof, to be timed. Raises InputError: the format cannot hold it."""
    kind.write(exported, path)
    label(path, kind, metadata)


def describe(detector: Detector, notes: dict[str, object]) -> Metadata:
    """What a deployed file says of a detector, trained or on grids."""
    spec, quantizer = detector.spec, detector.quantizer
    integers = is_on_grids(detector)
    scales = [grid.scale for grid in map_grids(detector)] if integers else [quantizer.stride] if quantizer else []
    return Metadata(
        classes=spec.classes,
        size=spec.size,
        score_threshold=spec.score_threshold,
        nms_threshold=spec.nms_threshold,
        max_detections=spec.max_detections,
        proposals=detector.region_count,
        proposal_nms_threshold=NMS_IOU,
        backbone=spec.backbone,
        architecture=spec.architecture,
        precision="int8" if integers else "fp32",
        grid=tuple(torch.cat(scales).tolist()) if scales else None,
        version=version("qmimic"),
        levels=detector.place_strides,
        parameters=parameter_count(detector),
        macs=mac_count(detector),
        training=notes,
    )


def proved(proof: Mapping[str, Any]) -> str:
    """A proof in a few words."""
    if "map50" in proof:
        return f"{100 * proof['map50']:.1f} mAP on val, {100 * proof['map50_float']:.1f} in float"
    return f"differs by {proof['score_difference']:.0e}, {proof['box_difference']:.0e} px"


def _note(path: Path, name: str, figures: Mapping[str, Any]) -> None:
    write_text(path, json.dumps({**_proofs(path), name: figures}, indent=1))


def _proofs(path: Path) -> dict[str, Any]:
    """What a folder's file of proofs holds; nothing where it is not there, or is something else."""
    try:
        found = read_json(path)
    except InputError:
        return {}
    return found if isinstance(found, dict) and all(isinstance(own, dict) for own in found.values()) else {}
