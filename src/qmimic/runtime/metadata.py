"""The description of a deployed file, as JSON in its metadata."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from qmimic.errors import InputError
from qmimic.files import parse_json

FORMAT = 4
KEY, SUM = "qmimic", "qmimic_sha256"
UNKNOWN = "unknown"  # precision of a file that somebody changed
GRAPH_SUM = "qmimic_graph_sha256"  # of what was proved: the graph and its weights
WEIGHTS_SUM = "qmimic_weights_sha256"  # if the weights are in a separate file
INPUT, OUTPUTS = "images", ("boxes", "scores", "labels")
REGIONS = ("region_boxes", "region_scores")  # outputs of a graph whose detections are suppressed by the runtime
# Methods of a program without any suppression: for one stage, and for two.
FORWARD, EXTRACT, CLASSIFY = "forward", "extract", "classify_regions"


@dataclass(frozen=True)
class Metadata:
    """The description of a deployed detector.

    Attributes:
        classes: class names; the index is the label.
        size: height and width of the input, pixels.
        score_threshold: detections below it are left out by the graph.
        nms_threshold: IoU above which the weaker of two detections of a class is left out by the graph.
        max_detections: the most that the graph gives.
        proposals, proposal_nms_threshold: the same for regions.
        backbone, architecture: their names.
        precision: fp32 or int8; unknown for a file that was changed.
        grid: the stride s of the maps that the heads see: the quantizer's, or in an int8 file each level's scale (the
            same if there is a quantizer); None for float maps.
        levels: if the file leaves decoding to the runtime, strides of the levels whose places it covers, see
            `qmimic.runtime.places`; empty otherwise.
        parameters, macs: number of weights, and multiply-accumulates per picture, see `qmimic.detectors.build`.
        version: of qmimic.
        training: notes of the run: stage, seed, scores, key of the recipe.
        parity: measured distance from the trained model, see `qmimic.ship.parity` and `qmimic.ship.accuracy`.
        format: of this description.
        changed: whether the graph or its weights are not those that were proved; then precision and parity are left
            out.
    """

    classes: tuple[str, ...]
    size: tuple[int, int]
    score_threshold: float
    nms_threshold: float
    max_detections: int
    proposals: int
    proposal_nms_threshold: float
    backbone: str
    architecture: str
    precision: str
    grid: tuple[float, ...] | None
    version: str
    levels: tuple[int, ...] = ()
    parameters: int = 0
    macs: int = 0
    training: dict[str, Any] = field(default_factory=dict)
    parity: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT
    changed: bool = False


def as_properties(metadata: Metadata) -> dict[str, str]:
    """The description as properties of a file."""
    plain = asdict(metadata)
    del plain["changed"]  # found on reading, not written
    text = json.dumps(plain, sort_keys=True)
    return {KEY: text, SUM: hashlib.sha256(text.encode()).hexdigest()}


def from_properties(properties: Mapping[str, str], path: object, checksum: str | None = None) -> Metadata:
    """The description that a file holds.

    Args:
        properties: of the file.
        path: how an error calls it.
        checksum: of its present graph and weights; None: do not compare them with those that were proved.

    Raises:
        InputError: qmimic did not write the file, a newer version did, or its description was edited.
    """
    text = properties.get(KEY)
    if not isinstance(text, str):
        raise InputError(f"{path} is not a qmimic detector; name a file that `qmimic export` wrote.")
    again = "export the detector again"
    if hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest() != properties.get(SUM):
        raise InputError(f"The description in {path} was edited and may no longer fit its weights; {again}.")
    try:
        plain = parse_json(text, f"The description in {path}")
        if plain["format"] > FORMAT:
            raise InputError(f"{path} was written by a newer qmimic (format {plain['format']}); upgrade qmimic.")
        plain |= {"classes": tuple(plain["classes"]), "size": tuple(plain["size"])}
        plain["levels"] = tuple(plain.get("levels", ()))
        plain["grid"] = None if plain["grid"] is None else tuple(plain["grid"])
        plain["changed"] = False
        metadata = Metadata(**plain)
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise InputError(f"The description in {path} cannot be read ({error}); {again}.") from error
    # Before format 3, files did not say what had been proved.
    if checksum is None or metadata.format < 3 or properties.get(GRAPH_SUM) == checksum:
        return metadata
    return replace(metadata, changed=True, precision=UNKNOWN, parity={})
