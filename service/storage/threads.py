"""The threads of a store: what is short never waits for what takes as long as a body is large."""

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from service import metrics

P = ParamSpec("P")
T = TypeVar("T")

THREADS = 8
LARGE_THREADS = 4
HASH_THREADS = 2
LARGE_BYTES = 2**23


class Threads:
    """Blocking work on bytes, off the event loop."""

    def __init__(self) -> None:
        self._short = ThreadPoolExecutor(THREADS, thread_name_prefix="storage")
        self._large = ThreadPoolExecutor(LARGE_THREADS, thread_name_prefix="large")
        # of their own: a writer on one of the threads above waits for its hash
        self.hashers = ThreadPoolExecutor(HASH_THREADS, thread_name_prefix="hash")

    async def run(self, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Do what is soon done: on a few bytes, or on one piece."""
        return await _run_on(self._short, functools.partial(work, *args, **kwargs))

    async def run_through(self, size_bytes: int, work: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
        """Do what goes through so many bytes in one go; a few large ones at a time, each in its turn."""
        threads = self._large if size_bytes > LARGE_BYTES else self._short
        return await _run_on(threads, functools.partial(work, *args, **kwargs))

    def close(self) -> None:
        """End them, when they have done what they were given."""
        for threads in (self._short, self._large, self.hashers):
            threads.shutdown(wait=True)


async def _run_on(threads: ThreadPoolExecutor, work: Callable[[], T]) -> T:
    with metrics.queued("storage"):
        return await asyncio.get_running_loop().run_in_executor(threads, work)
