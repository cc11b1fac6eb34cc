"""Password hashes: bcrypt, off the event loop."""

import asyncio
import base64
import hmac
import os
import re
import threading
import unicodedata
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import bcrypt
import structlog

from service import metrics
from service.errors import InvalidField, Unavailable

MIN_CHARACTERS = 8  # NIST SP 800-63B (2017), section 5.1.1.2
MAX_BYTES = 1024
MAX_WAITING = 32
NICENESS = 5  # more than the process has: a third of the weight of its other threads

# Fixed for ever: it is a part of every stored hash.  Not a secret; it keeps these digests apart from any other use of
# HMAC-SHA256 over a password, so that a leaked fast digest cannot be tried against the bcrypt hashes as it is.
_DOMAIN = b"file-storage password v1"
# What bcrypt can read; the last character of the salt has four bits to spare, which have to be zero.
_HASH = re.compile(r"\$2[aby]\$(0[4-9]|[12][0-9]|3[01])\$[./A-Za-z0-9]{21}[.Oeu][./A-Za-z0-9]{31}")

P = ParamSpec("P")
T = TypeVar("T")
logger = structlog.get_logger()


class Passwords:
    """Makes and checks password hashes in a few threads of its own; `cost` is the log2 of the rounds of bcrypt."""

    def __init__(self, cost: int, max_concurrent: int = 1) -> None:
        self._cost = cost
        # A well-formed hash that no password is known for; computing one would cost the start a bcrypt run.
        self._nobody = f"$2b${cost:02}$" + "." * 53
        self._executor = ThreadPoolExecutor(max_concurrent, thread_name_prefix="password", initializer=_give_way)
        self._places = threading.BoundedSemaphore(max_concurrent + MAX_WAITING)

    def is_outdated(self, hashed: str) -> bool:
        """Whether the hash was not made at today's cost: then it takes another time to check than nobody's does."""
        match = _HASH.fullmatch(hashed)
        return match is not None and int(match[1]) != self._cost

    async def hash(self, password: str, *, field: str = "password") -> str:
        """The bcrypt hash to store; `field` is what a complaint is about.

        Raises InvalidField for a password that is shorter than 8 characters (after NFKC), longer than 1024 bytes or
        not Unicode; Unavailable at once if too many calls wait.
        """
        text = _normalise(password, field)
        if len(text) < MIN_CHARACTERS:
            raise InvalidField(f"A password needs at least {MIN_CHARACTERS} characters.", field=field)
        return await self._run(self._make, _digest(text))

    async def verify(self, password: str, hashed: str | None) -> bool:
        """Whether the hash was made from this password; False after the same work if `hashed` is None (nobody).

        A password too short to have been accepted and a stored hash that cannot be read are False after the same work
        too.  Raises InvalidField for a password longer than 1024 bytes or not Unicode, whoever it is for, and
        Unavailable at once if too many calls wait.
        """
        text = _normalise(password)
        if hashed is not None and _HASH.fullmatch(hashed) is None:
            logger.warning("password_hash_malformed")
            hashed = None
        matches = await self._run(bcrypt.checkpw, _digest(text), (hashed or self._nobody).encode())
        return matches and hashed is not None and len(text) >= MIN_CHARACTERS

    def close(self) -> None:
        """Take no more calls, drop those that wait; one that runs ends by itself, nobody waits for it here."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _make(self, digest: bytes) -> str:
        return bcrypt.hashpw(digest, bcrypt.gensalt(self._cost)).decode()

    async def _run(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        if not self._places.acquire(blocking=False):
            raise Unavailable("Too many logins at once; try again.", retry_after_seconds=1)
        try:
            future = self._executor.submit(work, *args, **kwargs)
        except RuntimeError:  # closed, for good
            raise Unavailable(retry_after_seconds=1) from None
        # The place is free when the work is over, not when its caller stops waiting: a thread cannot be cancelled.
        future.add_done_callback(self._leave)
        with metrics.queued("passwords"):
            return await asyncio.wrap_future(future)

    def _leave(self, future: Future[T]) -> None:
        self._places.release()


def _give_way() -> None:
    """In a thread that hashes: while the processors are busy, bytes come first (on Linux a thread has its own nice)."""
    thread = threading.get_native_id()
    os.setpriority(os.PRIO_PROCESS, thread, min(os.getpriority(os.PRIO_PROCESS, thread) + NICENESS, 19))


def _normalise(password: str, field: str = "password") -> str:
    """The password in NFKC, so that it does not matter which keyboard typed it (NIST SP 800-63B, section 5.1.1.2)."""
    try:
        is_too_long = len(password) > MAX_BYTES or len(password.encode()) > MAX_BYTES
    except UnicodeEncodeError:
        raise InvalidField("A password has to be valid Unicode.", field=field) from None
    if is_too_long:
        raise InvalidField(f"A password may have at most {MAX_BYTES} bytes in UTF-8.", field=field)
    return unicodedata.normalize("NFKC", password)


def _digest(text: str) -> bytes:
    """44 characters that stand for the whole text: bcrypt takes 72 bytes, and raw digests may hold NUL."""
    return base64.b64encode(hmac.digest(_DOMAIN, text.encode(), "sha256"))
