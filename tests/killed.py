"""A command that is killed at a step of its own: for tests of what a kill -9 leaves."""

import importlib
import multiprocessing
import os
import signal
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Step:
    """Just before a call of a function, such as `service.storage.backup:BackupFolder.seal`, the n-th one."""

    function: str
    number: int = 1

    def __str__(self) -> str:
        return f"{self.function.rpartition(':')[2]} {self.number}"


def _run(step: Step, work: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    module, _, path = step.function.partition(":")
    owner: Any = importlib.import_module(module)
    *parents, name = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    real = getattr(owner, name)
    calls = 0

    def call(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == step.number:
            os.kill(os.getpid(), signal.SIGKILL)
        return real(*args, **kwargs)

    setattr(owner, name, call)
    work(*args, **kwargs)


def run_killed(step: Step, work: Callable[..., Any], *args: Any, **kwargs: Any) -> None:
    """Run it in a process of its own, which is killed at the step; fails if the step is not reached."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["service.run.backup"])
    process = context.Process(target=_run, args=(step, work, args, kwargs))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL, f"{step}: {process.exitcode}"
