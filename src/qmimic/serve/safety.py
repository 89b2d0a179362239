"""Who may ask, and what a browser may do with the answer.

Any page in a browser can send requests to the user's own machine. So a server that is bound to that machine answers
only requests under the machine's own names (otherwise a foreign name that is made to point here could read the answers:
DNS rebinding), and refuses whatever another site's page sends.
"""

import asyncio
import contextlib
import ipaddress
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qmimic.errors import InputError
from qmimic.serve.limits import RefusedError

HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
        "media-src 'self' blob:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "permissions-policy": "camera=(self), microphone=(), geolocation=()",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "x-frame-options": "DENY",
    "cache-control": "no-store",
}
LOCAL = ("localhost", "127.0.0.1", "::1")
DISCARDED_BYTES, DISCARD_SECONDS = 1 << 20, 1.0  # of a refused request


def is_local(host: str) -> bool:
    """Whether only this machine can reach a server that is bound to this host."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@dataclass(frozen=True)
class Public:
    """The page's address behind a proxy.

    Attributes:
        origin: scheme, name and port, as browsers send it.
        name: host name that the browser asks for.
        path: under which the page lies, without a final slash; empty if the page is the whole site.
    """

    origin: str
    name: str
    path: str


def public_address(text: str) -> Public:
    """Parse `https://name/path`. Raises InputError: the text is not such an address."""
    try:
        parts = urlsplit(text)
        name, port = parts.hostname, parts.port
    except ValueError:
        parts, name, port = urlsplit(""), None, None
    if parts.scheme not in ("http", "https") or not name or parts.query or parts.fragment or parts.username:
        raise InputError(
            f"--public {text} is not the address of a page; write it as https://name or https://name/path."
        )
    usual = {"http": 80, "https": 443}[parts.scheme]
    shown = f"[{name}]" if ":" in name else name
    ending = f":{port}" if port and port != usual else ""
    return Public(f"{parts.scheme}://{shown}{ending}", name, parts.path.rstrip("/"))


async def _discard(receive: Receive) -> None:
    """Read and discard the body of a refused request, up to a limit of bytes and time.

    Closing a connection on a half-sent body resets it, and a proxy then answers 502 instead of the refusal.
    """
    left = DISCARDED_BYTES
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(DISCARD_SECONDS):
            while left > 0:
                message = await receive()
                left -= len(message.get("body", b""))
                if not message.get("more_body", False):
                    return


class Safe:
    """ASGI middleware: refuses requests by foreign names and from foreign pages, and sets the headers above.

    Args:
        app: that answers.
        host: that the server is bound to.
        public: the page's address behind a proxy; None: only the server's own address.
    """

    def __init__(self, app: ASGIApp, host: str, public: Public | None = None) -> None:
        self._app = app
        self._public = public
        others = {public.name} if public else set()
        self._names = {*LOCAL, host, *others} if is_local(host) else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(raw=message["headers"])
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        try:
            self._check(Headers(scope=scope), scope["method"])
        except RefusedError as error:
            await _discard(receive)
            await error.response()(scope, receive, guarded)
            return
        await self._app(self._below(scope), receive, guarded)

    def _below(self, scope: Scope) -> Scope:
        """The request without the page's path behind its proxy; some proxies leave that path in, some remove it."""
        path = self._public.path if self._public else ""
        if not path or not f"{scope['path']}/".startswith(f"{path}/"):
            return scope
        return {**scope, "path": scope["path"][len(path) :] or "/", "raw_path": None}

    def _check(self, headers: Headers, method: str) -> None:
        host = headers.get("host", "")
        if self._names is not None and _name(host) not in self._names:
            raise RefusedError(
                403,
                "This server answers only to this machine; open it as http://localhost with its port, or give its "
                "address behind a proxy by --public.",
            )
        origin = headers.get("origin")
        own = origin is None or origin in (f"http://{host}", f"https://{host}")
        own = own or (self._public is not None and origin == self._public.origin)
        if method not in ("GET", "HEAD") and (not own or headers.get("sec-fetch-site") == "cross-site"):
            raise RefusedError(403, "Another site's page sent this; use this server's own page, or a program.")


def _name(host: str) -> str | None:
    """The name in a Host header, without the port; None if the header is not name and port."""
    found = re.fullmatch(r"(\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._-]{1,253})(:[0-9]{1,5})?", host)
    return found[1].strip("[]").lower() if found else None
