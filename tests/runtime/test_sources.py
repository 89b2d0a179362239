"""Videos, streams and folders: what can be read is read, and what cannot is named and counted."""

import http.server
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from folders import picture
from qmimic.cli import main as qmimic_main
from qmimic.detectors.files import save_detector
from qmimic.errors import InputError
from qmimic.runtime import video
from qmimic.runtime.__main__ import main
from qmimic.runtime.formats import FORMATS
from qmimic.runtime.video import frames
from qmimic.ship.onnx_file import Exported
from qmimic.ship.write import describe, write_described
from tiny_detectors import lively, tiny_spec

os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # read when OpenCV is imported, as `frames` does itself
cv2 = pytest.importorskip("cv2", reason="OpenCV is an option of the runtime")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    detector = lively(tiny_spec(size=(64, 96))).eval()
    folder = tmp_path_factory.mktemp("model")
    save_detector(detector, folder / "m.safetensors", {})
    write_described(Exported(detector), FORMATS["onnx"], describe(detector, {}), folder / "m.onnx")
    return folder / "m.onnx"


def film(path: Path, count: int) -> Path:
    """Frames that grow brighter; every one is a picture of its own."""
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 10, (96, 64))
    generator = np.random.default_rng(0)
    for number in range(count):
        noise = generator.integers(0, 40, (64, 96, 3))
        writer.write((noise + 5 * number).clip(0, 255).astype(np.uint8))
    writer.release()
    return path


def seen(path: Path) -> tuple[list[int], list[str]]:
    said: list[str] = []
    return [number for number, _ in frames(str(path), said.append)], said


def test_a_whole_video_is_read_to_its_end(tmp_path: Path) -> None:
    assert seen(film(tmp_path / "a.avi", 40)) == (list(range(40)), [])


def damaged(path: Path, low: int, high: int) -> None:
    """Spoil the bytes from one frame to another, as a bad sector does."""
    content = bytearray(path.read_bytes())
    places, place = [], content.find(b"movi")
    while (place := content.find(b"00dc", place + 4)) >= 0 and content[place + 8 : place + 10] == b"\xff\xd8":
        places.append(place)
    content[places[low] : places[high]] = bytes(places[high] - places[low])
    path.write_bytes(content)


def test_a_video_with_a_broken_middle_is_read_past_it(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = film(tmp_path / "a.avi", 40)
    damaged(path, 11, 20)
    numbers, said = seen(path)
    assert len(numbers) == 31
    assert said == [f"The video {path} claims to have 40 frames, but 9 could not be read; copy it again."]
    assert main([str(model), "--video", str(path), "--json"]) == 1
    output = capsys.readouterr()
    assert [json.loads(line)["picture"] for line in output.out.splitlines()] == [f"{number:06}" for number in numbers]
    assert output.err.count("9 could not be read") == 1


def test_a_video_that_was_cut_off_is_called_so(tmp_path: Path) -> None:
    path = film(tmp_path / "a.avi", 40)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    numbers, said = seen(path)
    assert 10 < len(numbers) < 30
    assert f"{40 - len(numbers)} could not be read" in said[0]


def test_a_video_without_a_frame_is_refused(tmp_path: Path) -> None:
    (tmp_path / "zero.mp4").write_bytes(b"")
    for path in (tmp_path / "zero.mp4", film(tmp_path / "empty.avi", 0)):
        with pytest.raises(InputError, match="gives no picture"):
            seen(path)


@pytest.mark.parametrize(
    ("source", "says"),
    [
        ("rtsp://user:secret@127.0.0.1:9/Streaming/1?token=secret", "stream rtsp://127.0.0.1:9 gives no"),
        ("http://u:secret@127.0.0.1:9/stream.mjpg", "The stream http://127.0.0.1:9 gives no picture"),
        ("rtsp://127.0.0.1:9/user=a_password=secret_channel=1.sdp", "The stream rtsp://127.0.0.1:9 gives no picture"),
        ("rtmp://127.0.0.1:9/live/secret", "The stream rtmp://127.0.0.1:9 gives no picture"),
        ("rtsp://u:p@secret@127.0.0.1:9/a", "The stream rtsp://127.0.0.1:9 gives no picture"),
        ("rtsp://u:12/secret@127.0.0.1:9/a", "The stream rtsp://... gives no picture"),
        ("rtsp://u:secret/3@127.0.0.1:9/a", "The address of the stream cannot be read"),
        ("ftp://u:secret@127.0.0.1/film.avi", "ftp:// streams are not supported"),
        ("/dev/video99", "There is no camera /dev/video99"),
        ("-1", "There is no video '-1'"),
        ("", "There is no video ''"),
    ],
)
def test_what_is_no_video_is_named_without_its_password(
    source: str, says: str, model: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main([str(model), f"--video={source}"]) == 2
    said = capfd.readouterr()
    assert says in said.err
    assert "secret" not in said.err + said.out
    assert said.err.count("\n") == 1


class Camera(http.server.BaseHTTPRequestHandler):
    """Cheap cameras' streams: JPEGs one after the other; each connection ends after three."""

    visits = 0

    def do_GET(self) -> None:
        type(self).visits += 1
        if self.visits > 2:
            self.send_error(503)
            return
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=f")
        self.end_headers()
        jpeg = cv2.imencode(".jpg", np.full((64, 96, 3), 90, np.uint8))[1].tobytes()
        for _ in range(3):
            head = b"--f\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n\r\n"
            self.wfile.write(head % len(jpeg) + jpeg + b"\r\n")

    def log_message(self, *_: object) -> None:
        """Nothing."""


@pytest.fixture
def camera() -> Iterator[str]:
    Camera.visits = 0
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Camera)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://user:secret@127.0.0.1:{server.server_address[1]}/stream.mjpg"
    server.shutdown()
    server.server_close()


def test_a_stream_that_stops_is_reached_again(camera: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(video, "WAITS", (0.01, 0.02))
    said: list[str] = []
    numbers = [number for number, _ in frames(camera, said.append)]
    assert Camera.visits >= 4  # one that stopped, one that went on, two in vain
    assert numbers == list(range(len(numbers)))
    assert len(numbers) >= 4
    (sentence,) = said
    assert f"stopped after {len(numbers)} frames and could not be reached again in 2 tries" in sentence
    assert "secret" not in sentence


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a", "c", "e"):
        picture(folder / f"{name}.png", (90, 60), ord(name))
    (folder / "b.png").write_bytes(b"no picture")
    (folder / "d.jpg").write_bytes((folder / "a.png").read_bytes()[:200])
    (folder / "f.heic").write_bytes(b"\0\0\0\x1cftypheic")
    (folder / "more").mkdir()
    (folder / "a.txt").write_text("0 0.5 0.5 0.1 0.1")
    return folder


@pytest.mark.parametrize("command", ["runtime", "predict onnx", "predict safetensors"])
def test_a_folder_is_read_past_its_bad_files(
    command: str, model: Path, mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--out", str(tmp_path / "drawn")]
    if command == "runtime":
        code = main([str(model), str(mixed), *out])
    else:
        code = qmimic_main(["predict", str(model.with_suffix(f".{command.split()[1]}")), str(mixed), *out])
    said = capsys.readouterr()
    assert code == 1
    assert len(said.out.splitlines()) == 3
    assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == ["a.png", "c.png", "e.png"]
    complaints = said.err.splitlines()
    assert f"2 entries of {mixed} are not pictures that qmimic reads and were skipped: f.heic, more/." in complaints[0]
    assert "b.png is not a picture" in complaints[1]
    assert "d.jpg" in complaints[2]
    assert complaints[3] == "qmimic: 2 of 5 pictures could not be read."


def test_what_is_not_a_detector_is_named_as_what_it_is(
    mixed: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "best.pt").write_bytes(b"PK\x03\x04archive/data.pkl")
    (tmp_path / "labels.csv").write_text("{}")
    kinds = {mixed / "a.png": "is a PNG picture", tmp_path / "best.pt": "is a zip archive, such as PyTorch's"}
    kinds |= {tmp_path / "labels.csv": "is a JSON file", mixed: "is a folder", tmp_path / "no.onnx": "There is no file"}
    for path, kind in kinds.items():
        assert qmimic_main(["predict", str(path), str(mixed / "a.png"), "--out", str(tmp_path / "o")]) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1
        assert kind in said
