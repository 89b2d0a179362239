"""From the numbers of a foreign detector, as a recipe declares them, to scores of the data's classes."""

from collections.abc import Sequence

from torch import Tensor

from qmimic.config import TeacherFileConfig
from qmimic.errors import InputError
from qmimic.tables import near

MOST_LOGIT = 60.0  # of numbers that can be logits
ROUNDING = 0.02  # above 1, of scores that were integers: 255 steps of 0.00394 are 1.004
SEVERAL = 16  # scores, which are not between 0 and 1 by chance


def scores_of(scores: Tensor, objectness: Tensor | None, config: TeacherFileConfig, valid: Tensor) -> Tensor:
    """Scores of classes, float32 [B, N, K], 0..1, and down to -1 where a file marks what it suppressed.

    Args:
        scores: float32 [B, N, K], as they stand in the file.
        objectness: float32 [B, N], by which they are multiplied; None of a file without.
        config: what makes shares of them.
        valid: bool [B, N]; what only fills up a list may have any score.

    Raises:
        InputError: those of the others are not from 0 to 1, or were so before they were made scores of.
    """
    place = "teacher.row_layout" if config.rows else "teacher.scores"
    found = _shares(scores, valid, config.activation, "scores", "teacher.activation", place)
    if objectness is None:
        return found
    place = "teacher.row_layout" if config.rows else "teacher.objectness"
    kind = "sigmoid" if config.objectness_needs_sigmoid else "none"
    own = _shares(objectness, valid, kind, "objectness", "teacher.objectness_activation", place)
    return found * own[..., None]


def _shares(values: Tensor, valid: Tensor, activation: str, what: str, setting: str, place: str) -> Tensor:
    """Numbers from 0 to 1. Args: `activation` of `setting`, and in `place` they are named, both for messages."""
    raw = values[valid]
    verb, stand, hold = ("go", "as they stand", "hold") if what == "scores" else ("goes", "as it stands", "holds")
    if activation != "none" and raw.numel() >= SEVERAL and float(raw.min()) >= 0 and float(raw.max()) <= 1:
        raise InputError(
            f"The teacher's {what} {verb} from {float(raw.min()):.3g} to {float(raw.max()):.3g} {stand} in the "
            f"file; set {setting}=none instead of {activation}."
        )
    found = values
    if activation == "softmax" and values.shape[-1] == 1:
        raise InputError(
            f"The teacher has one score a box, whose softmax is always 1; set {setting}=sigmoid, or none if it goes "
            "from 0 to 1 as it is."
        )
    if activation != "none":
        found = values.softmax(-1) if activation == "softmax" else values.sigmoid()
    known = found[valid]
    if known.isnan().any():
        raise InputError(
            f"The teacher's {what} {hold} NaN (not a number); check teacher.mean and teacher.std, which its pixels go "
            "through, or export it in float32."
        )
    if len(known) and not (float(known.min()) >= -1.0001 and float(known.max()) <= 1 + ROUNDING):
        mended = f"set {setting} to sigmoid or softmax" if what == "scores" else f"set {setting}=sigmoid"
        if what == "scores" and float(known.min()) >= 0 and bool((known == known.round()).all()):
            mended = f"these are whole numbers, as pixels, class numbers and percents are: check {place}"
        elif max(-float(known.min()), float(known.max())) > MOST_LOGIT:
            mended = (
                f"these are not {what}; check {place}"
                if what == "scores"
                else f"this is not an objectness; check {place}"
            )
        raise InputError(
            f"The teacher's {what} {verb} from {float(known.min()):.4g} to {float(known.max()):.4g}, not from 0 to 1; "
            f"{mended}."
        )
    return found.clamp(max=1)


def class_places(config: TeacherFileConfig, columns: int | None, classes: Sequence[str]) -> tuple[int, ...]:
    """The data's label for each of the file's classes, -1 for those that are left out.

    Args:
        config: `classes` and `drop_other_classes`.
        columns: for how many classes the file has scores; None where it gives numbers of classes.
        classes: the data's.

    Raises:
        InputError: the file has more or fewer classes than are named, or one that the data lack.
    """
    if not config.classes or (columns is not None and columns != len(config.classes)):
        has = "numbers of classes" if columns is None else f"{columns} score{'' if columns == 1 else 's'} of classes"
        named = f"names {len(config.classes)}" if config.classes else "names none"
        raise InputError(
            f"The teacher's boxes have {has} and teacher.classes {named}; write there the data's name of each in the "
            f"file's order, or null for what is none of theirs ({', '.join(classes)})"
            f"{', or change teacher.row_layout' if config.rows else ''}."
        )
    strange = [name for name in config.classes if name is not None and name not in classes]
    if strange and not config.drop_other_classes:
        meant = {name: own for name in strange if (own := near(name, classes))}
        hint = f" (did you mean {', '.join(f'{own} by {name}' for name, own in meant.items())}?)" if meant else ""
        raise InputError(
            f"The teacher has classes that the data lack: {', '.join(strange)}{hint}; the data have "
            f"{', '.join(classes)}. Write null in their places of teacher.classes, or set "
            "teacher.drop_other_classes=true to leave out such boxes."
        )
    places = tuple(classes.index(name) if name in classes else -1 for name in config.classes)
    if max(places) < 0:
        raise InputError(
            f"None of teacher.classes is one of the data's ({', '.join(classes)}): nothing would be labelled."
        )
    return places
