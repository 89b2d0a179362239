"""The engines side by side: three one-stage detectors in each, float and int8, and YuNet-n, on one thread at 320x320.

Fresh weights, whose outputs are amplified so that suppression has work. Files are timed in turn, in one run. With
--page, Chromium runs a page of each float detector as well (`qmimic export --to web`), after the others.

    QMIMIC_DATA=PATH python benchmarks/engines.py --json
"""

import argparse
import json
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from one_stage import SIZE, lively
from qmimic.bench.measure import as_run
from qmimic.bench.timing import alternate
from qmimic.compress.integer_grids import calibrate, prepare_qat
from qmimic.detectors.detector import Detector
from qmimic.errors import InputError
from qmimic.runtime.engine import Engine
from qmimic.runtime.formats import FORMATS
from qmimic.ship.onnx_file import Exported
from qmimic.ship.write import describe, write_described

BACKBONES = ("resnet18/16", "repvgg/16", "yunet/16")
PEER = "yunet_n"
PAGE_RUNS = """
const [rounds, done] = arguments;
const image = new ImageData(320, 320);
crypto.getRandomValues(new Uint32Array(image.data.buffer, 0, 16384));
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


def engines_of(folder: Path, data: Path | None, targets: list[str]) -> dict[tuple[str, str, str], Engine]:
    """Everything to be timed, by detector, format and precision; what is not installed is said and left out."""
    found: dict[tuple[str, str, str], Engine] = {}
    noise = torch.randint(0, 256, (4, 3, *SIZE), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    for backbone in BACKBONES:
        detector = lively(backbone)
        integer = prepare_qat(detector)
        calibrate(integer, [noise])
        both: dict[str, Detector] = {"fp32": detector, "int8": integer}
        for target in targets:
            for precision, own in both.items():
                kind = FORMATS[target]
                path = folder / f"{backbone.replace('/', '_')}-{precision}{kind.suffixes[0]}"
                try:
                    write_described(Exported(own), kind, describe(own, {}), path)
                    found[backbone, target, precision] = Engine(path, spin=True)
                except InputError as error:
                    print(f"Without {backbone} {precision} as {target}: {error}")
    if data:
        found[PEER, "onnx", "fp32"] = Engine(data / "peers" / f"{PEER}.onnx", spin=True)
    return found


def page_milliseconds(folder: Path, rounds: int) -> dict[str, NDArray[np.float64]]:
    """Times of pages in headless Chromium, a picture of 320x320 pixels from its pixels to its boxes, by detector."""
    from selenium.webdriver import Chrome, ChromeOptions, ChromeService
    from selenium.webdriver.support.ui import WebDriverWait

    options = ChromeOptions()
    for flag in ("headless", "no-sandbox", "disable-gpu", "disable-dev-shm-usage"):
        options.add_argument(f"--{flag}")
    driver = Chrome(options=options, service=ChromeService(shutil.which("chromedriver")))
    driver.set_script_timeout(600)
    found = {}
    for backbone in BACKBONES:
        path = folder / f"{backbone.replace('/', '_')}.web.html"
        detector = lively(backbone)
        write_described(Exported(detector), FORMATS["web"], describe(detector, {}), path)
        driver.get(path.as_uri())
        WebDriverWait(driver, 120).until(lambda one: one.execute_script("return 'ready' in document.body.dataset"))
        found[backbone] = np.array(driver.execute_async_script(PAGE_RUNS, rounds))
    driver.quit()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--to", nargs="+", default=[name for name, one in FORMATS.items() if not one.elsewhere])
    parser.add_argument(
        "--page", action="store_true", help="in Chromium as well; it needs onnxruntime-web and selenium"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object last")
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = Path(os.environ["QMIMIC_DATA"]) if "QMIMIC_DATA" in os.environ else None
    if not data:
        print("QMIMIC_DATA is not set: without YuNet.")
    with tempfile.TemporaryDirectory() as folder:
        engines = engines_of(Path(folder), data, options.to)
        seconds = alternate({" ".join(key): as_run(one) for key, one in engines.items()}, options.rounds)
        pages = page_milliseconds(Path(folder), options.rounds) if options.page else {}
    load = os.getloadavg()[0]
    print(f"Load {load:.1f} on {os.cpu_count()} cores.")
    times = {key: 1000 * np.array(seconds[" ".join(key)]) for key in engines}
    times |= {(name, "web", "fp32"): own for name, own in pages.items()}
    shares = {key: [round(float(np.percentile(own, share)), 3) for share in (5, 50, 95)] for key, own in times.items()}
    for (name, target, precision), (low, median, high) in shares.items():
        print(f"{name:<14} {target:<12} {precision:<6} {median:7.2f} ms   5 to 95 %: {low:.2f} to {high:.2f}")
    for name in BACKBONES:  # what others do on the machine only ever adds to a time
        least = min((own[0], *key[1:]) for key, own in shares.items() if key[0] == name)
        print(f"{name}: take {least[1]} {least[2]}.")
    if options.json:
        print(json.dumps({"load": load, **{" ".join(key): own for key, own in shares.items()}}))


if __name__ == "__main__":
    main()
