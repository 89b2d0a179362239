"""The endpoints for programs: models, detections in a picture, label files, reports."""

import asyncio
import io
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import Response

from qmimic.detections import Detections
from qmimic.errors import InputError
from qmimic.files import open_file, read_bytes
from qmimic.serve.answers import Allowed, Found, Model, Models, Refusal
from qmimic.serve.labels import Detection, LabelsWanted, labels_zip
from qmimic.serve.limits import LARGE, MIB, Limits, RefusedError, picture_size
from qmimic.serve.models import Served, Shelf, look_at
from qmimic.serve.uploads import picture_of, spoilt_by_curl

REPORT = "report.html"
MAX_REPORT = 64 * MIB
# A report may come from a stranger's run folder: it keeps its own styles and scripts but has no origin, so that it
# can neither read the endpoints nor send anything.
REPORT_POLICY = (
    "sandbox allow-scripts allow-downloads; default-src 'none'; img-src data:; font-src data:; "
    "style-src 'unsafe-inline'; script-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
)
PICTURE = {"schema": {"type": "string", "format": "binary"}}


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The answers other than success, for the OpenAPI file."""
    reasons = {
        400: "the picture is empty, truncated or damaged",
        403: "sent by another site's page, or under a foreign host name",
        404: "there is no such page",
        408: "the request took too long to arrive",
        413: "too many bytes or pixels",
        415: "not a picture in a known format",
        422: "a parameter or the JSON cannot be used",
        500: "an error in the server",
        503: "too many pictures are waiting; see the header Retry-After",
    }
    return {status: {"model": Refusal, "description": reasons[status]} for status in statuses}


def about_models(shelf: Shelf, limits: Limits) -> APIRouter:
    """What is served.

    Args:
        shelf: the models.
        limits: of requests.
    """
    router = APIRouter()

    @router.get("/api/models", summary="What is served")
    async def models() -> Models:
        reports = [run for run in shelf.runs if _report(shelf, run) is not None]
        allowed = Allowed(bytes=limits.bytes, pixels=limits.pixels, at_once=limits.threads)
        known = [Model.model_validate(one, from_attributes=True) for one in shelf.models.values()]
        return Models(models=known, side_by_side=shelf.side_by_side, reports=reports, limits=allowed)

    return router


def about_pictures(shelf: Shelf, limits: Limits, pool: Executor) -> APIRouter:
    """Detections in a picture.

    Args:
        shelf: the models.
        limits: of requests.
        pool: threads that decode and compute.
    """
    router = APIRouter()
    large = asyncio.Semaphore(1)

    async def threaded(call: partial[Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(pool, call)

    @router.post(
        "/api/detect",
        summary="Detections in a picture",
        responses=refusals(400, 408, 413, 415, 422, 503),
        openapi_extra={
            "requestBody": {
                "required": True,
                "description": "a file's bytes, or a form with it: JPEG, PNG, WebP, GIF (its first frame), BMP, TIFF",
                "content": {
                    **dict.fromkeys(("image/*", "application/octet-stream"), PICTURE),
                    "multipart/form-data": {"schema": {"type": "object", "properties": {"file": PICTURE["schema"]}}},
                },
            }
        },
    )
    async def detect(
        request: Request,
        model: Annotated[str | None, Query(description="the model's name; optional if only one is served")] = None,
        min_score: Annotated[float, Query(ge=0, le=1, description="detections below it are left out")] = 0.0,
    ) -> Found:
        chosen = _chosen(shelf, model)
        kind = request.headers.get("content-type", "")
        content = picture_of(await request.body(), kind)
        try:
            pixels = await threaded(partial(picture_size, content, limits))
        except RefusedError as error:
            raise RefusedError(error.status, f"{error}{spoilt_by_curl(kind)}") from error
        looking = partial(look_at, chosen, io.BytesIO(content))
        try:
            if pixels > LARGE:
                async with large:
                    looked = await threaded(looking)
            else:
                looked = await threaded(looking)
        except InputError as error:
            raise RefusedError(400, f"{error}{spoilt_by_curl(kind)}") from error
        width, height = looked.size
        found = detections(looked.found, chosen.classes, min_score)
        return Found(
            model=chosen.name,
            width=width,
            height=height,
            milliseconds=round(looked.milliseconds, 2),
            detections=found,
        )

    return router


def about_labels() -> APIRouter:
    """Detections as label files."""
    router = APIRouter()

    @router.post(
        "/api/labels",
        summary="Detections as label files",
        response_class=Response,
        responses={
            200: {
                "description": "label files that `qmimic data` reads",
                "content": {"application/zip": PICTURE},
            },
            **refusals(408, 413, 422, 503),
        },
    )
    def labels(wanted: LabelsWanted) -> Response:
        try:
            content = labels_zip(wanted)
        except InputError as error:
            raise RefusedError(422, str(error)) from error
        name = f'attachment; filename="labels-{wanted.format}.zip"'
        return Response(content, media_type="application/zip", headers={"content-disposition": name})

    return router


def about_reports(shelf: Shelf) -> APIRouter:
    """The reports of the runs on a shelf."""
    router = APIRouter()

    @router.get(
        "/reports/{run}",
        summary="A run's report",
        response_class=Response,
        responses={200: {"description": "a page", "content": {"text/html": {}}}, **refusals(404, 422)},
    )
    def report(run: str) -> Response:
        try:
            content = read_bytes(shelf.runs[run] / REPORT, MAX_REPORT, shelf.runs[run])
        except (KeyError, InputError) as error:
            none = f"There is no report of {run!r}; `qmimic report` writes one into the run's folder."
            raise RefusedError(404, none) from error
        return Response(content, media_type="text/html", headers={"content-security-policy": REPORT_POLICY})

    return router


def detections(found: Detections, classes: tuple[str, ...], min_score: float) -> list[Detection]:
    """Detections of at least a score as plain values; boxes to a hundredth of a pixel."""
    rows = zip(found.boxes.tolist(), found.scores.tolist(), found.labels.tolist(), strict=True)
    return [
        Detection(name=classes[label], score=round(score, 4), box=tuple(round(side, 2) for side in box))
        for box, score, label in rows
        if round(score, 4) >= min_score  # as the answer gives it
    ]


def _chosen(shelf: Shelf, name: str | None) -> Served:
    if name is None and len(shelf.models) == 1:
        return next(iter(shelf.models.values()))
    if name not in shelf.models:
        said = "Name a model" if name is None else f"There is no model {name!r}"
        raise RefusedError(422, f"{said}; take ?model= one of {', '.join(shelf.models)}.")
    return shelf.models[name]


def _report(shelf: Shelf, run: str) -> Path | None:
    """A run's report, if there is one and it lies within the run's folder."""
    if run not in shelf.runs:
        return None
    folder = shelf.runs[run]
    path = folder / REPORT
    try:
        open_file(path, folder, MAX_REPORT).close()
    except InputError:
        return None
    return path
