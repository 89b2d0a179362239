"""The endpoints: what predict finds, one sentence for everything bad, nothing for strangers' pages."""

import io
import re
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image
from serve_cases import noise, png_claiming

from qmimic.detections import Detections
from qmimic.detectors.files import load_detector
from qmimic.detectors.prediction import predict
from qmimic.runtime import Detector
from qmimic.serve.app import PAGE, application
from qmimic.serve.limits import Limits
from qmimic.serve.models import Shelf, collect

MODELS = ("teacher", "student", "student.onnx", "student-int8.onnx")


def detect(client: TestClient, content: bytes, model: str = "student", **parameters: object) -> httpx.Response:
    named = {"model": model, **{name: str(value) for name, value in parameters.items()}}
    return client.post("/api/detect", params=named, content=content)


def refused(answer: httpx.Response, status: int) -> str:
    """The sentence of an answer that has to be a refusal."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert answer.json().keys() == {"error"}
    sentence: str = answer.json()["error"]
    assert sentence.endswith(".")
    assert "\n" not in sentence
    assert not re.search(r"Traceback|/tmp|/home|\.py\b|0x[0-9a-f]{6}", sentence)
    return sentence


def expected(run: Path, model: str, picture: Path) -> tuple[Detections, tuple[str, ...]]:
    """What the command line's own ways find, down to the detector's threshold."""
    if model.endswith(".onnx"):
        shipped = Detector(run / "deploy" / model)
        return shipped(picture), shipped.metadata.classes
    detector, _ = load_detector(run / f"{model}.safetensors")
    return predict(detector, picture), detector.spec.classes


def same(answer: dict[str, Any], found: Detections, classes: tuple[str, ...]) -> None:
    own = answer["detections"]
    assert [one["class"] for one in own] == [classes[label] for label in found.labels.tolist()]
    np.testing.assert_allclose([one["score"] for one in own], found.scores, atol=6e-5)
    np.testing.assert_allclose([one["box"] for one in own], found.boxes, atol=6e-3)


@pytest.mark.parametrize("model", MODELS)
def test_detections_are_those_of_predict(client: TestClient, run: Path, photos: Path, model: str) -> None:
    counted = 0
    for picture, size in (("pale.png", (96, 96)), ("wide.jpg", (300, 160)), ("turned.jpg", (240, 400))):
        answer = detect(client, (photos / picture).read_bytes(), model)
        assert answer.status_code == 200
        assert (answer.json()["model"], answer.json()["width"], answer.json()["height"]) == (model, *size)
        assert answer.json()["milliseconds"] > 0
        found, classes = expected(run, model, photos / picture)
        same(answer.json(), found, classes)
        counted += len(found.scores)
    assert counted > 3


def test_a_least_score_leaves_the_weaker_out(client: TestClient, photos: Path) -> None:
    content = (photos / "pale.png").read_bytes()
    scores = [one["score"] for one in detect(client, content).json()["detections"]]
    least = sorted(scores)[len(scores) // 2]
    few = detect(client, content, min_score=least).json()["detections"]
    assert [one["score"] for one in few] == [score for score in scores if score >= least] != scores


@pytest.mark.parametrize("name", ["frames.gif", "deep.tif", "deep.png", "cmyk.jpg", "phone.mpo", "a.webp", "a.bmp"])
def test_every_kind_of_picture_is_seen_as_predict_sees_it(
    client: TestClient, run: Path, tmp_path: Path, name: str
) -> None:
    picture = noise((80, 60))
    path = tmp_path / name
    if name.startswith("deep"):
        picture = Image.fromarray(np.asarray(picture.convert("L"), np.uint16) * 257)
    if name in ("frames.gif", "phone.mpo"):
        picture.save(path, save_all=True, append_images=[noise((80, 60), 1)])
    else:
        (picture.convert("CMYK") if name == "cmyk.jpg" else picture).save(path)
    answer = detect(client, path.read_bytes())
    assert answer.status_code == 200, answer.text
    found, classes = expected(run, "student", path)
    same(answer.json(), found, classes)


def test_bad_pictures_get_a_sentence_and_the_fitting_status(client: TestClient, photos: Path) -> None:
    jpeg = (photos / "wide.jpg").read_bytes()
    assert "is empty" in refused(detect(client, b""), 400)
    assert "is not a whole image" in refused(detect(client, jpeg[: len(jpeg) // 2]), 400)
    png = io.BytesIO()
    noise((50, 40)).save(png, "PNG")
    assert "is not a whole image" in refused(detect(client, png.getvalue()[:3000]), 400)
    for content in (b"hello", b"%!PS-Adobe", b"x"):
        assert "not a picture in a known format" in refused(detect(client, content), 415)
    foreign = {
        b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>": "SVG",
        b"\0\0\0\x1cftypheic\0\0\0\0mif1heic": "a picture in HEIC",
        b"\0\0\0\x1cftypavif": "a picture in AVIF",
        b"\0\0\0\x1cftypisom": "a video",
        b'{"image": "aGVsbG8="}': "JSON",
        b"data:image/png;base64,AAAA": "a data address",
        b"url=https://example.com/a.jpg": "does not fetch anything",
    }
    for content, what in foreign.items():
        said = refused(detect(client, content), 415)
        assert what in said
        assert "curl --data-binary @photo.jpg" in said
    assert "over 1 million pixels" in refused(detect(client, png_claiming(1001, 1000)), 413)
    assert "over 1 million pixels" in refused(detect(client, png_claiming(60_000, 60_000)), 413)
    assert "over 1 MiB" in refused(detect(client, bytes((1 << 20) + 1)), 413)
    assert "over 1 MiB" in refused(detect(client, bytes(9 << 20)), 413)


def test_a_form_with_one_file_is_a_picture(client: TestClient, photos: Path) -> None:
    content = (photos / "pale.png").read_bytes()
    wanted = detect(client, content).json()["detections"]
    for name, kind in (("file", "image/png"), ("image", "application/octet-stream")):
        form = {name: ("a.png", content, kind)}
        answer = client.post("/api/detect?model=student", files=form, data={"note": "x"})
        assert answer.status_code == 200, answer.text
        assert answer.json()["detections"] == wanted
    two = [("file", ("a.png", content)), ("file", ("b.png", content))]
    assert "has 2 files" in refused(client.post("/api/detect?model=student", files=two), 422)
    assert "has 0 files" in refused(client.post("/api/detect?model=student", files={"a": (None, "text")}), 422)


def test_what_curl_d_spoils_is_called_so(client: TestClient, photos: Path) -> None:
    content = (photos / "wide.jpg").read_bytes()
    form = {"content-type": "application/x-www-form-urlencoded"}
    assert client.post("/api/detect?model=student", content=content, headers=form).status_code == 200
    spoilt = content.replace(b"\r", b"").replace(b"\n", b"")[: len(content) // 2]
    answer = client.post("/api/detect?model=student", content=spoilt, headers=form)
    assert "use --data-binary" in refused(answer, 400)


def test_requests_that_cannot_be_used(client: TestClient, photos: Path) -> None:
    content = (photos / "pale.png").read_bytes()
    assert "no model 'nobody'; take ?model= one of teacher, student" in refused(detect(client, content, "nobody"), 422)
    assert "Name a model" in refused(client.post("/api/detect", content=content), 422)
    for score in ("7", "-1", "nan", "much"):
        assert "min_score" in refused(detect(client, content, min_score=score), 422)
    assert "GET is not allowed" in refused(client.get("/api/detect"), 405)
    assert "DELETE is not allowed" in refused(client.delete("/"), 405)
    assert "no such page" in refused(client.get("/page/../app.py"), 404)
    assert "no such page" in refused(client.get("/docs"), 404)


def test_a_single_model_needs_no_name(run: Path, pool: ThreadPoolExecutor, photos: Path) -> None:
    app = application(collect([run / "deploy" / "student.onnx"]), Limits(), pool, "127.0.0.1")
    answer = TestClient(app, base_url="http://localhost").post(
        "/api/detect", content=(photos / "pale.png").read_bytes()
    )
    assert answer.json()["model"] == "student.onnx"


def test_what_is_served_is_listed(client: TestClient, run: Path) -> None:
    listed = client.get("/api/models").json()
    assert [one["name"] for one in listed["models"]] == list(MODELS)
    assert listed["side_by_side"] == ["teacher", "student", "student-int8.onnx"]
    assert listed["limits"] == {"bytes": 1 << 20, "pixels": 1_000_000, "at_once": 2}
    integer = listed["models"][3]
    assert (integer["precision"], integer["engine"], integer["map50"]) == ("int8", "ONNX Runtime", 0.5)
    assert integer["bytes"] == (run / "deploy" / "student-int8.onnx").stat().st_size
    assert listed["models"][0]["parameters"] > listed["models"][1]["parameters"] == integer["parameters"]


def test_a_fault_of_the_server_tells_nothing(shelf: Shelf, pool: ThreadPoolExecutor, photos: Path) -> None:
    def fails(_: object) -> Detections:
        raise RuntimeError("secret of /home/somebody")

    broken = replace(shelf, models={"student": replace(shelf.models["student"], look=fails)})
    app = application(broken, Limits(), pool, "127.0.0.1")
    client = TestClient(app, base_url="http://localhost", raise_server_exceptions=False)
    assert "secret" not in refused(detect(client, (photos / "pale.png").read_bytes()), 500)


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "localhost.evil.example:8000", "", "[::1"])
def test_foreign_names_are_refused(client: TestClient, host: str) -> None:
    assert "only to this machine" in refused(client.get("/api/models", headers={"host": host}), 403)


@pytest.mark.parametrize("host", ["localhost:8000", "127.0.0.1", "[::1]:8000", "LOCALHOST"])
def test_this_machine_s_names_are_answered(client: TestClient, host: str) -> None:
    assert client.get("/api/models", headers={"host": host}).status_code == 200


def test_other_sites_pages_are_refused(client: TestClient, photos: Path) -> None:
    content = (photos / "pale.png").read_bytes()

    def post(**headers: str) -> httpx.Response:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return client.post("/api/detect?model=student", content=content, headers=named)

    for origin in (
        "http://evil.example",
        "null",
        "http://127.0.0.1:9000",
        "ftp://127.0.0.1:8000",
        "http://localhost:8000",
    ):
        assert "Another site" in refused(post(origin=origin), 403)
    assert "Another site" in refused(post(sec_fetch_site="cross-site"), 403)
    assert post(origin="http://127.0.0.1:8000", sec_fetch_site="same-origin").status_code == 200


def test_bound_elsewhere_other_names_are_answered_but_not_other_sites(shelf: Shelf, pool: ThreadPoolExecutor) -> None:
    client = TestClient(application(shelf, Limits(), pool, "0.0.0.0"), base_url="http://machine:8000")
    assert client.get("/api/models").status_code == 200
    refused(client.post("/api/detect", headers={"origin": "http://evil.example"}), 403)


def test_the_page_loads_nothing_from_elsewhere(client: TestClient) -> None:
    page = client.get("/")
    assert page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self'")
    assert page.headers["x-content-type-options"] == "nosniff"
    assert page.headers["referrer-policy"] == "no-referrer"
    assert "camera=(self)" in page.headers["permissions-policy"]
    named = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(named) > 3
    for address in named:
        assert not address.startswith("/")  # a proxy may put the page below a path
        assert client.get(f"/{address}").status_code == 200
    for file in PAGE.iterdir():
        text = file.read_text().replace("http://www.w3.org/2000/svg", "").replace("http://localhost", "")
        assert not re.search(r"https?://|innerHTML|eval\(", text), file.name
        for module in re.findall(r'from "\./([^"]+)"', text):
            assert client.get(f"/page/{module}").headers["content-type"].startswith("text/javascript")


def test_reports_are_given_but_may_do_nothing(client: TestClient, shelf: Shelf, run: Path, tmp_path: Path) -> None:
    assert "no report of 'pets'" in refused(client.get("/reports/pets"), 404)
    assert client.get("/api/models").json()["reports"] == []
    secret = tmp_path / "secret.html"
    secret.write_text("secret")
    report = run / "report.html"
    try:
        report.symlink_to(secret)
        refused(client.get("/reports/pets"), 404)
        report.unlink()
        report.write_text("<h1>Report</h1>")
        assert client.get("/api/models").json()["reports"] == ["pets"]
        answer = client.get("/reports/pets")
        assert answer.text == "<h1>Report</h1>"
        policy = answer.headers["content-security-policy"]
        assert "sandbox" in policy
        assert "allow-same-origin" not in policy
        assert "default-src 'none'" in policy
        for name in ("%2e%2e%2fpets", "pets%2freport.html", "nobody"):
            refused(client.get(f"/reports/{name}"), 404)
    finally:
        report.unlink(missing_ok=True)


def test_the_openapi_file_describes_every_answer(client: TestClient) -> None:
    described = client.get("/openapi.json").json()
    assert described["paths"].keys() == {"/api/models", "/api/detect", "/api/labels", "/reports/{run}"}
    for ref in re.findall(r"'\$ref': '#/components/schemas/(\w+)'", str(described)):
        assert ref in described["components"]["schemas"]
    for path in described["paths"].values():
        for operation in path.values():
            for status, answer in operation["responses"].items():
                if status != "200":
                    schema = answer["content"]["application/json"]["schema"]
                    assert schema == {"$ref": "#/components/schemas/Refusal"}
    detection = described["components"]["schemas"]["Detection"]
    assert detection["properties"].keys() == {"class", "score", "box"}
    body = described["paths"]["/api/detect"]["post"]["requestBody"]
    assert body["required"]
    assert "image/*" in body["content"]
