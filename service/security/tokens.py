"""Access tokens: short-lived JWTs that one instance signs and every worker can check, and the secret they share."""

import hashlib
import os
import secrets
import stat
import tempfile
import time
from collections import OrderedDict
from pathlib import Path
from typing import Any, Final
from uuid import UUID

import jwt

from service.config import MIN_JWT_SECRET_BYTES
from service.errors import Unauthenticated
from service.model import Caller, SessionId, UserId, new_uuid, shard_of

ALGORITHM: Final = "HS256"
ISSUER: Final = "file-storage"
AUDIENCE: Final = "file-storage-api"
CLAIMS: Final = ("iss", "aud", "sub", "sid", "jti", "iat", "exp")
MAX_CHARACTERS: Final = 4096
MAX_SKEW_SECONDS: Final = 10  # between the clocks of two hosts that share a secret
MAX_REMEMBERED: Final = 4096
TOKEN_SECRET_FILE: Final = "jwt_secret"


class AccessTokens:
    """Issues and verifies access tokens (RFC 7519, with the advice of RFC 8725).

    Verified tokens are remembered until they expire; for the event loop's thread only.
    """

    def __init__(self, secret: str, ttl_seconds: int) -> None:
        """Raises ValueError for a secret of less than 32 bytes (RFC 7518, section 3.2)."""
        if len(secret.encode()) < MIN_JWT_SECRET_BYTES:
            raise ValueError(f"the secret of access tokens needs at least {MIN_JWT_SECRET_BYTES} bytes")
        self.ttl_seconds = ttl_seconds
        self._secret = secret
        self._remembered: OrderedDict[bytes, tuple[Caller, int]] = OrderedDict()

    def issue(self, caller: Caller) -> str:
        """A token that is good for `ttl_seconds` from now."""
        now = int(time.time())
        claims = {
            "iss": ISSUER, "aud": AUDIENCE, "sub": str(caller.user_id), "sid": str(caller.session_id),
            "jti": str(new_uuid()), "iat": now, "exp": now + self.ttl_seconds,
        }
        # sorted: nginx/decisions.js knows where in the token the shard is
        return jwt.encode(claims, self._secret, algorithm=ALGORITHM, headers={"shard": shard_of(caller.user_id)},
                          sort_headers=True)

    def verify(self, token: str) -> Caller:
        """Who the token speaks for; raise Unauthenticated, without saying why, for any text that `issue` did not make.

        Says nothing about whether the session has been ended since.
        """
        return self._verify(token)[0]

    def expires_at(self, token: str) -> int:
        """When the token ends, in seconds of the epoch; raise Unauthenticated as `verify` does."""
        return self._verify(token)[1]

    def _verify(self, token: str) -> tuple[Caller, int]:
        if len(token) > MAX_CHARACTERS or not token.isascii():
            raise Unauthenticated
        # The exact text is the key, so what is remembered was checked as it stands; its digest, so no live token is.
        key = hashlib.sha256(token.encode()).digest()
        remembered = self._remembered.get(key)
        if remembered is not None and time.time() < remembered[1]:
            self._remembered.move_to_end(key)
            return remembered
        verified = self._remembered[key] = self._check(token)
        if len(self._remembered) > MAX_REMEMBERED:
            self._remembered.popitem(last=False)
        return verified

    def _check(self, token: str) -> tuple[Caller, int]:
        try:
            decoded = jwt.decode_complete(
                token, self._secret, algorithms=[ALGORITHM], issuer=ISSUER, audience=AUDIENCE,
                # Times are checked below: PyJWT takes floats and texts for them, and any time far in the future.
                options={"require": list(CLAIMS), "strict_aud": True, "verify_exp": False, "verify_iat": False},
            )
            claims = decoded["payload"]
            if "crit" in decoded["header"]:  # RFC 7515, section 4.1.11: no extension is understood here
                raise ValueError("crit")
            caller = Caller(user_id=UserId(_uuid(claims["sub"])), session_id=SessionId(_uuid(claims["sid"])))
            return caller, self._expiry(claims["iat"], claims["exp"])
        except Exception:  # whatever a hostile text sets off in a parser, it is not a valid token
            raise Unauthenticated from None

    def _expiry(self, issued_at: Any, expires_at: Any) -> int:
        now = time.time()
        if type(issued_at) is not int or type(expires_at) is not int:  # bool is an int to isinstance
            raise ValueError("times have to be whole seconds")
        if not now < expires_at <= issued_at + self.ttl_seconds + MAX_SKEW_SECONDS:
            raise ValueError("expired, or good for longer than any token issued here")
        if issued_at > now + MAX_SKEW_SECONDS:
            raise ValueError("issued in the future")
        return expires_at


def _uuid(text: Any) -> UUID:
    """The UUID in its one canonical form (RFC 9562, section 4); raise ValueError for any other spelling."""
    if not isinstance(text, str) or str(UUID(text)) != text:
        raise ValueError("not a UUID")
    return UUID(text)


def read_or_create_secret(path: Path) -> str:
    """The secret in the file, which is made, durably and for its owner only, if it is not there.

    Two processes that start at once get the same one.  Raises ValueError for a file that holds less than 32 bytes or
    that others may read, OSError for a disk that does not do its part.
    """
    try:
        return _read_secret(path)
    except FileNotFoundError:
        _create_secret(path)
        return _read_secret(path)


def _read_secret(path: Path) -> str:
    with path.open("rb") as file:
        mode = os.fstat(file.fileno()).st_mode
        secret = file.read().strip()
    if stat.S_IMODE(mode) & 0o077:
        raise ValueError(f"{path} may be read or changed by group or others; make a new one, or: chmod 600 {path}")
    if len(secret) < MIN_JWT_SECRET_BYTES or not secret.isascii():
        raise ValueError(f"{path} has to hold at least {MIN_JWT_SECRET_BYTES} bytes of ASCII text; "
                         f"remove it to have a new one made (which ends every access token)")
    return secret.decode()


def _create_secret(path: Path) -> None:
    """Link a complete file into place; one that is there already wins."""
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)  # mode 0600
    try:
        with open(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(MIN_JWT_SECRET_BYTES) + "\n")
            file.flush()
            os.fsync(file.fileno())
        try:
            os.link(temporary, path)  # unlike a rename, never replaces the file of a process that was faster
        except FileExistsError:
            pass
    finally:
        os.unlink(temporary)
    folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
