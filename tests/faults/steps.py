"""Steps of a real worker at which something may happen, told by files: killed, an I/O error, a pause.

The steps are those of tests/domain/failpoints.py: each call of db and of the store, before and after.  A folder named
by STEPS holds `passed`, a line for each step while `watched` is there, and `armed`: which step, and what is to happen
there, once.
"""

import errno
import functools
import inspect
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from service.domain import writability
from service.storage.local import LocalStore
from tests.domain.failpoints import functions_of_db

NOT_OF_THE_DISK = ("open", "close", "run", "path", "locate")
PAUSE_SECONDS = 60.0


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


def install() -> None:
    """Put the steps into this process."""
    steps = Steps(Path(os.environ["STEPS"]))
    for module, name, function in functions_of_db():
        setattr(module, name, _watched(steps, f"{module.__name__.rpartition('.')[2]}.{name}", function))
    for name, method in inspect.getmembers(LocalStore, inspect.isfunction):
        if not (name.startswith("_") or name in NOT_OF_THE_DISK or inspect.isgeneratorfunction(method)):
            setattr(LocalStore, name, _watched(steps, f"store.{name}", method))
    writability.MAX_FAILURES = 10**9  # each fault is asked about alone, not what their number leads to
