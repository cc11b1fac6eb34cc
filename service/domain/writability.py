"""Whether the disk may be trusted with new bytes: uploads end where it fails again and again, and reading goes on.

An fsync that failed is never tried again, and its copy is dropped: after that the kernel may say that all is well
although bytes are lost.  So what a failing disk said last about older uploads does not count either; only a new write
that it forces to the disk ends the time of reading.  What one worker has found out counts for all, by a flag in memory:
nothing is written to the disk that fails.  A start of the service judges anew, that of a single worker does not.
"""

import asyncio
import errno
import os
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import structlog

from service import metrics
from service.cache.shared import SharedFlag
from service.errors import DiskFailed, ReadOnly
from service.storage.base import BlobStore

MAX_FAILURES = 3
WINDOW_SECONDS = 60.0
PROBE_SECONDS = 10.0
SHOW_SECONDS = 1.0

log = structlog.get_logger()


class Writability:
    """Notes what goes wrong in a store, and refuses uploads when that is too much."""

    def __init__(self, store: BlobStore) -> None:
        self._store = store
        self._failed_at: deque[float] = deque()
        self._flag = SharedFlag()

    def share(self, flag: SharedFlag) -> None:
        """Judge together with all who have this flag; before anything is stored."""
        self._flag = flag
        self._show()

    @property
    def is_read_only(self) -> bool:
        """Whether uploads are refused, whoever found out why."""
        return bool(self._flag)

    def check(self) -> None:
        """Raise ReadOnly while nothing is to be written."""
        if self.is_read_only:
            raise ReadOnly(retry_after_seconds=int(PROBE_SECONDS))

    def found_read_only(self) -> None:
        """The file system is mounted read-only; raise ReadOnly."""
        self._begin(os.strerror(errno.EROFS))
        self.check()

    @contextmanager
    def watched(self) -> Iterator[None]:
        """Around whatever writes: a failure of the disk is noted and goes on its way."""
        try:
            yield
        except DiskFailed as error:
            self._note(error)
            raise

    def _note(self, error: DiskFailed) -> None:
        now = time.monotonic()
        while self._failed_at and self._failed_at[0] <= now - WINDOW_SECONDS:
            self._failed_at.popleft()
        self._failed_at.append(now)
        metrics.DISK_FAILURES.labels("write").inc()
        log.error("disk_failed", reason=str(error.__cause__), within_a_minute=len(self._failed_at))
        is_lasting = isinstance(error.__cause__, OSError) and error.__cause__.errno == errno.EROFS
        if is_lasting or len(self._failed_at) >= MAX_FAILURES:
            self._begin(str(error.__cause__))

    def _begin(self, reason: str) -> None:
        if not self.is_read_only:
            self._flag.set(True)
            self._show()
            log.error("read_only_begins", reason=reason)

    def _show(self) -> None:
        metrics.READ_ONLY.labels("uploads").set(self.is_read_only)

    async def watch(self) -> None:
        """Try the disk again and again while it is not trusted, and show what others found out; returns never."""
        tried_at = time.monotonic()
        while True:
            await asyncio.sleep(min(SHOW_SECONDS, PROBE_SECONDS))
            self._show()
            if not self.is_read_only:
                tried_at = time.monotonic()
            elif time.monotonic() - tried_at >= PROBE_SECONDS:
                await self.try_again()
                tried_at = time.monotonic()

    async def try_again(self) -> None:
        """Trust the disk again if it takes a write."""
        try:
            await self._store.run(self._store.probe)
        except OSError as error:
            log.error("read_only_goes_on", reason=str(error))
            return
        self._failed_at.clear()
        self._flag.set(False)
        self._show()
        log.warning("read_only_ends")
