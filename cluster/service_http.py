"""The world model's service over HTTP, for programs outside the Ray cluster; off unless asked for.

    POST /open, /step     a message of `drive_envs.protocol`, as NumPy's .npz: its arrays by name,
                          and `fields`, a JSON text of the others. The answer is `Views`, likewise.
    POST /close           {"session": NAME}, JSON
    GET  /figures         what the service has done so far, JSON

Every request says `Authorization: Bearer TOKEN`. An error is JSON, {"error": KIND, "message":
TEXT}: 400 for a request that cannot be answered, 401 without the token, 404 for a session to be
opened anew, 413 for one too large, 503 without room and 504 when it took too long. Nothing is
unpickled.
"""

import asyncio
import io
import json
import secrets
import zipfile
import zlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import fields
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from drive_envs.learned import Connection
from drive_envs.protocol import (
    BadRequestError,
    NoRoomError,
    OpenSession,
    SessionLostError,
    StepSession,
    Views,
)

MAX_BYTES = 256 << 20  # of a request
STATUS = {BadRequestError: 400, SessionLostError: 404, NoRoomError: 503, TimeoutError: 504}
# What zipfile says of damaged archives.
TORN = (zipfile.BadZipFile, zlib.error, NotImplementedError)
Handler = Callable[[Request], Awaitable[Response]]


def make_app(
    connection: Connection, figures: Callable[[], Mapping[str, Any]], token: str
) -> Starlette:
    """Make the application; `token` is what every request has to name."""

    def guarded(handle: Handler) -> Handler:
        async def answer(request: Request) -> Response:
            given = request.headers.get("authorization", "")
            if not secrets.compare_digest(given.encode(), f"Bearer {token}".encode()):
                return failure(401, "Unauthorized", "say `Authorization: Bearer TOKEN`")
            size = int(request.headers.get("content-length", MAX_BYTES + 1))
            if request.method == "POST" and size > MAX_BYTES:
                return failure(413, "TooLarge", f"a request may have {MAX_BYTES} bytes")
            try:
                return await handle(request)
            except tuple(STATUS) as error:
                kind = next(kind for kind in STATUS if isinstance(error, kind))
                return failure(STATUS[kind], kind.__name__, str(error))

        return answer

    async def opened(request: Request) -> Response:
        message = unpacked(OpenSession, await request.body())
        return packed(await asyncio.to_thread(lambda: connection.open(message).result()))

    async def stepped(request: Request) -> Response:
        message = unpacked(StepSession, await request.body())
        return packed(await asyncio.to_thread(lambda: connection.step(message).result()))

    async def closed(request: Request) -> Response:
        try:
            session = (await request.json())["session"]
        except (ValueError, KeyError, TypeError) as error:
            raise BadRequestError(f"the body is not {{'session': NAME}} ({error})") from error
        connection.close(str(session))
        return JSONResponse({"closed": str(session)})

    async def told(request: Request) -> Response:
        return JSONResponse(dict(await asyncio.to_thread(figures)))

    return Starlette(
        routes=[
            Route("/open", guarded(opened), methods=["POST"]),
            Route("/step", guarded(stepped), methods=["POST"]),
            Route("/close", guarded(closed), methods=["POST"]),
            Route("/figures", guarded(told), methods=["GET"]),
        ]
    )


def failure(status: int, kind: str, message: str) -> Response:
    """Say what went wrong."""
    return JSONResponse({"error": kind, "message": message}, status_code=status)


def packed(views: Views) -> Response:
    """Write an answer down as .npz."""
    arrays = {"plan": views.plan}
    if views.images is not None:
        arrays["images"] = views.images
    told = {"seconds": views.seconds, "num_batched": views.num_batched}
    file = io.BytesIO()
    np.savez(file, allow_pickle=False, fields=np.array(json.dumps(told)), **arrays)
    return Response(file.getvalue(), media_type="application/octet-stream")


def unpacked(kind: type[Any], body: bytes) -> Any:
    """Read a message of a kind; BadRequestError when it is none."""
    try:
        with np.load(io.BytesIO(body), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        told = json.loads(str(arrays.pop("fields")))
        known = {field.name for field in fields(kind)}
        if unknown := (set(arrays) | set(told)) - known:
            raise BadRequestError(f"a {kind.__name__} has no {', '.join(sorted(unknown))}")
        return kind(**arrays, **told)
    except (ValueError, TypeError, KeyError, OSError, EOFError, *TORN) as error:
        if isinstance(error, BadRequestError):
            raise
        raise BadRequestError(f"the body is no {kind.__name__} as .npz: {error}") from error
