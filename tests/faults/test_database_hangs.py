"""A PostgreSQL that says nothing any more (F6): every request is answered within the time that is promised."""

import asyncio
import functools
import signal
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import aiohttp
import asyncpg
import pytest

from service.run import processes
from tests.client import PASSWORD, Api, Reply, new_account, until
from tests.faults.degraded import MIB, PATIENCE_SECONDS, Ask, goes_on, is_sound, running, through_proxy, timed
from tests.faults.examine import check_invariants
from tests.faults.machine import kill
from tests.faults.recorder import Line, Recorder
from tests.faults.sites import OwnPostgres

DOWN_SECONDS = 5.0  # what is promised, and what a client measures
PAUSE_SECONDS = 12.0
ROUNDS = 3
UPLOADS = ("small", "large", "form", "replay", "upload")  # how the names of requests begin that bring bytes
REPORTS = ("GET /readyz", "GET /ping/all")  # their 503 is what was asked for, and refuses nothing


def routes(api: Api, other: Api) -> dict[str, Ask]:
    """One request of each kind that asks the database; the session of the other account may end by that."""
    credentials = {"username": api.username, "password": PASSWORD}
    gets = ["/file/list", "/file/list?folder=/&limit=10", "/file/info?path=/", "/file/usage_memory", "/auth/me",
            "/file/trash", "/file/link", "/file/download?path=/kept", "/file/archive?path=/", "/auth/session",
            "/auth/audit", "/readyz", "/ping/all"]
    keyed = {"Idempotency-Key": "sent-before"}
    return {
        **{f"GET {address}": functools.partial(api.call, "GET", address) for address in gets},
        "small": lambda: api.put("/late", bytes(1000), expect=None),
        "small, new": lambda: api.put(f"/{uuid.uuid4().hex}", bytes(1000), expect=None),
        "small, new, beside it": lambda: api.put(f"/{uuid.uuid4().hex}", bytes(1000), expect=None),
        "large": lambda: api.put("/late", bytes(MIB), expect=None),
        "form": lambda: api.post(bytes(MIB), path="/late", expect=None),
        "replay": lambda: api.put("/key", b"key", expect=None, headers=keyed),
        "login": lambda: api.call("POST", "/auth/jwt/login", json=credentials),
        "refresh": lambda: api.call("POST", "/auth/jwt/refresh", json={"refresh_token": other.refresh_token}),
        "folder": lambda: api.call("POST", "/file/folder", json={"path": "/late"}),
        "move": lambda: api.call("POST", "/file/move", json={"from": "/kept", "to": "/late"}),
        "copy": lambda: api.call("POST", "/file/copy", json={"from": "/kept", "to": "/late"}),
        "delete": lambda: api.delete("/kept", expect=None),
        "link": lambda: api.call("POST", "/file/link", json={"path": "/kept"}),
    }


class Waits:
    """How long each kind of request waited for its answer while the database said nothing."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self.longest: dict[str, float] = {}
        self.wrong: list[tuple[str, int, bytes]] = []

    async def ask(self, what: str, ask: Ask, *, allowed: Sequence[int] = (503,)) -> Reply:
        """Ask once, and note it."""
        reply, seconds = await timed(ask)
        self._line.injected += 1
        self.longest[what] = max(seconds, self.longest.get(what, 0.0))
        if reply.status not in allowed:
            self.wrong.append((what, reply.status, reply.body[:200]))
        self.look_at(what, reply)
        return reply

    def look_at(self, what: str, reply: Reply) -> None:
        """A refusal says when to come again, and nobody may know what became of an upload."""
        if reply.status == 503 and what not in REPORTS and int(reply.headers.get("Retry-After", 0)) < 1:
            self.wrong.append((f"{what}: no Retry-After", reply.status, reply.body[:200]))
        self._line.in_doubt += what.startswith(UPLOADS) and reply.status >= 500

    async def ask_again_and_again(self, what: str, ask: Ask, over: asyncio.Event) -> None:
        """Ask until it is over, each time at another moment of the others' waiting."""
        while not over.is_set():
            await self.ask(what, ask)
            await asyncio.sleep(0.05)


async def note_late_uploads(waits: Waits, api: Api, stopped: asyncio.Event) -> None:
    """Bodies that begin before the database hangs and end after it: what comes after the spool meets it."""
    async def pieces() -> AsyncIterator[bytes]:
        yield bytes(MIB)
        await stopped.wait()
        begun.append(time.monotonic())
        yield bytes(MIB)

    begun: list[float] = []
    for reply in await asyncio.gather(*(
            api.put(f"/spooled-{number}", pieces(), expect=None) for number in range(4))):
        assert reply.status == 503, reply.body
        waits.look_at("upload, after its body", reply)
    waits.longest["upload, after its body"] = time.monotonic() - min(begun)


async def note_uploads_under_way(
        waits: Waits, api: Api, stopped: asyncio.Event, stored: set[str], *, size: int) -> None:
    """Uploads at whatever step, COMMIT among them: stored, or 503 within the time."""
    async def store() -> None:
        while not stopped.is_set():
            path = f"/under-way-{uuid.uuid4().hex}"
            reply = await waits.ask(f"upload of {size} bytes, under way",
                                    functools.partial(api.put, path, bytes(size), expect=None),
                                    allowed=(201, 503))
            if reply.status == 201:
                stored.add(path)

    await asyncio.gather(*(store() for _ in range(6)))


async def test_hanging_database_is_503_on_every_route_within_seconds_and_comes_back(
        recorder: Recorder, session: aiohttp.ClientSession, server: OwnPostgres, tmp_path: Path, nginx: str) -> None:
    line = recorder.line("F6 PostgreSQL hangs", f"SIGSTOP for {PAUSE_SECONDS:.0f} s, nginx {nginx}")
    with running(tmp_path / "data", server, NGINX=nginx) as stack:
        api = await new_account(session, stack)
        await api.put("/kept", b"kept" * 1000)
        await api.put("/key", b"key", headers={"Idempotency-Key": "sent-before"})
        asks = routes(api, await new_account(session, stack))
        waits, stopped, over = Waits(line), asyncio.Event(), asyncio.Event()
        stored: set[str] = set()
        async with asyncio.TaskGroup() as asking:
            asking.create_task(note_late_uploads(waits, api, stopped))
            for size in (1000, 2 * 2**16):
                asking.create_task(note_uploads_under_way(waits, api, stopped, stored, size=size))
            await asyncio.sleep(1)
            processes.send(hanging := server.processes, signal.SIGSTOP)
            try:
                stopped.set()
                for what, ask in asks.items():
                    asking.create_task(waits.ask_again_and_again(what, ask, over))
                await asyncio.sleep(PAUSE_SECONDS)
                over.set()
                await asyncio.sleep(DOWN_SECONDS + 1)  # the last ones are answered by a server that hangs
            finally:
                over.set()
                processes.send(hanging, signal.SIGCONT)
        began = time.monotonic()

        async def is_back() -> bool:
            replies = await asyncio.gather(*(ask() for what, ask in asks.items() if what.startswith("GET ")))
            return {reply.status for reply in replies} == {200}

        await until(is_back, seconds=PATIENCE_SECONDS)
        line.recovered(time.monotonic() - began)
        line.acknowledged = len(stored)
        what, longest = max(waits.longest.items(), key=lambda item: item[1])
        line.note = f"503 for each of {line.injected - len(stored)} requests, after {longest:.1f} s at most ({what})"
        assert not waits.wrong
        assert longest < DOWN_SECONDS, waits.longest
        listed = {file["path"] for file in await api.list()}
        line.lost = len(stored - listed)
        assert not line.lost
        await goes_on(api)
        await is_sound(stack, line)


# --- the way to it: nothing arrives any more, and nobody is told ---

@pytest.mark.parametrize("also_new", [False, True], ids=["connections that there are", "new ones too"])
async def test_lost_way_to_the_database_is_503_within_seconds(
        recorder: Recorder, session: aiohttp.ClientSession, server: OwnPostgres, tmp_path: Path,
        also_new: bool) -> None:
    """As behind a firewall that has forgotten its connections, or that lets nothing through any more."""
    line = recorder.line("F7 way to PostgreSQL lost", "new connections too" if also_new else "all that there were")
    async with through_proxy(server, tmp_path / "data") as (stack, proxy, dsn):
        api = await new_account(session, stack)
        await api.put("/kept", b"kept" * 1000)
        await api.put("/key", b"key", headers={"Idempotency-Key": "sent-before"})
        waits = Waits(line)
        for _ in range(ROUNDS):
            asks = routes(api, await new_account(session, stack))
            assert await answers(api)  # from connections that will be lost
            proxy.swallow(also_new=also_new)
            await asyncio.gather(*(waits.ask(what, ask, allowed=(503,) if also_new else range(200, 504))
                                   for what, ask in asks.items()))
            proxy.open()
            await until(functools.partial(answers, api), seconds=PATIENCE_SECONDS)
            await api.put("/kept", b"kept" * 1000, expect=None)  # may have been moved, or deleted
        what, longest = max(waits.longest.items(), key=lambda item: item[1])
        line.note = f"each of {line.injected} requests was answered, after {longest:.1f} s at most ({what})"
        assert not waits.wrong
        assert longest < DOWN_SECONDS, waits.longest
        await goes_on(api)
        await check_invariants(dsn, stack.root, max_strays=line.in_doubt)


async def answers(api: Api) -> bool:
    """Whether the database is there for the workers, each of several times."""
    replies = await asyncio.gather(*(api.call("GET", "/auth/session") for _ in range(8)))
    return all(reply.status == 200 for reply in replies)


def has(stored: set[str], wanted: int) -> bool:
    """Whether so many are stored."""
    return len(stored) >= wanted


async def find_backend(dsn: str) -> int:
    """A process that works for a worker."""
    conn = await asyncpg.connect(dsn)
    try:
        return int(await conn.fetchval("SELECT max(pid) FROM pg_stat_activity WHERE datname = current_database() "
                                       "AND application_name LIKE 'file-storage%' AND pid <> pg_backend_pid()"))
    finally:
        conn.terminate()


async def test_killed_backends_are_answered_for_within_seconds(
        recorder: Recorder, session: aiohttp.ClientSession, server: OwnPostgres, tmp_path: Path) -> None:
    """One process of the server is killed, and the server begins anew: uploads are stored, or not, and are told so."""
    line = recorder.line("F6 PostgreSQL's backend killed", "amid uploads")
    with running(tmp_path / "data", server) as stack:
        api = await new_account(session, stack)
        await api.put("/kept", b"kept" * 1000)
        waits, over, stored = Waits(line), asyncio.Event(), set[str]()
        async with asyncio.TaskGroup() as asking:
            for size in (1000, 2 * 2**16):
                asking.create_task(note_uploads_under_way(waits, api, over, stored, size=size))
            for _ in range(ROUNDS):
                wanted = len(stored) + 10
                await until(functools.partial(has, stored, wanted), seconds=PATIENCE_SECONDS)
                await kill([await find_backend(stack.settings["DATABASE_URL"])])
            over.set()
        line.acknowledged = len(stored)
        what, longest = max(waits.longest.items(), key=lambda item: item[1])
        line.note = f"{ROUNDS} kills; {line.injected} uploads answered, after {longest:.1f} s at most ({what})"
        await until(functools.partial(answers, api), seconds=PATIENCE_SECONDS)
        assert not waits.wrong
        assert longest < DOWN_SECONDS, waits.longest
        line.lost = len(stored - {file["path"] for file in await api.list()})
        assert not line.lost
        await is_sound(stack, line)
