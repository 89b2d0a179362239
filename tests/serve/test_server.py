"""`qmimic serve` as a process: it begins, answers many at once, and ends quietly."""

import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from serve_cases import served

from cli_cases import Refused

WITHOUT = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {absent}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Refuse())
"""
OF_TRAINING = {"torch", "torchvision", "scipy", "rich", "safetensors", "onnx", "sklearn", "matplotlib", "accelerate"}


def test_a_deployed_file_is_served_without_torch_and_ends_quietly(run: Path, photos: Path) -> None:
    with served(run / "deploy" / "student.onnx", code=WITHOUT.format(absent=OF_TRAINING)) as (process, address):
        assert address.startswith("http://127.0.0.1:")
        assert httpx.get(address).status_code == 200
        answer = httpx.post(f"{address}/api/detect", content=(photos / "pale.png").read_bytes())
        assert answer.json()["detections"]
        one = {key: answer.json()[key] for key in ("width", "height", "detections")}
        for layout in ("coco", "yolo", "voc"):
            asked = {"format": layout, "classes": ["cat", "dog", "ox"], "pictures": [{"name": "pale.png", **one}]}
            assert httpx.post(f"{address}/api/labels", json=asked).content.startswith(b"PK")
        process.send_signal(signal.SIGINT)
        _, complaints = process.communicate(timeout=60)
        assert (process.returncode, complaints) == (0, "")


def test_without_torch_a_run_s_deployed_files_are_served_and_the_rest_is_named(run: Path) -> None:
    with served(run, code=WITHOUT.format(absent=OF_TRAINING)) as (process, address):
        listed = httpx.get(f"{address}/api/models").json()
        assert [one["name"] for one in listed["models"]] == ["student.onnx", "student-int8.onnx"]
        process.send_signal(signal.SIGINT)
        _, complaints = process.communicate(timeout=60)
        assert complaints.splitlines() == [
            f"qmimic: {name}.safetensors is left out: torch is not installed." for name in ("teacher", "student")
        ]


def test_without_its_packages_a_sentence_names_the_extra(run: Path) -> None:
    for missing in ("fastapi", "uvicorn"):
        code = WITHOUT.format(absent={missing}) + "from qmimic.cli import main; sys.exit(main(sys.argv[1:]))"
        command = [sys.executable, "-c", code, "serve", str(run / "deploy" / "student.onnx")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert done.stderr.endswith("is needed by this command but is not installed: pip install 'qmimic[serve]'.\n")
        assert done.stderr.count("\n") == 1


def test_bad_arguments_end_in_a_sentence(run: Path, refused: Refused) -> None:
    model = run / "deploy" / "student.onnx"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"Cannot listen on 127.0.0.1 port {port}" in refused("serve", model, "--port", port)
    assert "take another --port" in refused("serve", model, "--port", 99_999)
    assert "take another --port or --host" in refused("serve", model, "--port", 0, "--host", "192.0.2.1")
    assert "--max-mib must be above 0" in refused("serve", model, "--max-mib", 0)
    assert "--threads 1 to 256" in refused("serve", model, "--threads", 0)
    assert "There is no file" in refused("serve", run / "none.onnx", "--port", 0)


@pytest.mark.parametrize("model", ["teacher", "student.onnx"])
def test_many_at_once_get_what_one_gets(address: str, photos: Path, model: str) -> None:
    paths = sorted(photos.iterdir())
    url = f"{address}/api/detect?model={model}"

    def ask(path: Path) -> object:
        answer = httpx.post(url, content=path.read_bytes(), timeout=120)
        assert answer.status_code == 200
        return answer.json()["detections"]

    alone = [ask(path) for path in paths]
    assert any(alone)
    with ThreadPoolExecutor(16) as clients:
        together = list(clients.map(ask, paths * 12))
    assert together == alone * 12


def test_a_body_that_is_too_long_gets_its_answer_over_a_socket(address: str) -> None:
    answer = httpx.post(f"{address}/api/detect?model=student", content=bytes(40 << 20), timeout=120)
    assert answer.status_code == 413
    assert "over 32 MiB" in answer.json()["error"]


def test_foreign_names_are_refused_over_a_socket(address: str) -> None:
    assert httpx.get(address, headers={"host": "evil.example"}).status_code == 403


def test_bodies_that_never_end_keep_an_honest_request_waiting_for_no_time(run: Path, photos: Path) -> None:
    """200 of them over real sockets, while the clock jumps; the honest ones come before, among and after them."""
    jumping = "import time; true = time.time; time.time = lambda: true() + (int(1e6 * true()) % 7 - 3) * 1e8"
    head = b"POST /api/detect HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\nContent-Length: 9000000\r\n\r\n"
    content = (photos / "pale.png").read_bytes()
    with served(run / "deploy" / "student.onnx", code=jumping) as (_, address), ExitStack() as held:
        host, port = address.removeprefix("http://").split(":")
        httpx.post(f"{address}/api/detect", content=content, timeout=60)  # the engine is warm
        for number in range(200):
            stuck = held.enter_context(socket.create_connection((host, int(port)), timeout=10))
            stuck.sendall(head + b"x" * (number % 3) * 20_000)
            if number % 50 == 49:
                began = time.monotonic()
                answer = httpx.post(f"{address}/api/detect", content=content, timeout=30)
                assert answer.status_code == 200
                assert answer.json()["detections"]
                assert time.monotonic() - began < 3
        assert httpx.get(address, timeout=3).status_code == 200
