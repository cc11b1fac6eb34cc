"""Steps of a real worker or command at which something may happen, told by files: killed, an I/O error, a pause.

The steps are each call of db and of what keeps bytes or marks, and each call to the kernel that changes the disk,
before and after; nothing is listed by hand.  A folder named by STEPS holds `passed`, a line for each step while
`watched` is there, and `armed`: which step, and what is to happen there, once.  Files beside that folder are those of
the service.

`python -m tests.faults.steps COMMAND ...` is a command of the service with its steps.
"""

import errno
import functools
import inspect
import os
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from service.__main__ import main
from service.cache.generations import Generations
from service.domain import writability
from service.domain.check import Check
from service.storage.backup import BackupFolder
from service.storage.inspection import LocalInspector
from service.storage.local import LocalStore, LocalWriter
from service.storage.small import MemoryWriter
from service.storage.snapshots import PartWriter
from tests.domain.failpoints import functions_of_db

KEEPERS: dict[str, type] = {"store": LocalStore, "writer": LocalWriter, "memory": MemoryWriter,
                            "inspector": LocalInspector, "backups": BackupFolder, "part": PartWriter,
                            "marks": Generations}
# what opens, closes, names or looks, what forgets what is in memory, what is called for each piece of a body
NOT_STEPS = {"store.open", "store.close", "store.run", "store.run_through", "store.path", "store.locate",
             "store.ping", "writer.write", "memory.write", "memory.abort", "inspector.close", "inspector.shelves",
             "backups.open_to_read", "backups.close", "backups.names", "backups.place", "backups.unusable",
             "backups.snapshot", "backups.is_there", "backups.read_id", "part.write", "part.close", "marks.read"}
RENEWAL = "marks.renew"  # the first thing after COMMIT, which is no step itself; has no errors for others
CALLS = ("open", "link", "unlink", "rename", "replace", "fsync", "mkdir")  # of the kernel
OTHERS_FOLDERS = ("postgres", "log", "run", "steps")  # what is not the service's own on the disk
CHANGES = re.compile(r"\b(INSERT INTO|UPDATE \w+|DELETE FROM|TRUNCATE|setval)\b")
PAUSE_SECONDS = 60.0


class Point(NamedTuple):
    """A step, the so-manieth time that it is passed, from 0."""

    step: str
    number: int

    def __str__(self) -> str:
        return f"{self.step} {self.number}"

    @property
    def is_of_disk(self) -> bool:
        """Whether it is the kernel that is asked there, which may well say so."""
        return self.step.startswith("os.")


def chosen_points(points: list[Point], action: str, *, is_thorough: bool = False) -> list[Point]:
    """Those of the points where this makes a difference, or, if it is to be thorough, all.

    A kill before a step leaves what a kill after the one before it leaves, unless a COMMIT lies between them, and so
    does one after a step that only looks; a file that was only opened is as empty as one that was not forced.  A call
    to the kernel that fails has done nothing.
    """
    if action != "kill":
        return [point for point in points if not (_is_done_call(point) or point.step.startswith(RENEWAL))]
    if is_thorough:
        return points
    sites = find_sites()
    return [point for point in points if point.step == f"{RENEWAL} before" or point.step.endswith(" after") and (
        point.step.startswith("os.") and point.step != "os.open after" or point.step.removesuffix(" after") in sites)]


def _is_done_call(point: Point) -> bool:
    return point.step.startswith("os.") and point.step.endswith(" after")


class Steps:
    """The same folder seen by the test and by all workers."""

    def __init__(self, folder: Path) -> None:
        self._passed = folder / "passed"
        self._armed = folder / "armed"
        self._taken = folder / "taken"
        self._watched = folder / "watched"

    def record(self, is_on: bool = True) -> None:
        """Begin to note steps, with none noted; or end."""
        if is_on:
            self._passed.unlink(missing_ok=True)
            self._watched.touch()
        else:
            self._watched.unlink(missing_ok=True)

    def passed(self) -> list[str]:
        """Which steps there were, in order, each as often as it was passed."""
        return self._passed.read_text(encoding="ascii").splitlines() if self._passed.exists() else []

    def points(self) -> list[Point]:
        """The same, numbered."""
        seen: Counter[str] = Counter()
        found = []
        for step in self.passed():
            found.append(Point(step, seen[step]))
            seen[step] += 1
        return found

    def arm(self, step: str, action: str, *, skip: int = 0) -> None:
        """Have `kill`, `pause` or the name of an error number happen at a step, after so many times that it passes."""
        self._taken.unlink(missing_ok=True)
        draft = self._armed.with_suffix(".new")
        draft.write_text(f"{step}\n{action}\n{skip}\n", encoding="ascii")
        draft.replace(self._armed)

    def was_hit(self) -> bool:
        """Whether it has happened."""
        return self._taken.exists()

    def disarm(self) -> None:
        """Nothing is to happen; a pause ends."""
        self._armed.unlink(missing_ok=True)
        self._taken.unlink(missing_ok=True)

    # --- inside a worker ---

    def pass_by(self, step: str) -> None:
        """Called at each step."""
        if self._watched.exists():
            with self._passed.open("a", encoding="ascii") as file:
                file.write(f"{step}\n")
        try:
            name, action, skip = self._armed.read_text(encoding="ascii").split("\n")[:3]
        except FileNotFoundError:
            return
        if name != step:
            return
        if int(skip):
            self.arm(name, action, skip=int(skip) - 1)
            return
        try:
            self._armed.rename(self._taken)  # one of several that pass at once
        except FileNotFoundError:
            return
        self._happen(action)

    def _happen(self, action: str) -> None:
        if action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if action == "pause":
            deadline = time.monotonic() + PAUSE_SECONDS
            while self._taken.exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            return
        number = getattr(errno, action)
        raise OSError(number, os.strerror(number))


def _watched(steps: Steps, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    if inspect.iscoroutinefunction(function):
        @functools.wraps(function)
        async def watched(*args: Any, **kwargs: Any) -> Any:
            steps.pass_by(f"{name} before")
            result = await function(*args, **kwargs)
            steps.pass_by(f"{name} after")
            return result
    else:
        @functools.wraps(function)
        def watched(*args: Any, **kwargs: Any) -> Any:
            steps.pass_by(f"{name} before")
            result = function(*args, **kwargs)
            steps.pass_by(f"{name} after")
            return result
    return watched


def _watched_call(steps: Steps, name: str, call: Callable[..., Any], folder: Path) -> Callable[..., Any]:
    """A call to the kernel, a step only if it is about the service's own files."""
    @functools.wraps(call)
    def watched(*args: Any, **kwargs: Any) -> Any:
        if not any(_is_own(path, folder) for path in _paths(*args, *kwargs.values())):
            return call(*args, **kwargs)
        steps.pass_by(f"os.{name} before")
        result = call(*args, **kwargs)
        steps.pass_by(f"os.{name} after")
        return result
    return watched


def _paths(*args: Any) -> Iterator[Path]:
    for arg in args:
        try:
            if isinstance(arg, (str, os.PathLike)):
                yield Path(os.fspath(arg))
            elif isinstance(arg, int) and arg > 2:  # a descriptor, or flags, which are no descriptor's number
                yield Path(os.readlink(f"/proc/self/fd/{arg}"))
        except FileNotFoundError:
            continue


def _is_own(path: Path, folder: Path) -> bool:
    """Whether it lies below one of the folders of the test, and is not of another program."""
    if not path.is_relative_to(folder):
        return False
    parts = path.relative_to(folder).parts
    return len(parts) > 1 and not set(parts[:2]) & set(OTHERS_FOLDERS)


def methods_of_keepers() -> Iterator[tuple[type, str, str, Callable[..., Any]]]:
    """Every method of what keeps bytes that is a step: its class, its name there, the step's, and itself."""
    for word, keeper in KEEPERS.items():
        for name, method in vars(keeper).items():
            step = f"{word}.{name}"
            if inspect.isfunction(method) and not (name.startswith("_") or step in NOT_STEPS
                                                   or inspect.isgeneratorfunction(method)):
                yield keeper, name, step, method


def step_of(module: ModuleType, name: str) -> str:
    """What a function of db is called here."""
    return f"{module.__name__.rpartition('.')[2]}.{name}"


def find_sites() -> set[str]:
    """Every step that changes something: all methods of what keeps bytes, and what executes such SQL."""
    found = {step for _, _, step, _ in methods_of_keepers()}
    for module, name, function in functions_of_db():
        queries = (getattr(module, each, None) for each in function.__code__.co_names)
        if any(isinstance(query, str) and CHANGES.search(query) for query in queries):
            found.add(step_of(module, name))
    return found


def install() -> None:
    """Put the steps into this process."""
    folder = Path(os.environ["STEPS"])
    steps = Steps(folder)
    for module, name, function in functions_of_db():
        setattr(module, name, _watched(steps, step_of(module, name), function))
    for keeper, name, step, method in methods_of_keepers():
        setattr(keeper, name, _watched(steps, step, method))
    for name in CALLS:
        setattr(os, name, _watched_call(steps, name, getattr(os, name), folder.parent))
    writability.MAX_FAILURES = 10**9  # each fault is asked about alone, not what their number leads to
    assert Check.__init__.__kwdefaults__ is not None
    Check.__init__.__kwdefaults__.update(settle_seconds=0.0, leftover_seconds=0.0)  # nothing is on its way in a test


if __name__ == "__main__":
    install()
    sys.exit(main(sys.argv[1:]))
