"""The best detector within a budget: a table of costs, short trainings, and the whole method for the winner."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from qmimic.arms import ARMS
from qmimic.bench.arena import arena_bytes
from qmimic.bench.measure import peak_of
from qmimic.config import Recipe
from qmimic.data.chosen import box_sizes
from qmimic.data.columns import in_columns
from qmimic.data.splits import TRAIN
from qmimic.detectors.architectures import map_strides
from qmimic.errors import InputError
from qmimic.files import replacing, write_text
from qmimic.run.candidates import Budget, Candidate, Option, candidates, cost_table
from qmimic.run.deploy import Deployed, deploy
from qmimic.run.folder import ranked
from qmimic.run.lock import exclusive_lock
from qmimic.run.prepare import prepare
from qmimic.run.stages import macs_to_prune_to, require_networks, train_student
from qmimic.run.teaching import require_map
from qmimic.run.train import RunResult, train
from qmimic.run.ways import SEARCHED, WAYS, Way, best_way
from qmimic.runtime.formats import FORMATS
from qmimic.tables import ARCHITECTURES, TEACHERS
from qmimic.training.loop import Watcher

RUNGS = (8, 4, 2)  # candidates that are trained, for 1/8, 1/4 and 1/2 of the student's steps
TABLE = "costs.json"
NEAR = 1.05  # times the least excess: measured times of equal networks differ by that much


@dataclass(frozen=True)
class Tried:
    """A candidate that was trained for a short time.

    Attributes:
        option: its cheapest file within the budget.
        map50: VOC mAP@0.5 on val after its longest short training, 0..1; steps: of that training.
        on_front: no other that was trained as long is better in one of mAP, milliseconds and kilobytes, and no worse in
            the others.
    """

    option: Option
    map50: float
    steps: int
    on_front: bool


@dataclass(frozen=True)
class Fit:
    """The result of a search.

    Attributes:
        folder: of the run.
        tried: those trained longest first, of these the best.
        file: to ship.
        map50: of it on val, 0..1.
        excess: its worst cost as a multiple of the limit; above 1 it misses the budget.
        ways: of teaching the winner that were tried; none where the recipe says how.
    """

    folder: Path
    tried: tuple[Tried, ...]
    file: Deployed
    map50: float
    excess: float
    ways: tuple[Way, ...] = ()


def fit(
    recipe: Recipe,
    budget: Budget,
    targets: Sequence[str],
    folder: Path,
    watcher: Watcher,
    named: Sequence[str] = (),
) -> Fit:
    """Search, train and ship a detector within a budget.

    Args:
        recipe: the data, and everything that is not searched.
        budget: at least one limit.
        targets: formats that may ship.
        folder: of the run; what is finished there is not repeated.
        watcher: told of progress.
        named: keys of the recipe that a person set, and that are not searched therefore.

    Raises:
        InputError: no network fits, the data cannot be used, or training failed.
    """
    for target in targets:
        if FORMATS[target].elsewhere:
            raise InputError(f"Files of {target} cannot be timed here; fit another format, then export to {target}.")
    with exclusive_lock(folder):
        return _fit(_within(recipe, folder), budget, targets, folder, watcher, named)


def _fit(
    recipe: Recipe, budget: Budget, targets: Sequence[str], folder: Path, watcher: Watcher, named: Sequence[str]
) -> Fit:
    prepared = prepare(recipe)
    images = in_columns({TRAIN: prepared.train.samples}, prepared.dataset.root)[TRAIN]
    by_places = any(FORMATS[target].by_places for target in targets)

    def strides_of(architecture: str, size: tuple[int, int]) -> tuple[int, ...]:
        own = recipe.detector.model_copy(update={"architecture": architecture})
        return map_strides(own, recipe.teacher.detector, box_sizes(images, size), size)

    known = candidates(images.image_sizes, strides_of)
    tried = [one for one in known if ARCHITECTURES[one.architecture].by_places or not by_places]
    if not recipe.trains_teacher:
        imitates = recipe.mimic.mode != "none" and any(key in SEARCHED for key in named)
        tried = _of_file(recipe, prepared.dataset.classes, tried, imitates, watcher)
    else:
        require_networks(prepared, [recipe])  # that the teacher cannot start must not wait for the search
    if not (folder / TABLE).exists():
        watcher.say(
            f"Measuring what {len(tried)} networks cost on this machine, once for this folder; that takes minutes."
        )
    watcher.start("costs", len(tried), 0)
    classes = prepared.dataset.classes
    table = cost_table(tried, recipe, classes, targets, budget, folder / TABLE, lambda done: watcher.step(done, 1, 0.0))
    fitting = [one for one in table if budget.of(one) <= 1]
    if not fitting:
        nearest = min(table, key=budget.of)
        memory = f", {nearest.megabytes:.0f} MB of memory" if budget.megabytes else ""
        memory += f", {nearest.arena:.0f} kB of arena" if budget.arena else ""
        slow = budget.milliseconds is not None and nearest.milliseconds > budget.milliseconds
        faster = ", or use a faster machine" if slow else ""
        raise InputError(
            f"No network fits: the closest, {nearest.candidate} as {nearest.target} {nearest.precision}, takes "
            f"{nearest.milliseconds:.2f} ms and {nearest.kilobytes:.0f} kB{memory}: {budget.of(nearest):.1f} times the "
            f"limit; raise the limit{faster}."
        )
    # Where nothing is known of accuracy, more arithmetic is the better guess.
    by_macs = sorted({one.candidate: one.macs for one in fitting}.items(), key=lambda pair: -pair[1])
    scores = halve([candidate for candidate, _ in by_macs], recipe, watcher)
    found = _tried(scores, fitting)
    winner = next(iter(scores))
    watcher.say(f"{winner} is the best of them.")
    whole, ways = best_way(_prunable(_within(winner.of(recipe), folder / "winner"), watcher), named, watcher)
    file, map50, excess = _shipped(train(whole, watcher), budget, targets, watcher)
    fitted = Fit(folder, found, file, map50, excess, ways)
    _write(fitted, budget)
    return fitted


def _of_file(
    recipe: Recipe, classes: Sequence[str], tried: Sequence[Candidate], imitates: bool, watcher: Watcher
) -> list[Candidate]:
    """The networks of an input size that the teacher's file takes: that it does not fit must not wait for the search.

    Args:
        recipe: whose teacher is a file.
        classes: the data's.
        tried: all networks.
        imitates: whether a person wants its map to be imitated.
        watcher: told of sizes that are left out.

    Raises:
        InputError: the file cannot be opened, takes none of the sizes, or does not fit the recipe or the data.
    """
    fitting, failed = set(), None
    for size in dict.fromkeys(one.size for one in tried):
        try:
            teacher = TEACHERS[recipe.teacher.kind](recipe.teacher, size)
            if imitates:
                require_map(teacher)
            if recipe.data.unlabelled is not None:
                teacher.labeller(classes)
            fitting.add(size)
        except InputError as error:
            failed = error
    if failed and not fitting:
        raise failed
    if failed:
        sizes = ", ".join(f"{height}x{width}" for height, width in sorted(fitting))
        watcher.say(f"Only inputs of {sizes} are tried, which the teacher's file takes.")
    return [one for one in tried if one.size in fitting]


def _prunable(recipe: Recipe, watcher: Watcher) -> Recipe:
    """The recipe, without pruned teachers among the baselines where its teacher costs no more than the winner."""
    pruned = [name for name in recipe.baselines if ARMS[name].pruned]
    try:
        if pruned:
            macs_to_prune_to(prepare(recipe))
        return recipe
    except InputError as error:
        watcher.say(f"{error} Trained without {' and '.join(pruned)}.")
        return recipe.changed({"baselines": tuple(one for one in recipe.baselines if one not in pruned)})


def _shipped(
    result: RunResult, budget: Budget, targets: Sequence[str], watcher: Watcher
) -> tuple[Deployed, float, float]:
    """The file of the best student that has one within the budget, its mAP@0.5 on val, and its excess.

    A pruned student has its own shape, so that only its file says what it costs. If none fits, it is the best
    of the closest ones.
    """
    nearest: list[tuple[Deployed, float, float]] = []
    failed: InputError | None = None
    for student in ranked(result.results):
        path = result.folder / f"{student.name}.safetensors"
        try:
            written = deploy(path, None, None, (), 1, True, targets, True, watcher)
        except InputError as error:
            failed = error
            watcher.say(f"{student.name} cannot ship: {error}")
            continue
        files = [(one, float(one.proof.get("map50", student.map50)), _excess(budget, one)) for one in written]
        fitting = [one for one in files if one[2] <= 1]
        if fitting:
            return min(fitting, key=lambda one: one[0].milliseconds)
        nearest.append(min(files, key=lambda one: one[2]))
        watcher.say(f"No file of {student.name} is within the limits.")
    if failed and not nearest:
        raise failed
    least = min(excess for _, _, excess in nearest)
    return next(one for one in nearest if one[2] <= NEAR * least)


def halve(tried: Sequence[Candidate], recipe: Recipe, watcher: Watcher) -> dict[Candidate, tuple[float, int]]:
    """Short trainings from scratch; the better half goes on to longer ones (Jamieson & Talwalkar, AISTATS 2016).

    Args:
        tried: the first ones are trained, as many as the first rung takes.
        recipe: of the student that the winner becomes.
        watcher: told of progress.

    Returns:
        mAP@0.5 on val and steps of each one's longest training; the longest first, of these the best.
    """
    left = list(tried[: RUNGS[0]])
    scores: dict[Candidate, tuple[float, int]] = {}
    for count in RUNGS:
        left = sorted(left, key=lambda one: -scores.get(one, (0.0, 0))[0])[:count]
        steps = math.ceil(recipe.student.steps / count)
        for candidate in left:
            scores[candidate] = _short(candidate, recipe, steps, watcher), steps
            watcher.say(f"{candidate}: {100 * scores[candidate][0]:.1f} mAP@0.5 after {steps} steps.")
        if len(left) == 1:
            break
    ordered = sorted(scores, key=lambda one: (-scores[one][1], -scores[one][0]))
    return {candidate: scores[candidate] for candidate in ordered}


def _short(candidate: Candidate, recipe: Recipe, steps: int, watcher: Watcher) -> float:
    short = {"student.steps": steps, "student.evaluate_every": steps, "student.closing_steps": 0, "baselines": ()}
    own = candidate.of(recipe).changed({**WAYS["alone"], **short})
    return train_student(prepare(own), f"try-{candidate.file_name}", None, watcher).result.map50


def _within(recipe: Recipe, folder: Path) -> Recipe:
    return recipe.changed({"run.dir": str(folder)})


def _tried(scores: Mapping[Candidate, tuple[float, int]], fitting: Sequence[Option]) -> tuple[Tried, ...]:
    cheapest = {
        candidate: min((one for one in fitting if one.candidate == candidate), key=lambda one: one.milliseconds)
        for candidate in scores
    }

    def merits(one: Candidate) -> tuple[float, float, float]:
        return scores[one][0], -cheapest[one].milliseconds, -cheapest[one].kilobytes

    def beaten(one: Candidate) -> bool:
        own, rivals = merits(one), [merits(other) for other in scores if scores[other][1] == scores[one][1]]
        return any(other != own and all(a >= b for a, b in zip(other, own, strict=True)) for other in rivals)

    return tuple(Tried(cheapest[one], *scores[one], not beaten(one)) for one in scores)


def _excess(budget: Budget, file: Deployed) -> float:
    memory = peak_of(file.path) if budget.megabytes else 0.0
    arena = arena_bytes(file.path) / 1000 if budget.arena else 0.0
    return budget.excess(file.milliseconds, file.bytes / 1000, memory, arena)


def _write(fitted: Fit, budget: Budget) -> None:
    plain = {"budget": asdict(budget), "tried": [asdict(one) for one in fitted.tried], "map50": fitted.map50}
    plain |= {"file": str(fitted.file.path), "excess": fitted.excess, "ways": [asdict(one) for one in fitted.ways]}
    write_text(fitted.folder / "fit.json", json.dumps(plain, indent=1))
    _draw(fitted, budget, fitted.folder / "front.png")


def _draw(fitted: Fit, budget: Budget, path: Path) -> None:
    """mAP against milliseconds of all that were trained, and of the file that ships."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.add_subplot()
    longest = max(one.steps for one in fitted.tried)
    for steps, colour in zip(
        sorted({one.steps for one in fitted.tried}), ("#56B4E9", "#E69F00", "#0072B2"), strict=False
    ):
        own = [one for one in fitted.tried if one.steps == steps]
        x, y = [one.option.milliseconds for one in own], [100 * one.map50 for one in own]
        axes.scatter(x, y, color=colour, label=f"from scratch, {steps} steps")
        for one, left, top in zip(own if steps == longest else [], x, y, strict=False):  # all names would overlap
            axes.annotate(str(one.option.candidate), (left, top), fontsize=7, xytext=(4, 3), textcoords="offset points")
    file = fitted.file
    axes.scatter([file.milliseconds], [100 * fitted.map50], marker="*", s=160, color="#D55E00", label="shipped")
    if budget.milliseconds:
        axes.axvline(budget.milliseconds, color="#777777", linestyle="--", linewidth=1, label="limit")
    axes.set_xlabel("milliseconds a picture, one thread of this machine")
    axes.set_ylabel("mAP@0.5 on val, %")
    axes.legend(fontsize=8)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150)
