"""What a microcontroller's file keeps of the trained detector: mAP@0.5 on val at 160 px, in 256 kB of arena and 200 kB.

Two one-stage students, trained briefly: on drawn digits, and on crops of DeepPCB's boards (160 pixels of 640, those
that cut no defect). Each is put on integers as `qmimic export --int8 --to litert` does; LiteRT measures the file, and
the interpreter of TensorFlow Lite Micro says the arena. A run that was interrupted goes on.

    QMIMIC_DATA=PATH python benchmarks/microcontrollers.py --runs FOLDER
"""

import argparse
import os
from pathlib import Path

from qmimic.api import train
from qmimic.bench.arena import arena_bytes
from qmimic.config import load_recipe
from qmimic.data.formats import load_dataset
from qmimic.run.deploy import deploy
from qmimic.training.progress import Silent

SIDE = 160
ARENA, FLASH, SHARE = 256, 200, 0.95
SETTINGS = (
    *("baselines=[]", "mimic.mode=none", "detector.architecture=one_stage", "detector.levels=[8,16,32]"),
    *("student.backbone=repvgg/16", f"data.size=[{SIDE},{SIDE}]", "student.warmup_steps=100", "student.ema=0.995"),
    *("run.threads=1", "run.report=false"),
)


def crops(source: Path, target: Path) -> Path:
    """A dataset of YOLO's layout with those tiles of the pictures that have objects and cut none."""
    if (target / "data.yaml").is_file():
        return target
    dataset = load_dataset(str(source))
    for split, samples in dataset.splits.items():
        images, labels = target / "images" / split, target / "labels" / split
        images.mkdir(parents=True, exist_ok=True)
        labels.mkdir(parents=True, exist_ok=True)
        for sample in samples:
            picture = dataset.load(sample)
            for top in range(0, picture.height - SIDE + 1, SIDE):
                for left in range(0, picture.width - SIDE + 1, SIDE):
                    boxes = sample.boxes - [left, top, left, top]
                    inside = ((boxes[:, :2] >= 0) & (boxes[:, 2:] <= SIDE)).all(1)
                    apart = (boxes[:, 2:] <= 0).any(1) | (boxes[:, :2] >= SIDE).any(1)
                    if not inside.any() or not (inside | apart).all():
                        continue
                    name = f"{Path(sample.image_id).stem}-{top}-{left}"
                    picture.crop((left, top, left + SIDE, top + SIDE)).save(images / f"{name}.png")
                    rows = [
                        f"{label} {(x1 + x2) / 2 / SIDE} {(y1 + y2) / 2 / SIDE} {(x2 - x1) / SIDE} {(y2 - y1) / SIDE}"
                        for label, (x1, y1, x2, y2) in zip(sample.labels[inside], boxes[inside].tolist(), strict=True)
                    ]
                    (labels / f"{name}.txt").write_text("\n".join(rows) + "\n")
    names = "\n".join(f"  {number}: {one}" for number, one in enumerate(dataset.classes))
    (target / "data.yaml").write_text(f"train: images/train\nval: images/val\nnames:\n{names}\n")
    return target


def main() -> None:
    """Print a row for each student."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="folder of the runs")
    parser.add_argument("--steps", type=int, default=1200)
    options = parser.parse_args()
    sets = {"digits": ["data.root=synthetic:digits", "augment.flip=0"]}
    if "QMIMIC_DATA" in os.environ:
        root = crops(Path(os.environ["QMIMIC_DATA"]) / "deeppcb", options.runs / "deeppcb-crops")
        sets["deeppcb crops"] = [f"data.root={root}", "augment.flip_vertical=0.5", "data.drop_bad_boxes=true"]
    else:
        print("QMIMIC_DATA is not set: without DeepPCB.")
    print(f"| {options.steps} steps | mAP@0.5 in float | of the .tflite | share | kB of arena | kB of flash |")
    print("|---|---:|---:|---:|---:|---:|")
    for name, own in sets.items():
        run = options.runs / name.replace(" ", "-")
        steps = [f"student.steps={options.steps}", f"student.closing_steps={options.steps // 5}"]
        student = train(load_recipe(None, [*SETTINGS, *own, *steps, f"run.dir={run}"]), Silent()).student
        files = deploy(student, None, None, [], 1, True, ["litert"], True, Silent())
        for one in files:
            if one.precision == "int8":
                proof, arena = one.proof, arena_bytes(one.path) / 1000
                share = proof["map50"] / proof["map50_float"]
                within = share >= SHARE and arena <= ARENA and one.bytes <= 1000 * FLASH
                figures = f"{100 * proof['map50_float']:.1f} | {100 * proof['map50']:.1f} | {share:.3f}"
                print(f"| {name} | {figures} | {arena:.0f} | {one.bytes / 1000:.0f} |{'' if within else ' missed'}")


if __name__ == "__main__":
    main()
