"""Detector files: safetensors with a JSON header, never pickle; everything is checked before it is used."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load, save_file
from torch import Tensor

from qmimic.config import QuantizerConfig, explain
from qmimic.detectors.architectures import parse_spec
from qmimic.detectors.build import build_unset
from qmimic.detectors.detector import Detector
from qmimic.detectors.quantize import Quantizer
from qmimic.errors import InputError
from qmimic.files import OTHER_KIND, MissingError, parse_json, read_bytes, replacing, what_is
from qmimic.zoo import TRAINED, located

# Of the format: today's; the first with today's order of the head's weights; the first with a checksum.
FORMAT, LAYOUT, SUMMED = 3, 2, 3
HEADER, SUM = "qmimic", "sum"
MAX_BYTES = 4 << 30


@dataclass(frozen=True)
class TensorFile:
    """A safetensors file in memory.

    Attributes:
        tensors: by name.
        header: the JSON object that qmimic keeps in its metadata; empty if the file is not qmimic's.
    """

    tensors: dict[str, Tensor]
    header: dict[str, Any]


def write_tensors(path: Path, tensors: dict[str, Tensor], header: dict[str, Any]) -> None:
    """Write tensors and a JSON header, completely or not at all.

    Raises:
        InputError: the folder cannot be written or the disk is full.
    """
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    whole = {"format": FORMAT, **header}
    text = json.dumps({**whole, SUM: _sum(plain, whole)}, sort_keys=True)
    with replacing(path) as temporary:
        try:
            save_file(plain, str(temporary), {HEADER: text})
        except SafetensorError as error:  # what the library raises on a full disk
            raise OSError(str(error)) from error


def read_tensors(path: Path, verify: bool = True) -> TensorFile:
    """Read a safetensors file; if qmimic wrote it, its checksum must match.

    Args:
        path: of the file.
        verify: compare the checksum now; False: the caller calls `require_sum` after its own, more specific checks.

    Raises:
        InputError: the file is missing, cut short, not safetensors, damaged, or of a newer qmimic.
    """
    try:
        content = read_bytes(path, MAX_BYTES)
    except MissingError as error:
        raise InputError(f"There is no checkpoint {path}; name a .safetensors file of a run.") from error
    try:
        length = int.from_bytes(content[:8], "little")
        described = parse_json(content[8 : 8 + length].decode("utf-8"), str(path))
        header = parse_json(described.get("__metadata__", {}).get(HEADER, "{}"), str(path))
        loaded = load(content)
        tensors = {name: loaded[name] for name in sorted(loaded)}  # the library does not guarantee an order
    except (InputError, SafetensorError, ValueError, AttributeError, TypeError, RuntimeError, KeyError) as error:
        kind = what_is(path)
        if kind in ("a safetensors file", "an empty file", OTHER_KIND):
            raise InputError(f"{path} is cut short or is not a safetensors file; copy it or train again.") from error
        raise InputError(f"{path} is {kind}, not a safetensors file; name one that `qmimic train` wrote.") from error
    if not isinstance(header, dict):
        raise InputError(f"{path} has no readable header; copy it again or train again.")
    number = header.get("format")
    if header and (not isinstance(number, int) or number > FORMAT):
        raise InputError(f"{path} was written by a newer qmimic (format {number}); upgrade qmimic to read it.")
    found = TensorFile(tensors, header)
    if verify:
        require_sum(found, path)
    return found


def require_sum(file: TensorFile, path: Path) -> None:
    """Compare the checksum of a file that qmimic wrote. Older files have none.

    Raises:
        InputError: it does not match, or is missing.
    """
    header = dict(file.header)
    said = header.pop(SUM, None)
    if said is None and header.get("format", 0) < SUMMED:
        return
    if said != _sum(file.tensors, header):
        raise InputError(f"{path} is damaged: its checksum does not match; copy it again or train again.")


def _sum(tensors: dict[str, Tensor], header: dict[str, Any]) -> str:
    """A checksum of everything in a file. It reveals damage, not tampering: who changes the file can change the sum."""
    found = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        found.update(f"\0{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
        flat = tensor.reshape(-1)
        if flat.stride(0) != 1:  # a one-number tensor that was broadcast counts as contiguous
            flat = torch.empty(len(flat), dtype=flat.dtype).copy_(flat)
        found.update(flat.view(torch.uint8).numpy().data)
    return found.hexdigest()


def load_state(module: torch.nn.Module, tensors: dict[str, Tensor], path: Path) -> None:
    """Load tensors into a module, after checking that names and shapes are the module's own.

    Raises:
        InputError: a tensor is missing, unknown, of another shape or type, or impossible; the first one is named.
    """
    _check_state(module.state_dict(), tensors, path)
    module.load_state_dict(tensors)
    for name, layer in module.named_modules():
        if (
            isinstance(layer, torch.nn.BatchNorm2d)
            and layer.running_var is not None
            and bool((layer.running_var < 0).any())
        ):
            raise InputError(f"{path} holds negative variances in {name}.running_var; take an earlier checkpoint.")


def _check_state(wanted: dict[str, Tensor], tensors: dict[str, Tensor], path: Path) -> None:
    for name, tensor in wanted.items():
        if name not in tensors:
            raise InputError(f"{path} lacks {name}: it holds another kind of network; name the matching checkpoint.")
        found = tensors[name]
        if found.shape != tensor.shape:
            raise InputError(
                f"{path} holds {name} of shape {list(found.shape)}, but the network needs {list(tensor.shape)}: "
                "another width or another number of classes; name the matching checkpoint."
            )
        if found.dtype != tensor.dtype:
            kinds = [str(own.dtype).removeprefix("torch.") for own in (found, tensor)]
            raise InputError(f"{path} holds {name} as {kinds[0]}, but the network needs {kinds[1]}; convert it.")
        if found.is_floating_point() and not bool(torch.isfinite(found).all()):
            raise InputError(f"{path} holds NaN or infinite numbers in {name}; take an earlier checkpoint.")
    unknown = sorted(set(tensors) - set(wanted))
    if unknown:
        raise InputError(f"{path} holds {unknown[0]}, which this network does not have; name the matching checkpoint.")


def save_detector(detector: Detector, path: Path | str, notes: dict[str, Any]) -> None:
    """Write a detector to one file.

    Args:
        detector: with or without a quantizer.
        path: ending in .safetensors.
        notes: plain JSON values stored with it, such as scores and the stage's key.

    Raises:
        InputError: the folder cannot be written or the disk is full.
    """
    quantizer = detector.quantizer.config.model_dump(mode="json") if detector.quantizer else None
    header = {"spec": detector.spec.model_dump(mode="json"), "quantizer": quantizer, "notes": notes}
    write_tensors(Path(path), detector.state_dict(), header)


def load_detector(path: Path | str) -> tuple[Detector, dict[str, Any]]:
    """Read a detector, in evaluation mode, and the notes stored with it.

    Args:
        path: of the file, or `zoo:NAME`.

    Raises:
        InputError: the file is missing, damaged, of a newer version, or its weights do not fit its own description.
    """
    path = located(path, TRAINED)
    file = read_tensors(path, verify=False)
    if "spec" not in file.header:
        raise InputError(f"{path} is not a qmimic detector: its header has no description; name a file of a run.")
    if file.header["format"] < LAYOUT:
        raise InputError(
            f"{path} was written by an older qmimic (format {file.header['format']}), whose head orders its weights "
            "differently; train again."
        )
    try:
        spec = parse_spec(file.header["spec"])
        quantizer = file.header.get("quantizer")
        config = QuantizerConfig.model_validate(quantizer) if quantizer else None
    except (ValidationError, InputError) as error:
        reason = str(error) if isinstance(error, InputError) else explain(error)
        raise InputError(f"{path} describes a detector that cannot be built: {reason}") from error

    def empty() -> Detector:
        detector = build_unset(spec)
        if config is not None:
            strides = detector.channels[0] if config.per_channel else 1
            detector.quantizer = Quantizer(config, torch.ones(strides))
        return detector

    try:
        with torch.device("meta"):  # a header may claim any width: allocate nothing before the weights are seen
            promised = empty().state_dict()
    except (InputError, RuntimeError, TypeError, OverflowError) as error:  # what torch raises on absurd numbers
        reason = str(error) if isinstance(error, InputError) else "its numbers are too large."
        raise InputError(f"{path} describes a detector that cannot be built: {reason}") from error
    _check_state(promised, file.tensors, path)
    detector = empty()
    detector.load_state_dict(file.tensors)
    if detector.quantizer is not None and not bool((detector.quantizer.stride > 0).all()):
        raise InputError(f"{path} holds a quantizer.stride that is not positive; train again.")
    require_sum(file, path)
    notes = file.header.get("notes")
    return detector.eval(), notes if isinstance(notes, dict) else {}
