"""A PostgreSQL that says nothing any more (F6): every request is answered within the time that is promised."""

import asyncio
import functools
import signal
import time
import uuid
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path

import aiohttp
import pytest

from service.run import processes
from tests.client import PASSWORD, Api, Reply, new_account, until
from tests.faults.recorder import Line, Recorder
from tests.faults.sites import OwnPostgres, own_postgres
from tests.faults.test_degradation import MIB, PATIENCE_SECONDS, Ask, goes_on, is_sound, running, timed

DOWN_SECONDS = 5.0  # what is promised, and what a client measures
PAUSE_SECONDS = 12.0


@pytest.fixture(scope="module")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OwnPostgres]:
    """On the ordinary disk."""
    with own_postgres(tmp_path_factory.mktemp("postgres")) as found:
        yield found


@pytest.fixture(params=["auto", "off"])
def nginx(request: pytest.FixtureRequest) -> str:
    """With nginx and without."""
    return str(request.param)


def routes(api: Api) -> dict[str, Ask]:
    """One request of each kind that asks the database."""
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
        "refresh": lambda: api.call("POST", "/auth/jwt/refresh", json={"refresh_token": api.refresh_token}),
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
        return reply

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
    waits.longest["large, after its body"] = time.monotonic() - min(begun)


async def note_uploads_under_way(
        waits: Waits, api: Api, stopped: asyncio.Event, stored: set[str], *, size: int) -> None:
    """Uploads at whatever step, COMMIT among them: stored, or 503 within the time."""
    async def store() -> None:
        while not stopped.is_set():
            path = f"/under-way-{uuid.uuid4().hex}"
            reply = await waits.ask(f"{size} bytes, under way",
                                    functools.partial(api.put, path, bytes(size), expect=None),
                                    allowed=(201, 503))
            if reply.status == 201:
                stored.add(path)

    await asyncio.gather(*(store() for _ in range(6)))


async def test_hanging_database_is_503_on_every_route_within_seconds_and_comes_back(
        recorder: Recorder, session: aiohttp.ClientSession, postgres: OwnPostgres, tmp_path: Path, nginx: str) -> None:
    line = recorder.line("F6 PostgreSQL hangs", f"SIGSTOP for {PAUSE_SECONDS:.0f} s, nginx {nginx}")
    with running(tmp_path / "data", postgres, NGINX=nginx) as stack:
        api = await new_account(session, stack)
        await api.put("/kept", b"kept" * 1000)
        await api.put("/key", b"key", headers={"Idempotency-Key": "sent-before"})
        waits, stopped, over = Waits(line), asyncio.Event(), asyncio.Event()
        stored: set[str] = set()
        async with asyncio.TaskGroup() as asking:
            asking.create_task(note_late_uploads(waits, api, stopped))
            for size in (1000, 2 * 2**16):
                asking.create_task(note_uploads_under_way(waits, api, stopped, stored, size=size))
            await asyncio.sleep(1)
            processes.send(hanging := postgres.processes, signal.SIGSTOP)
            try:
                stopped.set()
                for what, ask in routes(api).items():
                    asking.create_task(waits.ask_again_and_again(what, ask, over))
                await asyncio.sleep(PAUSE_SECONDS)
                over.set()
                await asyncio.sleep(DOWN_SECONDS + 1)  # the last ones are answered by a server that hangs
            finally:
                over.set()
                processes.send(hanging, signal.SIGCONT)
        began = time.monotonic()

        async def is_back() -> bool:
            replies = await asyncio.gather(*(ask() for what, ask in routes(api).items() if what.startswith("GET ")))
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
