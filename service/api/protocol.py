"""What is not even a request: refused before any handler, in the shape of every other error.

aiohttp would quote such bytes in a plain text and log them with a traceback, a token among them.
"""

import re

import structlog
from aiohttp import web

from service import errors
from service.api.errors import render, render_refusal
from service.api.keys import BEHIND_NGINX
from service.model import new_uuid

log = structlog.get_logger()

SERVER = "file-storage"  # not which versions of what
_BEGIN_BYTES = 2048
_QUESTIONS = (b"GET /_preflight ", b"GET /_decide ")  # nginx's own, with the client's headers: see render_refusal
_REQUEST_ID = re.compile(rb"\r\nX-Request-Id: ([0-9a-f]{32})\r\n")  # as nginx/proxy.conf sends it


class Runner(web.AppRunner):
    """Runs an application whose connections are `_Protocol`s."""

    async def _make_server(self) -> web.Server:
        made = await super()._make_server()
        return _Server(made.request_handler, request_factory=made.request_factory,
                       behind_nginx=self.app[BEHIND_NGINX], **self._kwargs)


class _Server(web.Server):
    def __init__(self, handler, *, behind_nginx: bool, **kwargs) -> None:  # type: ignore[no-untyped-def]
        super().__init__(handler, **kwargs)
        self.behind_nginx = behind_nginx

    def __call__(self) -> web.RequestHandler:
        return _Protocol(self, loop=self._loop, **self._kwargs)


class _Protocol(web.RequestHandler):
    """A connection."""

    __slots__ = ("_begin", "_behind_nginx")

    def __init__(self, manager: _Server, **kwargs) -> None:  # type: ignore[no-untyped-def]
        super().__init__(manager, **kwargs)
        self._begin = b""
        self._behind_nginx = manager.behind_nginx

    def data_received(self, data: bytes) -> None:
        """Parse; the beginning is kept, for the id of a request that cannot be parsed."""
        self._begin = data[:_BEGIN_BYTES]
        super().data_received(data)

    def handle_error(self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None,
                     message: str | None = None) -> web.StreamResponse:
        """The answer for bytes that are no request (400), and for what went wrong around the middlewares."""
        found = _REQUEST_ID.search(self._begin) if self._behind_nginx else None
        request_id = found[1].decode("ascii") if found else new_uuid().hex
        error: errors.ServiceError
        if status == 400:
            error = errors.BadRequest("These bytes are not a valid HTTP request.")
            log.info("malformed_request", status=status, reason=type(exc).__name__, request_id=request_id)
        else:
            super().handle_error(request, status, exc, message)  # logs it; raises if an answer has begun
            error = errors.ServiceError("The service made a mistake; it has been logged.")
        is_question = self._behind_nginx and self._begin.startswith(_QUESTIONS)
        response = (render_refusal if is_question else render)(error, request_id)
        response.headers.update({"X-Request-Id": request_id, "Server": SERVER, "X-Content-Type-Options": "nosniff"})
        response.force_close()
        return response
