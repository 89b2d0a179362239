"""The stages of a run and the arms beside its student: their names and their order, and what an arm changes.

Everything that needs one of these names takes it from here: recipes, runs, their list, reports, the web page.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from qmimic.tables import Table

TEACHER, QUANTIZED_TEACHER, STUDENT = "teacher", "quantized_teacher", "student"
TEACHER_STAGES = (TEACHER, QUANTIZED_TEACHER)


@dataclass(frozen=True)
class Arm:
    """A student with the recipe's schedule and cost, trained beside the recipe's own.

    Attributes:
        about: a short description.
        settings: by dotted recipe key, what it changes.
        convolutions: the kind in its backbone, at the cost of the recipe's backbone; empty: the recipe's own.
    """

    about: str
    settings: Mapping[str, object]
    convolutions: str = ""

    @property
    def pruned(self) -> bool:
        """Whether it is a pruned teacher, whatever the recipe's student is."""
        return self.settings.get("pruning.method", "none") != "none"

    @property
    def taught(self) -> bool:
        """Whether it imitates the teacher, whatever the recipe's student does."""
        return self.settings.get("mimic.mode", "none") != "none"


_UNTAUGHT = {"mimic.mode": "none", "pruning.method": "none"}
_ALONE = {**_UNTAUGHT, "data.unlabelled": None}  # a teacher's labels are a teacher too
ARMS = Table(
    "baselines",
    {
        "scratch": Arm("the same network without a teacher", _ALONE),
        "quantized": Arm(
            "without a teacher, its heads see its quantized map", {**_ALONE, "student.quantize_map": True}
        ),
        "mimic": Arm(
            "taught, without quantization",
            # Without Q there are no cells, so the distance is the paper's.
            {**_UNTAUGHT, "mimic.mode": "mimic", "mimic.distance": "squared"},
        ),
        "labelled": Arm("the student without the unlabelled pictures", {"data.unlabelled": None}),
        "separable": Arm("depthwise separable convolutions of equal cost", _ALONE, convolutions="separable"),
        "grouped": Arm("grouped convolutions of equal cost", _ALONE, convolutions="grouped"),
        "taylor": Arm("the teacher, pruned by Taylor expansion", {**_UNTAUGHT, "pruning.method": "taylor"}),
        "lasso": Arm("the teacher, pruned by LASSO regression", {**_UNTAUGHT, "pruning.method": "lasso"}),
    },
)


def pruned_stage(method: str) -> str:
    """The stage of a teacher that was pruned and not trained since."""
    return f"pruned_{method}"


def is_teacher(stage: str) -> bool:
    """Whether a stage is a teacher (perhaps pruned) and not a student."""
    return stage in TEACHER_STAGES or any(stage == pruned_stage(name) for name in ARMS)


def order() -> tuple[str, ...]:
    """Names of the stages of a run in the order of its table."""
    return (*TEACHER_STAGES, *ARMS, STUDENT)
