"""A stand-in for a worker: refuses or takes uploads as its requests ask for, and tells what it was asked.

Run as a program it serves until SIGTERM: `python fake_worker.py SOCKET BLOBS`.
"""

import asyncio
import json
import signal
import sys
from pathlib import Path

from aiohttp import web

Seen = list[dict[str, str]]
SEEN = web.AppKey("seen", list)
BLOBS = web.AppKey("blobs", Path)


def _problem(status: int) -> str:
    return json.dumps({"type": "about:blank", "title": "No", "status": status, "detail": "\u043d\u0435\u0442", "code": "no"})


def _note(request: web.Request) -> None:
    request.app[SEEN].append({"": f"{request.method} {request.path_qs}", **request.headers})


async def preflight(request: web.Request) -> web.Response:
    """Refuse with the status that the header Want asks for; without a token, with 401."""
    _note(request)
    status = int(request.headers.get("Want", "204" if "Authorization" in request.headers else "401"))
    if status == 599:  # die
        assert request.transport is not None
        request.transport.abort()
    if status in (204, 500, 502):
        return web.Response(status=status)
    headers = {"X-Reject": str(status), "X-Reject-Body": _problem(status)}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if status == 429:
        headers["Retry-After"] = "7"
    return web.Response(status=403, headers=headers)


async def upload(request: web.Request) -> web.Response:
    """Tell what there is of the spooled body."""
    _note(request)
    name = request.headers.get("X-File")
    body = await request.read()
    return web.json_response({"file": name, "size": Path(name).stat().st_size if name else 0, "received": len(body)},
                             status=201)


async def download(request: web.Request) -> web.Response:
    """Hand a blob over to nginx."""
    return web.Response(headers={
        "X-Accel-Redirect": f"/_blobs/{request.query['blob']}", "Content-Type": "text/plain", "ETag": '"v1"',
        "Last-Modified": "Fri, 11 Sep 2020 17:22:05 GMT", "Repr-Digest": "sha-256=:AA==:",
        "Cache-Control": "private, no-cache", "Content-Disposition": "attachment; filename=\"a.txt\"",
    })


async def other(request: web.Request) -> web.Response:
    """Tell what arrived, or answer with the status that is asked for."""
    _note(request)
    body = await request.read()
    status = int(request.query.get("status", "200"))
    return web.json_response({"path": request.raw_path, "received": len(body), "headers": dict(request.headers)},
                             status=status)


def make_app() -> web.Application:
    """The stand-in, with a list of what it was asked."""
    app = web.Application(client_max_size=2**30)
    app[SEEN] = []
    app.router.add_get("/_preflight", preflight)
    app.router.add_route("*", "/file", upload)
    app.router.add_get("/file/download", download)
    app.router.add_route("*", "/{rest:.*}", other)
    return app


async def serve(socket: Path) -> None:
    """Serve until SIGTERM."""
    runner = web.AppRunner(make_app())
    await runner.setup()
    await web.UnixSite(runner, str(socket)).start()
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await stop.wait()
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(serve(Path(sys.argv[1])))
