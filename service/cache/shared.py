"""A flag that all workers of one service see at once, in memory that lies on no disk and ends with the service."""

import mmap
import os


def make_memory() -> int:
    """Memory for a flag that is not set: an open file without a name, for workers to inherit."""
    descriptor = os.memfd_create("file-storage")
    os.ftruncate(descriptor, mmap.PAGESIZE)
    return descriptor


class SharedFlag:
    """Set or not; `descriptor` is what `make_memory` gave, None: nobody else sees it."""

    def __init__(self, descriptor: int | None = None) -> None:
        self._memory = mmap.mmap(-1 if descriptor is None else descriptor, mmap.PAGESIZE)

    def __bool__(self) -> bool:
        return self._memory[0] != 0

    def set(self, value: bool) -> None:
        """For everybody, from now on."""
        self._memory[0] = value
