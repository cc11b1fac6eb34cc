"""A mark for each account, another one after every change: whoever holds an old one holds something outdated.

What was decided for an account (this path is that blob) may be remembered together with the mark that was read before
the decision was made, and used as long as the mark is the same.  A change puts a new mark after its COMMIT and before
its answer, so nobody who asks later finds what was remembered before.  A second mark is for its sessions alone: they
end seldom, and a worker that stores one file after another need not ask after the session each time.

The marks are small files, in memory where the machine offers that, for all processes of one machine: the workers, and
nginx (nginx/decisions.js).  An account has its mark by the last digits of its id; some share one, which costs them no
more than a question too many.
"""

import asyncio
import functools
import os
import secrets
from base64 import urlsafe_b64encode
from collections.abc import Mapping
from pathlib import Path

import structlog

from service.model import UserId, shard_of

log = structlog.get_logger()

# For so long what was found before a change is good at most, whatever its mark says: the bound for a process that dies
# between its COMMIT and the new mark.  Nobody has had an answer then.
TTL_SECONDS = 5


class Generations:
    """The marks in one folder; with None there are none, and nothing can be remembered by them."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def read(self, user_id: UserId, *, sessions: bool = False) -> str | None:
        """The mark of the account, or of its sessions, made if there is none yet; None if it cannot be had."""
        if self._folder is None:
            return None
        path = self._path(self._folder, user_id, sessions)
        try:
            try:
                return _read(path)
            except FileNotFoundError:
                _create(path)
                return _read(path)
        except OSError:
            return None

    async def renew(self, changed: Mapping[UserId, bool]) -> None:
        """Outdate what was decided for the accounts, with True also that their sessions are open.

        When this returns nobody finds it any more.
        """
        if self._folder is None:
            return
        paths = {self._path(self._folder, user_id, sessions)
                 for user_id, ends_sessions in changed.items() for sessions in {False, ends_sessions}}
        for path in paths:
            try:
                _overwrite(path)
            except OSError as error:
                await _remove(path, error)

    @staticmethod
    def _path(folder: Path, user_id: UserId, sessions: bool) -> Path:
        return _path(folder, shard_of(user_id), sessions)


@functools.lru_cache(maxsize=2 * 4096)
def _path(folder: Path, shard: str, sessions: bool) -> Path:
    # clients name the first kind in their tokens, and nginx takes no name with a dash from them
    name = urlsafe_b64encode(shard.encode("ascii")).decode("ascii")
    return folder / (f"{name}-sessions" if sessions else name)


def _read(path: Path) -> str | None:
    file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.read(file, 64).decode("ascii") or None
    finally:
        os.close(file)


def _new_mark() -> bytes:
    return secrets.token_hex(16).encode("ascii")


def _create(path: Path) -> None:
    """A mark that is complete from the first moment; one that is there already stays."""
    fresh = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    try:
        fresh.write_bytes(_new_mark())
        os.link(fresh, path)
    except FileExistsError:
        pass
    finally:
        fresh.unlink(missing_ok=True)


def _overwrite(path: Path) -> None:
    """In one write of always the same length: a reader finds the old one, the new one, or one that nobody else has."""
    try:
        file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    except FileNotFoundError:  # nobody has read it yet
        return
    try:
        mark = _new_mark()
        if os.pwrite(file, mark, 0) != len(mark):
            raise OSError("the mark was written in part")
    finally:
        os.close(file)


async def _remove(path: Path, why: OSError) -> None:
    """Without a mark nothing is remembered; if not even that can be had, wait until everything is too old."""
    log.error("generations.failed", mark=path.name, error=str(why))
    try:
        path.unlink(missing_ok=True)
    except OSError:
        await asyncio.sleep(TTL_SECONDS)
