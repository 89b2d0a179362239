"""What a study's file expands to, and which jobs its runs share."""

from pathlib import Path

import pytest
from study_cases import STUDY, study_file

from qmimic.config import load_recipe
from qmimic.errors import InputError
from qmimic.run import keys
from qmimic.study.spec import Run, expand, jobs_of, load_study


def runs_of(root: Path, text: str = STUDY) -> tuple[Run, ...]:
    path = study_file(root, text)
    return expand(load_study(path), path, root / "out")


def test_every_arm_at_every_point_with_every_seed_and_fold(tmp_path: Path) -> None:
    text = STUDY + "grid: {student.backbone: [resnet18/32, resnet18/64], mimic.region_count: [8, 16]}\nfolds: 2\n"
    runs = runs_of(tmp_path, text)
    assert len(runs) == 4 * 3 * 2 * 2
    assert len({(run.arm, repr(run.point), run.seed, run.fold) for run in runs}) == len(runs)
    last = runs[-1]
    assert (last.arm, last.seed, last.fold) == ("quantized", 4, 1)
    assert last.point == {"student.backbone": "resnet18/64", "mimic.region_count": 16}
    assert last.recipe.student.backbone == "resnet18/64"
    assert last.recipe.mimic.weight == 0.5
    assert last.recipe.data.fold == (1, 2)
    assert last.recipe.seed == 4
    assert last.recipe.teacher.steps == 2  # the recipe's own
    assert last.recipe.run.threads == 1
    assert last.recipe.folder == tmp_path / "out"


def test_runs_share_what_does_not_depend_on_them(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, STUDY + "grid: {quantizer.stride: [0.5, 1.0]}\n")
    jobs = {run.arm: [] for run in runs}
    for run in runs:
        if run.seed == 3:
            jobs[run.arm].append({job.kind: job.id for job in jobs_of(run)})
    # A student from scratch knows neither teacher nor stride; both strides share the teacher.
    assert jobs["scratch"][0] == jobs["scratch"][1]
    assert list(jobs["scratch"][0]) == ["student"]
    one, other = jobs["mimic"]
    assert one["teacher"] == other["teacher"]
    assert one["quantized"] != other["quantized"]
    assert one["student"] != other["student"]
    assert jobs["quantized"][0]["quantized"] == one["quantized"]
    assert jobs["quantized"][0]["student"] != one["student"]
    # Another seed shares nothing.
    seeds = [{job.id for run in runs if run.seed == seed for job in jobs_of(run)} for seed in (3, 4)]
    assert not seeds[0] & seeds[1]


def test_a_student_whose_map_is_quantized_needs_the_teachers_stride(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, STUDY.replace("{mimic.mode: none}", "{mimic.mode: none, student.quantize_map: true}"))
    assert [job.kind for job in jobs_of(runs[0])] == ["teacher", "quantized", "student"]


@pytest.mark.parametrize("setting", ["pruning.method: taylor", "data.unlabelled: frames"])
def test_no_teacher_is_quantized_for_a_student_without_a_grid(tmp_path: Path, setting: str) -> None:
    runs = runs_of(tmp_path, STUDY.replace("{mimic.mode: none}", f"{{mimic.mode: none, {setting}}}"))
    assert [job.kind for job in jobs_of(runs[0])] == ["teacher", "student"]


def test_a_pruned_student_is_done_anew_when_its_pruning_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe(None, ["mimic.mode=none", "pruning.method=taylor"])
    run = Run("pruned", {}, 0, 0, recipe)
    lasso = Run("lasso", {}, 0, 0, load_recipe(None, ["mimic.mode=none", "pruning.method=lasso"]))
    before = [[job.id for job in jobs_of(one)] for one in (run, lasso)]
    monkeypatch.setattr(keys, "TAYLOR_VERSION", keys.TAYLOR_VERSION + 1)
    after = [[job.id for job in jobs_of(one)] for one in (run, lasso)]
    assert after[0][:1] == before[0][:1]
    assert after[0][1] != before[0][1]
    assert after[1] == before[1]


def test_each_seed_may_have_a_fold_of_its_own(tmp_path: Path) -> None:
    runs = runs_of(tmp_path, STUDY.replace("[3, 4]", "[3, 4, 8, 9]") + "folds: 2\nfold_of_seed: true\n")
    assert {(run.seed, run.fold) for run in runs} == {(3, 0), (4, 1), (8, 0), (9, 1)}
    assert len(runs) == 3 * 4
    assert all(run.recipe.data.fold == (run.fold, 2) for run in runs)


@pytest.mark.parametrize(
    ("old", "new", "part"),
    [
        ("mimic.weight", "mimic.wieght", "unknown key 'mimic.wieght'; did you mean mimic.weight?"),
        ("mimic.weight: 0.5", "seed: 1", "seed: the study sets this itself"),
        ("seeds: [3, 4]", "seeds: [3, 3]", "one is listed twice"),
        ("seeds: [3, 4]", "seeds: []", "seeds: needs 1 or more values"),
        ("seeds: [3, 4]", "seeds: [true]", "seeds.0: needs a whole number (given: True)"),
        ("seeds: [3, 4]", "seeds: [3, 4]\norder: {mimic: .nan}", "order.mimic: needs a finite number"),
        ("{mimic.mode: mimic}", "{mimic.mode: none}", "the arms 'scratch' and 'mimic' are the same run"),
        ("seeds: [3, 4]", "seeds: [3, 4]\nfolds: 3\nfold_of_seed: true", "must be a multiple of `folds`"),
        ("seeds: [3, 4]", "control: none", "control: 'none' is not one of the arms"),
        ("seeds: [3, 4]", "order: {mimc: 2}", "order: 'mimc' is not one of the arms"),
        ("seeds: [3, 4]", "order: {scratch: 2}", "order: 'scratch' is the control"),
        ("seeds: [3, 4]", "published: {mimc: best}", "published: 'mimc' is not one of the arms"),
        ("seeds: [3, 4]", "sedes: [3]", "unknown key 'sedes'; a study has name"),
        ("recipe: recipe.yaml", "recipe: none.yaml", "Cannot read the recipe"),
        ("name: small", "name: ../small", "name: may hold letters, digits"),
        ("seeds: [3, 4]", "seeds: [3, 4]\ngrid: {student.steps: []}", "grid.student.steps: needs 1 or more values"),
        ("arms:", "arms: {}\nset: {}\nx:", "set' is given twice"),
    ],
)
def test_a_faulty_study_is_refused_with_the_key(tmp_path: Path, old: str, new: str, part: str) -> None:
    assert old in STUDY
    with pytest.raises(InputError) as caught:
        runs_of(tmp_path, STUDY.replace(old, new))
    assert part in str(caught.value)
