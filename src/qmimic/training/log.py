"""A stage's log: JSON lines on disk, the same to trackers, and curves as a picture."""

import json
from pathlib import Path
from typing import Any

from qmimic.errors import InputError
from qmimic.files import MIB, append_text, is_there, parse_json, read_bytes, replacing, write_text
from qmimic.training.trackers import Past, Trackers

LOG = "log.jsonl"
MAX_LOG_BYTES = 256 * MIB
# Names in older logs, so that a run that began with them can continue.
EARLIER = {"mimic": "distillation", "mimic_share": "distillation_share", "mimic_cosine": "distillation_cosine"}


class Log:
    """Appends to `log.jsonl`; after a resume it holds what an uninterrupted run would have written.

    Args:
        folder: of the stage.
        steps_done: lines of later steps, left by a run that was killed, are removed.
        trackers: opened here, and sent the same numbers.
    """

    def __init__(self, folder: Path, steps_done: int, trackers: Trackers) -> None:
        self.path = folder / LOG
        before = read_log(self.path)
        self.lines = [line for line in before if line["step"] <= steps_done]
        write_text(self.path, "".join(json.dumps(line) + "\n" for line in self.lines))
        self._trackers = trackers
        trackers.begin(Past(steps_done, tuple(before)))

    def write(self, line: dict[str, Any]) -> None:
        """Append one line: a `step` and plain numbers.

        Raises:
            InputError: the disk is full or the folder read-only.
        """
        self.lines.append(line)
        append_text(self.path, json.dumps(line) + "\n")
        self._trackers.log({name: value for name, value in line.items() if name != "step"}, line["step"])


def draw_curves(logs: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Loss and mAP on val against steps, one line per stage, as a PNG.

    Args:
        logs: stage name to its lines.
        path: of the picture.
    """
    from matplotlib.figure import Figure  # here: jobs of a study draw nothing

    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for place, (name, lines) in enumerate(logs.items()):
        losses = [(line["step"], line["loss"]) for line in lines if "loss" in line]
        scores = [(line["step"], 100 * line["map50"]) for line in lines if "map50" in line]
        colour = f"C{place}"  # of a stage in both
        left.plot(*zip(*losses, strict=True), color=colour, label=name) if losses else None
        right.plot(*zip(*scores, strict=True), color=colour, marker="o") if scores else None
    for axes, title in ((left, "training loss"), (right, "mAP@0.5 on val, %")):
        axes.set(title=title, xlabel="step")
        axes.grid(alpha=0.3)
    left.set_yscale("log")
    if left.lines:
        figure.legend(frameon=False, loc="outside upper center", ncols=len(left.lines))
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=120)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The complete lines of a stage's log; a last line that a kill cut short is left out.

    Raises:
        InputError: the file exists but cannot be read.
    """
    if not is_there(path):
        return []
    lines: list[dict[str, Any]] = []
    for text in read_bytes(path, MAX_LOG_BYTES).decode("utf-8", "replace").splitlines():
        try:
            line = parse_json(text, str(path))
        except InputError:
            break
        if not isinstance(line, dict) or not isinstance(line.get("step"), int):
            break
        lines.append({EARLIER.get(str(name), str(name)): value for name, value in line.items()})
    return lines
