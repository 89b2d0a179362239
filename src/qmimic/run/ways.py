"""How the student that a search found is taught: short trainings of each way, the best of which is taken in full.

Teaching takes time, and so does the teacher. So training alone for twice as long, which costs about as much as being
taught, is one of the ways.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from qmimic.config import Recipe
from qmimic.errors import InputError
from qmimic.run.lock import exclusive_lock
from qmimic.run.opened_teacher import OpenedTeacher
from qmimic.run.prepare import prepare
from qmimic.run.stages import labels_of, macs_to_prune_to, require_networks, teachers_of, train_student
from qmimic.run.teaching import require_teachable
from qmimic.training.loop import Watcher

SHORTER = 4  # times; than the student's training
SEARCHED = ("mimic.mode", "mimic.distiller", "pruning.method")  # who sets one of these has chosen a way
LENGTH = "student.steps"
_CUT, _WHOLE = {"pruning.method": "taylor"}, {"pruning.method": "none"}
_ALONE = {**_WHOLE, "mimic.mode": "none", "data.unlabelled": None}
WAYS: Mapping[str, Mapping[str, object]] = {
    "alone": _ALONE,
    "quantization mimic": {**_WHOLE, "mimic.mode": "quantization"},
    "channel_wise": {**_WHOLE, "mimic.mode": "mimic", "mimic.distiller": "channel_wise"},
    "pearson": {**_WHOLE, "mimic.mode": "mimic", "mimic.distiller": "pearson"},
    "outputs": {**_WHOLE, "mimic.mode": "mimic", "mimic.distiller": "outputs"},
    "alone, twice the steps": _ALONE,
    "pruned": {**_CUT, "mimic.mode": "none"},
    "pruned, quantization mimic": {**_CUT, "mimic.mode": "quantization"},
}
_LABELS = {**_WHOLE, "mimic.mode": "none"}
LABELS: Mapping[str, Mapping[str, object]] = {  # where there are pictures without labels
    "teacher's labels": _LABELS,
    "teacher's labels, three times the steps": _LABELS,
    "pruned, teacher's labels, three times the steps": {**_CUT, "mimic.mode": "none"},
}
TIMES = {  # the student's steps; tried where nobody set these
    "alone, twice the steps": 2,
    # More pictures need more steps: docs/results.md, "race".
    "teacher's labels, three times the steps": 3,
    "pruned, teacher's labels, three times the steps": 3,
}


@dataclass(frozen=True)
class Way:
    """A way of teaching that was tried.

    Attributes:
        name: of it.
        map50: VOC mAP@0.5 on val after its short training, 0..1; steps: of that.
    """

    name: str
    map50: float
    steps: int


def best_way(recipe: Recipe, named: Sequence[str], watcher: Watcher) -> tuple[Recipe, tuple[Way, ...]]:
    """The recipe, taught in the way that is the best on val after a quarter of its training; and all that were tried.

    Ways that these networks do not allow are passed over, and that is said.

    Args:
        recipe: of the network to teach, and of the folder of its run; a teacher that is not a file is trained there
            first.
        named: keys that a person set: where they choose a way, nothing is tried.
        watcher: told of progress.
    """
    chosen = [key for key in named if key in SEARCHED]
    if chosen:
        watcher.say(f"It is taught as the recipe says ({' and '.join(chosen)} are set); no other way is tried.")
        return recipe, ()
    known = {**WAYS, **(LABELS if recipe.data.unlabelled is not None else {})}
    if not recipe.trains_teacher:  # and so it cannot be cut
        known = {name: settings for name, settings in known.items() if settings["pruning.method"] == "none"}
    if LENGTH in named:
        known = {name: settings for name, settings in known.items() if name not in TIMES}
    with exclusive_lock(recipe.folder):
        prepared = prepare(recipe)
        require_networks(prepared, [recipe])
        teachers = teachers_of(prepared, True, watcher)
        labels = labels_of(prepared, teachers, watcher)
        tried = []
        for name, settings in known.items():
            steps = math.ceil(TIMES.get(name, 1) * recipe.student.steps / SHORTER)
            short = {LENGTH: steps, "student.evaluate_every": steps, "student.closing_steps": 0, "baselines": ()}
            own = replace(prepared, recipe=recipe.changed({**settings, **short}))
            if recipe.teacher.scale != 1 and own.recipe.pruning.method != "none":
                watcher.say(f"{name} is not tried: a pruned student would see the larger pictures of teacher.scale.")
                continue
            try:
                if own.recipe.pruning.method != "none":
                    macs_to_prune_to(own)
                if own.recipe.mimic.mode != "none":
                    require_teachable(own, teachers.teacher if isinstance(teachers, OpenedTeacher) else None)
            except InputError as error:
                watcher.say(f"{name} is not tried: {error}")
                continue
            stage = f"try-{name.replace(', ', '-').replace(' ', '_').replace(chr(39), '')}"
            score = train_student(own, stage, teachers, watcher, labels).result.map50
            tried.append(Way(name, score, steps))
            watcher.say(f"{name}: {100 * score:.1f} mAP@0.5 after {steps} steps.")
    best = max(tried, key=lambda way: way.map50)
    watcher.say(f"The student is taught in full as the best of these was: {best.name}.")
    whole = recipe.changed({**known[best.name], LENGTH: TIMES.get(best.name, 1) * recipe.student.steps})
    if whole.data.unlabelled is None:  # then there is no other student without them
        whole = whole.changed({"baselines": tuple(name for name in whole.baselines if name != "labelled")})
    return whole, tuple(tried)
