"""The end of a schedule: whole pictures, and steps left before it."""

import pytest
import torch

from qmimic.config import AugmentConfig, Recipe, ScheduleConfig, recipe_from
from qmimic.data.augment import augment, closing, exact_views
from qmimic.data.targets import PADDING, Targets
from qmimic.detectors.build import build
from qmimic.errors import InputError
from qmimic.training.loop import step_generators
from qmimic.training.step import DetectionObjective
from tiny_detectors import some_images, tiny_spec

STRONG = AugmentConfig(flip=0.5, mosaic=1, scale=(0.5, 2), shift=0.3, colour=0.5)
TARGETS = Targets(torch.zeros(4, 1, 4), torch.full((4, 1), PADDING))


@pytest.mark.parametrize(("steps", "closing_steps"), [(10, 3), (7, 6), (1000, 1), (3, 0)])
def test_the_last_steps_see_whole_pictures_and_no_others_do(steps: int, closing_steps: int) -> None:
    schedule = ScheduleConfig(steps=steps, closing_steps=closing_steps)
    images = some_images(0, 4, (64, 64))
    whole = {images[row].numpy().tobytes() for row in range(4)} | {
        images[row].flip(2).numpy().tobytes() for row in range(4)
    }
    seen: list[bool] = []

    class Watched(DetectionObjective):
        def __init__(self) -> None:
            super().__init__(build(tiny_spec()), STRONG, schedule.closing_from)

    objective = Watched().train()
    objective.detector.features = lambda views: seen.append(  # type: ignore[method-assign, assignment, return-value]
        all(view.numpy().tobytes() in whole for view in views)
    )
    objective.detector.losses = lambda *_: type("Losses", (), {"losses": {}})  # type: ignore[method-assign, assignment, return-value]
    last = range(max(0, steps - 12), steps)
    for step in last:
        objective(images, TARGETS, step_generators(0, step, torch.device("cpu")), step / steps)
    assert seen == [step >= steps - closing_steps for step in last]


def test_closing_views_are_exact_ones() -> None:
    assert exact_views(STRONG) is None
    assert exact_views(closing(STRONG)) == 2
    images = some_images(0, 4, (64, 64))
    assert augment(images, TARGETS, closing(STRONG), torch.Generator().manual_seed(0)).images.dtype == torch.uint8


@pytest.mark.parametrize("closing_steps", [5, 6])
def test_a_schedule_no_longer_than_its_end_is_refused(closing_steps: int) -> None:
    with pytest.raises(InputError, match=f"closing_steps={closing_steps} leaves none of 5 steps"):
        recipe_from({"student": {"steps": 5, "closing_steps": closing_steps}}, "here")


def test_rows_and_columns_change_places_of_square_pictures_alone() -> None:
    with pytest.raises(InputError, match="square"):
        recipe_from({"augment": {"transpose": 0.5}, "data": {"size": [128, 160]}}, "here")
    assert isinstance(recipe_from({"augment": {"transpose": 0.5}}, "here"), Recipe)
