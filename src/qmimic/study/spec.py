"""A study: one recipe, arms that change it, a grid of settings for all arms, seeds and folds. Plain data."""

import copy
import itertools
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    FiniteFloat,
    StrictInt,
    ValidationError,
    model_validator,
)

from qmimic.config import Recipe, explain, load_tree, put, recipe_from
from qmimic.config.base import FolderName
from qmimic.config.reading import keys_of
from qmimic.errors import InputError
from qmimic.run.effects import why_idle
from qmimic.run.keys import job_keys


class Study(BaseModel):
    """What a study's YAML file says. Keys of `set`, `grid` and `arms` are dotted recipe keys: `student.steps`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: FolderName = Field(description="name of the study")
    question: str = Field("", description="the question it answers, a sentence for the report")
    recipe: str = Field(description="the recipe's file, relative to the study's")
    set: dict[str, Any] = Field({}, description="settings of every run")
    grid: dict[str, Annotated[list[Any], Field(min_length=1)]] = Field(
        {}, description="values by setting; every arm runs with every combination"
    )
    arms: dict[str, dict[str, Any]] = Field(min_length=1, description="name of an arm to its settings")
    control: str = Field("", description="the arm to which others are compared, seed by seed; empty: the first")
    published: dict[str, str] = Field({}, description="by arm, what its authors report, for a column of the table")
    order: dict[str, FiniteFloat] = Field(
        {},
        description="arms, each claimed to be so many points of mAP@0.5 above the one before it, the first above the "
        "control; the report says whether the order appears or is refuted",
    )
    seeds: tuple[StrictInt, ...] = Field((0, 1, 2, 3, 4), min_length=1, description="every arm runs with each of these")
    folds: int = Field(1, ge=1, description="parts of cross-validation over `data.train`; 1: none")
    fold_of_seed: bool = Field(
        False, description="the k-th seed runs on fold k only, instead of every seed on every fold"
    )

    @model_validator(mode="after")
    def _consistent(self) -> "Study":
        if self.control and self.control not in self.arms:
            raise ValueError(f"control: {self.control!r} is not one of the arms ({', '.join(self.arms)})")
        for key, named in (("published", self.published), ("order", self.order)):
            stranger = next((arm for arm in named if arm not in self.arms), None)
            if stranger is not None:
                raise ValueError(f"{key}: {stranger!r} is not one of the arms ({', '.join(self.arms)})")
        if self.compared_to in self.order:
            raise ValueError(f"order: {self.compared_to!r} is the control, which comes first anyway; leave it out")
        for key in (key for keys in (self.set, self.grid, *self.arms.values()) for key in keys):
            if key.split(".")[0] in ("seed", "baselines", "name") or key in ("run", "run.dir", "run.threads"):
                raise ValueError(f"{key}: the study sets this itself for every run; leave it out")
            if key.split(".")[0] == "published":
                raise ValueError("published: write it under the study's own key `published`")
            if key.split(".")[0] == "int8" or key == "run.report":
                raise ValueError(f"{key}: a study writes no int8 files and no run reports; leave it out")
            if self.folds > 1 and key == "data.fold":
                raise ValueError("data.fold: the study's `folds` sets this for every run; leave one of them out")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError("seeds: one is listed twice and would count twice; list it once")
        if self.fold_of_seed and len(self.seeds) % self.folds:
            raise ValueError(
                "fold_of_seed: the number of seeds must be a multiple of `folds`, or some images would count more often"
            )
        return self

    @property
    def compared_to(self) -> str:
        """The control arm."""
        return self.control or next(iter(self.arms))


@dataclass(frozen=True)
class Run:
    """One student to train and score.

    Attributes:
        arm: name.
        point: its point in the grid, dotted keys to values.
        seed, fold: which repetition.
        recipe: resolved.
    """

    arm: str
    point: dict[str, Any]
    seed: int
    fold: int
    recipe: Recipe


@dataclass(frozen=True)
class Job:
    """One stage to compute; runs that share it compute it once.

    Attributes:
        id: fingerprint of everything that decides its result.
        kind: teacher, quantized or student.
        needs: id of the job that must be done first; empty if none.
        recipe: of one of the runs that need it.
    """

    id: str
    kind: str
    needs: str
    recipe: Recipe


def load_study(path: Path) -> Study:
    """Read a study.

    Raises:
        InputError: the file is missing, not YAML, or has an unknown key or a bad value.
    """
    try:
        return Study.model_validate(load_tree(path, "study"))
    except ValidationError as error:
        first = error.errors()[0]
        if first["type"] == "extra_forbidden":
            known = ", ".join(Study.model_fields)
            raise InputError(f"In {path}: unknown key {first['loc'][0]!r}; a study has {known}.") from error
        raise InputError(f"In {path}: {explain(error)}") from error


def expand(study: Study, source: Path, folder: Path) -> tuple[Run, ...]:
    """All runs of a study, every recipe checked.

    Args:
        study: as read.
        source: the study's file; its recipe is named relative to it.
        folder: where the stages of all runs go.

    Raises:
        InputError: the recipe cannot be read, an arm or a point of the grid names an unknown setting, or two arms are
            the same run.
    """
    base = load_tree(source.parent / study.recipe, "recipe")
    points = [dict(zip(study.grid, values, strict=True)) for values in itertools.product(*study.grid.values())]
    repetitions = list(itertools.product(study.seeds, range(study.folds)))
    if study.fold_of_seed:
        repetitions = [(seed, number % study.folds) for number, seed in enumerate(study.seeds)]
    runs = []
    for point, (arm, own), (seed, fold) in itertools.product(points, study.arms.items(), repetitions):
        tree = copy.deepcopy(base)
        place = f"arm {arm} of {source}"
        for key, value in {**study.set, **point, **own}.items():
            put(tree, key, copy.deepcopy(value), place)
        put(tree, "seed", seed, place)
        put(tree, "baselines", [], place)
        put(tree, "run.dir", str(folder), place)
        put(tree, "run.threads", 1, place)  # two tiny trainings with one thread each beat one with two threads
        if study.folds > 1:
            put(tree, "data.fold", [fold, study.folds], place)
        runs.append(Run(arm, point, seed, fold, recipe_from(tree, place)))
    _refuse_idle(study, runs, base, source)
    _refuse_twins(runs, source)
    return tuple(runs)


def _refuse_idle(study: Study, runs: list[Run], base: dict[str, Any], source: Path) -> None:
    """Refuse settings that have no effect in any of the runs they are for."""
    recipes = {
        (run.arm, repr(run.point)): run for run in runs
    }.values()  # other seeds and folds read the same settings as the first
    owned = [("", key) for key in (*study.set, *study.grid)]
    # Where an arm overrides a setting of the recipe or the study, only the arm's value can have an effect.
    before = {*study.set, *study.grid, *keys_of(base)}
    owned += [(arm, key) for arm, own in study.arms.items() for key in own if key not in before]
    for arm, key in owned:
        whys = [why_idle(run.recipe, key) for run in recipes if arm in ("", run.arm)]
        if all(whys):
            place = f"arm {arm} of {source}" if arm else source
            raise InputError(f"In {place}: {key} would have no effect: {whys[0]}; or leave it out.")


def _refuse_twins(runs: list[Run], source: Path) -> None:
    """Refuse two arms that are the same in all their runs: their difference would be 0, whatever is compared."""
    students: dict[str, list[str]] = {}
    for run in runs:
        students.setdefault(run.arm, []).append(jobs_of(run)[-1].id)
    first: dict[tuple[str, ...], str] = {}
    for arm, ids in students.items():
        twin = first.setdefault(tuple(ids), arm)
        if twin != arm:
            raise InputError(f"In {source}: the arms {twin!r} and {arm!r} are the same run; leave one of them out.")


def jobs_of(run: Run) -> tuple[Job, ...]:
    """The jobs of a run, the student's last. Runs that share a teacher name the same job."""
    recipe, before = run.recipe, ""
    jobs = []
    for kind, key in job_keys(recipe).items():
        jobs.append(Job(key, kind, before, recipe))
        before = key
    return tuple(jobs)
