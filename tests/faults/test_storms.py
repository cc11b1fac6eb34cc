"""Storms on the same few paths (F16, F17, F18): all answers fit one order, no quota is passed, no reader sees a mix."""

import asyncio
import math
from collections.abc import Awaitable, Iterator

import aiohttp
import asyncpg
import pytest

from tests.client import Reply
from tests.faults.clients import Account
from tests.faults.examine import check_invariants, examine
from tests.faults.ledger import body_of, digest_of
from tests.faults.linearizability import Operation, is_linearizable
from tests.faults.recorder import Recorder
from tests.faults.sites import FaultyStack
from tests.faults.storm import EMPTY, Storm
from tests.invariants import sweep

OBJECTS = 3  # pairs of paths, each in an account of its own


def at(start: float, end: float, kind: str, **more: object) -> Operation:
    return Operation(kind=kind, start=start, end=end, **more)  # type: ignore[arg-type]


HISTORIES = [
    ("nothing", [], True),
    ("one after the other", [at(0, 1, "put", value="x"), at(2, 3, "get", value="x")], True),
    ("a stale read", [at(0, 1, "put", value="x"), at(2, 3, "put", value="y"), at(4, 5, "get", value="x")], False),
    ("a read of either while it is written",
     [at(0, 1, "put", value="x"), at(2, 9, "put", value="y"), at(3, 4, "get", value="x"), at(5, 6, "get", value="y")],
     True),
    ("a read that goes back",
     [at(0, 1, "put", value="x"), at(2, 9, "put", value="y"), at(3, 4, "get", value="y"), at(5, 6, "get", value="x")],
     False),
    ("an acknowledged write that is lost", [at(0, 1, "put", value="x"), at(2, 3, "get", value=None)], False),
    ("a write in doubt that happened late",
     [at(0, math.inf, "put", value="x"), at(2, 3, "get", value=None), at(4, 5, "get", value="x")], True),
    ("a deletion that two were told of",
     [at(0, 1, "put", value="x"), at(2, 5, "delete"), at(3, 6, "delete")], False),
    ("a deletion that only one was told of",
     [at(0, 1, "put", value="x"), at(2, 5, "delete"), at(3, 6, "delete", found=False)], True),
    ("a move seen half", [at(0, 1, "put", value="x"), at(2, 5, "move", at=0, to=1),
                          at(3, 4, "list", values=("x", "x"))], False),
    ("a move seen before and after",
     [at(0, 1, "put", value="x"), at(2, 9, "move", at=0, to=1), at(3, 4, "list", values=("x", None)),
      at(5, 6, "list", values=(None, "x"))], True),
    ("a deleted file that comes back",
     [at(0, 1, "put", value="x"), at(2, 3, "delete"), at(4, 5, "get", value="x")], False),
    ("a deletion in doubt that happened late",
     [at(0, 1, "put", value="x"), at(2, math.inf, "delete"), at(3, 4, "get", value="x"), at(5, 6, "get", value=None)],
     True),
    ("a write in doubt that happened twice",
     [at(0, math.inf, "put", value="x"), at(1, 2, "get", value="x"), at(3, 4, "put", value="y"),
      at(5, 6, "get", value="x")], False),
    ("a write in doubt that is taken back",
     [at(0, 1, "put", value="x"), at(2, math.inf, "put", value="y"), at(3, 4, "get", value="y"),
      at(5, 6, "get", value="x")], False),
    ("a move in doubt of a write in doubt",
     [at(0, math.inf, "put", value="x"), at(1, math.inf, "move", at=0, to=1), at(2, 3, "list", values=(None, "x"))],
     True),
    ("bytes that nobody wrote", [at(0, 1, "put", value="x"), at(2, 3, "get", value="mix")], False),
]


@pytest.mark.parametrize(("history", "is_legal"), [history[1:] for history in HISTORIES],
                         ids=[history[0] for history in HISTORIES])
def test_judge_of_histories(history: list[Operation], is_legal: bool) -> None:
    assert is_linearizable(history, EMPTY) == is_legal


@pytest.fixture(scope="module")
def calm_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyStack]:
    """A service to which nothing happens but requests."""
    stack = FaultyStack(tmp_path_factory.mktemp("storm") / "data", {"ACCESS_TOKEN_TTL": "86400"})
    with stack.running():
        yield stack


@pytest.mark.parametrize("is_swept", [False, True], ids=["F16", "F18"])
async def test_storm_on_the_same_paths_has_an_order(
        calm_stack: FaultyStack, session: aiohttp.ClientSession, recorder: Recorder, rounds: int, is_swept: bool
) -> None:
    name = "F18 storm on the same paths, sweeps with grace 0" if is_swept else "F16 storm on the same paths"
    line = recorder.line(name)
    over = asyncio.Event()
    sweeps = removed = unavailable = 0

    async def sweep_all_the_time() -> None:
        nonlocal sweeps, removed
        while is_swept and not over.is_set():
            removed += await sweep(calm_stack.dsn, calm_stack.root)
            sweeps += 1

    sweeping = asyncio.create_task(sweep_all_the_time())
    requests = 0
    for number in range(rounds):
        storms = [await Storm.prepare(session, calm_stack, number * 10 + each) for each in range(OBJECTS)]
        await asyncio.gather(*(each.rage() for each in storms))
        for history, wrong, missed in [(each.history, each.wrong, each.unavailable) for each in storms]:
            assert wrong == []
            assert is_swept or missed == 0, "the bytes of a file were gone although nothing was swept"
            unavailable += missed
            in_doubt = sum(not operation.is_certain for operation in history)
            assert in_doubt == 0, "a request had no answer although nothing happened to the service"
            requests += len(history)
            line.injected += 1
            line.acknowledged += sum(operation.kind in ("put", "delete", "move") for operation in history)
            is_legal = await asyncio.to_thread(is_linearizable, history, EMPTY)
            line.lost += not is_legal
            assert is_legal, history
    over.set()
    await sweeping
    line.note = f"{requests} requests have a legal order" + (
        f"; {sweeps} sweeps removed {removed}, {unavailable} reads came too late for the bytes" * is_swept)
    assert bool(sweeps) == bool(removed) == is_swept
    await check_invariants(calm_stack.dsn, calm_stack.root, max_strays=0)


async def test_order_that_is_wrong_would_be_noticed(
        calm_stack: FaultyStack, session: aiohttp.ClientSession) -> None:
    """A real storm with one answer changed afterwards: the judge is not merely content with everything."""
    storm = await Storm.prepare(session, calm_stack, 999)
    await storm.rage()
    history = storm.history
    assert (storm.wrong, storm.unavailable) == ([], 0) and is_linearizable(history, EMPTY)
    last = max((operation for operation in history if operation.kind == "put"), key=lambda each: each.end)
    stale = min((operation for operation in history if operation.kind == "put"), key=lambda each: each.end)
    end = max(operation.end for operation in history)
    other = Operation("get", end + 1, end + 2, at=last.at, value=stale.value)
    assert not is_linearizable([*history, other], EMPTY)


FITTING, ASKED, RESTORED = 10, 50, 10
HELD = "SELECT files_bytes + versions_bytes + trash_bytes FROM users WHERE username = $1"


async def growth(account: Account, name: str, file_bytes: int) -> list[Awaitable[Reply | None]]:
    """Uploads and copies, each of which needs so many bytes more."""
    await account.put("/original", body_of(name, file_bytes))
    return [*(account.put(f"/put-{each}", body_of(f"{name}-{each}", file_bytes)) for each in range(ASKED // 2)),
            *(account.copy("/original", f"/copy-{each}") for each in range(ASKED // 2))]


async def restores(account: Account, name: str, file_bytes: int) -> list[Awaitable[Reply | None]]:
    """From the trash, which need no more than they had, and former versions, whose history gives way to them."""
    asked: list[Awaitable[Reply | None]] = []
    for each in range(RESTORED):
        body = body_of(f"{name}-restored-{each}", file_bytes)
        await account.put(f"/changed-{each}", body)
        await account.put(f"/changed-{each}", b"")
        asked.append(account.restore_version(f"/changed-{each}", 1, digest_of(body)))
        await account.put(f"/trashed-{each}", body)
        await account.delete(f"/trashed-{each}", permanent=False)
        [item] = [item for item in (await account.api.call("GET", "/file/trash", expect=200)).json["items"]
                  if item["path"] == f"/trashed-{each}"]
        asked.append(account.restore(item["id"], item["path"], digest_of(body)))
    return asked


@pytest.mark.parametrize("file_bytes", [7000, 70_000], ids=["in-memory", "spooled"])
@pytest.mark.parametrize("is_restored", [False, True], ids=["growth", "growth-and-restores"])
async def test_quota_is_exact_whoever_comes_at_once(
        calm_stack: FaultyStack, session: aiohttp.ClientSession, recorder: Recorder, rounds: int, file_bytes: int,
        is_restored: bool) -> None:
    line = recorder.line("F17 quota race", f"{file_bytes} bytes each" + ", beside restores" * is_restored)
    connection = await asyncpg.connect(calm_stack.dsn)
    for number in range(rounds):
        account = await Account.open(session, calm_stack)
        username, name = account.api.username, f"quota-{number}-{file_bytes}"
        asked = await growth(account, name, file_bytes)
        restored = await restores(account, name, file_bytes) if is_restored else []
        before = await connection.fetchval(HELD, username)
        await connection.execute("UPDATE users SET quota_bytes = $2 WHERE username = $1", username,
                                 before + FITTING * file_bytes + file_bytes - 1)
        replies = await asyncio.gather(*asked, *restored)
        statuses = [reply.status if reply is not None else 0 for reply in replies]
        assert statuses[ASKED:] == [200] * len(restored)
        fitted = statuses[:ASKED].count(201)
        assert sorted(statuses[:ASKED]) == [201] * fitted + [507] * (ASKED - fitted)
        # a former version that is restored takes the place of one of them, while its history has room
        assert fitted == FITTING or is_restored and fitted < FITTING
        assert await connection.fetchval(HELD, username) == before + FITTING * file_bytes
        line.injected += len(statuses)
        line.acknowledged += account.ledger.acknowledged
        damage, words = await examine([account], calm_stack.dsn, calm_stack.root)
        line.add(damage)
        assert not damage, words
    await connection.close()
    line.note = f"of {ASKED} at once exactly as many as fit"
    await check_invariants(calm_stack.dsn, calm_stack.root, max_strays=0)
