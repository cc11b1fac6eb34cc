"""The service with faults built in: `python -m tests.faults.faulty_service run` with FAULTS="m1 slow_place" or so.

The same supervisor, the same workers, the same commands; each worker first changes what the words in FAULTS name.
Nothing of this is in the service itself.
"""

import asyncio
import dataclasses
import functools
import os
import stat
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import asyncpg

from service import app
from service.__main__ import main
from service.cache.generations import Generations
from service.domain.content import Content
from service.domain.upkeep import Pacing
from service.run import keeper, supervisor
from service.run.keeper import Child
from service.storage.local import LocalStore
from tests.faults import mistakes, steps

MODULE = "tests.faults.faulty_service"
SLOW_SECONDS = 1.0
ROUND_SECONDS = 0.5


def _without_fsync_of(is_spared: Callable[[int], bool]) -> None:
    fsync = os.fsync

    def fsync_others(descriptor: Any) -> None:
        number = descriptor if isinstance(descriptor, int) else descriptor.fileno()
        if not is_spared(os.fstat(number).st_mode):
            fsync(descriptor)

    os.fsync = fsync_others  # type: ignore[assignment]


def m1() -> None:
    """No file is forced to the disk."""
    _without_fsync_of(stat.S_ISREG)


def m2() -> None:
    """No folder is forced to the disk."""
    _without_fsync_of(stat.S_ISDIR)


def m3() -> None:
    """The row is committed first, then the bytes get their place."""
    place, store = LocalStore.place, Content.store
    waiting: dict[Any, Any] = {}

    async def note(self: LocalStore, staged: Any) -> None:
        waiting[staged.key] = staged

    async def commit_first(self: Content, caller: Any, target: Any, staged: Any, **more: Any) -> Any:
        stored = await store(self, caller, target, staged, **more)
        await place(self._store, waiting.pop(staged.key))  # type: ignore[arg-type]
        return stored

    LocalStore.place = note  # type: ignore[method-assign]
    Content.store = commit_first  # type: ignore[method-assign]


def m13() -> None:
    """The mark of an account stays as it is, whatever changes (tests/api/test_decisions.py)."""
    async def renew(self: Generations, changed: Any) -> None:
        """Nothing."""

    Generations.renew = renew  # type: ignore[method-assign]


def m14() -> None:
    """Commits do not wait for the disk."""
    create_pool = asyncpg.create_pool

    def create(*args: Any, **kwargs: Any) -> Any:
        kwargs["server_settings"] = {**kwargs["server_settings"], "synchronous_commit": "off"}
        return create_pool(*args, **kwargs)

    asyncpg.create_pool = create


def slow_place() -> None:
    """A disk that takes its time until bytes have their place."""
    place = LocalStore.place

    async def place_slowly(self: LocalStore, staged: Any) -> None:
        await asyncio.sleep(SLOW_SECONDS)
        await place(self, staged)

    LocalStore.place = place_slowly  # type: ignore[method-assign]


def frequent_upkeep() -> None:
    """No mistake: each worker asks for its turn all the time, and does its rounds then (tests/api/test_upkeep.py)."""
    setattr(app, "Pacing", functools.partial(Pacing, round_seconds=ROUND_SECONDS))


WORDS: dict[str, Callable[[], None]] = {
    "m1": m1, "m2": m2, "m3": m3, "m13": m13, "m14": m14, "slow_place": slow_place, "steps": steps.install,
    "frequent_upkeep": frequent_upkeep}


def clock() -> list[str]:
    """How a program is started whose clock is off by what CLOCK says, such as +1d; its timers are right."""
    offset = os.environ.get("CLOCK")
    if not offset:
        return []
    library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
    return ["/usr/bin/env", f"LD_PRELOAD={library}", f"FAKETIME={offset}", "FAKETIME_DONT_FAKE_MONOTONIC=1"]


def _keep_for_ever() -> None:
    """Children are started again at once however often they are killed: that is what the test does."""
    keeper.STEADY_SECONDS = 0
    for name in ("_worker_child", "_nginx_child"):
        setattr(supervisor.Supervisor, name, _started_differently(getattr(supervisor.Supervisor, name)))


def _started_differently(make_child: Callable[..., Child]) -> Callable[..., Child]:
    """Workers with their faults, and all with the clock that is told."""
    def faulty_child(*args: Any) -> Child:
        child = make_child(*args)

        def prepare() -> tuple[Sequence[str], Path]:
            command, folder = child.prepare()
            return [*clock(), *(MODULE if part == "service" else part for part in command)], folder

        return dataclasses.replace(child, prepare=prepare)

    return faulty_child


if __name__ == "__main__":
    words = os.environ.get("FAULTS", "").split()
    if sys.argv[1] == "worker":
        for word in words:
            if word not in mistakes.OF_SUPERVISOR:
                (WORDS | mistakes.OF_WORKERS)[word]()
    else:
        _keep_for_ever()
        for word in words:
            if word in mistakes.OF_SUPERVISOR:
                mistakes.OF_SUPERVISOR[word]()
    sys.exit(main(sys.argv[1:]))
