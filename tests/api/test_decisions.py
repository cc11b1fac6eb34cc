"""nginx remembers what a download was decided to be: never longer than it is true.

A reader that starts after a change was answered for never sees what was before it, on any path, remembered or not.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from urllib.parse import quote

import aiohttp
import pytest

from tests.api.test_sessions import log_in
from tests.client import PASSWORD, Api, Reply, new_account
from tests.stack import Stack

OTHER_PASSWORD = "incorrect mule battery staple"
WARM = 4  # the second request makes nginx remember, the third finds it


async def warm(api: Api, path: str, expect: int = 200) -> Reply:
    """Ask until nginx has remembered."""
    for _ in range(WARM):
        reply = await api.get(path, expect=expect)
    return reply


@pytest.fixture
async def warmed(session: aiohttp.ClientSession, nginx_stack: Stack) -> Api:
    """An account with /a.txt, which nginx remembers."""
    api = await new_account(session, nginx_stack)
    await api.put("/a.txt", b"old")
    await warm(api, "/a.txt")
    return api


# --- what is remembered is what a worker says ---

def lasting(reply: Reply) -> dict[str, str]:
    """The headers but those that differ from one answer to the next."""
    return {name.lower(): value for name, value in reply.headers.items()
            if name.lower() not in ("date", "x-request-id", "connection")}


@pytest.mark.parametrize("name", ["plain.bin", "снимок 📷.png", 'quo"te;%41.txt', "page.html"])
async def test_remembered_answer_is_that_of_the_worker(session: aiohttp.ClientSession, nginx_stack: Stack,
                                                       name: str) -> None:
    api = await new_account(session, nginx_stack)
    await api.put(f"/{name}", b"content")
    asked = await api.get(f"/{name}", headers={"If-None-Match": '"another"'})  # conditions are always the worker's
    for method in ("GET", "HEAD"):
        for _ in range(WARM):
            reply = await api.call(method, f"/file/download?path={quote(f'/{name}')}", expect=200)
            assert lasting(reply) == lasting(asked)
            assert reply.body == (b"content" if method == "GET" else b"")


async def test_hot_file_is_sent_without_asking_a_worker(warmed: Api) -> None:
    def times_asked() -> int:
        return sum('"download_file"' in line and warmed_id in line for line in warmed.stack.log_text.splitlines())

    warmed_id = (await warmed.call("GET", "/auth/me", expect=200)).json["id"]
    before = times_asked()
    for _ in range(20):
        await warmed.get("/a.txt")
    assert times_asked() - before < 20


# --- every change is seen at once ---

@dataclass(frozen=True)
class Change:
    """A change, and what a download of /a.txt has to be after it: a body, or a status."""

    act: Callable[[Api], Awaitable[object]]
    then: bytes | int


async def _move_away(api: Api) -> None:
    await api.call("POST", "/file/move", json={"from": "/a.txt", "to": "/b.txt"}, expect=200)


async def _replace_by(api: Api, how: str) -> None:
    await api.put("/new.txt", b"new")
    await api.call("POST", f"/file/{how}", json={"from": "/new.txt", "to": "/a.txt", "overwrite": True})
    assert (await api.info("/a.txt"))["size"] == 3


async def _restore_version(api: Api) -> None:
    await api.put("/a.txt", b"newer", expect=200)
    await warm(api, "/a.txt")
    await api.call("POST", "/file/versions/restore", json={"path": "/a.txt", "version": 1}, expect=200)


async def _restore_from_trash(api: Api) -> None:
    await api.delete("/a.txt")
    await warm(api, "/a.txt", expect=404)
    (item,) = (await api.call("GET", "/file/trash", expect=200)).json["items"]
    await api.call("POST", "/file/trash/restore", json={"id": item["id"]}, expect=200)


async def _end_all_sessions(api: Api) -> None:
    await api.call("DELETE", "/auth/session?all=true", expect=204)


async def _end_from_elsewhere(api: Api) -> None:
    other = await log_in(api)
    await warm(api, "/a.txt")
    await other.call("DELETE", "/auth/session", expect=204)


async def _change_password_elsewhere(api: Api) -> None:
    other = await log_in(api)
    await warm(api, "/a.txt")
    await other.call("POST", "/auth/password", json={"old_password": PASSWORD, "new_password": OTHER_PASSWORD},
                     expect=204)


async def _reuse_refresh_token(api: Api) -> None:
    for status in (200, 401):
        await Api(api.session, api.stack).call("POST", "/auth/jwt/refresh", json={"refresh_token": api.refresh_token},
                                               expect=status)
        if status == 200:
            await warm(api, "/a.txt")


CHANGES = {
    "overwrite": Change(lambda api: api.put("/a.txt", b"new", expect=200), b"new"),
    "overwrite by a form": Change(lambda api: api.post(b"new", path="/a.txt", expect=200), b"new"),
    "delete": Change(lambda api: api.delete("/a.txt"), 404),
    "delete for good": Change(lambda api: api.delete("/a.txt", permanent=True), 404),
    "delete the folder": Change(lambda api: api.call("POST", "/file/batch", json={
        "operations": [{"op": "delete", "path": "/a.txt"}]}, expect=200), 404),
    "move away": Change(_move_away, 404),
    "move over it": Change(lambda api: _replace_by(api, "move"), b"new"),
    "copy over it": Change(lambda api: _replace_by(api, "copy"), b"new"),
    "restore a version": Change(_restore_version, b"old"),
    "restore from the trash": Change(_restore_from_trash, b"old"),
    "log out": Change(lambda api: api.call("POST", "/auth/jwt/logout", expect=204), 401),
    "end all sessions": Change(_end_all_sessions, 401),
    "end it from elsewhere": Change(_end_from_elsewhere, 401),
    "change the password elsewhere": Change(_change_password_elsewhere, 401),
    "use a refresh token twice": Change(_reuse_refresh_token, 401),
    "delete the account": Change(
        lambda api: api.call("DELETE", "/auth/me", json={"password": PASSWORD}, expect=204), 401),
}


@pytest.mark.parametrize("name", CHANGES)
async def test_change_is_seen_by_the_next_reader(warmed: Api, name: str) -> None:
    change = CHANGES[name]
    await change.act(warmed)
    for _ in range(WARM):  # another worker each time, and then nginx
        reply = await warmed.get("/a.txt", expect=None)
        assert (reply.body if isinstance(change.then, bytes) else reply.status) == change.then


async def test_former_version_that_was_removed_is_gone(warmed: Api) -> None:
    await warmed.put("/a.txt", b"new", expect=200)
    address = "/file/download?path=/a.txt&version=1"
    for _ in range(WARM):
        assert (await warmed.call("GET", address, expect=200)).body == b"old"
    await warmed.call("DELETE", "/file/versions?path=/a.txt&version=1", expect=204)
    await warmed.call("GET", address, expect=404)


async def test_remembered_for_one_token_is_nothing_to_another(warmed: Api, session: aiohttp.ClientSession) -> None:
    stranger = await new_account(session, warmed.stack)
    await warm(warmed, "/a.txt")
    await stranger.get("/a.txt", expect=404)
    begin, middle, end = warmed.token.split(".")
    forged = Api(session, warmed.stack)
    for token in (f"{begin}.{middle}.{end[:-4]}AAAA", f"{begin}.{middle}A.{end}", f"{begin}.{middle}.", ""):
        forged.token = token
        assert (await forged.get("/a.txt", expect=401)).code == "unauthenticated"


# --- under load ---

@dataclass
class Race:
    """Changes of one path, numbered; the body of a file is the number of the change that made it."""

    path: str = "/hot.bin"
    started: int = -1
    answered: int = -1
    wrong: list[str] = field(default_factory=list)
    reads: int = 0

    @staticmethod
    def is_deletion(number: int) -> bool:
        return number % 5 == 4

    async def write(self, api: Api, count: int) -> None:
        """Overwrite and delete."""
        for number in range(count):
            self.started = number
            if self.is_deletion(number):
                await api.delete(self.path)
            else:
                reply = await api.put(self.path, b"%08d" % number, expect=None)
                assert reply.status in (200, 201)
            self.answered = number

    async def read(self, api: Api, is_over: asyncio.Event, headers: dict[str, str]) -> None:
        """Read again and again; whoever finds what was there before the last answer notes it."""
        while not is_over.is_set():
            begin = self.answered
            reply = await api.get(self.path, expect=None, headers=headers)
            self.reads += 1
            if reply.status in (200, 206) and int(reply.body) < begin:
                self.wrong.append(f"{int(reply.body)} was read after {begin} was answered for")
            deleted = any(map(self.is_deletion, range(begin, self.started + 1)))
            if reply.status == 404 and not deleted and begin >= 0:
                self.wrong.append(f"nothing was there although {begin} was answered for")
            assert reply.status in (200, 206, 404)


async def outdated_answers(api: Api, *, changes: int) -> list[str]:
    """What readers saw that they should not have."""
    race, is_over = Race(), asyncio.Event()
    readers = [await log_in(api) for _ in range(2)]
    kinds: list[dict[str, str]] = [{}, {}, {}, {"Range": "bytes=0-7"}, {"If-None-Match": '"x"'}]
    tasks = [asyncio.create_task(race.read(reader, is_over, kind)) for reader in readers for kind in kinds]
    try:
        await race.write(api, changes)
        for reader in readers:  # and revoke: each download after the answer is refused
            await warm(reader, "/kept.bin")
    finally:
        is_over.set()
        await asyncio.gather(*tasks)
    for reader in readers:
        await warm(reader, "/kept.bin")
        await reader.call("POST", "/auth/jwt/logout", expect=204)
        if (reply := await reader.get("/kept.bin", expect=None)).status != 401:
            race.wrong.append(f"{reply.status} after the end of the session")
    assert race.reads > changes / 2
    return race.wrong


async def test_readers_never_see_the_past(session: aiohttp.ClientSession, stack: Stack) -> None:
    api = await new_account(session, stack)
    await api.put("/kept.bin", b"kept")
    assert await outdated_answers(api, changes=100) == []


@pytest.fixture(scope="module")
def forgetful_stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A service whose changes leave the mark of the account as it was."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FAULTS", "m13")
        stack = Stack(tmp_path_factory.mktemp("forgetful") / "data", module="tests.faults.faulty_service").start()
    yield stack
    stack.stop()


@pytest.mark.mutant("M13", "a mark that a change does not renew")
async def test_mark_that_stays_is_noticed(session: aiohttp.ClientSession, forgetful_stack: Stack) -> None:
    api = await new_account(session, forgetful_stack)
    await api.put("/kept.bin", b"kept")
    wrong = await outdated_answers(api, changes=100)
    assert any("was read after" in line for line in wrong)
    assert any("after the end of the session" in line for line in wrong)
