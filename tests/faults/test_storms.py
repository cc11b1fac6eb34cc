"""Storms on the same few paths (F16, F17, F18): all answers fit one order, no quota is passed, no reader sees a mix."""

import asyncio
import hashlib
import math
import random
import time
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from urllib.parse import quote

import aiohttp
import asyncpg
import orjson
import pytest

from tests.client import Api, new_account
from tests.faults.clients import NO_ANSWER, Account
from tests.faults.examine import check_invariants, examine
from tests.faults.ledger import body_of, digest_of
from tests.faults.linearizability import Operation, Value, is_linearizable
from tests.faults.recorder import Recorder
from tests.faults.sites import FaultyStack
from tests.invariants import sweep

PATHS = ("/storm/a", "/storm/b")
SIZES = (0, 100, 4096, 70_000, 300_000)
CLIENTS = 9
TURNS = 45  # of each client
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
    ("bytes that nobody wrote", [at(0, 1, "put", value="x"), at(2, 3, "get", value="mix")], False),
]


@pytest.mark.parametrize(("history", "is_legal"), [history[1:] for history in HISTORIES],
                         ids=[history[0] for history in HISTORIES])
def test_judge_of_histories(history: list[Operation], is_legal: bool) -> None:
    assert is_linearizable(history, (None, None)) == is_legal


@pytest.fixture(scope="module")
def calm_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyStack]:
    """A service to which nothing happens but requests."""
    stack = FaultyStack(tmp_path_factory.mktemp("storm") / "data", {"ACCESS_TOKEN_TTL": "86400"})
    try:
        stack.start()
        yield stack
    finally:
        if stack.process is not None:
            stack.stop()


class Client:
    """Does things to the two paths of an account that others use too, and notes what came of it."""

    def __init__(self, api: Api, seed: int) -> None:
        self._api = api
        self._random = random.Random(seed)
        self._name = f"{api.username}-{seed}"
        self._ways: list[Callable[[int, int], Awaitable[Operation | None]]] = [
            self._put, self._put, self._put, self._get, self._get, self._get, self._delete, self._move, self._list]
        self.history: list[Operation] = []
        self.wrong: list[str] = []

    async def run(self, turns: int) -> None:
        """So many requests, one after the other."""
        for number in range(turns):
            start = time.monotonic()
            operation = await self._random.choice(self._ways)(self._random.randrange(2), number)
            if operation is not None:
                end = time.monotonic() if operation.is_certain else math.inf
                self.history.append(replace(operation, start=start, end=end))

    async def _ask(self, method: str, address: str, allowed: tuple[int, ...], **more: object) -> tuple[int, bytes]:
        """Status and body; 0 without an answer."""
        try:
            reply = await self._api.call(method, address, **more)  # type: ignore[arg-type]
        except NO_ANSWER:
            return 0, b""
        if reply.status == 503 or b"content_unavailable" in reply.body:
            return 0, reply.body
        if reply.status not in allowed:
            self.wrong.append(f"{method} {address}: {reply.status} {reply.body[:200]!r}")
        return reply.status, reply.body

    @staticmethod
    def _end(status: int) -> float:
        return 0 if status else math.inf

    async def _put(self, index: int, number: int) -> Operation:
        body = body_of(f"{self._name}-{number}", self._random.choice(SIZES)) or f"{self._name}-{number}".encode()
        status, _ = await self._ask("PUT", f"/file?path={quote(PATHS[index])}", (200, 201), data=body)
        return Operation("put", 0, self._end(status), at=index, value=digest_of(body))

    async def _get(self, index: int, number: int) -> Operation | None:
        # A condition has the worker asked.  What nginx remembers is outdated before a change is acknowledged, not in
        # the very moment of its COMMIT: tests/api/test_decisions.py is about that.
        status, body = await self._ask("GET", f"/file/download?path={quote(PATHS[index])}", (200, 404),
                                       headers={"If-None-Match": '"none"'})
        value: Value = hashlib.sha256(body).hexdigest() if status == 200 else None
        return Operation("get", 0, 0, at=index, value=value) if status else None

    async def _delete(self, index: int, number: int) -> Operation:
        status, _ = await self._ask("DELETE", f"/file?path={quote(PATHS[index])}&permanent=true", (204, 404))
        return Operation("delete", 0, self._end(status), at=index, found=status == 204)

    async def _move(self, index: int, number: int) -> Operation | None:
        """Over whatever is there."""
        status, _ = await self._ask("POST", "/file/move", (200, 404, 409), json={
            "from": PATHS[index], "to": PATHS[1 - index], "overwrite": True})
        if status == 409:  # something changed meanwhile: nothing was done
            return None
        return Operation("move", 0, self._end(status), at=index, to=1 - index, found=status == 200)

    async def _list(self, index: int, number: int) -> Operation | None:
        status, body = await self._ask("GET", "/file/list?folder=/storm", (200,))
        if status != 200:
            return None
        found = {file["path"]: file["sha256"] for file in orjson.loads(body)["files"]}
        return Operation("list", 0, 0, values=tuple(found.get(path) for path in PATHS))


async def storm(session: aiohttp.ClientSession, stack: FaultyStack, seed: int) -> tuple[list[Operation], list[str]]:
    """One pair of paths; what was noted, and what was answered that may not be."""
    api = await new_account(session, stack)
    await api.call("POST", "/file/folder", json={"path": "/storm"}, expect=201)
    clients = [Client(api, seed * 100 + number) for number in range(CLIENTS)]
    await asyncio.gather(*(client.run(TURNS) for client in clients))
    return ([operation for client in clients for operation in client.history],
            [words for client in clients for words in client.wrong])


@pytest.mark.parametrize("is_swept", [False, True], ids=["F16", "F18"])
async def test_storm_on_the_same_paths_has_an_order(
        calm_stack: FaultyStack, session: aiohttp.ClientSession, recorder: Recorder, rounds: int, is_swept: bool
) -> None:
    name = "F18 storm on the same paths, sweeps with grace 0" if is_swept else "F16 storm on the same paths"
    line = recorder.line(name)
    over = asyncio.Event()
    sweeps = 0

    async def sweep_all_the_time() -> None:
        nonlocal sweeps
        while is_swept and not over.is_set():
            await sweep(calm_stack.dsn, calm_stack.root)
            sweeps += 1

    sweeping = asyncio.create_task(sweep_all_the_time())
    requests = 0
    for number in range(rounds):
        results = await asyncio.gather(*(storm(session, calm_stack, number * 10 + each) for each in range(OBJECTS)))
        for history, wrong in results:
            assert wrong == []
            in_doubt = sum(not operation.is_certain for operation in history)
            assert in_doubt == 0, "a request had no answer although nothing happened to the service"
            requests += len(history)
            line.injected += 1
            line.acknowledged += sum(operation.kind in ("put", "delete", "move") for operation in history)
            is_legal = await asyncio.to_thread(is_linearizable, history, (None, None))
            line.lost += not is_legal
            assert is_legal, history
    over.set()
    await sweeping
    line.note = f"{requests} requests have a legal order" + f"; {sweeps} sweeps" * is_swept
    assert bool(sweeps) == is_swept
    await check_invariants(calm_stack.dsn, calm_stack.root, max_strays=0)


async def test_order_that_is_wrong_would_be_noticed(
        calm_stack: FaultyStack, session: aiohttp.ClientSession) -> None:
    """A real storm with one answer changed afterwards: the judge is not merely content with everything."""
    history, wrong = await storm(session, calm_stack, 999)
    assert wrong == [] and is_linearizable(history, (None, None))
    last = max((operation for operation in history if operation.kind == "put"), key=lambda each: each.end)
    stale = min((operation for operation in history if operation.kind == "put"), key=lambda each: each.end)
    end = max(operation.end for operation in history)
    other = Operation("get", end + 1, end + 2, at=last.at, value=stale.value)
    assert not is_linearizable([*history, other], (None, None))


FITTING, ASKED, FILE_BYTES = 10, 50, 7000


async def test_quota_is_exact_whoever_comes_at_once(
        calm_stack: FaultyStack, session: aiohttp.ClientSession, recorder: Recorder, rounds: int) -> None:
    line = recorder.line("F17 quota race")
    for number in range(rounds):
        account = await Account.open(session, calm_stack)
        await account.put("/original", body_of(f"quota-{number}", FILE_BYTES))
        connection = await asyncpg.connect(calm_stack.dsn)
        await connection.execute("UPDATE users SET quota_bytes = $2 WHERE username = $1", account.api.username,
                                 (FITTING + 1) * FILE_BYTES + FILE_BYTES - 1)
        await connection.close()
        uploads = [account.put(f"/put-{each}", body_of(f"{number}-{each}", FILE_BYTES)) for each in range(ASKED // 2)]
        copies = [account.copy("/original", f"/copy-{each}") for each in range(ASKED // 2)]
        replies = await asyncio.gather(*uploads, *copies)
        statuses = sorted(reply.status if reply is not None else 0 for reply in replies)
        assert statuses == [201] * FITTING + [507] * (ASKED - FITTING)
        line.injected += ASKED
        line.acknowledged += account.ledger.acknowledged
        damage, words = await examine([account], calm_stack.dsn, calm_stack.root)
        line.add(damage)
        assert not damage, words
    line.note = f"of {ASKED} at once exactly the {FITTING} that fit"
    await check_invariants(calm_stack.dsn, calm_stack.root, max_strays=0)
