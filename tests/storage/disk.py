"""A disk that fails when it is told to: the real one below, with each call of the store noted and, once, refused."""

import os
import threading
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import pytest

from service.storage import local, small

# what the store does to the disk by way of the module os; the rest goes through FaultyPath
_OF_OS = ("open", "write", "fsync", "fstat", "lstat", "link", "statvfs")

Call = tuple[str, int]  # which call, and how many of its kind came before


class Disk:
    """Notes each call; the one named by `fail` raises OSError instead of having any effect."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []  # the call and the path, in order
        self.fail: Call | None = None
        self.errno = 0
        self._seen: Counter[str] = Counter()
        self._lock = threading.Lock()

    def expect(self, fail: Call | None, errno: int) -> None:
        """Begin again, with another call to fail."""
        self.calls.clear()
        self._seen.clear()
        self.fail, self.errno = fail, errno

    def note(self, name: str, path: object) -> None:
        """Called before the real thing."""
        with self._lock:
            self.calls.append((name, str(path)))
            call = (name, self._seen[name])
            self._seen[name] += 1
        if call == self.fail:
            raise OSError(self.errno, os.strerror(self.errno), str(path))

    def seen(self) -> list[Call]:
        """Every call there was, as `fail` names it."""
        return [(name, number) for name, count in self._seen.items() for number in range(count)]


class _Os:
    """The module os, for the store alone."""

    def __init__(self, disk: Disk) -> None:
        self._disk = disk

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        if name not in _OF_OS:
            return real

        def call(first: Any, *args: Any, **kwargs: Any) -> Any:
            self._disk.note(f"os.{name}", os.readlink(f"/proc/self/fd/{first}") if isinstance(first, int) else first)
            return real(first, *args, **kwargs)

        return call


class _File:
    """An open file of a FaultyPath."""

    def __init__(self, file: Any, disk: Disk) -> None:
        self._file = file
        self._disk = disk

    def __getattr__(self, name: str) -> Any:
        if name in ("write", "read", "readinto"):
            self._disk.note(f"file.{name}", self._file.name)
        return getattr(self._file, name)

    def __enter__(self) -> "_File":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()


class FaultyPath(type(Path())):  # type: ignore[misc]  # whatever the class of paths is here
    """Paths below one of these are of this class too, so a store on such a root does all it does through them."""

    disk: ClassVar[Disk]

    def open(self, *args: Any, **kwargs: Any) -> Any:
        """Open, noted; so is what is done with the file."""
        self.disk.note("path.open", self)
        return _File(super().open(*args, **kwargs), self.disk)

    def unlink(self, *args: Any, **kwargs: Any) -> None:
        """Unlink, noted."""
        self.disk.note("path.unlink", self)
        super().unlink(*args, **kwargs)

    def mkdir(self, *args: Any, **kwargs: Any) -> None:
        """Make a folder, noted."""
        self.disk.note("path.mkdir", self)
        super().mkdir(*args, **kwargs)


def install(monkeypatch: pytest.MonkeyPatch, root: Path) -> tuple[Disk, Path]:
    """A disk, and the root to give to a store on it."""
    disk = Disk()
    FaultyPath.disk = disk
    monkeypatch.setattr(local, "os", _Os(disk))
    monkeypatch.setattr(small, "os", _Os(disk))
    return disk, FaultyPath(root)
