"""The gate before the application: turns, waiting, bodies that are too long, too slow or never end."""

import asyncio
from collections.abc import Iterator

import pytest
from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from qmimic.serve import limits as limits_module
from qmimic.serve.limits import LEAST, PICTURES, Gate, Limits


class Inner:
    """Answers with the body's length, as soon as it may."""

    def __init__(self) -> None:
        self.may = asyncio.Event()
        self.inside = self.most = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.inside += 1
        self.most = max(self.most, self.inside)
        body = await Request(scope, receive).body()
        await self.may.wait()
        self.inside -= 1
        await Response(str(len(body)))(scope, receive, send)


async def post(
    app: Gate, parts: Iterator[bytes], kind: bytes = b"image/png", path: str = "/"
) -> tuple[int, dict[str, str], str, int]:
    """Status, headers and text of the answer, and how many parts were read."""
    sent: list[Message] = []
    read = 0

    async def receive() -> Message:
        nonlocal read
        part = next(parts, None)
        if part is None:
            await asyncio.Event().wait()  # a sender that stops in the middle
        read += 1
        return {"type": "http.request", "body": part, "more_body": part != b""}

    async def send(message: Message) -> None:
        sent.append(message)

    headers = [(b"content-type", kind)]
    scope: Scope = {"type": "http", "method": "POST", "path": path, "headers": headers, "query_string": b""}
    await app(scope, receive, send)
    found = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
    return sent[0]["status"], found, b"".join(part.get("body", b"") for part in sent[1:]).decode(), read


def whole(*parts: bytes) -> Iterator[bytes]:
    return iter((*parts, b""))


def test_no_more_than_the_turns_are_inside_and_everybody_is_answered() -> None:
    async def run() -> None:
        inner = Inner()
        gate = Gate(inner, Limits(threads=2, waiting=50))
        tasks = [asyncio.create_task(post(gate, whole(b"abc", b"de"))) for _ in range(50)]
        await asyncio.sleep(0.05)
        assert inner.inside == 4
        inner.may.set()
        answers = await asyncio.gather(*tasks)
        assert {(status, text) for status, _, text, _ in answers} == {(200, "5")}
        assert inner.most == 4

    asyncio.run(run())


def test_who_waits_too_long_or_finds_a_full_queue_may_come_again() -> None:
    async def run() -> None:
        inner = Inner()
        gate = Gate(inner, Limits(threads=1, waiting=2, patience=0.1))
        inside = [asyncio.create_task(post(gate, whole(b"a"))) for _ in range(2)]
        await asyncio.sleep(0.01)
        waiting = [asyncio.create_task(post(gate, whole(b"a"))) for _ in range(2)]
        await asyncio.sleep(0.01)
        for status, headers, text, read in [await post(gate, whole(b"a")), *await asyncio.gather(*waiting)]:
            assert (status, headers["retry-after"], read) == (503, "5", 0)  # none of its body was taken in
            assert "busy" in text
        inner.may.set()
        assert [answer[0] for answer in await asyncio.gather(*inside)] == [200, 200]
        assert (await post(gate, whole(b"a")))[0] == 200  # its turns have come back

    asyncio.run(run())


def test_bodies_end_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    def forever() -> Iterator[bytes]:
        while True:
            yield bytes(1000)

    async def run() -> None:
        inner = Inner()
        inner.may.set()
        gate = Gate(inner, Limits(bytes=10_000))
        assert (await post(gate, whole(*[bytes(1000)] * 10)))[:3:2] == (200, "10000")
        status, _, text, _ = await post(gate, whole(*[bytes(1000)] * 11))
        assert status == 413
        assert "MiB; shrink the picture" in text
        status, _, _, read = await post(gate, forever())
        assert (status, read) == (413, 41)
        monkeypatch.setattr(limits_module, "JSON_BYTES", 2000)
        assert (await post(gate, whole(*[bytes(1000)] * 3), b"application/json; charset=utf-8"))[0] == 413
        monkeypatch.setattr(limits_module, "READING", 0.05)
        status, _, text, _ = await post(gate, iter([b"a"]))
        assert status == 408
        assert "to arrive" in text

    asyncio.run(run())


def test_a_sender_that_has_gone_gives_its_turn_back() -> None:
    async def run() -> None:
        inner = Inner()
        inner.may.set()
        gate = Gate(inner, Limits(threads=1, patience=0.1))

        async def gone() -> Message:
            return {"type": "http.disconnect"}

        async def nobody(_: Message) -> None:
            raise AssertionError("an answer to nobody")

        scope: Scope = {"type": "http", "method": "POST", "path": "/", "headers": [], "query_string": b""}
        for _ in range(5):
            await gate(scope, gone, nobody)
        assert (await post(gate, whole(b"abc")))[:3:2] == (200, "3")

    asyncio.run(run())


def test_bodies_that_never_end_keep_nobody_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits_module, "PACE", 0.3)

    async def run() -> None:
        inner = Inner()
        inner.may.set()
        gate = Gate(inner, Limits(threads=1))
        stuck = [asyncio.create_task(post(gate, iter([bytes(100)]))) for _ in range(200)]
        await asyncio.sleep(0.05)
        async with asyncio.timeout(0.2):
            assert (await post(gate, whole(b"abc")))[:3:2] == (200, "3")
        answers = await asyncio.gather(*stuck)
        assert {answer[0] for answer in answers} == {408}
        assert not gate._arriving
        assert gate._held == 0

    asyncio.run(run())


def test_a_sender_at_the_least_rate_is_heard_out_and_a_slower_one_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits_module, "PACE", 0.4)

    async def sent(gate: Gate, part: int) -> int:
        """Ten parts, a tenth of a second apart."""
        left, answers = 10, []

        async def receive() -> Message:
            nonlocal left
            await asyncio.sleep(0.1)
            left -= 1
            return {"type": "http.request", "body": bytes(part), "more_body": left > 0}

        async def send(message: Message) -> None:
            answers.append(message)

        await gate({"type": "http", "method": "POST", "path": PICTURES, "headers": []}, receive, send)
        return answers[0]["status"]

    async def run() -> None:
        inner = Inner()
        inner.may.set()
        gate = Gate(inner, Limits())
        assert await asyncio.gather(sent(gate, LEAST // 2), sent(gate, LEAST // 20)) == [200, 408]

    asyncio.run(run())


def test_bytes_that_are_held_are_bounded_and_the_oldest_body_gives_way() -> None:
    async def run() -> None:
        inner = Inner()
        inner.may.set()
        gate = Gate(inner, Limits(threads=1, bytes=1000))
        stuck = [asyncio.create_task(post(gate, iter([bytes(900)]))) for _ in range(4)]
        await asyncio.sleep(0.01)
        assert (await post(gate, whole(bytes(900))))[:3:2] == (200, "900")
        assert (await stuck[0])[0] == 503
        assert gate._held <= 4000
        for task in stuck:
            task.cancel()
        await asyncio.gather(*stuck, return_exceptions=True)
        assert gate._held == 0

    asyncio.run(run())


@pytest.mark.parametrize("kind", [b"application/json", b"Application/JSON", b"text/json", b"", b"image/png"])
def test_json_is_bounded_by_its_address(monkeypatch: pytest.MonkeyPatch, kind: bytes) -> None:
    monkeypatch.setattr(limits_module, "JSON_BYTES", 2000)

    async def run() -> None:
        inner = Inner()
        inner.may.set()
        gate = Gate(inner, Limits())
        assert (await post(gate, whole(bytes(3000)), kind, "/api/labels"))[0] == 413
        assert (await post(gate, whole(bytes(3000)), kind, PICTURES))[0] == 200

    asyncio.run(run())
