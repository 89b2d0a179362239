"""What a deployed file says of itself, as JSON in its metadata."""

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
GRAPH_SUM = "qmimic_graph_sha256"  # of what the proof was of: the graph and its weights
WEIGHTS_SUM = "qmimic_weights_sha256"  # where the weights lie in a file of their own
INPUT, OUTPUTS = "images", ("boxes", "scores", "labels")
REGIONS = ("region_boxes", "region_scores")  # outputs of a graph whose detections are suppressed outside
# Methods of a program that has no suppression at all: of one stage, and of two.
FORWARD, EXTRACT, CLASSIFY = "forward", "extract", "classify_regions"


@dataclass(frozen=True)
class Metadata:
    """The description of a deployed detector.

    Attributes:
        classes: class names; the index is the label.
        size: height and width of the input, pixels.
        score_threshold: detections below it are left out by the graph.
        nms_threshold: IoU above which the weaker of two detections of a class is left out by the graph.
        max_detections: that stay at most.
        proposals, proposal_nms_threshold: the same of regions.
        backbone, architecture: what it is.
        precision: fp32 or int8; unknown of a file that was changed.
        grid: the stride s of the maps that the heads see: their quantizer's, of an int8 file each level's scale, which
            is the same where there is a quantizer; None where the maps are float.
        levels: strides of the levels whose places a file speaks of that leaves decoding to the runtime, see
            `qmimic.runtime.places`; empty for all others.
        parameters, macs: how many weights and multiply-accumulates a picture, see `qmimic.detectors.build`.
        version: of qmimic.
        training: notes of the run: stage, seed, scores, key of the recipe.
        parity: how far it is from the trained model, see `qmimic.ship.parity` and `qmimic.ship.accuracy`.
        format: of this description.
        changed: the graph or its weights are not those that were proved; what the file says of precision and parity
            is then left out.
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
    """The properties of a file."""
    plain = asdict(metadata)
    del plain["changed"]  # what is found, not what is said
    text = json.dumps(plain, sort_keys=True)
    return {KEY: text, SUM: hashlib.sha256(text.encode()).hexdigest()}


def from_properties(properties: Mapping[str, str], path: object, checksum: str | None = None) -> Metadata:
    """What a file says of itself.

    Args:
        properties: of the file.
        path: how an error calls it.
        checksum: of its graph and weights as they are; None: they are not compared with those that were proved.

    Raises:
        InputError: the file is not qmimic's, of a newer version, or its description was edited.
    """
    text = properties.get(KEY)
    if not isinstance(text, str):
        raise InputError(f"{path} is not a detector of qmimic; name a file that `qmimic export` wrote.")
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
    # Before format 3 no file said what its proof was of.
    if checksum is None or metadata.format < 3 or properties.get(GRAPH_SUM) == checksum:
        return metadata
    return replace(metadata, changed=True, precision=UNKNOWN, parity={})
