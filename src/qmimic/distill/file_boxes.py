"""From what a foreign detector says of boxes, as a recipe declares it, to regions and detections of ours."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from qmimic.boxes import suppress_by_label
from qmimic.config import TeacherFileConfig
from qmimic.contracts import Proposals
from qmimic.detections import Detections
from qmimic.distill.file_grids import decoded, grids_of, peaks
from qmimic.distill.file_outputs import Found
from qmimic.distill.file_scores import scores_of
from qmimic.errors import InputError

MOST_SHARE = 4.0  # of numbers that can be what the recipe says
TINY = 4.0  # pixels, of a box
LEAST_SCORE, MOST_BOXES = 0.01, 300  # of a picture's detections
MOST_REGIONS = 1000  # of a picture, best first, among which what overlaps is suppressed


def corners(boxes: Tensor, config: TeacherFileConfig, size: tuple[int, int]) -> Tensor:
    """Boxes as the file has them, as xyxy in pixels of its input, float32 [..., 4]; not clipped.

    Args:
        boxes: of the file, [..., 4]; on grids [..., N, 4 * bins] with all their cells.
        config: `box_format` and `box_unit`, and the grids.
        size: height and width of its input, pixels.
    """
    if config.grid_strides:
        return decoded(boxes, config, size)
    first, second = boxes[..., :2], boxes[..., 2:]
    if config.box_format == "cxcywh":
        first, second = first - second / 2, first + second / 2
    elif config.box_format == "xywh":
        second = first + second
    elif config.box_format == "yxyx":
        first, second = first.flip(-1), second.flip(-1)
    found = torch.cat([first, second], -1)
    return found * found.new_tensor([size[1], size[0]] * 2) if config.box_unit == "shares" else found


def clipped(boxes: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Boxes [..., 4] cut at the picture, and which of them are boxes then, bool [...]."""
    inside = boxes.clamp(min=0).minimum(boxes.new_tensor([size[1], size[0]] * 2))
    return inside, inside.isfinite().all(-1) & (inside[..., 2:] > inside[..., :2]).all(-1)


def detections(
    found: Found, config: TeacherFileConfig, places: Sequence[int], size: tuple[int, int]
) -> list[Detections]:
    """Detections in each picture, boxes in pixels of the file's input; one class a box, that of the highest score.

    Args:
        found: of B pictures, with scores.
        config: what stands in the file.
        places: from `class_places`.
        size: height and width of its input, pixels.

    Raises:
        InputError: scores are not from 0 to 1, shares are pixels, or a class has a number that is not named.
    """
    known_ones = found.boxes[found.boxes.isfinite().all(-1)]
    if config.box_unit == "shares" and len(known_ones) and float(known_ones.amax(-1).median()) > MOST_SHARE:
        raise InputError(
            f"Most of the teacher's boxes have a number above {MOST_SHARE:g}, so they are in pixels; set "
            "teacher.box_unit=pixels."
        )
    boxes, valid = clipped(corners(found.boxes, config, size), size)
    scores, known = _scores(found, config, valid, size), torch.tensor(places)
    if found.labels is None:
        best, columns = scores.masked_fill(known < 0, -1).max(2)
    else:
        best, numbers = scores[..., 0], found.labels.nan_to_num(0)
        strange = (numbers < 0) | (numbers >= len(places)) | (numbers != numbers.round())
        wrong = numbers[valid & (best >= LEAST_SCORE) & strange]  # what only fills up a list may have any number
        if len(wrong) and wrong[0] != wrong[0].round():
            where = "teacher.row_layout" if config.rows and not config.labels else "teacher.labels"
            raise InputError(
                f"A box of the teacher has the class number {float(wrong[0]):g}, which is not whole; check {where}."
            )
        if len(wrong):
            raise InputError(
                f"A box of the teacher has the class number {float(wrong[0]):g}, and teacher.classes names those from "
                f"0 to {len(places) - 1}; name all of them there, null for what is no class of the data."
            )
        columns = numbers.clamp(0, len(places) - 1).long()
    labels = known[columns]
    valid &= (labels >= 0) & (best >= LEAST_SCORE)
    found_ones = []
    for own, mine, kinds, keep in zip(boxes, best, labels, valid, strict=True):
        own, mine, kinds = own[keep], mine[keep], kinds[keep]
        order = mine.argsort(descending=True, stable=True)
        if config.suppress < 1:
            order = suppress_by_label(own, mine, kinds, config.suppress)
        order = order[:MOST_BOXES]
        found_ones.append(Detections(own[order].numpy(), mine[order].numpy(), kinds[order].numpy()))
    return found_ones


def regions(found: Found, config: TeacherFileConfig, size: tuple[int, int]) -> Proposals:
    """Where a file sees objects, whatever their class: boxes in pixels of its input, the best first.

    Of boxes that overlap, the best stays, as among detections; without scores, boxes stay as the file orders them.
    Boxes of a class that is `null` in `classes` are left out.

    Args:
        found: of B pictures.
        config: what stands in the file.
        size: height and width of its input, pixels.
    """
    boxes, valid = clipped(corners(found.boxes, config, size), size)
    if found.scores is not None:
        plain = config.activation == "none" and found.objectness is None and not config.peaks
        scores = found.scores if plain else _scores(found, config, valid, size)
        if config.classes and found.columns is not None:
            if found.columns != len(config.classes):
                raise InputError(
                    f"The teacher's boxes have {found.columns} score{'s' * (found.columns > 1)} of classes and "
                    f"teacher.classes names {len(config.classes)}; name each, null for what the data lack, or none."
                )
            scores = scores[..., [name is not None for name in config.classes]]
        best, kinds = scores.max(2)
        if found.labels is not None:
            kinds = found.labels.nan_to_num(-1).long()
            nothing = [number for number, name in enumerate(config.classes) if name is None]
            valid = valid & ~torch.isin(kinds, torch.tensor(nothing, dtype=torch.long))
        if config.suppress < 1:
            valid = torch.stack([_apart(*one, config.suppress) for one in zip(boxes, best, kinds, valid, strict=True)])
        order = best.masked_fill(~valid, -torch.inf).argsort(dim=1, descending=True, stable=True)
        boxes, valid = boxes.gather(1, order[..., None].expand(-1, -1, 4)), valid.gather(1, order)
    return Proposals(torch.where(valid[..., None], boxes, 0.0), valid)


def _scores(found: Found, config: TeacherFileConfig, valid: Tensor, size: tuple[int, int]) -> Tensor:
    """See `scores_of`; at peaks alone, where the recipe says so."""
    assert found.scores is not None, "the file has scores"
    scores = scores_of(found.scores, found.objectness, config, valid)
    if not config.peaks:
        return scores
    # Logits where they rank alike: equal ones may differ after a sigmoid, by where they lie in a processor's vectors.
    alike = found.objectness is None and config.activation != "softmax"
    return scores * peaks(found.scores if alike else scores, grids_of(config, size))


def _apart(boxes: Tensor, scores: Tensor, kinds: Tensor, valid: Tensor, most: float) -> Tensor:
    """Which of a picture's boxes [N, 4] stay, bool [N]: its best, where those of a kind overlap by `most` at most."""
    known = valid.nonzero()[:, 0]
    known = known[scores[known].argsort(descending=True, stable=True)[:MOST_REGIONS]]
    kept = known[suppress_by_label(boxes[known], scores[known], kinds[known], most)]
    return torch.zeros_like(valid).index_fill(0, kept, True)


def suspicion(found: Sequence[Detections], config: TeacherFileConfig) -> str:
    """What may be wrong where hardly any detection fits the labels, a sentence.

    Args:
        found: in some pictures.
        config: what is said to stand in the file.
    """
    boxes = np.concatenate([np.zeros((0, 4), np.float32), *(one.boxes for one in found)])
    pixels = "what its pixels are made into (teacher.mean, std, bgr)"
    if not len(boxes):
        return (
            f"It gives no box inside of a picture with a score of at least {LEAST_SCORE:g}: check teacher.box_format, "
            f"box_unit and activation, and {pixels}."
        )
    if config.grid_strides:
        measured = {
            "anchors and anchors_first": config.anchors,
            "variances": config.variances != (1.0,) * 4,
            "centre_scales": config.centre_scales,
            "cell_boxes": config.cell_boxes > 1,
            "activation": config.activation != "none",
        }
        also = "".join(f"{name}, " for name, said in measured.items() if said)
        return (
            f"Few of its boxes fit the labels: check teacher.box_format, box_unit, grid_point, {also}the order of "
            f"grid_strides and of classes, and {pixels}."
        )
    if (boxes[:, 2:] - boxes[:, :2]).max() < TINY:
        return (
            f"None of its boxes is {TINY:g} pixels wide or high: are they shares (teacher.box_unit), or does it not "
            f"decode them (teacher.grid_strides)? Check {pixels} too."
        )
    return (
        "Few of its boxes fit the labels: check teacher.box_format, box_unit, the order of teacher.classes, "
        f"{pixels}, and whether it decodes its boxes (teacher.grid_strides)."
    )
