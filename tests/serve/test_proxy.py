"""The page behind a proxy, at the root of a site and below a path: whatever the proxy says of itself."""

import asyncio
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from fastapi.testclient import TestClient

from qmimic.errors import InputError
from qmimic.serve.app import application
from qmimic.serve.limits import Limits
from qmimic.serve.models import Shelf
from qmimic.serve.safety import Public, public_address

PAGE = Path(__file__).parents[2] / "docs" / "serve.md"
NAME = "detect.example.org"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("https://detect.example.org", Public("https://detect.example.org", NAME, "")),
        ("https://detect.example.org/", Public("https://detect.example.org", NAME, "")),
        ("https://Detect.Example.org:443/a/b/", Public("https://detect.example.org", NAME, "/a/b")),
        ("http://detect.example.org:8080/a", Public("http://detect.example.org:8080", NAME, "/a")),
        ("https://[::1]:8443", Public("https://[::1]:8443", "::1", "")),
    ],
)
def test_an_address(text: str, wanted: Public) -> None:
    assert public_address(text) == wanted


@pytest.mark.parametrize(
    "text",
    ["", "detect.example.org", "ftp://a", "https://", "https://a:x", "https://u:p@a/", "https://a/?b", "https://[a"],
)
def test_what_is_not_an_address(text: str) -> None:
    with pytest.raises(InputError, match="write it as https://name"):
        public_address(text)


@pytest.mark.parametrize("path", ["", "/detect"])
@pytest.mark.parametrize("host", [NAME, "127.0.0.1:8000"])
@pytest.mark.parametrize("bound", ["127.0.0.1", "0.0.0.0"])
@pytest.mark.parametrize("kept", [False, True])
def test_page_and_pictures(
    shelf: Shelf, pool: ThreadPoolExecutor, photos: Path, path: str, host: str, bound: str, kept: bool
) -> None:
    """Whichever Host the proxy sends on, and whether or not it leaves the path in."""
    app = application(shelf, Limits(), pool, bound, public_address(f"https://{NAME}{path}"))
    client = TestClient(app, base_url=f"http://{host}")
    below = path if kept else ""
    page = client.get(f"{below}/")
    assert page.status_code == 200
    for address in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        assert client.get(f"{below}/{address}").status_code == 200, address
    own = {"origin": f"https://{NAME}", "sec-fetch-site": "same-origin"}
    picture = (photos / "pale.png").read_bytes()

    def post(**headers: str) -> int:
        named = {**own, **{name.replace("_", "-"): value for name, value in headers.items()}}
        return client.post(f"{below}/api/detect?model=student", content=picture, headers=named).status_code

    assert post() == 200
    assert post(origin="https://evil.example") == 403
    assert post(origin=f"http://{NAME}") == (200 if host == NAME else 403)  # another scheme is another site
    assert post(origin="https://evil.example", x_forwarded_host="evil.example", forwarded="host=evil.example") == 403
    assert post(sec_fetch_site="cross-site") == 403
    if bound == "127.0.0.1":
        assert client.get(f"{below}/", headers={"host": "evil.example"}).status_code == 403


@pytest.mark.parametrize("body", ["whole", "endless", "stuck"])
def test_a_refusal_waits_for_the_body_but_not_for_long(
    shelf: Shelf, pool: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch, body: str
) -> None:
    """A connection that is closed on a body half sent is reset: nginx says 502 then, and nobody reads the 403."""
    monkeypatch.setattr("qmimic.serve.safety.DISCARD_SECONDS", 0.3)
    app = application(shelf, Limits(), pool, "127.0.0.1", public_address(f"https://{NAME}"))
    scope = {"type": "http", "method": "POST", "path": "/api/detect", "query_string": b"", "http_version": "1.1"}
    scope |= {"headers": [(b"host", NAME.encode()), (b"origin", b"https://evil.example")], "scheme": "http"}
    taken, sent = [0], list[tuple[int, int]]()

    async def receive() -> dict[str, object]:
        if body == "stuck" and taken[0]:
            await asyncio.sleep(60)
        taken[0] += 1
        more = body != "whole" or taken[0] < 5
        return {"type": "http.request", "body": bytes(1 << 16), "more_body": more}

    async def send(message: dict[str, object]) -> None:
        if message["type"] == "http.response.start":
            sent.append((int(str(message["status"])), taken[0]))

    began = time.monotonic()
    asyncio.run(app(scope, receive, send))
    assert sent == [(403, {"whole": 5, "endless": 16, "stuck": 1}[body])]
    assert time.monotonic() - began < 10


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port: int = one.getsockname()[1]
        return port


@pytest.fixture(params=["/", "/detect/"])
def behind_nginx(request: pytest.FixtureRequest, run: Path, tmp_path: Path) -> Iterator[str]:
    """`qmimic serve` behind nginx with the lines of docs/serve.md; gives the page's address."""
    nginx = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if nginx is None:
        pytest.skip("nginx is not installed")
    inner, outer = free_port(), free_port()
    (lines,) = re.findall(r"^```nginx\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert "location /detect/" in lines
    own = lines.replace("location /detect/", f"location {request.param}").replace("8000", str(inner))
    config = tmp_path / "nginx.conf"
    temporary = "".join(f"{kind}_temp_path {tmp_path}/{kind};" for kind in ("proxy", "fastcgi", "uwsgi", "scgi"))
    user = "user root; " if os.geteuid() == 0 else ""  # pytest's folders are its user's alone
    config.write_text(
        f"{user}pid {tmp_path}/pid; daemon off; error_log stderr; worker_processes 1;\nevents {{}}\n"
        f"http {{ access_log off; client_body_temp_path {tmp_path}/body; {temporary}\n"
        f"server {{ listen 127.0.0.1:{outer}; {own} }} }}\n"
    )
    public = f"https://{NAME}{request.param}"
    command = [sys.executable, "-m", "qmimic", "serve", str(run), "--port", str(inner), "--public", public]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as server:
        assert server.stdout is not None
        said = [server.stdout.readline(), server.stdout.readline()]
        with subprocess.Popen([nginx, "-c", str(config), "-p", str(tmp_path)], stderr=subprocess.DEVNULL) as proxy:
            try:
                assert f"Open {public}" in said[1]
                for _ in range(100):
                    try:
                        socket.create_connection(("127.0.0.1", outer), 1).close()
                        break
                    except OSError:
                        time.sleep(0.1)
                yield f"http://127.0.0.1:{outer}{request.param}"
            finally:
                proxy.terminate()
                server.terminate()


def test_the_page_behind_nginx(behind_nginx: str, photos: Path) -> None:
    headers = {"host": NAME, "origin": f"https://{NAME}", "sec-fetch-site": "same-origin"}
    with httpx.Client(base_url=behind_nginx, headers=headers, timeout=60) as client:
        page = client.get("")
        assert page.status_code == 200
        for address in [*re.findall(r'(?:src|href)="([^"]+)"', page.text), "api/models"]:
            assert client.get(address).status_code == 200, address
        content = (photos / "pale.png").read_bytes()
        answer = client.post("api/detect?model=student", content=content)
        assert answer.status_code == 200, answer.text
        assert client.post("api/detect?model=student", files={"file": ("a.png", content)}).status_code == 200
        foreign = client.post("api/detect?model=student", content=content, headers={"origin": "https://evil.example"})
        assert foreign.status_code == 403
