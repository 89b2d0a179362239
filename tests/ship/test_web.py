"""The page detects what the runtime detects, in a real browser without a network: pictures, a video, a camera."""

import base64
import io
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cli_cases import Refused
from qmimic.compress.integer_grids import calibrate, prepare_qat
from qmimic.data.letterbox import letterbox
from qmimic.detectors.detector import Detector
from qmimic.errors import InputError
from qmimic.runtime import Detector as ShippedDetector
from qmimic.runtime.formats import FORMATS, can_be_opened, format_of
from qmimic.ship import web_file
from qmimic.ship.onnx_file import Exported
from qmimic.ship.write import describe, write_described
from tiny_detectors import lively, one_stage, some_images, tiny_spec

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
FLAGS = (
    "headless",
    "no-sandbox",
    "disable-gpu",
    "no-first-run",
    "disable-background-networking",
    "disable-component-update",
    "disable-sync",
    "disable-dev-shm-usage",
    "use-fake-device-for-media-stream",
    "use-fake-ui-for-media-stream",
    "host-resolver-rules=MAP * ~NOTFOUND",
    "window-size=1280,900",
)
SIZES = (
    (96, 96),
    (97, 64),
    (300, 200),
    (1500, 700),
    (400, 400),
    (40, 55),
    (2000, 60),
    (3, 900),
    (500, 900),
    (200, 700),
    (100, 97),
)
DROP = """
const [name, type, content] = arguments;
const bytes = Uint8Array.from(atob(content), (one) => one.charCodeAt(0));
const data = new DataTransfer();
data.items.add(new File([bytes], name, { type }));
document.body.dispatchEvent(new DragEvent("drop", { dataTransfer: data, bubbles: true, cancelable: true }));
"""
CLASSES = ("<!--</script>", "dog", "ox")
PIXELS = """
const [content, name, done] = [arguments[0], arguments[1], arguments[arguments.length - 1]];
const image = new Image();
image.src = "data:image/png;base64," + content;
image.decode().then(async () => {
  const { data } = window.qmimic.pixels(image, image.naturalWidth, image.naturalHeight);
  if (name === "fitted") done(Array.from(window.qmimic.fitted(data, JSON.parse(arguments[2]))));
  else done((await window.qmimic.detect(data)).found);
}).catch((error) => done(String(error)));
"""


def with_engine(engine: web_file.BrowserEngine, folder: Path) -> Path:
    """A `node_modules` that has the packages of one engine alone; without them the test is skipped."""
    try:
        place = web_file.packages(engine)
    except InputError as error:
        pytest.skip(str(error))
    folder.mkdir()
    name = engine.package.split("/")[0]
    (folder / name).symlink_to(place / name)
    return folder


def picture(size: tuple[int, int], seed: int = 7) -> Image.Image:
    pixels = some_images(seed, 1)[0].permute(1, 2, 0).contiguous().numpy()
    return Image.fromarray(pixels).resize(size, Image.Resampling.NEAREST)


def png(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def on_grids(**settings: object) -> Detector:
    detector = prepare_qat(one_stage(**settings).eval())
    calibrate(detector, [some_images(7, 4)])
    return detector


def page_of(detector: Detector, path: Path) -> Path:
    write_described(Exported(detector), FORMATS["web"], describe(detector, {}), path)
    return path


KINDS = {  # the detector, and the engine that its page has
    "one stage": (lambda: one_stage(classes=CLASSES).eval(), web_file.LITERT),
    "on integers": (lambda: on_grids(classes=CLASSES), web_file.LITERT),
    "grey, on integers": (lambda: on_grids(classes=CLASSES, grey=True), web_file.LITERT),
    "one stage by onnxruntime-web": (lambda: one_stage(classes=CLASSES).eval(), web_file.ONNXRUNTIME),
    "two stages": (lambda: lively(tiny_spec(classes=CLASSES)).eval(), web_file.ONNXRUNTIME),
}


@pytest.fixture(scope="module", params=KINDS)
def shipped(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page, with <!--</script> as a name that a class may have."""
    made, engine = KINDS[request.param]
    folder = tmp_path_factory.mktemp("web")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(web_file.VARIABLE, str(with_engine(engine, folder / "node_modules")))
        return page_of(made(), folder / "a.web.html")


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser without a network."""
    webdriver = pytest.importorskip("selenium.webdriver", reason="selenium drives the browser")
    if not (CHROMIUM and DRIVER):
        pytest.skip("no Chromium with its driver (Debian: apt install chromium chromium-driver)")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in FLAGS:
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.set_script_timeout(120)
    driver.execute_cdp_cmd("Network.enable", {})
    offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    driver.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
    yield driver
    driver.quit()


@pytest.fixture
def page(chromium: Any, shipped: Path) -> Any:
    """The page, freshly opened as a file."""
    opened(chromium, shipped)
    return chromium


def opened(chromium: Any, path: Path) -> None:
    chromium.get(path.as_uri())
    until(lambda: chromium.execute_script("return 'ready' in document.body.dataset") or said(chromium))


def until(true: Callable[[], Any], seconds: float = 120) -> Any:
    end = time.monotonic() + seconds
    while not (value := true()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)
    return value


def text(page: Any, name: str) -> str:
    return str(page.execute_script("return document.getElementById(arguments[0]).textContent", name))


def said(page: Any) -> str:
    return text(page, "message")


def drop(page: Any, name: str, kind: str, content: bytes) -> None:
    page.execute_script(DROP, name, kind, base64.b64encode(content).decode())


def test_a_picture_is_fitted_to_the_pixel(page: Any) -> None:
    generator = np.random.default_rng(0)
    more = generator.integers(1, 1000, (20, 2)).tolist()
    for size in [*SIZES, *map(tuple, more)]:
        image = picture(size)
        wanted = letterbox(image, (96, 96))[0]
        found = page.execute_async_script(PIXELS, png(image), "fitted", "[96, 96]")
        np.testing.assert_array_equal(np.array(found).reshape(96, 96, 3), wanted, str(size))


def test_it_detects_what_the_runtime_detects(page: Any, shipped: Path) -> None:
    detector = ShippedDetector(shipped)
    count = 0
    for seed, size in enumerate([(96, 96), (300, 200), (500, 900), (900, 500), (64, 48)]):
        image = picture(size, seed)
        wanted = detector(image)
        stays = ((wanted.boxes[:, 2:] - wanted.boxes[:, :2]) > 1).all(1)  # the others lie in the padding
        found = page.execute_async_script(PIXELS, png(image), "detect")
        found = [one for one in found if one["box"][2] - one["box"][0] > 1 and one["box"][3] - one["box"][1] > 1]
        assert [one["label"] for one in found] == wanted.labels[stays].tolist()
        assert [one["class"] for one in found] == [detector.classes[label] for label in wanted.labels[stays]]
        np.testing.assert_allclose([one["score"] for one in found], wanted.scores[stays], atol=1e-4)
        scale = max(size) / 96
        np.testing.assert_allclose([one["box"] for one in found], wanted.boxes[stays], atol=0.02 * scale)
        count += len(found)
    assert count > 20


def test_a_dropped_picture_by_keyboard_and_screen_reader(page: Any, shipped: Path) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys

    image = picture((300, 200))
    drop(page, "p.png", "image/png", base64.b64decode(png(image)))
    found = ShippedDetector(shipped)(image)
    stays = ((found.boxes[:, 2:] - found.boxes[:, :2]) > 0).all(1)

    def counted(least: float) -> str:
        count = int((found.scores[stays] >= least).sum())
        return f"{count} object{'' if count == 1 else 's'}"

    until(lambda: text(page, "count"))
    assert (text(page, "name"), text(page, "count")) == ("p.png", counted(0.4))
    threshold = page.find_element(By.ID, "threshold")
    threshold.send_keys(Keys.HOME)
    assert text(page, "count") == counted(0)
    canvas = page.find_element(By.ID, "canvas")
    assert canvas.get_attribute("role") == "img"
    assert canvas.get_attribute("aria-label").startswith("p.png: ")
    until(lambda: text(page, "status") == canvas.get_attribute("aria-label").removeprefix("p.png: "))
    assert page.execute_script("return document.querySelectorAll('#rows tr').length") == int(stays.sum())
    # Every control has a name and can be reached.
    page.execute_script("document.activeElement.blur()")
    reached = set()
    for _ in range(12):
        ActionChains(page).send_keys(Keys.TAB).perform()
        reached.add(page.switch_to.active_element.get_attribute("id"))
    assert {"files", "camera", "threshold"} <= reached
    for name in ("files", "camera", "threshold"):
        assert page.find_element(By.ID, name).accessible_name
    assert [one for one in page.get_log("browser") if one["level"] == "SEVERE"] == []


def test_it_asks_no_network(page: Any) -> None:
    names = page.execute_script("return performance.getEntriesByType('resource').map((one) => one.name)")
    assert [name for name in names if not name.startswith(("blob:", "data:"))] == []


def test_the_camera(page: Any) -> None:
    from selenium.webdriver.common.by import By

    button = page.find_element(By.ID, "camera")
    button.click()
    until(lambda: "pictures a second" in text(page, "time"))
    assert text(page, "name") == "Camera"
    assert (button.text, button.get_attribute("aria-pressed")) == ("Stop camera", "true")
    button.click()
    assert (button.text, button.get_attribute("aria-pressed")) == ("Start camera", "false")
    assert said(page) == ""


def test_a_video(page: Any, tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    path = tmp_path / "v.webm"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"VP80"), 10, (192, 128))
    if not writer.isOpened():
        pytest.skip("this OpenCV writes no WebM")
    for seed in range(10):
        writer.write(np.asarray(picture((192, 128), seed)))
    writer.release()
    drop(page, "v.webm", "video/webm", path.read_bytes())
    until(lambda: text(page, "name") == "v.webm" and text(page, "count"))
    until(lambda: page.execute_script("return document.getElementById('stop').hidden"))
    assert said(page) == ""


def test_what_is_no_picture_is_refused(page: Any) -> None:
    drop(page, "x.png", "image/png", b"no picture")
    assert until(lambda: said(page)).startswith("x.png is not a picture or video that this browser can show")


def test_a_model_that_was_changed_is_called_so(chromium: Any, shipped: Path, tmp_path: Path) -> None:
    content = shipped.read_bytes()
    model = web_file.model_of(content, shipped)
    own = (
        model.replace(b"detector.mean", b"detector.meal") if b"detector.mean" in model else model.replace(b"t7", b"t_")
    )
    assert own != model
    path = tmp_path / "b.web.html"
    path.write_bytes(web_file.MODEL.sub(lambda found: found[1] + base64.b64encode(own) + found[3], content))
    opened(chromium, path)
    assert "was changed since it was proved" in until(lambda: said(chromium))
    with pytest.warns(UserWarning, match="was changed since it was proved"):
        assert ShippedDetector(path).metadata.precision == "unknown"


def test_a_page_is_one_file_below_30_megabytes(shipped: Path) -> None:
    assert shipped.stat().st_size < 30e6
    assert format_of(shipped).files(shipped) == [shipped]
    assert not can_be_opened(shipped)  # neither timed nor served in a folder
    content = shipped.read_text()
    assert "http://" not in content.replace("http://www.w3.org", "")
    assert "{{" not in content.partition('<script id="library"')[0]


@pytest.mark.parametrize("engine", [web_file.LITERT, web_file.ONNXRUNTIME], ids=lambda one: one.name)
def test_a_page_is_the_same_every_time(
    engine: web_file.BrowserEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(web_file.VARIABLE, str(with_engine(engine, tmp_path / "node_modules")))
    first, second = (page_of(one_stage().eval(), tmp_path / "a.web.html").read_bytes() for _ in range(2))
    assert first == second


def test_a_page_s_own_engine_proves_it_where_node_is(
    shipped: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if not shutil.which("node"):
        pytest.skip("there is no Node.js")
    images = some_images(3, 5).permute(0, 2, 3, 1).contiguous().numpy()
    detector = ShippedDetector(shipped)
    kin = detector.engine.session
    assert kin.engine.startswith(("ONNX Runtime 1", "LiteRT 2"))
    wanted = [detector.raw(one[None]) for one in images]
    assert sum(int((scores > 0.05).sum()) for _, scores, _ in wanted) > 10
    own = FORMATS["web"].own_session(shipped, kin)
    assert own is not None
    assert " in Node.js " in own.engine
    detector.engine.session = own
    for one, (boxes, scores, labels) in zip(images, wanted, strict=True):
        found = detector.raw(one[None])
        np.testing.assert_allclose(found[1], scores, atol=1e-4)
        np.testing.assert_allclose(found[0], boxes, atol=0.02)
        np.testing.assert_array_equal(found[2], labels)
    (tmp_path / "node").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "node").chmod(0o755)
    for path in (f"{tmp_path}:{os.environ['PATH']}", str(tmp_path / "none")):
        monkeypatch.setenv("PATH", path)
        assert FORMATS["web"].own_session(shipped, kin) is None


def test_what_a_page_brings_along_is_run_by_browsers_alone(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "node").write_text(f"#!/bin/sh\ntouch {tmp_path}/ran\n")
    (tmp_path / "node").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    ShippedDetector(shipped)(picture((50, 50)))
    assert not (tmp_path / "ran").exists()


def test_the_command_writes_a_page(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from qmimic.cli import main

    monkeypatch.setenv(web_file.VARIABLE, str(with_engine(web_file.ONNXRUNTIME, tmp_path / "node_modules")))
    student, out = str(trained / "run" / "student.safetensors"), tmp_path / "out"
    assert main(["export", student, "--to", "onnx,web", "--out", str(out)]) == 0
    parity = ShippedDetector(out / "student.web.html").metadata.parity
    assert parity["unmatched"] == 0
    said = f"Open student.web.html in a browser; {parity['engine']} proved it."
    assert f"Take student.onnx on a machine like this one. {said}" in capsys.readouterr().out


def test_bad_input(trained: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch) -> None:
    student = trained / "run" / "student.safetensors"
    monkeypatch.setenv(web_file.VARIABLE, str(tmp_path))
    command = "export", student, "--to", "onnx,web", "--out", tmp_path / "out"  # nothing is written before it is told
    assert f"onnxruntime-web is not in {tmp_path}: npm install onnxruntime-web" in refused(*command)
    with pytest.raises(InputError, match=r"@litertjs/core is not in .*: npm install @litertjs/core"):
        page_of(one_stage().eval(), tmp_path / "a.web.html")
    (tmp_path / "onnxruntime-web").mkdir()
    (tmp_path / "onnxruntime-web" / "package.json").write_text('{"version": "0.1"}')
    assert "onnxruntime-web (version 0.1) lacks onnxruntime-web/dist/ort.wasm.bundle.min.mjs" in refused(*command)
    assert "one picture at a time" in refused(*command, "--batch", "4")
    monkeypatch.delenv(web_file.VARIABLE)
    monkeypatch.chdir(tmp_path)
    if os.environ.get(web_file.VARIABLE) is None and not any(
        (one / "node_modules").exists() for one in tmp_path.parents
    ):
        assert "is not in node_modules here or in a folder above" in refused(*command)
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
    for content, said in (
        (b"<html>", "holds no model"),
        (b'<script id="model" type="text/plain">?</script>', "damaged"),
    ):
        (tmp_path / "a.web.html").write_bytes(content)
        with pytest.raises(InputError, match=said):
            ShippedDetector(tmp_path / "a.web.html")
