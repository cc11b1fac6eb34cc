"""Refresh tokens and the tokens of links: nobody can guess them, so a plain SHA-256 is enough to store them by."""

import hashlib
import hmac
import re
import secrets
from base64 import urlsafe_b64encode
from uuid import UUID

from service.errors import InvalidRefreshToken
from service.model import SessionId

_REFRESH_TOKEN = re.compile(r"([0-9a-f]{32})\.([A-Za-z0-9_-]{43})")


def new_refresh_token(session_id: SessionId) -> tuple[str, bytes]:
    """A fresh token of the session, "<id in hex>.<43 characters>" with 256 random bits, and the digest to store."""
    secret = secrets.token_urlsafe(32)
    return f"{session_id.hex}.{secret}", _digest(secret)


def parse_refresh_token(text: str) -> tuple[SessionId, bytes]:
    """The session that the token claims to be of, and the digest to compare; raise InvalidRefreshToken."""
    match = _REFRESH_TOKEN.fullmatch(text)
    if match is None:
        raise InvalidRefreshToken
    return SessionId(UUID(hex=match[1])), _digest(match[2])


def digests_equal(one: bytes, other: bytes) -> bool:
    """Compare in a time that does not tell where they differ."""
    return hmac.compare_digest(one, other)


def _digest(secret: str) -> bytes:
    # Of the text, not of the bytes it encodes: four texts decode to the same bytes, and only one was given out.
    return hashlib.sha256(secret.encode()).digest()


_LINK_TOKEN = re.compile(r"[A-Za-z0-9_-]{32}")


def link_token(seed: bytes) -> tuple[str, bytes]:
    """The token of a public link, 32 characters with the 192 bits of its seed, and the digest to store."""
    token = urlsafe_b64encode(seed).decode()
    return token, _digest(token)


def parse_link_token(text: str) -> bytes | None:
    """The digest to look for; None for a text that is no token."""
    return _digest(text) if _LINK_TOKEN.fullmatch(text) else None
