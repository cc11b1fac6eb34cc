"""A service with a PostgreSQL of its own, and what has to go on in it whatever else does not."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from service.run import processes
from tests.client import Api, Reply, new_account, until
from tests.domain.commit_proxy import CommitProxy, open_proxy
from tests.faults.examine import check_invariants
from tests.faults.recorder import Line
from tests.faults.sites import OwnPostgres
from tests.stack import Stack

MIB = 2**20
PATIENCE_SECONDS = 60.0

Ask = Callable[[], Awaitable[Reply]]


def _new_database(server: OwnPostgres) -> str:
    server.server.ensure_database(name := f"files_{uuid.uuid4().hex}")
    return server.server.dsn(name)


def _has_all_workers(root: Path) -> bool:
    """What the service says then; that it is ready is said by the first one."""
    return "Ctrl-C ends everything" in (root.parent / f"{root.name}.out").read_text(encoding="utf-8")


@contextmanager
def running(root: Path, server: OwnPostgres, **settings: str) -> Iterator[Stack]:
    """A service with its bytes there, and all its workers."""
    with Stack(root, {"DATABASE_URL": _new_database(server), **settings}).running() as stack:
        assert processes.wait_until(lambda: _has_all_workers(root), PATIENCE_SECONDS)
        yield stack


@asynccontextmanager
async def through_proxy(
        server: OwnPostgres, root: Path, *, module: str = "service", **settings: str,
) -> AsyncIterator[tuple[Stack, CommitProxy, str]]:
    """A service whose workers reach the database by a proxy of this process, and the address that is not by it."""
    async with open_proxy(dsn := _new_database(server)) as (proxy, address):
        stack = Stack(root, {"DATABASE_URL": address, **settings}, module=module)
        await asyncio.to_thread(stack.start)
        await until(lambda: _has_all_workers(root), seconds=PATIENCE_SECONDS)
        try:
            yield stack, proxy, dsn
        finally:
            await proxy.end()  # what is lost is not waited for
            await asyncio.to_thread(stack.stop)


async def timed(ask: Ask) -> tuple[Reply, float]:
    """An answer, and how long it took."""
    began = time.monotonic()
    reply = await ask()
    return reply, time.monotonic() - began


async def goes_on(api: Api) -> None:
    """Everything but uploads."""
    assert (await api.get("/kept")).body == b"kept" * 1000
    assert "/kept" in {file["path"] for file in await api.list()}
    await api.call("GET", "/file/info?path=/kept", expect=200)
    await api.call("POST", "/file/move", json={"from": "/kept", "to": "/moved"}, expect=200)
    await api.call("POST", "/file/move", json={"from": "/moved", "to": "/kept"}, expect=200)
    await api.call("POST", "/file/copy", json={"from": "/kept", "to": "/copy", "overwrite": True}, expect=201)
    await api.delete("/copy")
    await api.call("GET", "/readyz", expect=200)
    await new_account(api.session, api.stack)


async def is_sound(stack: Stack, line: Line) -> None:
    """All invariants hold; an upload whose outcome was not known may have left its bytes, a refused one has not."""
    await check_invariants(stack.settings["DATABASE_URL"], stack.root, max_strays=line.in_doubt)
