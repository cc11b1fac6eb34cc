"""Connections: what is not even a request is refused in the shape of every other error, who stalls is cut off.

aiohttp would quote such bytes in a plain text and log them with a traceback, a token among them.
"""

import asyncio
import re
from collections.abc import Mapping
from contextlib import suppress

import structlog
from aiohttp import web

from service import errors
from service.api.errors import render, render_refusal
from service.api.keys import BEHIND_NGINX
from service.model import new_uuid

log = structlog.get_logger()

SERVER = "file-storage"  # not which versions of what
# as client_body_timeout and send_timeout of nginx
STALL_SECONDS = 60.0
LOOK_SECONDS = 5.0
LINGER_SECONDS = 5.0
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
    # as aiohttp declares its own, whose types are not public
    def __init__(self, handler, *, behind_nginx: bool, **kwargs) -> None:  # type: ignore[no-untyped-def]
        super().__init__(handler, **kwargs)
        self.behind_nginx = behind_nginx

    def __call__(self) -> web.RequestHandler:
        return _Protocol(self, loop=self._loop, **self._kwargs)


class _Protocol(web.RequestHandler):
    """A connection.

    Without nginx nobody else sees to it that a client neither sends the rest of a body nor takes the rest of an answer.
    """

    __slots__ = ("_begin", "_behind_nginx", "_is_lost", "_look", "_moved_at", "_unsent_bytes")

    # the same
    def __init__(self, manager: _Server, **kwargs) -> None:  # type: ignore[no-untyped-def]
        super().__init__(manager, **kwargs)
        self._begin = b""
        self._behind_nginx = manager.behind_nginx
        self._look: asyncio.TimerHandle | None = None
        self._moved_at = 0.0
        self._unsent_bytes = 0
        self._is_lost: asyncio.Event | None = None  # set while nothing is taken for a request any more

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin, and look now and then whether anything moves."""
        super().connection_made(transport)
        if not self._behind_nginx:
            self._moved_at = self._loop.time()
            self._look = self._loop.call_later(LOOK_SECONDS, self._look_after)

    def connection_lost(self, exc: BaseException | None) -> None:
        """End."""
        if self._look is not None:
            self._look.cancel()
        if self._is_lost is not None:
            self._is_lost.set()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse; the beginning is kept, for the id of a request that cannot be parsed."""
        self._moved_at = self._loop.time()
        if self._is_lost is None:
            self._begin = data[:_BEGIN_BYTES]
            super().data_received(data)

    async def linger(self) -> None:
        """Read, and throw away, what the other side still sends after the last answer, until it closes.

        Closed at once, the connection would be reset, and who was still sending might never see the answer
        (RFC 9112, section 9.6); nginx would tell its client 503.
        """
        if self._is_lost is not None and self.transport is not None:
            if self.transport.can_write_eof():
                self.transport.write_eof()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._is_lost.wait(), LINGER_SECONDS)

    def _look_after(self) -> None:
        """Cut off a client that has let us wait for too long, in the middle of a body or of an answer."""
        if self.transport is None:
            return
        unsent_bytes = self.transport.get_write_buffer_size()
        if unsent_bytes != self._unsent_bytes or not (self._waits_for_body() or self.writing_paused):
            self._unsent_bytes, self._moved_at = unsent_bytes, self._loop.time()
        elif self._loop.time() - self._moved_at > STALL_SECONDS:
            log.info("client_stalled", unsent_bytes=unsent_bytes)
            self.transport.abort()
            return
        self._look = self._loop.call_later(LOOK_SECONDS, self._look_after)

    def _waits_for_body(self) -> bool:
        request = self._current_request
        return request is not None and not request.content.is_eof() and not self._reading_paused

    def handle_error(self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None,
                     message: str | None = None) -> web.StreamResponse:
        """The answer for bytes that are no request (400), and for what went wrong around the middlewares."""
        found = _REQUEST_ID.search(self._begin) if self._behind_nginx else None
        request_id = found[1].decode("ascii") if found else new_uuid().hex
        error: errors.ServiceError
        if status == 400:
            self._is_lost = asyncio.Event()
            error = errors.BadRequest("These bytes are not a valid HTTP request.")
            log.info("malformed_request", status=status, reason=type(exc).__name__, request_id=request_id)
        else:
            super().handle_error(request, status, exc, message)  # logs it; raises if an answer has begun
            error = errors.ServiceError("The service made a mistake; it has been logged.")
        is_question = self._behind_nginx and self._begin.startswith(_QUESTIONS)
        response = (render_refusal if is_question else render)(error, request_id)
        last = _Last(self, status=response.status, body=response.body, headers=response.headers)
        last.headers.update({"X-Request-Id": request_id, "Server": SERVER, "X-Content-Type-Options": "nosniff"})
        last.force_close()
        return last


class _Last(web.Response):
    """The last answer of a connection."""

    def __init__(self, protocol: _Protocol, *, status: int, body: object, headers: Mapping[str, str]) -> None:
        super().__init__(status=status, body=body, headers=headers)
        self._protocol = protocol

    async def write_eof(self, data: bytes = b"") -> None:
        """Send it, and wait until it was read."""
        await super().write_eof(data)
        await self._protocol.linger()
