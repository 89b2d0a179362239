"""The application: the page and its files, the endpoints, and the answers when they fail."""

from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from importlib.metadata import version
from pathlib import Path

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp

from qmimic.plain_words import in_words
from qmimic.serve.endpoints import about_labels, about_models, about_pictures, about_reports, refusals
from qmimic.serve.limits import Gate, Limits, RefusedError
from qmimic.serve.models import Shelf
from qmimic.serve.safety import Public, Safe

PAGE = Path(__file__).parent / "page"
KINDS = {".html": "text/html", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}
DESCRIPTION = "Detections in pictures. Any answer other than success is JSON with one sentence, `error`."


def application(shelf: Shelf, limits: Limits, pool: Executor, host: str, public: Public | None = None) -> ASGIApp:
    """The application that a server runs.

    Args:
        shelf: the models.
        limits: of requests.
        pool: threads that decode and compute, `limits.threads` of them.
        host: that the server is bound to; if only this machine can reach it, foreign host names are refused.
        public: the page's address behind a proxy; requests by its name are answered too.
    """
    api = FastAPI(
        title="qmimic",
        version=version("qmimic"),
        description=DESCRIPTION,
        docs_url=None,
        redoc_url=None,
        responses=refusals(403, 500),
    )
    parts = about_models(shelf, limits), about_pictures(shelf, limits, pool), about_labels(), about_reports(shelf)
    for part in parts:
        api.include_router(part)
    for file in sorted(PAGE.iterdir()):
        place = "/" if file.name == "index.html" else f"/page/{file.name}"
        api.add_route(place, _always(file.read_bytes(), KINDS[file.suffix]), include_in_schema=False)

    api.add_exception_handler(RefusedError, _refused)
    api.add_exception_handler(RequestValidationError, _unusable)
    api.add_exception_handler(HTTPException, _unknown)
    api.add_exception_handler(Exception, _fault)
    return Safe(Gate(api, limits), host, public)


def _always(content: bytes, kind: str) -> Callable[[Request], Awaitable[Response]]:
    """A handler that answers with the same file each time."""

    async def answer(_: Request) -> Response:
        return Response(content, media_type=kind)

    return answer


async def _refused(_: Request, error: Exception) -> Response:
    assert isinstance(error, RefusedError)
    return error.response()


async def _unusable(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"][1:]) or "body"
    message = in_words(first)
    return JSONResponse({"error": f"{where}: {message}; /openapi.json says what is expected."}, 422)


async def _unknown(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    sentences = {
        400: "The request cannot be read; /openapi.json says what is expected.",
        404: "There is no such page; see / for the page and /openapi.json for the endpoints.",
        405: f"{request.method} is not allowed at this address; see /openapi.json for the endpoints.",
    }
    sentence = sentences.get(error.status_code, f"The request was refused: {error.detail}.")
    return JSONResponse({"error": sentence}, error.status_code, error.headers)


async def _fault(_: Request, __: Exception) -> Response:
    return JSONResponse(
        {"error": "The server failed on this request; its terminal shows the error. Please report it."}, 500
    )
