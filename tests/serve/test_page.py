"""The page in a real browser: pictures dropped, boxes seen, the threshold moved, labels fetched, by keyboard too."""

import base64
import io
import shutil
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

pytest.importorskip("selenium", reason="selenium drives the browser")
from selenium.webdriver import ActionChains, Chrome
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
DRIVER = shutil.which("chromedriver")
pytestmark = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no Chromium with its driver (Debian: apt install chromium chromium-driver)"
)
FLAGS = (
    "headless",
    "no-sandbox",
    "disable-gpu",
    "disable-quic",
    "no-first-run",
    "disable-background-networking",
    "disable-component-update",
    "disable-sync",
    "disable-dev-shm-usage",
    "use-fake-device-for-media-stream",
    "use-fake-ui-for-media-stream",
)
COLOURS = {"cat": (230, 159, 0), "dog": (86, 180, 233), "ox": (0, 158, 115)}  # Okabe and Ito's first three
DROP = """
const [name, content] = arguments;
const bytes = Uint8Array.from(atob(content), (one) => one.charCodeAt(0));
const data = new DataTransfer();
data.items.add(new File([bytes], name));
const facts = {dataTransfer: data, bubbles: true, cancelable: true};
document.getElementById("empty").dispatchEvent(new DragEvent("drop", facts));
"""

PASTE = """
const [name, content] = arguments;
const bytes = Uint8Array.from(atob(content), (one) => one.charCodeAt(0));
const data = new DataTransfer();
data.items.add(new File([bytes], name, {type: "image/png"}));
document.dispatchEvent(new ClipboardEvent("paste", {clipboardData: data, bubbles: true}));
"""


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """The browser; its downloads go to the folder `downloads` of it."""
    options = Options()
    options.binary_location = str(CHROMIUM)
    for flag in FLAGS:
        options.add_argument(f"--{flag}")
    options.add_argument("--window-size=1280,900")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = Chrome(options=options, service=Service(str(DRIVER)))
    driver.downloads = tmp_path_factory.mktemp("downloads")
    behaviour = {"behavior": "allow", "downloadPath": str(driver.downloads)}
    driver.execute_cdp_cmd("Browser.setDownloadBehavior", behaviour)
    yield driver
    driver.quit()


@pytest.fixture
def page(chromium: Chrome, address: str) -> Chrome:
    """The page, freshly loaded."""
    chromium.get(address)
    until(lambda: chromium.execute_script("return 'ready' in document.body.dataset"))
    chromium.get_log("browser")
    return chromium


def until(true: Callable[[], Any], seconds: float = 60) -> Any:
    """The first true value."""
    end = time.monotonic() + seconds
    while not (value := true()):
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.05)
    return value


def drop(page: Chrome, path: Path, name: str | None = None) -> None:
    page.execute_script(DROP, name or path.name, base64.b64encode(path.read_bytes()).decode())


def outcomes(page: Chrome) -> list[str]:
    return [one.text for one in page.find_elements(By.CSS_SELECTOR, ".outcome strong")]


def settled(page: Chrome, name: str) -> list[str]:
    """What the panels say of a picture, as soon as all have an answer."""

    def answered() -> list[str] | None:
        said = outcomes(page)
        return said if page.find_element(By.ID, "name").text == name and "Analysing…" not in said else None

    found: list[str] = until(answered)
    return found


def expected(address: str, path: Path, model: str, threshold: float) -> list[dict[str, Any]]:
    url = f"{address}/api/detect?model={model}&min_score={threshold}"
    found: list[dict[str, Any]] = httpx.post(url, content=path.read_bytes(), timeout=60).json()["detections"]
    # The others lie in the padding beside the picture.
    return [one for one in found if one["box"][2] - one["box"][0] > 1 and one["box"][3] - one["box"][1] > 1]


def press(page: Chrome, key: str) -> None:
    """A key, wherever the focus is."""
    ActionChains(page).send_keys(key).perform()


def objects(count: int) -> str:
    return f"{count} object{'' if count == 1 else 's'}"


def asked(page: Chrome) -> int:
    """How many requests for detections the page has made."""
    script = "return performance.getEntriesByType('resource').filter((one) => one.name.includes('/api/detect')).length"
    return int(page.execute_script(script))


def complaints(page: Chrome) -> list[str]:
    return [entry["message"] for entry in page.get_log("browser") if entry["level"] == "SEVERE"]


def test_a_dropped_picture_is_looked_at_by_three_models(page: Chrome, address: str, photos: Path) -> None:
    models = [one.get_attribute("value") for one in page.find_elements(By.CSS_SELECTOR, ".panel select")]
    assert models == ["teacher", "student", "student-int8.onnx"]
    drop(page, photos / "turned.jpg")
    said = settled(page, "turned.jpg")
    found = [expected(address, photos / "turned.jpg", model, 0.4) for model in models]
    assert said == [objects(len(own)) for own in found]
    page.execute_script("for (const one of document.querySelectorAll('details')) one.open = true")
    for panel, own in zip(page.find_elements(By.CSS_SELECTOR, ".panel"), found, strict=True):
        rows = [row.text.split() for row in panel.find_elements(By.CSS_SELECTOR, "tbody tr")]
        assert [row[0] for row in rows] == [one["class"] for one in own]
        assert [[int(side) for side in row[2:]] for row in rows] == [
            [int(side + 0.5) for side in one["box"]] for one in own
        ]
    assert complaints(page) == []


def test_boxes_are_drawn_where_they_lie(page: Chrome, address: str, photos: Path) -> None:
    drop(page, photos / "wide.jpg")
    settled(page, "wide.jpg")
    own = expected(address, photos / "wide.jpg", "student", 0)
    best = own[0]
    move_threshold(page, best["score"] - 0.005)  # so that the best stands alone, or nearly so
    x1, y1, x2, y2 = best["box"]
    script = """
    const canvas = document.querySelectorAll(".panel canvas")[1], [x, y, width] = arguments;
    const scale = canvas.width / width;
    return [...canvas.getContext("2d").getImageData(Math.round(x * scale) + 1, Math.round(y * scale), 1, 1).data];
    """

    def edge() -> bool:
        pixel = page.execute_script(script, x1, (y1 + y2) / 2, 300)
        return all(abs(a - b) <= 60 for a, b in zip(pixel, COLOURS[best["class"]], strict=False))

    until(edge, 10)
    inside = page.execute_script(script, (x1 + x2) / 2, (y1 + y2) / 2, 300)
    assert any(abs(a - b) > 30 for a, b in zip(inside, COLOURS[best["class"]], strict=False))


def move_threshold(page: Chrome, value: float) -> None:
    """Set the slider as a mouse does."""
    page.execute_script(
        "const one = document.getElementById('threshold'); one.value = arguments[0];"
        "one.dispatchEvent(new Event('input'))",
        round(value, 2),
    )


def test_the_threshold_answers_at_once_and_asks_nobody(page: Chrome, address: str, photos: Path) -> None:
    drop(page, photos / "pale.png")
    settled(page, "pale.png")
    before = asked(page)
    assert before == 3
    slider = page.find_element(By.ID, "threshold")
    for keys, value in ((Keys.HOME, 0.0), (Keys.ARROW_RIGHT * 5, 0.05), (Keys.END, 1.0), (Keys.ARROW_LEFT * 60, 0.4)):
        slider.send_keys(keys)
        assert page.find_element(By.ID, "threshold-value").text == f"{value:.2f}"
        count = len(expected(address, photos / "pale.png", "student", value))
        until(lambda count=count: outcomes(page)[1] == objects(count), 5)
    assert asked(page) == before


def test_everything_by_keyboard(page: Chrome, address: str, photos: Path) -> None:
    def active() -> Any:
        return page.switch_to.active_element

    def tab_to(ident: str) -> None:
        for _ in range(60):
            press(page, Keys.TAB)
            if active().get_attribute("id") == ident:
                return
        raise AssertionError(f"Tab does not reach {ident}")

    tab_to("files")
    outline = "return getComputedStyle(document.querySelector('label[for=files]')).outlineStyle"
    assert page.execute_script(outline) == "solid"  # the focus is seen though the input is not
    active().send_keys("\n".join(str(photos / name) for name in ("pale.png", "wide.jpg")))
    settled(page, "pale.png")
    tab_to("camera")
    press(page, Keys.ARROW_RIGHT)
    settled(page, "wide.jpg")
    tab_to("previous")
    active().send_keys(Keys.ENTER)
    settled(page, "pale.png")
    current = page.find_elements(By.CSS_SELECTOR, "#pictures [aria-current=true]")
    assert [one.text for one in current] == ["pale.png"]
    status = page.find_element(By.ID, "status")
    until(lambda: "pale.png, score at least 0.40. teacher: " in status.get_attribute("textContent"))
    tab_to("none")
    active().send_keys(Keys.SPACE)
    assert outcomes(page) == ["0 objects"] * 3
    page.find_element(By.ID, "remove").send_keys(Keys.ENTER)
    settled(page, "wide.jpg")
    page.find_element(By.ID, "remove").send_keys(Keys.ENTER)
    until(lambda: page.find_element(By.ID, "empty").is_displayed())
    assert active().get_attribute("id") == "files"


def test_labels_are_fetched(page: Chrome, address: str, photos: Path) -> None:
    page.find_element(By.ID, "files").send_keys("\n".join(str(photos / name) for name in ("pale.png", "wide.jpg")))
    settled(page, "pale.png")
    move_threshold(page, 0.3)
    hidden = page.find_element(By.XPATH, "//div[@id='legend']/label[contains(., 'dog')]/input")
    hidden.click()
    Select(page.find_element(By.ID, "by")).select_by_visible_text("teacher")
    Select(page.find_element(By.ID, "format")).select_by_visible_text("YOLO")
    page.find_element(By.ID, "fetch").send_keys(Keys.ENTER)
    path = page.downloads / "labels-yolo.zip"
    until(path.is_file)
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
        for name in ("pale.png", "wide.jpg"):
            lines = archive.read(f"labels/train/{Path(name).stem}.txt").decode().splitlines()
            own = [one for one in expected(address, photos / name, "teacher", 0.3) if one["class"] != "dog"]
            assert [line.split()[0] for line in lines] == [str(list(COLOURS).index(one["class"])) for one in own]
    assert complaints(page) == []


def test_pasted_and_clashing_names_are_numbered_saved_and_labelled(page: Chrome, photos: Path) -> None:
    """Browsers call every pasted picture image.png, and label files know no suffixes."""
    content = base64.b64encode((photos / "pale.png").read_bytes()).decode()
    for name in ("pasted.png", "pasted-2.png"):
        page.execute_script(PASTE, "image.png", content)
        settled(page, name)
        save = page.find_element(By.ID, "save")
        assert save.is_displayed()
        assert save.get_attribute("download") == name  # there is no file of this name but the one that is saved here
    drop(page, photos / "wide.jpg", "A.jpg")
    settled(page, "A.jpg")
    assert not page.find_element(By.ID, "save").is_displayed()
    drop(page, photos / "pale.png", "a.png")
    settled(page, "a-2.png")
    assert "A second a.png is called a-2.png here and in label files" in page.find_element(By.ID, "message").text
    assert page.find_element(By.ID, "save").get_attribute("download") == "a-2.png"
    Select(page.find_element(By.ID, "format")).select_by_visible_text("Pascal VOC")
    page.find_element(By.ID, "fetch").send_keys(Keys.ENTER)
    path = page.downloads / "labels-voc.zip"
    until(path.is_file)
    with zipfile.ZipFile(io.BytesIO(path.read_bytes())) as archive:
        stems = sorted(Path(name).stem for name in archive.namelist() if name.endswith(".xml"))
        assert stems == ["A", "a-2", "pasted", "pasted-2"]
        assert "Rename" not in archive.read("README.txt").decode()  # the page has named them apart
    assert complaints(page) == []


def test_the_camera_runs_and_a_frame_is_kept(page: Chrome) -> None:
    button = page.find_element(By.ID, "camera")
    button.click()
    until(lambda: button.text == "Stop camera")
    assert button.get_attribute("aria-pressed") == "true"
    until(lambda: "pictures/s" in page.find_element(By.ID, "name").text)
    page.find_element(By.ID, "keep").click()
    button.click()
    until(lambda: button.text == "Start camera")
    name = until(lambda: page.find_element(By.ID, "name").text)
    assert name.startswith("camera-")
    assert page.find_element(By.ID, "save").get_attribute("download") == name
    assert all("object" in one for one in settled(page, name))
    assert complaints(page) == []


def test_a_refused_camera_is_explained(page: Chrome) -> None:
    page.execute_script(
        "navigator.mediaDevices.getUserMedia = () => Promise.reject(new DOMException('no', 'NotAllowedError'))"
    )
    page.find_element(By.ID, "camera").click()
    until(lambda: "Access to the camera was refused" in page.find_element(By.ID, "message").text)
    assert page.find_element(By.ID, "camera").text == "Start camera"


def test_a_file_that_is_too_large_is_not_sent(page: Chrome, tmp_path: Path, photos: Path) -> None:
    (tmp_path / "large.jpg").write_bytes(bytes(33 << 20))
    page.find_element(By.ID, "files").send_keys(f"{tmp_path / 'large.jpg'}\n{photos / 'pale.png'}")
    settled(page, "pale.png")
    assert "large.jpg has 33 MiB; the limit is 32 MiB" in page.find_element(By.ID, "message").text
    assert asked(page) == 3


def test_a_file_that_is_no_picture_is_explained(page: Chrome, tmp_path: Path) -> None:
    (tmp_path / "<img src=x onerror=alert(1)>.jpg").write_text("hello")
    drop(page, tmp_path / "<img src=x onerror=alert(1)>.jpg")
    said = settled(page, "<img src=x onerror=alert(1)>.jpg")
    assert all("not a picture in a known format" in one for one in said)
    page.find_element(By.ID, "fetch").click()
    until(lambda: "None of the pictures could be analysed" in page.find_element(By.ID, "message").text)


@pytest.mark.parametrize("width", [360, 1280])
def test_nothing_is_wider_than_the_window(page: Chrome, photos: Path, width: int) -> None:
    page.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 740, "deviceScaleFactor": 1, "mobile": False}
    )
    try:
        drop(page, photos / "wide.jpg", "a_very_long_name_without_any_space_" * 4 + ".jpg")
        settled(page, "a_very_long_name_without_any_space_" * 4 + ".jpg")
        assert page.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    finally:
        page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
