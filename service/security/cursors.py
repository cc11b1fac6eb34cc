"""Cursors: where the next page of a list begins, for the client to hand back and not to understand."""

import base64
import binascii
import hashlib
import hmac

from service.errors import InvalidField

MAC_BYTES = 16
MAX_TEXT = 12000  # a path of 4096 bytes, escaped in JSON and in base64
_PURPOSE = b"file-storage list cursor"


class Cursors:
    """Seals positions, so that only what this service gave out comes back, for the list that it was given out for."""

    def __init__(self, secret: str) -> None:
        # a key of its own: what is signed here never means anything as an access token
        self._key = hmac.digest(secret.encode(), _PURPOSE, "sha256")

    def seal(self, position: bytes, *, context: bytes) -> str:
        """The cursor for a position in the list that `context` describes."""
        return base64.urlsafe_b64encode(self._mac(position, context) + position).rstrip(b"=").decode("ascii")

    def open(self, cursor: str, *, context: bytes) -> bytes:
        """The position; raise InvalidField for anything that `seal` did not give out for this context."""
        refusal = InvalidField("This cursor was not given out for this list; begin again without one.", field="cursor")
        if len(cursor) > MAX_TEXT:
            raise refusal
        try:
            raw = base64.b64decode(cursor.encode("ascii") + b"=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        except (binascii.Error, UnicodeEncodeError):
            raise refusal from None
        mac, position = raw[:MAC_BYTES], raw[MAC_BYTES:]
        # one cursor has one spelling: base64 would take others for the same bytes
        if not hmac.compare_digest(mac, self._mac(position, context)) or self.seal(position, context=context) != cursor:
            raise refusal
        return position

    def _mac(self, position: bytes, context: bytes) -> bytes:
        framed = hashlib.sha256(context).digest() + position
        return hmac.digest(self._key, framed, "sha256")[:MAC_BYTES]
