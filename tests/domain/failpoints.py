"""Every step of the domain as a place where something may happen: each call of db and of the store, before and after.

Nothing is listed here by hand: a run without faults tells which steps there are, and a sweep goes through them.
"""

import asyncio
import errno
import importlib
import inspect
import os
import pkgutil
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from types import ModuleType
from typing import Any

import asyncpg
import pytest

import service.db
from service.errors import Unavailable
from tests.world import World

Point = tuple[str, int]  # such as "files.claim_file before", and how often it was passed by
Action = Callable[[Any], Awaitable[None]]  # gets the connection; None at a step of the store

_OF_STORE = ("place", "delete")


async def raise_os_error(conn: Any) -> None:
    """The disk fails."""
    raise OSError(errno.EIO, os.strerror(errno.EIO))


async def raise_lost(conn: Any) -> None:
    """The connection is gone, as the driver says it; at a step of the store the disk fails."""
    if conn is None:
        await raise_os_error(conn)
    raise asyncpg.ConnectionDoesNotExistError("injected")


async def raise_refusal(conn: Any) -> None:
    """The service says no."""
    raise Unavailable("injected")


async def raise_surprise(conn: Any) -> None:
    """A mistake of the service."""
    raise ZeroDivisionError("injected")


def functions_of_db() -> Iterator[tuple[ModuleType, str, Callable[..., Awaitable[Any]]]]:
    """Every function of service/db that asks the database, with its module and its name there."""
    for found in pkgutil.iter_modules(service.db.__path__):
        module = importlib.import_module(f"service.db.{found.name}")
        for name, function in inspect.getmembers(module, inspect.iscoroutinefunction):
            if function.__module__ == module.__name__:
                yield module, name, function


class Failpoints:
    """Steps as they are passed, and what is to happen at one of them, once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, world: World) -> None:
        self._seen: Counter[str] = Counter()
        self._armed: dict[Point, Action] = {}
        self._observer = world.observer
        self.was_hit = False
        for module, name, function in functions_of_db():
            short = module.__name__.rpartition(".")[2]
            monkeypatch.setattr(module, name, self._watched(f"{short}.{name}", function))
        for name in _OF_STORE:
            monkeypatch.setattr(world.store, name, self._watched(f"store.{name}", getattr(world.store, name)))

    def _watched(self, name: str, function: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
        async def watched(*args: Any, **kwargs: Any) -> Any:
            conn = None if name.startswith("store.") else args[0]
            await self._pass(f"{name} before", conn)
            result = await function(*args, **kwargs)
            await self._pass(f"{name} after", conn)
            return result

        return watched

    async def _pass(self, name: str, conn: Any) -> None:
        point = (name, self._seen[name])
        self._seen[name] += 1
        action = self._armed.pop(point, None)
        if action is not None:
            self.was_hit = True
            await action(conn)

    def reset(self) -> None:
        """Begin to count again, with nothing armed."""
        self._seen.clear()
        self._armed.clear()
        self.was_hit = False

    def arm(self, point: Point | str, action: Action) -> None:
        """Have something happen at a step, once; a name alone means its first time."""
        self._armed[(point, 0) if isinstance(point, str) else point] = action

    def count(self, name: str) -> int:
        """How often a step was passed since `reset`."""
        return self._seen[name]

    def passed(self) -> list[Point]:
        """Every step since `reset`."""
        return [(name, number) for name, count in self._seen.items() for number in range(count)]

    async def end_backend(self, conn: Any) -> None:
        """The server ends this very connection, as an administrator or a crash does, before the next statement."""
        assert await self._observer.fetchval("SELECT pg_terminate_backend($1, 10000)", conn.get_server_pid())

    @asynccontextmanager
    async def paused(self, point: Point | str, work: Awaitable[Any]) -> "AsyncIterator[asyncio.Task[Any]]":
        """Begin the work and have it stand at a step while the context lasts."""
        reached, go = asyncio.Event(), asyncio.Event()

        async def pause(conn: Any) -> None:
            reached.set()
            await go.wait()

        self.arm(point, pause)
        task = asyncio.ensure_future(work)
        waiting = asyncio.ensure_future(reached.wait())
        await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
        waiting.cancel()
        assert reached.is_set(), f"the step was not reached: {task}"
        try:
            yield task
        finally:
            go.set()
