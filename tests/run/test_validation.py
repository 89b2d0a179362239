"""Val is looked at once where once is enough, and the scores are those of the network that was written."""

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import pytest

import qmimic
from qmimic.config import Recipe
from qmimic.data.splits import VAL
from qmimic.detectors.evaluation import detect_all
from qmimic.detectors.files import load_detector
from qmimic.run import validation
from qmimic.run.prepare import prepare
from qmimic.run.stages import train_student
from qmimic.run.validation import Validation
from qmimic.scores import summary
from qmimic.scores.summary import score
from qmimic.training.progress import Silent

MakeRecipe = Callable[..., Recipe]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often val was looked at, and how often COCO's scores were computed."""
    counts: Counter[str] = Counter()

    def counted(module: Any, name: str) -> None:
        whole = getattr(module, name)

        def call(*arguments: Any) -> Any:
            counts[name] += 1
            return whole(*arguments)

        monkeypatch.setattr(module, name, call)

    counted(validation, "detect_all")
    counted(summary, "coco_ap")
    return counts


@pytest.mark.parametrize("ema", [0.0, 0.9])
@pytest.mark.parametrize(("every", "looks"), [(1000, 1), (2, 3), (4, 2)])
def test_the_last_look_is_the_result(
    make_recipe: MakeRecipe, calls: Counter[str], ema: float, every: int, looks: int
) -> None:
    recipe = make_recipe(mimic={"mode": "none"}, student={"evaluate_every": every, "ema": ema})
    prepared = prepare(recipe)
    stage = train_student(prepared, "student", None, Silent())
    assert calls == {"detect_all": looks, "coco_ap": 1}
    detector, _ = load_detector(stage.file)
    anew = score(prepared.dataset, VAL, detect_all(detector, prepared.val))
    assert (stage.result.map50, stage.result.map07, stage.result.coco_map) == (
        anew.voc_map50,
        anew.voc07_map50,
        anew.coco_map,
    )


def test_a_stage_whose_training_was_done_before_is_looked_at(make_recipe: MakeRecipe, calls: Counter[str]) -> None:
    recipe = make_recipe(mimic={"mode": "none"})
    first = train_student(prepare(recipe), "student", None, Silent())
    for name in ("result.json", "detector.safetensors"):  # killed after the last checkpoint, before the result
        (first.folder / name).unlink()
    again = train_student(prepare(recipe), "student", None, Silent())
    assert asdict(again.result) == asdict(first.result)
    assert calls["detect_all"] == 2


def test_vocs_figure_alone_is_the_one_among_all(make_recipe: MakeRecipe) -> None:
    prepared = prepare(make_recipe())
    detector = qmimic.build_detector("resnet18/32", prepared.dataset.classes, prepared.recipe.data.size).eval()
    own = Validation(prepared)
    assert own(detector) == own.scores(detector).voc_map50
