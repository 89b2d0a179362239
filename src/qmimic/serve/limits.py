"""How much strangers may send: bytes, pixels, and pictures in progress; those who wait too long are told so."""

import asyncio
import contextlib
import io
from collections.abc import AsyncIterator
from dataclasses import dataclass

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qmimic.data.images import TooLargeError, UnknownFormatError, image_size
from qmimic.errors import InputError

MIB = 1 << 20
LARGE = 16_000_000  # pixels; pictures above are decoded one at a time
JSON_BYTES = 8 * MIB
DRAINED = 4  # times the limit that is read and thrown away, so that a sender reads our answer and no broken connection
READING = 60.0  # seconds that a body may take
RETRY = 5  # seconds after which one that was sent away may come again


class RefusedError(Exception):
    """A request that is not answered: its HTTP status, and one sentence that names the fix."""

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
        threads: pictures that are computed at once.
        waiting: requests that may wait for their turn.
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


class Gate:
    """ASGI middleware: a body is read when it is its turn, and no further than allowed; then the application gets it.

    So memory is bounded by the number of turns: whoever waits has not been read yet.
    """

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self._app = app
        self._limits = limits
        self._turns = asyncio.Semaphore(2 * limits.threads)  # one computes while another's body arrives
        self._waiting = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http" or scope["method"] in ("GET", "HEAD"):
            await self._app(scope, receive, send)
            return
        try:
            async with self._turn():
                body = await self._body(scope, receive)
                if body is not None:
                    await self._app(scope, _replay(body, receive), send)
        except RefusedError as error:
            await error.response()(scope, receive, send)

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        busy = RefusedError(503, "The server is busy with other pictures; try again in some seconds.")
        if self._waiting >= self._limits.waiting:
            raise busy
        self._waiting += 1
        try:
            async with asyncio.timeout(self._limits.patience):
                await self._turns.acquire()
        except TimeoutError:
            raise busy from None
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._turns.release()

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """The whole body; None if the sender has gone."""
        kind = dict(scope["headers"]).get(b"content-type", b"")
        most = min(JSON_BYTES, self._limits.bytes) if kind.startswith(b"application/json") else self._limits.bytes
        parts: list[bytes] = []
        length = 0
        try:
            async with asyncio.timeout(READING):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    part = message.get("body", b"")
                    length += len(part)
                    if length <= most:
                        parts.append(part)
                    else:
                        parts.clear()
                    if length > DRAINED * most or not message.get("more_body"):
                        break
        except TimeoutError:
            raise RefusedError(408, f"The request took over {READING:g} seconds to arrive; send less.") from None
        if length > most:
            raise RefusedError(413, f"The request has over {most / MIB:g} MiB; shrink the picture, or send less.")
        return b"".join(parts)


def _replay(body: bytes, receive: Receive) -> Receive:
    """What an application receives: the body at once, then what comes."""
    given = False

    async def replayed() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed
