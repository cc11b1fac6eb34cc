"""Folders in the machine's memory, one for each service that runs.

A service holds a lock on its folder as long as it lives.  When it is killed nobody takes the folder away, and its data
root may be gone too; so each start removes those that nobody holds.
"""

import fcntl
import os
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

SHARED_MEMORY = Path("/dev/shm")  # nosec B108: a name that nobody can guess is made there
PREFIX = "file-storage-"
OWNER = "data_root"
"""The file in such a folder that names the data root it was made for."""

MODE = 0o700
_OPEN = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def make(root: Path) -> tuple[Path, int]:
    """A new folder for the service of the data root, and an open file: as long as that is open, the folder stays.

    OSError if there is no memory to be had.
    """
    while True:
        path = Path(tempfile.mkdtemp(prefix=PREFIX, dir=SHARED_MEMORY))
        with suppress(FileNotFoundError):  # somebody took it for an abandoned one before it was held
            file = os.open(path, _OPEN)
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
                (path / OWNER).write_bytes(os.fsencode(root))
            except BaseException:  # Ctrl-C too: while the file is open the folder counts as held
                os.close(file)
                raise
            return path, file


def remove(path: Path) -> None:
    """Remove a folder that `make` gave out; anything else stays."""
    if path.parent == SHARED_MEMORY and path.name.startswith(PREFIX):
        shutil.rmtree(path, ignore_errors=True)


def remove_abandoned() -> None:
    """Remove the folders of this user that no service holds any more."""
    with suppress(OSError), _opened(SHARED_MEMORY) as memory:
        for name in os.listdir(memory):
            if name.startswith(PREFIX):
                _remove_if_abandoned(name, memory)


def _remove_if_abandoned(name: str, memory: int) -> None:
    """Do it while holding its lock, so that whoever is just making it notices."""
    try:
        with _opened(name, memory) as folder:
            fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            named = os.stat(name, dir_fd=memory, follow_symlinks=False)
            if _is_ours(folder) and os.path.samestat(named, os.fstat(folder)):
                shutil.rmtree(name, dir_fd=memory)
    except OSError:  # held, or no folder, or another user's
        pass


def _is_ours(folder: int) -> bool:
    """Whether `make` has made it: it is this user's alone, and says what for, unless its maker was killed at once."""
    status = os.fstat(folder)
    inside = os.listdir(folder)
    return status.st_uid == os.geteuid() and stat.S_IMODE(status.st_mode) == MODE and (not inside or OWNER in inside)


@contextmanager
def _opened(name: str | Path, below: int | None = None) -> Iterator[int]:
    file = os.open(name, _OPEN, dir_fd=below)
    try:
        yield file
    finally:
        os.close(file)
