"""The engines side by side: three students of the zoo in each, float and int8, and YuNet-n, on one thread.

All compute the same, from pixels to the boxes and scores of all places; suppression is left out everywhere. Files are
timed in turn, in one run. With --page, headless Chromium then looks at noise with a page of each student (`qmimic
export --to web`), from its pixels to detections, in turn with ONNX Runtime and its suppression.

    QMIMIC_DATA=PATH python benchmarks/engines.py --page --json
"""

import argparse
import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from qmimic.bench.measure import as_run
from qmimic.bench.timing import alternate
from qmimic.compress.integer_grids import calibrate, prepare_qat
from qmimic.detectors.detector import Detector
from qmimic.detectors.files import load_detector
from qmimic.errors import InputError
from qmimic.runtime.engine import Engine
from qmimic.runtime.formats import FORMATS
from qmimic.ship.onnx_file import Exported
from qmimic.ship.write import describe, write_described

STUDENTS = ("pcb", "cells", "digits")
TARGETS = ("onnx", "openvino", "ncnn", "litert")
PEER = "yunet_n"
IN_A_ROW = 10  # runs of a page between two of another engine
WARM_UP = 200  # of a page: browsers translate what is run often a second time
FLAGS = ("headless", "no-sandbox", "disable-gpu", "disable-dev-shm-usage")
PAGE_RUNS = """
const [size, rounds, done] = arguments;
const image = new ImageData(size[1], size[0]);
for (let from = 0; from < image.data.length; from += 65536) {
  crypto.getRandomValues(image.data.subarray(from, from + 65536));
}
(async () => {
  const found = [];
  for (let round = 0; round < rounds; round += 1) {
    const begin = performance.now();
    await window.qmimic.detect(image);
    found.push(performance.now() - begin);
  }
  done(found);
})();
"""
Key = tuple[str, str, str]  # student, format, precision


def students() -> dict[tuple[str, str], Detector]:
    """Detectors by name and precision."""
    found: dict[tuple[str, str], Detector] = {}
    for name in STUDENTS:
        detector, _ = load_detector(Path(f"zoo:{name}"))
        generator = torch.Generator().manual_seed(0)
        noise = torch.randint(0, 256, (4, 3, *detector.spec.size), generator=generator, dtype=torch.uint8)
        integer = prepare_qat(detector.eval())
        calibrate(integer, [noise])
        found |= {(name, "fp32"): detector, (name, "int8"): integer}
    return found


def engines_of(folder: Path, data: Path | None, targets: list[str]) -> dict[Key, Engine]:
    """Everything to be timed; what is not installed is said and left out."""
    found: dict[Key, Engine] = {}
    for (name, precision), detector in students().items():
        for target in targets:
            kind = FORMATS[target]
            path = folder / f"{name}-{precision}{kind.suffixes[0]}"
            try:
                write_described(Exported(detector, suppression=False), kind, describe(detector, {}), path)
                found[name, target, precision] = Engine(path, spin=True)
            except InputError as error:
                print(f"Without {name} {precision} as {target}: {error}")
    if data and "onnx" in targets:
        found[PEER, "onnx", "fp32"] = Engine(data / "peers" / f"{PEER}.onnx", spin=True)
    return found


def pages(folder: Path, rounds: int) -> dict[Key, NDArray[np.float64]]:
    """Milliseconds of pages in Chromium, and of ONNX Runtime in turn with them."""
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService
    from selenium.webdriver.support.ui import WebDriverWait

    options = ChromeOptions()
    for flag in FLAGS:
        options.add_argument(f"--{flag}")
    driver: Any = Chrome(options=options, service=ChromeService(shutil.which("chromedriver")))
    driver.set_script_timeout(600)
    found: dict[Key, NDArray[np.float64]] = {}
    for (name, precision), detector in students().items():
        paths = {
            target: folder / f"{name}-{precision}-whole{FORMATS[target].suffixes[0]}" for target in ("onnx", "web")
        }
        for target, path in paths.items():
            write_described(Exported(detector), FORMATS[target], describe(detector, {}), path)
        run = as_run(Engine(paths["onnx"], spin=True))
        driver.get(paths["web"].as_uri())
        WebDriverWait(driver, 120).until(lambda one: one.execute_script("return 'ready' in document.body.dataset"))
        driver.execute_async_script(PAGE_RUNS, list(detector.spec.size), WARM_UP)
        own, native = [], []
        for _ in range(rounds // IN_A_ROW):
            own += driver.execute_async_script(PAGE_RUNS, list(detector.spec.size), IN_A_ROW)
            native += (1000 * alternate({"onnx": run}, IN_A_ROW)["onnx"]).tolist()
        found[name, "page", precision], found[name, "beside the page", precision] = np.array(own), np.array(native)
    driver.quit()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--to", nargs="*", default=TARGETS, help="formats; none: pages alone")
    parser.add_argument("--page", action="store_true", help="in Chromium as well; it needs selenium and npm's packages")
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = Path(os.environ["QMIMIC_DATA"]) if "QMIMIC_DATA" in os.environ else None
    if not data:
        print("QMIMIC_DATA is not set: without YuNet.")
    with tempfile.TemporaryDirectory() as folder:
        engines = engines_of(Path(folder), data, options.to)
        seconds = alternate({" ".join(key): as_run(one) for key, one in engines.items()}, options.rounds)
        times = {key: 1000 * seconds[" ".join(key)] for key in engines}
        times |= pages(Path(folder), options.rounds) if options.page else {}
    load = os.getloadavg()[0]
    print(f"Load {load:.1f} on {os.cpu_count()} cores.")
    shares = {key: [round(float(np.percentile(own, share)), 3) for share in (5, 50, 95)] for key, own in times.items()}
    for (name, target, precision), (low, median, high) in shares.items():
        print(f"{name:<8} {target:<16} {precision:<5} {median:6.2f} ms   5 to 95 %: {low:.2f} to {high:.2f}")
    for name in STUDENTS:
        native = [(own[1], *key[1:]) for key, own in shares.items() if key[0] == name and "page" not in key[1]]
        if native:
            print(f"{name}: take {min(native)[1]} {min(native)[2]}.")
        for precision in ("fp32", "int8") if options.page else ():
            own, beside = shares[name, "page", precision], shares[name, "beside the page", "fp32"]
            ratios = own[1] / beside[1], own[0] / beside[0]
            print(f"{name}: the {precision} page takes {ratios[0]:.1f} times ONNX Runtime's median in float; ", end="")
            print(f"by 5th percentiles, which others on the machine lengthen less, {ratios[1]:.1f} times.")
    if options.json:
        print(json.dumps({"load": load, **{" ".join(key): own for key, own in shares.items()}}))


if __name__ == "__main__":
    main()
