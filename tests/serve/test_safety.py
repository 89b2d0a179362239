"""Names and origins: only a bare name of this machine is answered, and nothing that is not one ends in a fault."""

import asyncio

import pytest
from starlette.responses import PlainTextResponse
from starlette.types import Message

from qmimic.serve.safety import Safe


def status(host: bytes, origin: bytes | None = None, method: str = "POST") -> int:
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"host", host), *([] if origin is None else [(b"origin", origin)])]
    scope = {"type": "http", "method": method, "path": "/", "headers": headers, "query_string": b""}
    asyncio.run(Safe(PlainTextResponse("fine"), "127.0.0.1")(scope, receive, send))
    return int(sent[0]["status"])


@pytest.mark.parametrize("host", [b"localhost", b"localhost:8000", b"127.0.0.1:1", b"[::1]:8000", b"LOCALHOST"])
def test_names_of_this_machine_are_answered(host: bytes) -> None:
    assert status(host) == 200
    assert status(host, b"http://" + host) == 200


@pytest.mark.parametrize(
    "host",
    [
        *(b"", b"evil", b"localhost/evil", b"localhost?a", b"localhost#a", b"evil@localhost", b"localhost@evil"),
        *(b"localhost:80:80", b"localhost:x", b"[::1", b"::1]", b"[::1]evil", b"localhost evil", b"\xff", b"http://["),
        *(b"localhost\\evil", b"localhost.evil", b"127.0.0.1.evil"),
    ],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_all_else_is_refused(host: bytes, method: str) -> None:
    assert status(host, method=method) == 403


@pytest.mark.parametrize(
    "origin",
    [
        b"null",
        b"",
        b"http://[",
        b"http://localhost:8000/evil",
        b"http://evil",
        b"ftp://localhost:8000",
        b"http://localhost:8001",
        b"\xff\xfe",
    ],
)
def test_origins_that_are_not_this_page_are_refused(origin: bytes) -> None:
    assert status(b"localhost:8000", origin) == 403
