"""Arena and flash of one-stage students on microcontrollers, as TensorFlow Lite Micro counts them; see its README."""

import tempfile
from pathlib import Path

import torch

from qmimic.bench.arena import arena_bytes
from qmimic.compress.integer_grids import calibrate, prepare_qat
from qmimic.detectors.architectures import parse_spec
from qmimic.detectors.build import build
from qmimic.runtime.formats import FORMATS
from qmimic.ship.onnx_file import Exported
from qmimic.ship.write import describe, write_described

BACKBONES = ("repvgg/32", "repvgg/16", "resnet18/32", "resnet18/16", "vgg16/32", "yunet/32", "yunet/16")
SIDES = (96, 128, 160)


def main() -> None:
    """Print the table."""
    print("| backbone | kB of flash | " + " | ".join(f"kB of arena at {side} px" for side in SIDES) + " |")
    print("|---|---:|" + "---:|" * len(SIDES))
    for backbone in BACKBONES:
        arenas, flash = [], 0
        for side in SIDES:
            own = {"backbone": backbone, "classes": ("a", "b"), "size": (side, side), "levels": (8, 16, 32)}
            detector = prepare_qat(build(parse_spec({"architecture": "one_stage"} | own), 0).eval())
            generator = torch.Generator().manual_seed(0)
            images = torch.randint(0, 256, (2, 3, side, side), generator=generator, dtype=torch.uint8)
            calibrate(detector, [images])
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / "a.tflite"
                write_described(Exported(detector), FORMATS["litert"], describe(detector, {}), path)
                arenas.append(arena_bytes(path))
                flash = path.stat().st_size
        print(f"| `{backbone}` | {flash / 1000:.0f} | " + " | ".join(f"{one / 1000:.0f}" for one in arenas) + " |")


if __name__ == "__main__":
    main()
