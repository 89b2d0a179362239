"""How much strangers may send: bytes, pixels, and pictures in progress; whoever waits too long is told to retry."""

import asyncio
import io
from dataclasses import dataclass

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qmimic.data.images import TooLargeError, UnknownFormatError, image_size
from qmimic.errors import InputError

MIB = 1 << 20
LARGE = 16_000_000  # pixels; larger pictures are decoded one at a time
JSON_BYTES = 8 * MIB
DRAINED = 4  # times the limit: read and discarded, so that a sender gets the answer instead of a broken connection
READING = 60.0  # seconds that a body may take to arrive
PACE, LEAST = 2.0, 16384  # every PACE seconds, LEAST bytes or the end must arrive
ARRIVING = 512  # bodies arriving at once
HELD = 4  # whole bodies in memory per thread, arriving or waiting
PICTURES = "/api/detect"  # bodies to any other address are JSON, whatever their type says
RETRY = 5  # seconds after which a refused sender may try again


class RefusedError(Exception):
    """A refused request: its HTTP status, and one sentence that says what to do."""

    def __init__(self, status: int, sentence: str) -> None:
        super().__init__(sentence)
        self.status = status

    def response(self) -> JSONResponse:
        """The answer."""
        headers = {"retry-after": str(RETRY)} if self.status == 503 else {}
        return JSONResponse({"error": str(self)}, self.status, headers)


@dataclass(frozen=True)
class Limits:
    """What is allowed.

    Attributes:
        bytes: of one picture's file.
        pixels: of one picture.
        threads: pictures computed at once.
        waiting: requests that may wait their turn.
        patience: seconds that they wait.
    """

    bytes: int = 32 * MIB
    pixels: int = 50_000_000
    threads: int = 2
    waiting: int = 256
    patience: float = 60.0


def picture_size(content: bytes, limits: Limits) -> int:
    """Number of pixels of an image file, from its header, before anything is decoded.

    Raises:
        RefusedError: it is empty, of an unknown format, or too large.
    """
    if not content:
        raise RefusedError(400, "The request is empty; send the bytes of a picture as its body.")
    try:
        width, height = image_size(io.BytesIO(content))
        pixels = width * height
    except UnknownFormatError as error:
        raise RefusedError(415, str(error)) from error
    except TooLargeError as error:
        raise _too_many_pixels(limits) from error
    except InputError as error:
        raise RefusedError(400, "The picture's header is damaged; save the picture again.") from error
    if pixels > limits.pixels:
        raise _too_many_pixels(limits)
    return pixels


def _too_many_pixels(limits: Limits) -> RefusedError:
    return RefusedError(413, f"The picture has over {limits.pixels / 1e6:g} million pixels; shrink it first.")


class _Arrival:
    """A body that is arriving, waiting or being computed; its bytes count as held in memory."""

    def __init__(self, deadline: asyncio.Timeout) -> None:
        self.deadline = deadline
        self.held = 0
        self.cut = False


class Gate:
    """ASGI middleware: a body is read once a turn is free, up to the limit; when complete, it takes the turn.

    An incomplete body holds no turn, so slow senders keep nobody waiting; one below the minimum rate is cut off. The
    bytes held in memory are bounded: if they become too many, the body that has been arriving longest is dropped.
    """

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app = app
        self._limits = limits
        self._free = 2 * limits.threads  # turns; one computes while another's body is being prepared
        self._changed = asyncio.Condition()
        self._waiting = 0
        self._arriving: list[_Arrival] = []  # in the order in which they began
        self._held, self._most_held = 0, HELD * limits.threads * limits.bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        arrival: _Arrival | None = None
        try:
            await self._until_free(take=False)
            arrival = _Arrival(asyncio.timeout(READING))
            body = await self._body(arrival, scope, receive)
            if body is not None:
                await self._until_free(take=True)
                try:
                    await self._app(scope, _replay(body, receive), send)
                finally:
                    async with self._changed:
                        self._free += 1
                        self._changed.notify_all()
        except RefusedError as error:
            await error.response()(scope, receive, send)
        finally:
            if arrival is not None:
                self._held -= arrival.held

    async def _until_free(self, take: bool) -> None:
        """Wait for a free turn, and perhaps take it."""
        if self._waiting >= self._limits.waiting or len(self._arriving) >= ARRIVING:
            raise _busy()
        self._waiting += 1
        try:
            async with asyncio.timeout(self._limits.patience), self._changed:
                await self._changed.wait_for(lambda: self._free > 0)
                self._free -= take
        except TimeoutError:
            raise _busy() from None
        finally:
            self._waiting -= 1

    async def _body(self, arrival: _Arrival, scope: Scope, receive: Receive) -> bytes | None:
        """The whole body; None if the sender has gone."""
        most = self._limits.bytes
        if not scope["path"].endswith(PICTURES):
            most = min(JSON_BYTES, most)
        clock = asyncio.get_running_loop().time
        end = clock() + READING
        parts: list[bytes] = []
        length = lately = 0
        self._arriving.append(arrival)
        try:
            async with arrival.deadline as deadline:
                deadline.reschedule(min(end, clock() + PACE))
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    part = message.get("body", b"")
                    length += len(part)
                    lately += len(part)
                    if lately >= LEAST:
                        lately = 0
                        deadline.reschedule(min(end, clock() + PACE))
                    if length <= most:
                        parts.append(part)
                        self._hold(arrival, len(part))
                    else:
                        parts.clear()
                        self._hold(arrival, -arrival.held)
                    if length > DRAINED * most or not message.get("more_body"):
                        break
        except TimeoutError:
            if arrival.cut:
                raise _busy() from None
            rate = LEAST / PACE / 1024
            raise RefusedError(
                408,
                f"The request took too long to arrive (over {READING:g} s, or below {rate:g} kB/s); send less.",
            ) from None
        finally:
            self._arriving.remove(arrival)
        if length > most:
            raise RefusedError(413, f"The request has over {most / MIB:g} MiB; shrink the picture, or send less.")
        return b"".join(parts)

    def _hold(self, arrival: _Arrival, count: int) -> None:
        arrival.held += count
        self._held += count
        if self._held > self._most_held:
            oldest = self._arriving[0]
            oldest.cut = True
            oldest.deadline.reschedule(asyncio.get_running_loop().time())
            self._held -= oldest.held
            oldest.held = 0


def _busy() -> RefusedError:
    return RefusedError(503, "The server is busy with other pictures; try again in a few seconds.")


def _replay(body: bytes, receive: Receive) -> Receive:
    """A receive function for the application: the body in one piece, then whatever follows."""
    given = False

    async def replayed() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed
