"""Every change that may be asked for twice, and what must hold when it is: the service passes it, a mutant must not."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from service.cache.local import LocalCache
from service.db import trash
from service.domain import links, requests
from service.domain.batch import Batch, Deletion, Transfer
from service.domain.content import Stored
from service.domain.folders import Folders
from service.domain.links import Links
from service.domain.moves import Change, Moves
from service.domain.places import Target
from service.domain.trash import Trash
from service.domain.versions import Versions
from service.errors import OutcomeUnknown
from service.model import Caller, LinkId
from service.names import split_path
from service.security.addresses import LinkProofs
from service.security.passwords import Passwords
from tests.domain.commit_proxy import Moment, open_proxy
from tests.invariants import check_all
from tests.world import World, open_world

T = TypeVar("T")
Act = Callable[[World, Caller], Awaitable[Any]]

STATE = """
SELECT (SELECT jsonb_agg(jsonb_build_array(
            name, is_folder, deleted_at IS NOT NULL,
            (SELECT jsonb_agg(number ORDER BY number) FROM versions WHERE file_id = files.id)
            ) ORDER BY name, deleted_at)
        FROM files WHERE user_id = $1),
       (SELECT jsonb_agg(jsonb_build_array(action, details->'files') ORDER BY id) FROM audit WHERE user_id = $1),
       (SELECT count(*) FROM links WHERE user_id = $1),
       (SELECT jsonb_build_array(files_bytes, versions_bytes, trash_bytes, file_count) FROM users WHERE id = $1)
"""


async def state(world: World, caller: Caller) -> tuple[object, ...]:
    """All that changes could have changed, without ids and times: names, versions, the trail, links, the usage."""
    row = await world.observer.fetchrow(STATE, caller.user_id)
    assert row is not None
    return tuple(row)


async def fill(world: World) -> Caller:
    """An account with something of everything: /file with a former version, /folder, two in the trash, a link."""
    caller = await world.new_caller()
    for path in ("/file", "/file", "/folder/one", "/folder/below/two", "/old", "/older"):
        await world.put(caller, path, path.encode())
    for path in ("/old", "/older"):
        await world.files.delete(caller, split_path(path))
    await make_link(world, caller)
    return caller


def links_of(world: World) -> Links:
    """Links, without the cost of passwords."""
    return Links(world.database, world.content, LocalCache(), Passwords(4), LinkProofs("a secret of this test alone"),
                 links.Limits(password_attempts_per_minute=1000, requests_per_minute=1000))


def change(source: str, to: str) -> Change:
    """A move or a copy."""
    return Change(source=split_path(source), target=Target(place=split_path(to)))


async def restore(world: World, caller: Caller) -> object:
    """Bring back what was deleted last."""
    async with world.database.connection() as conn:
        item = (await trash.list_trash(conn, caller.user_id, after=None, limit=1))[0]
    return await Trash(world.database).restore(caller, item.id)


async def make_link(world: World, caller: Caller) -> Any:
    """A link, and its token."""
    return await links_of(world).create(caller, ("folder",), kind="download", password=None, max_downloads=3,
                                        expires_in_seconds=60)


async def revoke(world: World, caller: Caller) -> None:
    """End the first link that the account made."""
    link_id = await world.observer.fetchval(
        "SELECT (details->>'link')::uuid FROM audit WHERE user_id = $1 AND action = 'link_create' ORDER BY id LIMIT 1",
        caller.user_id)
    await links_of(world).revoke(caller, LinkId(link_id))


CHANGES: dict[str, Act] = {
    "new file": lambda world, caller: world.put(caller, "/new/file", b"new"),
    "overwrite": lambda world, caller: world.put(caller, "/file", b"newer"),
    "folder": lambda world, caller: Folders(world.database).make(caller, ("a", "b")),
    "move": lambda world, caller: Moves(world.database).move(caller, change("/file", "/moved")),
    "move of a folder": lambda world, caller: Moves(world.database).move(caller, change("/folder", "/moved")),
    "copy": lambda world, caller: Moves(world.database).copy(caller, change("/folder", "/copy")),
    "trash": lambda world, caller: world.files.delete(caller, ("file",)),
    "delete": lambda world, caller: world.files.delete(caller, ("folder",), permanent=True),
    "batch": lambda world, caller: Batch(world.database).run(caller, [
        Transfer(kind="copy", change=change("/file", "/again")), Deletion(place=("folder",))]),
    "restore from the trash": restore,
    "empty the trash": lambda world, caller: Trash(world.database).empty(caller),
    "restore a version": lambda world, caller: Versions(world.database, keep=9).restore(caller, ("file",), 1),
    "forget versions": lambda world, caller: Versions(world.database, keep=9).forget(caller, ("file",), None),
    "link": make_link,
    "end of a link": revoke,
}


async def as_request(key: str | None, work: Callable[[], Awaitable[T]], *what: object) -> T:
    """What the middleware does around a handler: the work belongs to a request with this key."""
    async def run() -> T:
        requests.begin(key)
        requests.describe(*what)
        return await work()

    return await asyncio.create_task(run())  # a task has a context of its own


@dataclass(frozen=True)
class Try:
    """How one request ended: with a result, or with an error."""

    result: Any = None
    error: Exception | None = None


async def attempt(key: str, work: Callable[[], Awaitable[Any]]) -> Try:
    """One request."""
    try:
        return Try(result=await as_request(key, work))
    except Exception as error:
        return Try(error=error)


_DONE_ONCE: dict[str, tuple[object, ...]] = {}


async def done_once(world: World, name: str) -> tuple[object, ...]:
    """What the state is when the change was made, once and without any fault; looked at once."""
    if name not in _DONE_ONCE:
        caller = await fill(world)
        await CHANGES[name](world, caller)
        _DONE_ONCE[name] = await state(world, caller)
    return _DONE_ONCE[name]


async def retried_after_a_lost_commit(dsn: str, root: Path, moment: Moment, names: Iterable[str] = CHANGES,
                                      mutate: Callable[[World], None] = lambda world: None) -> None:
    """The client is told that nobody knows, asks again, and again: the change was made once, its answers are one."""
    strays = 0
    async with open_proxy(dsn) as (proxy, address), open_world(address, root, direct_dsn=dsn, versions_keep=9) as world:
        mutate(world)
        for name in names:
            act = CHANGES[name]
            caller = await fill(world)
            proxy.arm(moment, then_shuts=True)
            lost = await attempt("key", lambda: act(world, caller))
            await world.content.drain()
            proxy.open()
            assert isinstance(lost.error, OutcomeUnknown), f"{name}: {lost}"
            tries = [await attempt("key", lambda: act(world, caller)) for _ in range(2)]
            assert tries[0].error is None, f"{name}: the second request failed: {tries[0].error!r}"
            assert tries[0] == tries[1], f"{name}: the third request got another answer than the second one"
            assert await state(world, caller) == await done_once(world, name), f"{name}: it was not done exactly once"
            strays += moment == "before" and isinstance(tries[0].result, Stored)
        await check_all(dsn, root, strays=strays)
