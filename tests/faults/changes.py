"""Changes that a client asks for, each ready to be done with a fault somewhere on its way (test_steps.py)."""

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path

import aiohttp
import asyncpg

from tests.client import PASSWORD, Api, Reply, new_account
from tests.faults.clients import Account
from tests.faults.ledger import body_of, digest_of
from tests.faults.sites import FaultyStack
from tests.faults.steps import Point, Steps

WORKERS = 3
TRIES = 100  # what a worker remembers for some seconds, it does not ask for again
BODY_BYTES = 70_000
TOGETHER = 6


@contextmanager
def stack_with_steps(folder: Path, *, faults: str = "", **settings: str) -> Iterator[FaultyStack]:
    """A running service with its steps; its data root is in the folder, and what tells the steps."""
    (folder / "steps").mkdir()
    stack = FaultyStack(
        folder / "data", {"WORKERS": str(WORKERS), "ACCESS_TOKEN_TTL": "86400", **settings},
        faults=f"steps {faults}", variables={"STEPS": str(folder / "steps")})
    with stack.running():
        yield stack


class Bench:
    """The service with steps, one client, and files with names that were never used before."""

    def __init__(self, stack: FaultyStack, account: Account) -> None:
        self.stack = stack
        self.steps = Steps(Path(stack.variables["STEPS"]))
        self.account = account
        self._count = 0

    def fresh(self) -> str:
        """A path where nothing has been."""
        self._count += 1
        return f"/{self._count}"

    def body(self, size_bytes: int = BODY_BYTES) -> bytes:
        """Bytes that nothing has had."""
        self._count += 1
        return body_of(str(self._count), size_bytes)

    async def there(self, path: str = "") -> str:
        """A file; the steps on the way do not count."""
        path = path or self.fresh()
        for _ in range(TRIES):
            reply = await self.account.put(path, self.body(100))
            if reply is not None and reply.status in (200, 201):
                return path
            await asyncio.sleep(0.1)  # a worker that was killed is not back yet
        raise AssertionError("uploads are not taken any more")

    async def settle(self) -> list[str]:
        """What is not as it was promised."""
        reply = await self.account.api.call("GET", "/file/list", expect=200)
        return self.account.ledger.settle({file["path"]: file["sha256"] for file in reply.json["files"]})

    async def do_again(self, change: "Change") -> None:
        """The change succeeds, if not at once because a worker is still being started."""
        for _ in range(TRIES):
            reply = await (await change(self))()
            if reply is not None and reply.status < 300:
                return
            await asyncio.sleep(0.1)
        raise AssertionError(f"{change.__name__} does not succeed any more")

    async def points_of(self, change: "Change") -> list[Point]:
        """Each step of a change, as it is done twice: what only one of them has is not the change's own.

        Of those that several requests pass at once, the first time stands for all.
        """
        await self.do_again(change)
        found = [await self._points_once(change) for _ in range(2)]
        return [point for point in found[0] if point in found[1] and (change is not group or point.number == 0)]

    async def _points_once(self, change: "Change") -> list[Point]:
        for _ in range(TRIES):
            do = await change(self)
            self.steps.record()
            reply = await do()
            self.steps.record(is_on=False)
            if reply is not None and reply.status < 300:
                return self.steps.points()
            # what is not sent twice may have been given to a worker that was killed and is not back yet
            assert reply is not None and reply.status == 503, reply
            await asyncio.sleep(0.1)
        raise AssertionError(f"{change.__name__} does not succeed any more")


Do = Callable[[], Awaitable[Reply | None]]
Change = Callable[[Bench], Awaitable[Do]]


async def upload(bench: Bench) -> Do:
    """A new file in a new folder."""
    path, body = f"/new{bench.fresh()}/file", bench.body()
    return lambda: bench.account.put(path, body)


async def small_upload(bench: Bench) -> Do:
    """One that fits into memory, in a folder that is there."""
    path, body = bench.fresh(), bench.body(100)
    return lambda: bench.account.put(path, body)


async def form(bench: Bench) -> Do:
    """By a form."""
    path, body = bench.fresh(), bench.body()
    return lambda: bench.account.post(path, body)


async def group(bench: Bench) -> Do:
    """Several small ones at once, which share a transaction."""
    uploads = [(bench.fresh(), bench.body(100)) for _ in range(TOGETHER)]

    async def do() -> Reply | None:
        replies = await asyncio.gather(*(bench.account.put(*upload) for upload in uploads))
        return max(replies, key=lambda reply: 999 if reply is None else reply.status)

    return do


async def chunked(bench: Bench) -> Do:
    """A body whose length is not announced."""
    path, body = bench.fresh(), bench.body()

    async def pieces() -> AsyncIterator[bytes]:
        yield body[:len(body) // 2]
        yield body[len(body) // 2:]

    return lambda: bench.account.change({path: digest_of(body)}, "PUT", f"/file?path={path}", data=pieces())


async def keyed(bench: Bench) -> Do:
    """An upload that may be sent again."""
    path, body = bench.fresh(), bench.body()
    return lambda: bench.account.change({path: digest_of(body)}, "PUT", f"/file?path={path}", data=body,
                                        headers={"Idempotency-Key": f'"{uuid.uuid4()}"'})


async def overwrite(bench: Bench) -> Do:
    """Another content for a file."""
    path, body = await bench.there(), bench.body()
    return lambda: bench.account.put(path, body)


async def delete(bench: Bench) -> Do:
    """Into the trash."""
    path = await bench.there()
    return lambda: bench.account.delete(path, permanent=False)


async def purge(bench: Bench) -> Do:
    """For good."""
    path = await bench.there()
    return lambda: bench.account.delete(path, permanent=True)


async def _trashed(bench: Bench) -> tuple[str, str]:
    path = await bench.there()
    digest = bench.account.ledger.known[path]
    assert digest is not None
    reply = None
    for _ in range(TRIES):
        reply = await bench.account.delete(path, permanent=False)
        items = (await bench.account.api.call("GET", "/file/trash?limit=1", expect=200)).json["items"]
        if items and items[0]["path"] == path:
            return items[0]["id"], digest
        await asyncio.sleep(0.1)  # a worker that was killed is not back yet
    raise AssertionError(f"a file does not get into the trash any more: {reply}")


async def purge_trash(bench: Bench) -> Do:
    """Out of the trash, for good."""
    item, _ = await _trashed(bench)
    return lambda: bench.account.change({}, "DELETE", f"/file/trash?id={item}")


async def restore(bench: Bench) -> Do:
    """Out of the trash, back."""
    item, digest = await _trashed(bench)
    path = bench.fresh()
    return lambda: bench.account.restore(item, path, digest)


async def move(bench: Bench) -> Do:
    """To another place."""
    path, to = await bench.there(), bench.fresh()
    return lambda: bench.account.move(path, to)


async def copy(bench: Bench) -> Do:
    """The same bytes under another name."""
    path, to = await bench.there(), bench.fresh()
    return lambda: bench.account.copy(path, to)


async def small_overwrite(bench: Bench) -> Do:
    """Another content, that fits into memory, for a file."""
    path, body = await bench.there(), bench.body(100)
    return lambda: bench.account.put(path, body)


async def copy_over(bench: Bench) -> Do:
    """A copy that takes the place of another file."""
    path, to = await bench.there(), await bench.there()
    return lambda: bench.account.change({to: bench.account.ledger.known[path]}, "POST", "/file/copy",
                                        json={"from": path, "to": to, "overwrite": True})


async def make_folder(bench: Bench) -> Do:
    """One with nothing in it."""
    path = bench.fresh()
    return lambda: bench.account.change({}, "POST", "/file/folder", json={"path": path})


async def move_folder(bench: Bench) -> Do:
    """A folder with what is in it."""
    folder, to = bench.fresh(), bench.fresh()
    path = await bench.there(f"{folder}/file")
    return lambda: bench.account.change({path: None, f"{to}/file": bench.account.ledger.known[path]}, "POST",
                                        "/file/move", json={"from": folder, "to": to})


async def copy_folder(bench: Bench) -> Do:
    """A folder with what is in it."""
    folder, to = bench.fresh(), bench.fresh()
    path = await bench.there(f"{folder}/file")
    return lambda: bench.account.change({f"{to}/file": bench.account.ledger.known[path]}, "POST", "/file/copy",
                                        json={"from": folder, "to": to})


async def delete_folder(bench: Bench) -> Do:
    """A folder with what is in it, for good."""
    folder = bench.fresh()
    path = await bench.there(f"{folder}/file")
    return lambda: bench.account.change({path: None}, "DELETE", f"/file?path={folder}&permanent=true")


async def restore_version(bench: Bench) -> Do:
    """What a file was before."""
    path = await bench.there()
    first = bench.account.ledger.known[path]
    await bench.there(path)
    return lambda: bench.account.change({path: first}, "POST", "/file/versions/restore",
                                        json={"path": path, "version": 1})


async def forget_version(bench: Bench) -> Do:
    """One that a file was before."""
    path = await bench.there(await bench.there())
    return lambda: bench.account.change({}, "DELETE", f"/file/versions?path={path}&version=1")


async def forget_versions(bench: Bench) -> Do:
    """All that a file was before."""
    path = await bench.there(await bench.there())
    return lambda: bench.account.change({}, "DELETE", f"/file/versions?path={path}")


async def batch(bench: Bench) -> Do:
    """Several changes in one transaction."""
    path, to, other = await bench.there(), bench.fresh(), await bench.there()
    return lambda: bench.account.change(
        {path: None, to: bench.account.ledger.known[path], other: None}, "POST", "/file/batch", json={"operations": [
            {"op": "move", "from": path, "to": to}, {"op": "delete", "path": other, "permanent": True}]})


async def _link(bench: Bench, **what: str) -> dict[str, str]:
    made = await bench.account.api.call("POST", "/file/link", json=what, expect=201)
    return {"id": made.json["id"], "path": str(made.json["url"]).removeprefix(bench.stack.url)}


async def make_link(bench: Bench) -> Do:
    """An address for others."""
    path = await bench.there()
    return lambda: bench.account.change({}, "POST", "/file/link", json={"path": path})


async def revoke_link(bench: Bench) -> Do:
    """An address that others had."""
    link = await _link(bench, path=await bench.there())
    return lambda: bench.account.change({}, "DELETE", f"/file/link/{link['id']}")


async def link_upload(bench: Bench) -> Do:
    """By somebody without an account."""
    folder = bench.fresh()
    await bench.account.api.call("POST", "/file/folder", json={"path": folder}, expect=201)
    link, body = await _link(bench, path=folder, kind="upload"), bench.body()

    def form() -> aiohttp.FormData:
        made = aiohttp.FormData()
        made.add_field("file", BytesIO(body), filename="dropped")
        return made

    return lambda: bench.account.change({f"{folder}/dropped": digest_of(body)}, "POST", link["path"], data=form())


async def archive(bench: Bench) -> Do:
    """A folder as one file; what it has to know about each blob is kept."""
    folder = bench.fresh()
    await bench.there(f"{folder}/file")
    return lambda: bench.account.change({}, "GET", f"/file/archive?path={folder}")


async def first_archive(bench: Bench) -> Do:
    """One with a blob from before checksums were kept: it is read now."""
    folder = bench.fresh()
    await bench.there(f"{folder}/file")
    connection = await asyncpg.connect(bench.stack.dsn)
    try:
        await connection.execute("UPDATE blobs SET crc32 = NULL")
    finally:
        await connection.close()
    return lambda: bench.account.change({}, "GET", f"/file/archive?path={folder}")


async def _other(bench: Bench) -> Api:
    return await new_account(bench.account.api.session, bench.stack)


async def register(bench: Bench) -> Do:
    """A new account."""
    name = f"new-{uuid.uuid4().hex}"
    return lambda: bench.account.change({}, "POST", "/auth/register", json={"username": name, "password": PASSWORD})


async def log_in(bench: Bench) -> Do:
    """A session."""
    credentials = {"username": bench.account.api.username, "password": PASSWORD}
    return lambda: bench.account.change({}, "POST", "/auth/jwt/login", json=credentials)


async def log_out(bench: Bench) -> Do:
    """The end of one."""
    headers = {"Authorization": f"Bearer {(await _other(bench)).token}"}
    return lambda: bench.account.change({}, "POST", "/auth/jwt/logout", headers=headers)


async def refresh(bench: Bench) -> Do:
    """New tokens of a session."""
    token = (await _other(bench)).refresh_token
    return lambda: bench.account.change({}, "POST", "/auth/jwt/refresh", json={"refresh_token": token})


async def end_session(bench: Bench) -> Do:
    """One of an account's sessions, by its number."""
    other = await _other(bench)
    session = (await other.call("GET", "/auth/session", expect=200)).json["sessions"][0]["id"]
    headers = {"Authorization": f"Bearer {other.token}"}
    return lambda: bench.account.change({}, "DELETE", f"/auth/session/{session}", headers=headers)


async def change_password(bench: Bench) -> Do:
    """Of an account, whose other sessions end."""
    headers = {"Authorization": f"Bearer {(await _other(bench)).token}"}
    return lambda: bench.account.change({}, "POST", "/auth/password", headers=headers, json={
        "old_password": PASSWORD, "new_password": f"{PASSWORD} again"})


async def delete_account(bench: Bench) -> Do:
    """With what it holds."""
    other = await _other(bench)
    await other.put("/file", bench.body(100))
    headers = {"Authorization": f"Bearer {other.token}"}
    return lambda: bench.account.change({}, "DELETE", "/auth/me", headers=headers, json={"password": PASSWORD})


BYTES: tuple[Change, ...] = (upload, small_upload, group, form, chunked, keyed, overwrite, small_overwrite)
"""Those that bring bytes: with nginx and without, and each with all that a disk may say."""
TREE: tuple[Change, ...] = (
    delete, purge, purge_trash, restore, move, copy, copy_over, make_folder, move_folder, copy_folder, delete_folder,
    restore_version, forget_version, forget_versions, batch, make_link, revoke_link, link_upload, archive,
    first_archive)
ACCOUNTS: tuple[Change, ...] = (
    register, log_in, log_out, refresh, end_session, change_password, delete_account)
