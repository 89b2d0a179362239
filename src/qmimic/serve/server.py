"""The socket, the threads, and the loop that answers until Ctrl-C."""

import contextlib
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import uvicorn

from qmimic.errors import InputError
from qmimic.serve.app import application
from qmimic.serve.limits import Limits
from qmimic.serve.models import Shelf
from qmimic.serve.safety import Public

KEEP_ALIVE = 75  # seconds; so a page that sends pictures one by one keeps its connection
GRACE = 3  # seconds that requests in progress get at the end


def bound(host: str, port: int) -> socket.socket:
    """A socket that waits for connections.

    Args:
        host: a name or an address of this machine.
        port: 0: any free one.

    Raises:
        InputError: the port is taken or forbidden, or the host is not this machine.
    """
    if not 0 <= port <= 65535:  # the system would wrap it around
        raise InputError(f"Port {port} does not exist; take another --port, from 0 to 65535.")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address, family=family, backlog=512)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InputError(f"Cannot listen on {host} port {port}: {reason}; take another --port or --host.") from error


def serve(
    shelf: Shelf,
    limits: Limits,
    listening: socket.socket,
    host: str,
    public: Public | None,
    ready: Callable[[], None],
) -> None:
    """Answer requests until Ctrl-C.

    Args:
        shelf: the models.
        limits: of requests.
        listening: from `bound`.
        host: that it is bound to.
        public: the page's address behind a proxy, if there is one.
        ready: called before the first request is answered.
    """
    with ThreadPoolExecutor(limits.threads, "look") as pool:
        app = application(shelf, limits, pool, host, public)
        config = uvicorn.Config(
            app,
            http="h11",
            ws="none",
            lifespan="off",
            log_level="error",
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=GRACE,
        )
        ready()
        with contextlib.suppress(KeyboardInterrupt):  # uvicorn raises it again after ending its requests
            uvicorn.Server(config).run(sockets=[listening])
