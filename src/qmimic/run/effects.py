"""Which settings of a recipe have an effect, given its others: who sets one that has none meant something else.

Each line of `READERS` names settings that only some recipes read. What no line names is read by every run (or, of
`int8`, by `qmimic export` of its files).
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from qmimic.config import (
    DetectorConfig,
    FineTuningConfig,
    Recipe,
    TeacherConfig,
    TeacherFileConfig,
    load_recipe,
    load_tree,
    recipe_from,
)
from qmimic.config.reading import keys_of, named_keys, recipe_file
from qmimic.errors import InputError
from qmimic.run.folder import ENVIRONMENT
from qmimic.tables import ARCHITECTURES

OF_LABELS = ("size", "labels", "drop_other_classes")  # of a teacher that is a file


@dataclass(frozen=True)
class Reader:
    """Settings that only some recipes read.

    Attributes:
        keys: dotted; a section is all that is in it.
        reads: whether a recipe does.
        why: else, a clause that names what would have to be set.
        but: keys that these are not.
    """

    keys: tuple[str, ...]
    reads: Callable[[Recipe], bool]
    why: str
    but: tuple[str, ...] = ()

    def names(self, key: str) -> bool:
        """Whether a key is one of these."""
        return key not in self.but and any(key == one or key.startswith(f"{one}.") for one in self.keys)


def _has_teacher(recipe: Recipe) -> bool:
    return any(own.needs_teachers for own in recipe.students.values())


def _mimicking(recipe: Recipe) -> list[Recipe]:
    return [own for own in recipe.students.values() if own.mimic.mode != "none"]


def _mimics(recipe: Recipe) -> bool:
    return bool(_mimicking(recipe))


def _matches_scored_boxes(recipe: Recipe) -> bool:
    """Whether a student imitates a file's map on regions that are the file's boxes, the best first."""
    scored = bool(recipe.teacher.scores or recipe.teacher.rows)
    return scored and any(own.mimic.regions == "teacher" for own in _mimicking(recipe))


def _needs_grid(recipe: Recipe) -> bool:
    return any(own.needs_grid for own in recipe.students.values())


def _prunes(method: str) -> Callable[[Recipe], bool]:
    return lambda recipe: any(own.pruning.method == method for own in recipe.students.values())


def _in(section: str, names: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"{section}.{name}" for name in names)


READERS = (
    Reader(
        ("teacher", "quantized_teacher", "quantizer"),
        _has_teacher,
        "no student has a teacher: set mimic.mode or data.unlabelled",
    ),
    Reader(
        ("data.unlabelled_share", "data.unlabelled_doubt"),
        lambda recipe: recipe.data.unlabelled is not None,
        "no picture without labels is named: set data.unlabelled",
    ),
    Reader(
        _in("teacher", OF_LABELS),
        lambda recipe: recipe.data.unlabelled is not None,
        "the teacher's file labels nothing: set data.unlabelled",
    ),
    Reader(
        ("teacher.suppress",),
        lambda recipe: recipe.data.unlabelled is not None or _matches_scored_boxes(recipe),
        "the teacher's file labels nothing, and no box with a score is a region: set data.unlabelled, or "
        "mimic.regions=teacher and teacher.scores",
    ),
    Reader(("mimic",), _mimics, "no student imitates a teacher: set mimic.mode", but=("mimic.mode",)),
    Reader(
        _in(
            "teacher",
            (
                name
                for name in TeacherConfig.model_fields
                if name not in ("kind", "scale", *TeacherFileConfig.model_fields)
            ),
        ),
        lambda recipe: recipe.trains_teacher,
        "the teacher is a file that is not trained: set teacher.kind=detector",
    ),
    Reader(
        ("quantized_teacher",),
        lambda recipe: recipe.trains_teacher,
        "the teacher is a file that is not trained: set teacher.kind=detector",
    ),
    Reader(
        ("quantized_teacher", "quantizer"),
        _needs_grid,
        "no student sees a quantized map: set mimic.mode",
    ),
    Reader(
        _in("teacher", TeacherFileConfig.model_fields),
        lambda recipe: not recipe.trains_teacher,
        "the run trains its teacher: set teacher.kind=onnx",
    ),
    *(
        Reader(
            (f"{section}.milestones",),
            lambda recipe, section=section: getattr(recipe, section).decay == "step",  # type: ignore[misc]
            f"they are those of {section}.decay=step",
        )
        for section in ("teacher", "student")
    ),
    *(
        Reader(
            _in(section, (name for name in FineTuningConfig.model_fields if name not in ("steps", "batch_size"))),
            lambda recipe, section=section: getattr(recipe, section).steps > 0,  # type: ignore[misc]
            f"nothing is trained in 0 steps: set {section}.steps",
        )
        for section in ("quantized_teacher", "int8")
    ),
    Reader(
        _in("quantized_teacher", ("optimizer", "weight_decay")),
        lambda recipe: recipe.quantized_teacher.steps > 0,
        "nothing is trained in 0 steps: set quantized_teacher.steps",
    ),
    Reader(("mimic.share",), lambda recipe: recipe.mimic.holds_share, "the weight is a number: set mimic.weight=auto"),
    Reader(
        _in("mimic", ("with_truth", "region_count", "region_size", "pooling", "sampling", "order", "map_steps")),
        lambda recipe: recipe.mimic.regions != "map",
        "mimic.regions=map matches the whole map without regions: name other regions",
    ),
    Reader(
        ("mimic.region_size",),
        lambda recipe: recipe.mimic.pooling != "crop",
        "mimic.pooling=crop takes the entries as they lie: leave it out, or pool",
    ),
    Reader(
        _in("mimic", ("with_truth",)),
        lambda recipe: recipe.mimic.regions != "ground_truth",
        "mimic.regions=ground_truth has no others: name other regions",
    ),
    Reader(
        _in("pruning", ("rounds", "steps", "learning_rate", "cost_weight", "multiple")),
        _prunes("taylor"),
        "nothing is pruned by Taylor expansion: set pruning.method=taylor, or name taylor in baselines",
    ),
    Reader(
        _in("pruning", ("images", "places")),
        _prunes("lasso"),
        "nothing is pruned by LASSO: set pruning.method=lasso, or name lasso in baselines",
    ),
    Reader(("data.val",), lambda recipe: recipe.data.fold is None, "data.fold reports on a part of data.train"),
    Reader(
        ("detector.anchor_count",),
        lambda recipe: recipe.detector.anchors is None and recipe.detector.anchor_cells is None,
        "no anchors are fitted where they are named: leave out detector.anchors and anchor_cells",
    ),
)


def why_idle(recipe: Recipe, key: str) -> str:
    """Why a setting has no effect in a recipe, a clause; empty if it has one, or has its default."""
    section, _, name = key.rpartition(".")
    own, usual = (getattr(one, section) if section else one for one in (recipe, Recipe()))
    if not hasattr(own, name) or getattr(own, name) == getattr(usual, name):
        return ""
    for reader in READERS:
        if reader.names(key) and not reader.reads(recipe):
            return reader.why
    if section == "detector" and name in DetectorConfig.model_fields:
        kinds = dict.fromkeys((recipe.detector.architecture, recipe.teacher_architecture))
        if not any(name in ARCHITECTURES[kind].reads for kind in kinds):
            read = "read" if len(kinds) > 1 else "reads"
            return f"{' and '.join(kinds)} {read} no such setting: set detector.architecture to one that does"
    return ""


def refuse_idle(recipe: Recipe, keys: Iterable[str], source: str) -> None:
    """Refuse a setting that has no effect.

    Args:
        recipe: resolved.
        keys: that somebody set.
        source: how the sentence calls the place where they stand.

    Raises:
        InputError: one has no effect, and not its default either.
    """
    for key in keys:
        why = why_idle(recipe, key)
        if why:
            raise InputError(f"In {source}: {key} would have no effect: {why}; or leave it out.")


def recipe_to_train(path: Path | str | None, overrides: Sequence[str] = ()) -> Recipe:
    """As `load_recipe`, and every setting has an effect: those of the file by themselves, overrides in the result.

    So an override that switches a part off need not name all that the file says of that part.

    Raises:
        InputError: as `load_recipe`; or a setting would have no effect.
    """
    recipe = load_recipe(path, list(overrides))
    refuse_idle(recipe, named_keys(overrides), "the overrides")
    if path and not (Path(path).parent / ENVIRONMENT).exists():  # a run writes what it resolved, idle or not
        tree = load_tree(recipe_file(Path(path)), "recipe")
        try:
            alone = recipe_from(tree, str(path))
        except InputError:  # overrides complete it
            alone = recipe
        refuse_idle(alone, keys_of(tree), str(path))
    return recipe
