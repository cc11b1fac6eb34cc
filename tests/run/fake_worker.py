"""A stand-in for a worker behind a real nginx: refuses or takes uploads as it is asked to, and tells what it saw."""

import json
from pathlib import Path

from aiohttp import web

Seen = list[dict[str, str]]
SEEN = web.AppKey("seen", list)
BLOB = "ab/01a20875-cc9a-72d2-8536-cce312f4e9d3"


def problem(status: int) -> str:
    """What a refusal says, in ASCII."""
    return json.dumps({"type": "about:blank", "title": "No", "status": status, "detail": "\u043d\u0435\u0442",
                       "code": "no"})


def _note(request: web.Request) -> None:
    headers = {name.lower(): value for name, value in request.headers.items()}
    request.app[SEEN].append({"": f"{request.method} {request.raw_path}", **headers})


async def preflight(request: web.Request) -> web.Response:
    """Refuse with the status that the header Want asks for; without a token, with 401; 0: break the connection.

    204: admit it.  The token is whose upload it is, Owner whose link it comes through.
    """
    _note(request)
    status = int(request.headers.get("Want", "204" if "Authorization" in request.headers else "401"))
    if status == 0:
        assert request.transport is not None
        request.transport.abort()
    if status in (0, 204, 500):
        uploader = request.headers.get("Authorization", "")
        owner = request.headers.get("Owner", "")
        return web.Response(status=403 if status == 204 else 500, headers={
            "X-Next": "@upload_admitted", "X-Uploader": uploader, "X-Links-Owner": owner} if status == 204 else {})
    headers = {"X-Next": f"/_refuse/{status}", "X-Reject-Body": problem(status)}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    if status == 429:
        headers["Retry-After"] = "7"
    return web.Response(status=403, headers=headers)


def _break_if_asked(request: web.Request) -> None:
    """Want: 0 is for a connection that breaks before the answer."""
    if request.headers.get("Want") == "0":
        assert request.transport is not None
        request.transport.abort()


async def upload(request: web.Request) -> web.Response:
    """Tell what there is of the body: spooled, with its begin, or received."""
    _note(request)
    _break_if_asked(request)
    name = request.headers.get("X-File")
    body = await request.read()
    content = Path(name).read_bytes()[:16].hex() if name else ""
    return web.json_response({
        "file": name, "size": Path(name).stat().st_size if name else None, "received": len(body), "content": content,
        "mode": Path(name).stat().st_mode & 0o777 if name else None}, status=201)


async def download(request: web.Request) -> web.Response:
    """Hand a blob over to nginx, under an entity tag."""
    return web.Response(headers={
        "X-Accel-Redirect": f"/_blobs/{request.query.get('blob', BLOB)}", "Content-Type": "text/plain",
        "ETag": f'"{request.query.get("tag", "v1")}"',
        "Last-Modified": "Fri, 11 Sep 2020 17:22:05 GMT", "Repr-Digest": "sha-256=:AA==:",
        "Cache-Control": "private, no-cache", "Content-Disposition": "attachment; filename=\"a.txt\"",
        "X-Content-Type-Options": "nosniff", "X-Request-Id": "the worker's",
    })


async def other(request: web.Request) -> web.Response:
    """Tell what arrived, with the status that is asked for; or give that many bytes."""
    _note(request)
    if count := int(request.query.get("bytes", "0")):
        return web.Response(body=bytes(count))
    _break_if_asked(request)
    body = await request.read()
    return web.json_response({"path": request.raw_path, "received": len(body), "headers": dict(request.headers)},
                             status=int(request.query.get("status", "200")),
                             headers={"X-Content-Type-Options": "nosniff", "X-Request-Id": "the worker's"})


def make_app() -> web.Application:
    """The stand-in; `app[SEEN]` is what it was asked."""
    app = web.Application(client_max_size=2**30)
    app[SEEN] = []
    app.router.add_get("/_preflight", preflight)
    app.router.add_route("*", "/file", upload)
    app.router.add_get("/file/download", download)
    app.router.add_route("*", "/{rest:.*}", other)
    return app
