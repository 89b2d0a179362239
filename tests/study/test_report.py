"""Means, paired differences and intervals against SciPy's own tests and by hand."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy import stats

from qmimic.errors import InputError
from qmimic.scores.statistics import estimate, interval
from qmimic.study.figures import draw_cost, draw_gains
from qmimic.study.report import markdown, note_of, report
from qmimic.study.spec import Study
from qmimic.study.summary import orders, summarize

SCORES = st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), min_size=3, max_size=8)


def study(**settings: Any) -> Study:
    return Study(name="s", recipe="r.yaml", arms={"scratch": {}, "mimic": {}}, **settings)


def row(arm: str, seed: int, map50: float, **values: Any) -> dict[str, Any]:
    defaults = {
        "arm": arm,
        "point": {},
        "seed": seed,
        "fold": 0,
        "status": "done",
        "error": "",
        "backbone": "resnet18/16",
        "map50": map50,
        "matching": None,
        "matching_nonzero": None,
        "parameters": 1000,
        "macs": 10_000_000,
        "bytes": 5000,
        "teacher": "" if values.get("teacher_map50", 0.9) is None else f"teacher of {values.get('teacher_map50')}",
        "teacher_map50": 0.9,
        "quantized_map50": 0.92,
    }
    return defaults | values


@given(pairs=SCORES)
@settings(max_examples=50, deadline=None)
def test_intervals_are_those_of_the_paired_t_test(pairs: list[tuple[float, float]]) -> None:
    control, other = np.array(pairs).T
    if np.ptp(other - control) < 1e-6:
        return  # SciPy warns of lost precision
    rows = [row("scratch", seed, score) for seed, score in enumerate(control)]
    rows += [row("mimic", seed, score) for seed, score in enumerate(other)]
    first, second = summarize(study(), rows)
    assert first.gain is None
    assert second.gain is not None
    assert second.gain.mean == pytest.approx(np.mean(other - control), abs=1e-12)
    low, high = stats.ttest_rel(other, control).confidence_interval(0.95)
    assert second.gain.mean - second.gain.margin == pytest.approx(low, abs=1e-9)
    assert second.gain.mean + second.gain.margin == pytest.approx(high, abs=1e-9)
    assert second.score.error == pytest.approx(stats.sem(other), abs=1e-12)


def test_only_pairs_are_compared() -> None:
    rows = [row("scratch", 0, 0.5), row("scratch", 1, 0.6), row("scratch", 2, 0.9, status="failed", error="why")]
    rows += [row("mimic", seed, 0.7) for seed in range(3)]
    scratch, mimic = summarize(study(), rows)
    assert scratch.score.count == 2
    assert mimic.score.count == 3
    assert mimic.gain is not None
    assert mimic.gain.count == 2
    assert mimic.gain.mean == pytest.approx(0.15)
    assert scratch.failed == ("why",)


def test_folds_of_a_seed_are_one_repetition_and_with_one_seed_folds_are() -> None:
    rows = [row("scratch", seed, 0.1 * seed + 0.2 * fold, fold=fold) for seed in (0, 1) for fold in (0, 1)]
    rows += [row("mimic", seed, 0.5, fold=fold) for seed in (0, 1) for fold in (0, 1)][:-1]
    scratch, mimic = summarize(study(folds=2), rows)
    assert scratch.score == estimate([0.1, 0.2])
    rows[-1] = row("mimic", 1, 0.5, fold=0)
    rows.append(row("mimic", 1, 0.0, fold=1, status="waiting"))
    scratch, mimic = summarize(study(folds=2), rows)
    assert mimic.score.count == 1  # seed 1 lacks a fold
    own = [row("scratch", seed, 0.1 * seed, fold=fold) for seed, fold in ((0, 0), (1, 1))]
    assert summarize(study(folds=2, fold_of_seed=True, seeds=[0, 1]), own)[0].score == estimate([0.0, 0.1])
    single = [row("scratch", 0, score, fold=fold) for fold, score in enumerate((0.3, 0.4, 0.5))]
    assert summarize(study(folds=3), single)[0].score == estimate([0.3, 0.4, 0.5])


def test_the_report_says_what_the_intervals_say_beside_what_was_published() -> None:
    arms = {"scratch": {}, "better": {}, "worse": {}, "alike": {}}
    own = Study(name="s", recipe="r.yaml", arms=arms, published={"better": "47.0"})
    gains = {"scratch": (0, 0, 0), "better": (0.1, 0.11, 0.12), "worse": (-0.1, -0.11, -0.12), "alike": (-0.1, 0, 0.1)}
    rows = [
        row(arm, seed, 0.45 + gain, teacher_map50=None if arm == "scratch" else 0.9)
        for arm, values in gains.items()
        for seed, gain in enumerate(values)
    ]
    text = markdown(own, rows)
    assert "better is above scratch; worse is below scratch; alike is not distinguishable from scratch." in text
    lines = {line.split(" | ")[0]: line.split(" | ") for line in text.splitlines() if line.startswith("| ")}
    place = lines["| arm"].index("of teacher")
    assert lines["| arm"][place + 1] == "published"
    assert (lines["| scratch"][place], lines["| better"][place]) == ("50", "62")  # scratch too: its seed has a teacher
    assert (lines["| scratch"][place + 1], lines["| better"][place + 1]) == ("-", "47.0")


def test_many_comparisons_are_said_to_be_many() -> None:
    arms = {"scratch": {}} | {f"arm {number}": {} for number in range(20)}
    own = Study(name="s", recipe="r.yaml", arms=arms)
    rows = [row(arm, seed, 0.5 + 0.01 * seed) for arm in arms for seed in range(3)]
    assert "At 95 %, about 1 of these 20 intervals can be expected to miss the true value." in markdown(own, rows)
    few = Study(name="s", recipe="r.yaml", arms={"scratch": {}, "arm 0": {}})
    assert "miss the true value" not in markdown(few, [one for one in rows if one["arm"] in few.arms])


def test_an_arm_that_was_not_run_is_named_and_has_no_row() -> None:
    rows = [row("scratch", 0, 0.5), row("mimic", 0, 0.0, status="waiting")]
    text = markdown(study(), rows)
    assert "Not run yet: mimic." in text
    assert "| scratch |" in text
    assert "| mimic |" not in text


def test_the_cost_is_drawn_where_there_are_several(tmp_path: Path) -> None:
    for costs, drawn in (((1e7, 1e7), False), ((1e7, 3e6), True)):
        folder = tmp_path / str(drawn)
        folder.mkdir()
        table = [row("scratch", 0, 0.5, macs=costs[0]), row("mimic", 0, 0.6, macs=costs[1])]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("qmimic.study.report.read_study", lambda _: study())
            patch.setattr("qmimic.study.report.read_results", lambda _, table=table: table)
            text = report([folder], folder / "r.md")
        assert (folder / "r-s-cost.png").exists() is drawn
        assert ("r-s-cost.png" in text) is drawn


def test_a_single_repetition_has_no_interval() -> None:
    scratch, mimic = summarize(study(), [row("scratch", 0, 0.5), row("mimic", 0, 0.6)])
    assert mimic.gain is not None
    assert interval(mimic.gain) == "+10.0"
    assert np.isnan(scratch.score.margin)


def test_the_report_says_everything(tmp_path: Path) -> None:
    rows = [row("scratch", seed, 0.5 + 0.01 * seed, teacher_map50=None, quantized_map50=None) for seed in range(3)]
    rows += [row("mimic", seed, 0.52 + 0.02 * seed, matching=0.7, matching_nonzero=0.4) for seed in range(2)]
    rows.append(row("mimic", 2, 0.0, status="failed", error="It broke."))
    text = markdown(study(question="Does it help?"), rows)
    assert "Does it help?" in text
    assert "5 of 6 runs done, 1 failed" in text
    assert "The teachers reach 90.0 on average, and 92.0 quantized" in text
    assert "| scratch | resnet18/16 | 3 | 51.0 ± 0.6 | - |" in text
    assert "| mimic | resnet18/16 | 2 | 53.0 ± 1.0 | +2.5 [-3.9, +8.9] | 59 | 70.0 | 40.0 | 1,000 | 10.0 | 5 |" in text
    assert "mimic: 1 runs failed. It broke." in text
    arms = summarize(study(), rows)
    for draw, path in (
        (lambda p: draw_gains(study(), arms, p), "gains.png"),
        (lambda p: draw_cost(arms, p), "cost.png"),
    ):
        draw(tmp_path / path)
        assert np.asarray(Image.open(tmp_path / path)).std() > 5


def test_teachers_of_some_arms_alone_are_told_apart_and_the_weak_are_named() -> None:
    rows = [row("scratch", seed, 0.6, teacher_map50=None, quantized_map50=None) for seed in range(3)]
    rows += [row("mimic", seed, 0.63, teacher_map50=0.7 + 0.01 * seed, quantized_map50=0.72) for seed in range(3)]
    rows += [row("other", seed, 0.61, teacher_map50=0.4, quantized_map50=0.5) for seed in range(2)]
    own = Study(name="s", recipe="r.yaml", arms={"scratch": {}, "mimic": {}, "other": {}})
    text = markdown(own, rows)
    assert "The teachers of mimic reach 71.0 on average, and 72.0 quantized" in text
    assert "The teachers of other reach 40.0 on average, and 50.0 quantized" in text
    assert text.count("They are weaker than scratch, so there is nothing to learn from them") == 1
    assert text.index("other reach") < text.index("They are weaker")
    by_arm = {one.arm: one for one in summarize(own, rows)}
    assert by_arm["other"].of_teacher == pytest.approx(0.61 / 0.4)
    assert by_arm["mimic"].of_teacher == pytest.approx(sum(0.63 / (0.7 + 0.01 * seed) for seed in range(3)) / 3)
    # Seeds 0 and 1 have two different teachers, seed 2 has one.
    assert by_arm["scratch"].of_teacher == pytest.approx(0.6 / 0.72)
    # That seed 2's other teacher is not trained yet does not make the first one scratch's.
    waiting = row("other", 2, 0.0, status="waiting", teacher="another", teacher_map50=None)
    assert {one.arm: one for one in summarize(own, [*rows, waiting])}["scratch"].of_teacher is None


def test_a_study_s_note_stands_before_its_table(tmp_path: Path) -> None:
    rows = [row("scratch", seed, 0.5) for seed in range(2)]
    assert note_of(tmp_path) == ""
    (tmp_path / "note.md").write_text("Measured **otherwise**.\n", encoding="utf-8")
    text = markdown(study(question="Does it help?"), rows, note_of(tmp_path))
    assert text.index("Does it help?") < text.index("Measured **otherwise**.") < text.index("| arm |")
    (tmp_path / "note.md").write_bytes(b"\xff\xfe")
    with pytest.raises(InputError, match=r"note\.md is not UTF-8 text"):
        note_of(tmp_path)
    (tmp_path / "note.md").write_bytes(b"x" * 70_000)
    with pytest.raises(InputError, match="shorten or split it"):
        note_of(tmp_path)


@pytest.mark.parametrize(
    ("mimics", "quantized", "said"),
    [
        # Paired differences of 0.04 +- 0.01 and 0.02 +- 0.01: Student's t of two seeds is 12.7.
        ((0.540, 0.541), (0.560, 0.562), "appears: mimic over scratch +4.1 [+3.4, +4.7], claimed 2; both over mimic"),
        ((0.540, 0.500), (0.560, 0.562), "neither appears nor is refuted: mimic over scratch +2.0 [-23.4"),
        ((0.500, 0.501), (0.501, 0.502), "is refuted here: mimic over scratch +0.1 [-0.6, +0.7], claimed 2; both over"),
        ((0.540, 0.541), (0.541, 0.541), "neither appears nor is refuted: mimic over scratch +4.1 [+3.4, +4.7]"),
    ],
)
def test_an_order_appears_or_is_refuted_by_its_intervals(
    mimics: tuple[float, float], quantized: tuple[float, float], said: str
) -> None:
    own = Study(
        name="s", recipe="r.yaml", arms={"scratch": {}, "mimic": {}, "both": {}}, order={"mimic": 2, "both": 1.2}
    )
    rows = [row("scratch", seed, 0.5) for seed in range(2)]
    rows += [row("mimic", seed, score) for seed, score in enumerate(mimics)]
    rows += [row("both", seed, score) for seed, score in enumerate(quantized)]
    (found,) = orders(own, rows)
    assert found.startswith(f"The order {said}")
    assert orders(own, rows[:-1]) == []  # of one seed nothing can be said
