"""Where a page of a list that is ordered by time, or by a number that grows with it, ended, as an opaque text."""

import base64
import binascii
from datetime import UTC, datetime, timedelta
from uuid import UUID

from service.errors import InvalidField
from service.model import FileId

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


def encode_cursor(moment: datetime, file_id: FileId) -> str:
    """The text for a time (to the microsecond, as PostgreSQL keeps it) and an id."""
    raw = ((moment - _EPOCH) // _MICROSECOND).to_bytes(8, "big", signed=True) + file_id.bytes
    return base64.urlsafe_b64encode(raw).decode("ascii")


def decode_cursor(text: str) -> tuple[datetime, FileId]:
    """The time and the id; raise InvalidField."""
    try:
        raw = base64.b64decode(text, b"-_", validate=True)
        if len(raw) != 24 or len(text) != 32:  # the decoder takes more padding than there should be
            raise ValueError("wrong length")
        return _EPOCH + int.from_bytes(raw[:8], "big", signed=True) * _MICROSECOND, FileId(UUID(bytes=raw[8:]))
    except (binascii.Error, ValueError, OverflowError):
        raise InvalidField("This is not a cursor of this list.", field="cursor") from None


def encode_number(number: int) -> str:
    """The text for a number."""
    return base64.urlsafe_b64encode(number.to_bytes(8, "big", signed=True)).decode("ascii")


def decode_number(text: str) -> int:
    """The number; raise InvalidField."""
    try:
        raw = base64.b64decode(text, b"-_", validate=True)
        if len(raw) != 8 or len(text) != 12:
            raise ValueError("wrong length")
        return int.from_bytes(raw, "big", signed=True)
    except (binascii.Error, ValueError):
        raise InvalidField("This is not a cursor of this list.", field="cursor") from None
