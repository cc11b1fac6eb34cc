"""What is really on the disk of a running service."""

import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

from tests.stack import Stack

SETTLE_SECONDS = 30.0
_UUID = r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
_BLOB = re.compile(rf"blobs/([0-9a-f]{{2}})/[0-9a-f-]{{34}}\1|blobs/[0-9a-f]{{2}}|blobs|staging(/{_UUID})?")
_SPOOL = re.compile(r"spool(/[0-9a-f]{32}(/(nginx\.pid|proxy|unused|body(/[0-9](/[0-9]{2}(/[0-9]{10})?)?)?))?)?")


def below(folder: Path) -> Iterator[Path]:
    """Everything in a folder that may change while it is read."""
    try:
        with os.scandir(folder) as entries:
            found = list(entries)
    except FileNotFoundError:
        return
    for entry in found:
        yield Path(entry.path)
        if entry.is_dir(follow_symlinks=False):
            yield from below(Path(entry.path))


def _bodies(stack: Stack) -> Iterator[Path]:
    yield from below(stack.root / "staging")
    for prefix in below(stack.root / "spool"):
        if re.fullmatch(r"[0-9]{10}", prefix.name):
            yield prefix


def bytes_in_flight(stack: Stack) -> int:
    """The size of all bodies that are on their way in: spooled by nginx, or staged."""
    total = 0
    for path in _bodies(stack):
        try:
            total += path.stat().st_size
        except FileNotFoundError:
            continue
    return total


def bodies_in_flight(stack: Stack) -> list[str]:
    """The names of all bodies that are on their way in."""
    return sorted(str(path.relative_to(stack.root)) for path in _bodies(stack))


def settle(stack: Stack) -> None:
    """Wait until nothing is on its way in; fails if something stays."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while left := bodies_in_flight(stack):
        assert time.monotonic() < deadline, f"left behind: {left[:10]}"
        time.sleep(0.01)


def blob_count(stack: Stack) -> int:
    """How many bodies are stored."""
    return sum(path.is_file() for path in below(stack.root / "blobs"))


def assert_confined(stack: Stack, *markers: str) -> None:
    """Names of clients never become names on the disk: in the root there is what belongs there, beside it nothing new.

    `markers` are pieces of names that clients gave.
    """
    for folder in ("blobs", "staging", "spool"):
        for path in below(stack.root / folder):
            place = str(path.relative_to(stack.root))
            assert _BLOB.fullmatch(place) or _SPOOL.fullmatch(place), place
            assert not path.is_symlink(), place
    around = stack.root.parent
    assert set(os.listdir(around)) <= {stack.root.name, f"{stack.root.name}.out"}
    for outside in (around, *around.parents, Path.cwd(), Path("/etc"), Path("/tmp"), Path("/var"), Path.home()):
        for name in os.listdir(outside):
            assert not any(marker in name for marker in markers), (outside, name)
    for path in below(stack.root):
        assert not any(marker in path.name for marker in markers), path
