"""A study's table as statistics: means, paired differences to the control, and what their intervals say in words."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from qmimic.scores.statistics import Estimate, estimate, interval
from qmimic.study.spec import Study


@dataclass(frozen=True)
class ArmSummary:
    """One arm at one point of the grid.

    Attributes:
        arm, point: which.
        score: mAP@0.5, 0..1; gain: its paired difference to the control, None for the control itself.
        of_teacher: mean of its mAP@0.5 over that of its teacher; without one, over that of the study's only teacher of
            the same seed and fold; None where there are several, trained yet or not.
        matching, matching_nonzero: means, None without a mimic.
        backbone, parameters, macs, bytes: of its network.
        failed: runs that are missing because they failed, and why the first did.
    """

    arm: str
    point: dict[str, Any]
    score: Estimate
    gain: Estimate | None
    of_teacher: float | None
    matching: float | None
    matching_nonzero: float | None
    backbone: str
    parameters: int
    macs: int
    bytes: int
    failed: tuple[str, ...]

    @property
    def title(self) -> str:
        """The arm and its point, in words."""
        return self.arm + "".join(f", {key.split('.')[-1]} {value}" for key, value in self.point.items())


def repetitions(rows: Sequence[dict[str, Any]]) -> dict[int, float]:
    """mAP@0.5 by repetition: each seed, averaged over its folds; with a single seed, each fold.

    Folds of one seed share most of their training images, and seeds share them all: counting folds times seeds as
    independent would make intervals too narrow. A seed with a missing fold is left out.
    """
    by_seed: dict[int, dict[int, float | None]] = defaultdict(dict)
    for row in rows:
        by_seed[row["seed"]][row["fold"]] = row["map50"] if row["status"] == "done" else None
    if len(by_seed) == 1:
        by_seed = {fold: {fold: value} for own in by_seed.values() for fold, value in own.items()}
    whole = {seed: [value for value in own.values() if value is not None] for seed, own in by_seed.items()}
    return {seed: float(np.mean(values)) for seed, values in whole.items() if len(values) == len(by_seed[seed])}


def summarize(study: Study, results: Sequence[dict[str, Any]]) -> list[ArmSummary]:
    """A summary of every arm at every point, in the study's order."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    teachers: dict[tuple[int, int], dict[str, float | None]] = defaultdict(dict)
    for row in results:
        if row["teacher"]:
            teachers[row["seed"], row["fold"]][row["teacher"]] = row["teacher_map50"]
        groups[repr(row["point"]), row["arm"]].append(row)
    found = []
    for (point, arm), rows in groups.items():
        own = repetitions(rows)
        control = repetitions(groups[point, study.compared_to])
        pairs = [value - control[key] for key, value in own.items() if key in control]
        done = [row for row in rows if row["status"] == "done"]
        shares = []
        for row in done:
            others = list(teachers[row["seed"], row["fold"]].values())
            known = [row["teacher_map50"]] if row["teacher"] else others if len(others) == 1 else []
            shares += [row["map50"] / one for one in known if one]
        some: dict[str, Any] = done[0] if done else {"backbone": "-", "parameters": 0, "macs": 0, "bytes": 0}
        found.append(
            ArmSummary(
                arm=arm,
                point=rows[0]["point"],
                score=estimate(list(own.values())),
                gain=None if arm == study.compared_to else estimate(pairs),
                of_teacher=float(np.mean(shares)) if shares else None,
                matching=_mean(done, "matching"),
                matching_nonzero=_mean(done, "matching_nonzero"),
                backbone=some["backbone"],
                parameters=some["parameters"],
                macs=some["macs"],
                bytes=some["bytes"],
                failed=tuple(row["error"] for row in rows if row["status"] == "failed"),
            )
        )
    return found


def _mean(rows: Sequence[dict[str, Any]], column: str) -> float | None:
    values = [row[column] for row in rows if row.get(column) is not None]
    return float(np.mean(values)) if values else None


def verdicts(study: Study, arms: Sequence[ArmSummary]) -> list[str]:
    """What the intervals say in words, one sentence for each point of the grid."""
    points: dict[str, list[ArmSummary]] = defaultdict(list)
    for own in arms:
        points[_place(own.point)].append(own)
    return [_verdict(study.compared_to, place, group) for place, group in points.items()]


def _place(point: Mapping[str, Any]) -> str:
    """A point of the grid as the end of a sentence; empty without a grid."""
    return "".join(f" at {key} {value}" for key, value in point.items())


def _quoted(arm: str) -> str:
    """An arm's name within a list that is separated by commas."""
    return f'"{arm}"' if "," in arm else arm


def _verdict(control: str, place: str, group: Sequence[ArmSummary]) -> str:
    told: dict[str, list[str]] = {"above": [], "below": [], "not distinguishable from": []}
    for own in group:
        if own.gain is not None and own.gain.count > 1:
            low, high = own.gain.mean - own.gain.margin, own.gain.mean + own.gain.margin
            told["above" if low > 0 else "below" if high < 0 else "not distinguishable from"].append(own.arm)
    said = [
        f"{', '.join(map(_quoted, names))} {'is' if len(names) == 1 else 'are'} {word} {_quoted(control)}"
        for word, names in told.items()
        if names
    ]
    return f"By these intervals{place}: {'; '.join(said) or 'nothing can be said yet'}.\n"


def orders(study: Study, results: Sequence[dict[str, Any]]) -> list[str]:
    """Whether the order that the study asks about appears, one sentence for each point that has the arms twice.

    It appears where every arm is above the one before by its interval, and is refuted where no interval reaches what is
    claimed.
    """
    points: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for row in results:
        points[_place(row["point"])][row["arm"]].append(row)
    said = []
    for place, arms in points.items():
        names = [study.compared_to, *study.order]
        scores = [repetitions(arms[name]) for name in names]
        steps = [estimate([own[key] - before[key] for key in own if key in before]) for before, own in pairwise(scores)]
        if not steps or any(step.count < 2 for step in steps):
            continue
        if all(step.mean > step.margin for step in steps):
            verdict = "The order appears"
        elif all(
            100 * (step.mean + step.margin) < least for step, least in zip(steps, study.order.values(), strict=True)
        ):
            verdict = "The order is refuted here"
        else:
            verdict = "The order neither appears nor is refuted"
        pairs = zip(names, names[1:], steps, study.order.values(), strict=False)
        each = (f"{own} over {before} {interval(step)}, claimed {least:g}" for before, own, step, least in pairs)
        said.append(f"{verdict}{place}: {'; '.join(each)}.\n")
    return said
