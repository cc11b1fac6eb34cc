"""Where a page of a list ended: sealed for its account and list, so that only what was given out comes back."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

from aiohttp import web

from service.api.auth import caller
from service.api.keys import DOMAIN
from service.model import FileId

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def _context(request: web.Request, listing: str) -> bytes:
    return f"{listing} {caller(request).user_id}".encode()


def seal_moment(request: web.Request, listing: str, moment: datetime, file_id: FileId) -> str:
    """The cursor for a time (to the microsecond, as PostgreSQL keeps it) and an id."""
    position = ((moment - _EPOCH) // _MICROSECOND).to_bytes(8, "big", signed=True) + file_id.bytes
    return request.app[DOMAIN].cursors.seal(position, context=_context(request, listing))


def open_moment(request: web.Request, listing: str, cursor: str) -> tuple[datetime, FileId]:
    """The time and the id; raise InvalidField."""
    position = request.app[DOMAIN].cursors.open(cursor, context=_context(request, listing))
    moment = _EPOCH + int.from_bytes(position[:8], "big", signed=True) * _MICROSECOND
    return moment, FileId(UUID(bytes=position[8:]))


def seal_number(request: web.Request, listing: str, number: int) -> str:
    """The cursor for a number."""
    return request.app[DOMAIN].cursors.seal(number.to_bytes(8, "big"), context=_context(request, listing))


def open_number(request: web.Request, listing: str, cursor: str) -> int:
    """The number; raise InvalidField."""
    return int.from_bytes(request.app[DOMAIN].cursors.open(cursor, context=_context(request, listing)), "big")
