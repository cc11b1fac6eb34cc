"""Looks at a service after a fault: what it owes its clients, every version's bytes, every invariant."""

import asyncio
import hashlib
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote
from uuid import UUID

from tests.client import Api, Reply
from tests.faults.clients import NO_ANSWER, PAUSE_SECONDS, Account
from tests.faults.recorder import Damage, Line
from tests.invariants import Snapshot, check_all, take_snapshot

TOGETHER = 8
TRIES = 100


async def examine(accounts: Sequence[Account], dsn: str, root: Path) -> tuple[Damage, list[str]]:
    """The damage, and what it is, in words; nothing may be under way."""
    damage, words = Damage(), []
    for account in accounts:
        reply = await look(account.api, "/file/list")
        if reply.status == 401:  # the account, or its session, which were acknowledged before anything else
            damage.lost += 1 + len(account.ledger.known)
            words.append(f"the account {account.api.username} is gone: {reply.body!r}")
            continue
        assert reply.status == 200, reply
        listed = reply.json["files"]
        wrong = account.ledger.settle({file["path"]: file["sha256"] for file in listed})
        damage.lost += len(wrong)
        torn = await _read_all(account.api, listed)
        damage.torn += len(torn)
        words += wrong + torn
    now = await take_snapshot(dsn, root)
    for version in now.versions:
        blob = now.blobs[version["blob_id"]]
        path = now.on_disk.get(blob["id"])
        if path is None:
            damage.dangling += 1
            words.append(f"the bytes of version {version['id']} are gone")
        elif hashlib.sha256(path.read_bytes()).digest() != blob["sha256"]:
            damage.torn += 1
            words.append(f"the bytes of version {version['id']} are not what they were: {path.stat().st_size} of "
                         f"{blob['size_bytes']}")
    return damage, words


async def look(api: Api, address: str) -> Reply:
    """The answer to a GET; asked again when there is none, since a part of the service may be starting again."""
    for tries_left in reversed(range(TRIES)):
        try:
            reply = await api.call("GET", address)
            if reply.status != 503 or not tries_left:
                return reply
        except NO_ANSWER:
            if not tries_left:
                raise
        await asyncio.sleep(PAUSE_SECONDS)
    raise AssertionError("unreachable")


async def _read_all(api: Api, listed: Sequence[dict[str, str]]) -> list[str]:
    """Download every file; which came with other bytes than the list says."""
    gate = asyncio.Semaphore(TOGETHER)

    async def read(file: dict[str, str]) -> str | None:
        async with gate:
            reply = await look(api, f"/file/download?path={quote(file['path'])}")
        if reply.status == 200 and hashlib.sha256(reply.body).hexdigest() == file["sha256"]:
            return None
        return f"{file['path']} is answered with {reply.status} and {len(reply.body)} bytes"

    return [words for words in await asyncio.gather(*map(read, listed)) if words]


def stray_blobs(now: Snapshot) -> set[UUID]:
    """Files among the blobs that no row names."""
    return set(now.on_disk) - set(now.blobs)


def leftovers(root: Path) -> tuple[int, int]:
    """How many bodies lie in staging and in the spool."""
    staged = sum(1 for path in (root / "staging").iterdir() if path.is_file())
    spooled = sum(1 for path in (root / "spool").glob("*/body/*/*/*") if path.is_file())
    return staged, spooled


async def everything_holds(line: Line, accounts: Sequence[Account], dsn: str, root: Path, *,
                           max_strays: int = 0) -> int:
    """All that is owed after a fault: the books, whose damage goes to the line, then everything that always holds.

    AssertionError if something is not as it was promised; how many files without a row there are.
    """
    damage, words = await examine(accounts, dsn, root)
    line.add(damage)
    assert not damage, words
    return await check_invariants(dsn, root, max_strays=max_strays)


async def check_invariants(dsn: str, root: Path, *, max_strays: int) -> int:
    """Everything that always holds; how many files without a row there are, which is at most `max_strays`."""
    strays = len(stray_blobs(await take_snapshot(dsn, root)))
    assert strays <= max_strays, f"{strays} files have no row, {max_strays} uploads are in doubt"
    await check_all(dsn, root, strays=strays)
    return strays
