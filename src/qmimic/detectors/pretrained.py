"""Published weights for a backbone: from a file (safetensors, or a state dict of torch) or from timm itself."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from qmimic.detectors.architectures import parse_spec
from qmimic.detectors.detector import Detector
from qmimic.detectors.files import load_state, read_tensors
from qmimic.detectors.spec import OneStageSpec
from qmimic.errors import InputError
from qmimic.files import is_there, open_file
from qmimic.zoo import TRAINED, located

PRETRAINED = "pretrained"  # in place of a path: timm's own weights, which timm fetches
WRAPPERS = ("state_dict", "model")  # keys under which training scripts keep a network's weights
_BLOCK = re.compile(r"blocks\.(\d+)\.(\d+)\.")
_OF_PORT = re.compile(r"_blocks\.(\d+)\._(\w+)\.(\w+)")


def load_backbone(detector: Detector, weights: str | Path) -> None:
    """Start a backbone from published weights; those of a classifier are skipped.

    Args:
        detector: any.
        weights: a file with the names of torchvision, of timm, or of the original EfficientNet ports for torch; a
            detector's file, or `zoo:NAME`; or `pretrained`, for timm's own.

    Raises:
        InputError: the file is damaged or holds another network (its first key that does not fit is named), or timm has
            no weights or cannot fetch them.
    """
    name = detector.backbone.published_name
    if str(weights) == PRETRAINED and name is None:
        raise InputError(
            f"weights=pretrained is for timm's networks only; for {detector.spec.backbone} name a file, or take a "
            "backbone timm:NAME."
        )
    path = located(weights, TRAINED)
    if path.suffix == ".safetensors" and (own := _of_detector(detector, path, str(weights))):
        load_state(detector.backbone, own, path)
        return
    if name is not None:
        _load_timm(detector, name, weights)
        return
    names = detector.backbone.state_dict()
    given = read_weights(path)
    stages = {name.partition(".")[0] for name in names}
    # What lies behind the last stage that the backbone has is left; within one, it is another network's.
    strange = next((name for name in given if name not in names and name.partition(".")[0] in stages), None)
    if strange:
        raise InputError(f"{weights} has {strange}, which {detector.spec.backbone} lacks; name the matching file.")
    fitting = _in_grey(detector, {name: tensor for name, tensor in given.items() if name in names})
    load_state(detector.backbone, {**_counters(names), **fitting}, path)


def _of_detector(detector: Detector, path: Path, called: str) -> dict[str, Tensor]:
    """The backbone's weights in a detector's file, up to the coarsest level here; none if the file is not a detector.

    Raises:
        InputError: its backbone is another one or ends before that level; the message says how the two differ.
    """
    file = read_tensors(_there(path))
    if "spec" not in file.header:
        return {}
    theirs = parse_spec(file.header["spec"])
    grey = {True: "data.grey=true", False: "data.grey=false"}
    if (theirs.backbone, theirs.grey) != (detector.spec.backbone, detector.spec.grey) or theirs.channels:
        pruned = " and pruned" if theirs.channels else ""
        raise InputError(
            f"{called} has the backbone {theirs.backbone}, trained with {grey[theirs.grey]}{pruned}; the network here "
            f"has {detector.spec.backbone} with {grey[detector.spec.grey]}, so it cannot start from these weights."
        )
    start = "backbone."
    given = {name.removeprefix(start): one for name, one in file.tensors.items() if name.startswith(start)}
    names = detector.backbone.state_dict()
    if missing := next((name for name in names if name not in given), None):
        levels = theirs.levels if isinstance(theirs, OneStageSpec) else ()
        same = isinstance(detector.spec, OneStageSpec) and levels
        advice = f"set detector.levels=[{','.join(map(str, levels))}], or name other weights" if same else "name others"
        raise InputError(
            f"{called} ends before {missing}, which the network here needs for its map of stride "
            f"{detector.strides[-1]}; {advice}."
        )
    return {name: given[name] for name in names}


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file of weights by name: safetensors, or what torch saved, read as tensors and nothing else.

    Those of 16 bits, as many collections store them, are widened to float32, which has all their values.

    Raises:
        InputError: the file is missing, damaged, or holds anything but tensors.
    """
    path = _there(path)
    tensors = read_tensors(path).tensors if path.suffix == ".safetensors" else _saved_by_torch(path)
    return {name: own.float() if own.dtype in (torch.float16, torch.bfloat16) else own for name, own in tensors.items()}


def _saved_by_torch(path: Path) -> dict[str, Tensor]:
    """Raises: InputError: as `read_weights`."""
    with open_file(path) as file:
        try:
            found = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # what torch raises on damaged files has no narrower common type
            raise InputError(
                f"{path} is neither safetensors nor a torch state dict of tensors alone; save it as one of these."
            ) from error
    for wrapper in WRAPPERS:
        if isinstance(found, Mapping) and isinstance(found.get(wrapper), Mapping):
            found = found[wrapper]
    if not isinstance(found, Mapping) or not found:
        raise InputError(f"{path} holds no tensors by name; name a file of a network's state dict.")
    for name, value in found.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise InputError(f"{path} holds {str(name)[:100]!r}, which is not a tensor; save the state dict alone.")
        if value.layout != torch.strided or value.device.type != "cpu":
            raise InputError(f"{path} holds {name[:100]!r} as a sparse tensor, or without its values; save dense ones.")
    return dict(found)


def _there(path: Path) -> Path:
    """The path of a file of weights. Raises: InputError: there is no such file."""
    if not is_there(path):
        raise InputError(f"Cannot read the weights {path}: there is no such file; name another file.")
    return path


def timm_names(tensors: Mapping[str, Tensor], wanted: Iterable[str]) -> dict[str, Tensor]:
    """Weights of an EfficientNet under timm's names, from those of the original ports for torch.

    The ports number blocks consecutively and name convolutions by their role; timm numbers stages, and blocks within
    them. Any other name stays as it is.

    Args:
        tensors: by the port's names (`_blocks.3._project_conv.weight`).
        wanted: timm's names, which tell how many blocks a stage has.
    """
    blocks = sorted({(int(found[1]), int(found[2])) for found in map(_BLOCK.match, wanted) if found})
    # A block without expansion has two convolutions and two batch norms, and timm numbers the ones that exist.
    expanded = {found[1] for found in map(_OF_PORT.fullmatch, tensors) if found and found[2] == "expand_conv"}
    whole = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    deep = {
        "expand_conv": "conv_pw",
        "bn0": "bn1",
        "depthwise_conv": "conv_dw",
        "bn1": "bn2",
        "project_conv": "conv_pwl",
        "bn2": "bn3",
    }
    shallow = {"depthwise_conv": "conv_dw", "bn1": "bn1", "project_conv": "conv_pw", "bn2": "bn2"}
    excitation = {"se_reduce": "se.conv_reduce", "se_expand": "se.conv_expand"}

    def renamed(name: str) -> str:
        found = _OF_PORT.fullmatch(name)
        if not found:
            module, _, own = name.rpartition(".")
            return f"{whole[module]}.{own}" if module in whole else name
        place, layer, own = int(found[1]), found[2], found[3]
        table = (deep if found[1] in expanded else shallow) | excitation
        if place >= len(blocks) or layer not in table:
            return name
        stage, block = blocks[place]
        return f"blocks.{stage}.{block}.{table[layer]}.{own}"

    return {renamed(name): tensor for name, tensor in tensors.items()}


def _load_timm(detector: Detector, name: str, weights: str | Path) -> None:
    """`load_backbone` for a network of timm. Unused weights are checked as well: they tell networks apart."""
    from qmimic.detectors.timm_backbone import classifier, published, whole_network

    names = whole_network(name).state_dict()
    if str(weights) == PRETRAINED:
        tensors = published(name)
    else:
        tensors = timm_names(read_weights(Path(weights)), names)
        head = classifier(name)
        for key, tensor in {**_counters(names), **tensors}.items():
            if key not in names:
                raise InputError(f"{weights} holds {key}, which timm's {name} does not have; name the matching file.")
            if tensor.shape != names[key].shape and not key.startswith(head):
                raise InputError(
                    f"{weights} holds {key} of shape {list(tensor.shape)}, but timm's {name} needs "
                    f"{list(names[key].shape)}; name the matching file."
                )
    body = detector.backbone.get_submodule("body")
    own = body.state_dict()
    by_place = {_place(key): key for key in own}
    used = {f"body.{by_place[_place(key)]}": one for key, one in tensors.items() if _place(key) in by_place}
    fitting = {key.removeprefix("body."): tensor for key, tensor in _in_grey(detector, used).items()}
    load_state(body, {**_counters(own), **fitting}, Path(weights))


def _place(name: str) -> str:
    """A weight's name, made the same in timm's network and its feature extractor, which renames and wraps modules."""
    return name.removeprefix("model.").replace(".", "_")


def _in_grey(detector: Detector, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights by the backbone's names; a grey network's first layers get the sum over the three input channels."""
    if not detector.spec.grey:
        return tensors
    pixels = {f"{name}.weight" for name in detector.backbone.pixel_layers}
    return {name: tensor.sum(1, keepdim=True) if name in pixels else tensor for name, tensor in tensors.items()}


def _counters(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Batch norm's counters, which published files often leave out and nothing here uses."""
    return {
        name: torch.zeros((), dtype=value.dtype)
        for name, value in state.items()
        if name.endswith("num_batches_tracked")
    }
