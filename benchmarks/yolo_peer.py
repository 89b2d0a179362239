"""Ultralytics' YOLO26 at any width and depth, from scratch: called by equal_milliseconds.py with a Python of its own.

It is AGPL, so nothing of the project imports it, and its environment is apart:

    python3 -m venv peer && peer/bin/pip install ultralytics onnx

Nothing is downloaded: the network starts from fresh weights, and the checks that fetch something are switched off.
"""

import argparse
import json
import os
import time
from pathlib import Path

os.environ |= {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false"}

import torch
import yaml
from ultralytics import YOLO, settings
from ultralytics.nn import tasks


def network(folder: Path, depth: float, width: float, classes: int) -> YOLO:
    """YOLO26 with these multiples, fresh weights."""
    plan = yaml.safe_load(
        (Path(tasks.__file__).parents[1] / "cfg" / "models" / "26" / "yolo26.yaml").read_text(encoding="utf-8")
    )
    plan |= {"nc": classes, "scales": {"n": [depth, width, 1024]}}
    path = folder / "yolo26n.yaml"  # the scale is the letter before the suffix
    path.write_text(yaml.safe_dump(plan), encoding="utf-8")
    return YOLO(str(path), task="detect")


def export(options: argparse.Namespace) -> dict[str, object]:
    """An ONNX file of fresh weights, for its time alone."""
    model = network(options.out, options.depth, options.width, options.classes)
    os.chdir(options.out)  # the file appears in the working folder
    model.export(format="onnx", imgsz=options.size, simplify=False, opset=17)
    return {"weights": sum(one.numel() for one in model.model.parameters())}


def train(options: argparse.Namespace) -> dict[str, object]:
    """Train with its own defaults, then write what it finds on val, as COCO's results with names."""
    model = network(options.out, options.depth, options.width, options.classes)
    start = time.perf_counter()
    model.train(
        data=str(options.data / "data.yaml"), epochs=options.epochs, imgsz=options.size, batch=16, seed=options.seed,
        pretrained=False, amp=False, device="cpu", workers=0, val=False, plots=False, verbose=False, cache="ram",
        project=str(options.out), name="run", exist_ok=True, **({"fraction": options.share} if options.share else {}),
    )  # fmt: skip
    seconds = time.perf_counter() - start
    trained = YOLO(str(options.out / "run" / "weights" / "last.pt"))
    entries = []
    for one in trained.predict(
        source=str(options.data / options.pictures), imgsz=options.size, conf=0.001, max_det=300, device="cpu",
        stream=True, verbose=False, rect=False,
    ):  # fmt: skip
        for box, score, label in zip(
            one.boxes.xyxy.tolist(), one.boxes.conf.tolist(), one.boxes.cls.tolist(), strict=True
        ):
            bbox = [box[0], box[1], box[2] - box[0], box[3] - box[1]]
            if min(bbox[2:]) <= 0:  # its distances have no sign: a young network's boxes may be turned inside out
                continue
            name = {"file_name": Path(one.path).name, "category": one.names[int(label)]}
            entries.append({**name, "bbox": bbox, "score": score})
    (options.out / "detections.json").write_text(json.dumps(entries), encoding="utf-8")
    return {"seconds": seconds, "weights": sum(one.numel() for one in trained.model.parameters())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["export", "train"])
    parser.add_argument("--out", type=Path, required=True, help="folder for whatever is written")
    parser.add_argument("--depth", type=float, required=True)
    parser.add_argument("--width", type=float, required=True)
    parser.add_argument("--classes", type=int, required=True)
    parser.add_argument("--size", type=int, required=True)
    parser.add_argument("--data", type=Path, help="folder with a data.yaml")
    parser.add_argument("--pictures", help="folder of val's pictures within --data")
    parser.add_argument("--epochs", type=int, default=300)
    parser.add_argument("--share", type=float, help="of the training pictures, to try the script out")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    settings.update({"sync": False})
    options.out = options.out.resolve()
    options.out.mkdir(parents=True, exist_ok=True)
    result = export(options) if options.what == "export" else train(options)
    (options.out / "result.json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
