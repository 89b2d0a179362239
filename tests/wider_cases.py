"""Made WIDER FACE files, and the benchmark's evaluation as its common Python script writes it, loop by loop."""

from pathlib import Path

import numpy as np
from scipy.io import savemat

Image = dict[str, np.ndarray]


def cells(values: list[object]) -> np.ndarray:
    """MATLAB's cell column."""
    out = np.empty((len(values), 1), object)
    for row, value in enumerate(values):
        out[row, 0] = value
    return out


def write_mat(path: Path, events: dict[str, dict[str, Image]], level: str | None = None) -> None:
    """One of the four files; an image has "boxes" [M, 4] and, by level, 1-based counted faces."""
    content = {
        "event_list": cells(list(events)),
        "file_list": cells([cells(list(images)) for images in events.values()]),
        "face_bbx_list": cells([cells([image["boxes"] for image in images.values()]) for images in events.values()]),
    }
    for name in ("blur", "expression", "illumination", "invalid", "occlusion", "pose"):
        content[f"{name}_label_list"] = cells(
            [
                cells([image.get(name, np.zeros((len(image["boxes"]), 1))) for image in images.values()])
                for images in events.values()
            ]
        )
    if level:
        content["gt_list"] = cells(
            [cells([image[level].reshape(-1, 1) for image in images.values()]) for images in events.values()]
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    savemat(path, content)


def write_truth(folder: Path, events: dict[str, dict[str, Image]]) -> Path:
    write_mat(folder / "wider_face_val.mat", events)
    for level in ("easy", "medium", "hard"):
        write_mat(folder / f"wider_{level}_val.mat", events, level)
    return folder


def write_text(folder: Path, found: dict[str, np.ndarray]) -> Path:
    """Detections [N, 5] by "event/name"."""
    for image_id, rows in found.items():
        path = folder / f"{image_id}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = [" ".join(repr(float(v)) for v in row) for row in rows]
        path.write_text("\n".join([image_id, str(len(rows)), *lines]) + "\n")
    return folder


def _overlap(a: np.ndarray, b: np.ndarray) -> float:
    """IoU of x1 y1 x2 y2 boxes whose last pixels belong to them."""
    width = min(a[2], b[2]) - max(a[0], b[0]) + 1
    height = min(a[3], b[3]) - max(a[1], b[1]) + 1
    if width <= 0 or height <= 0:
        return 0.0
    area = (a[2] - a[0] + 1) * (a[3] - a[1] + 1) + (b[2] - b[0] + 1) * (b[3] - b[1] + 1)
    return width * height / (area - width * height)


def naive_ap(events: dict[str, dict[str, Image]], found: dict[str, np.ndarray], level: str) -> float:
    """The protocol step by step: for every image and threshold, count proposals and recalled faces."""
    scores = np.concatenate([rows[:, 4] for rows in found.values()])
    low, high = min(1.0, scores.min()), max(0.0, scores.max())
    curve, faces = np.zeros((1000, 2)), 0
    for event, images in events.items():
        for name, image in images.items():
            rows, boxes, kept = found[f"{event}/{name}"].copy(), image["boxes"].astype(float), image[level].reshape(-1)
            faces += len(kept)
            if len(rows) == 0 or len(boxes) == 0:
                continue
            rows[:, 4] = (rows[:, 4] - low) / (high - low)
            rows[:, 2:4] += rows[:, :2]
            boxes[:, 2:] += boxes[:, :2]
            counted = np.isin(np.arange(len(boxes)) + 1, kept)
            state, proposal, recalled = np.zeros(len(boxes)), np.ones(len(rows)), np.zeros(len(rows))
            for place, row in enumerate(rows):
                overlaps = [_overlap(row, box) for box in boxes]
                best = int(np.argmax(overlaps))
                if overlaps[best] >= 0.5:
                    if not counted[best]:
                        state[best], proposal[place] = -1, -1
                    elif state[best] == 0:
                        state[best] = 1
                recalled[place] = (state == 1).sum()
            for t in range(1000):
                reached = np.where(rows[:, 4] >= 1 - (t + 1) / 1000)[0]
                if len(reached):
                    curve[t] += (proposal[: reached[-1] + 1] == 1).sum(), recalled[reached[-1]]
    recall = np.concatenate([[0.0], curve[:, 1] / faces, [1.0]])
    with np.errstate(invalid="ignore"):
        precision = np.concatenate([[0.0], curve[:, 1] / curve[:, 0], [0.0]])
    for place in range(len(precision) - 1, 0, -1):
        precision[place - 1] = np.maximum(precision[place - 1], precision[place])
    steps = np.where(recall[1:] != recall[:-1])[0]
    return float(((recall[steps + 1] - recall[steps]) * precision[steps + 1]).sum())
