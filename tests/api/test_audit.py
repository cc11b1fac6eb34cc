"""The audit trail, from outside: each change leaves its line, and nobody else sees it."""

from collections.abc import Awaitable, Callable
from typing import Any, get_args

import aiohttp
import pytest

from service.api.routes import ROUTES
from service.model import Action
from tests.client import PASSWORD, Api, until

Trail = list[dict[str, Any]]
KEYS = {"at", "action", "outcome", "path", "file_id", "session_id", "network", "request_id", "details"}


async def trail_of(api: Api) -> Trail:
    """All of it, newest first."""
    page = (await api.call("GET", "/auth/audit?limit=1000", expect=200)).json
    assert page["next_cursor"] is None
    entries: Trail = page["entries"]
    assert all(set(entry) == KEYS for entry in entries)
    return entries


async def actions_of(api: Api) -> list[str]:
    """What was done, oldest first."""
    return [entry["action"] for entry in reversed(await trail_of(api))]


async def test_account_begins_with_its_registration_and_login(api: Api) -> None:
    login, registration = await trail_of(api)
    assert (registration["action"], login["action"]) == ("register", "login")
    assert registration["session_id"] is None
    sessions = (await api.call("GET", "/auth/session", expect=200)).json["sessions"]
    assert login["session_id"] == sessions[0]["id"]
    assert {entry["network"] for entry in (login, registration)} == {"127.0.0.0/24"}
    assert registration["path"] is None and registration["details"] == {}


async def test_line_says_what_where_and_by_whom(api: Api) -> None:
    reply = await api.put("/a/b.txt", b"12345")
    line = (await trail_of(api))[0]
    session = (await api.call("GET", "/auth/session", expect=200)).json["sessions"][0]
    assert line | {"at": ""} == {
        "at": "", "action": "upload", "outcome": "ok", "path": "/a/b.txt", "file_id": reply.json["id"],
        "session_id": session["id"], "network": "127.0.0.0/24", "request_id": reply.headers["X-Request-Id"],
        "details": {"version": 1, "size": 5}}
    assert line["at"] >= session["created_at"]


async def test_upload_into_a_folder_is_noted_with_its_whole_path(api: Api) -> None:
    await api.post(b"x", path="/homework/", filename="notes.txt")
    assert (await trail_of(api))[0]["path"] == "/homework/notes.txt"


async def change_everything(api: Api) -> None:
    """One of each change that an account can make."""
    file_id = (await api.put("/a/b.txt", b"1")).json["id"]
    await api.put("/a/b.txt", b"2", expect=200)
    await api.call("POST", "/file/versions/restore", json={"path": "/a/b.txt", "version": 1}, expect=200)
    await api.call("DELETE", "/file/versions?path=/a/b.txt&version=2", expect=204)
    await api.delete("/a/b.txt")
    await api.call("POST", "/file/trash/restore", json={"id": file_id}, expect=200)
    await api.delete("/a/b.txt")
    await api.call("DELETE", "/file/trash", expect=204)
    await api.put("/c.txt", b"3")
    await api.call("POST", "/file/folder", json={"path": "/new/folder"}, expect=201)
    await api.call("POST", "/file/move", json={"from": "/c.txt", "to": "/new/folder/"}, expect=200)
    await api.call("POST", "/file/copy", json={"from": "/new/folder/c.txt", "to": "/c.txt"}, expect=201)
    await api.call("POST", "/file/batch", json={"operations": [
        {"op": "move", "from": "/new", "to": "/old"}, {"op": "delete", "path": "/old", "permanent": True}]}, expect=200)
    link = (await api.call("POST", "/file/link", json={"path": "/c.txt"}, expect=201)).json["id"]
    await api.call("DELETE", f"/file/link/{link}", expect=204)
    await api.call("DELETE", "/file?path=/c.txt&permanent=true", expect=204)
    await api.call("DELETE", "/auth/session", expect=204)
    await api.call("POST", "/auth/password", json={"old_password": PASSWORD, "new_password": PASSWORD * 2}, expect=204)


async def test_each_change_leaves_a_line(api: Api) -> None:
    await change_everything(api)
    assert await actions_of(api) == [
        "register", "login", "upload", "upload", "version_restore", "version_delete", "trash", "trash_restore", "trash",
        "trash_delete", "upload", "folder_create", "move", "copy", "move", "delete", "link_create", "link_revoke",
        "delete", "session_end", "password_change"]
    assert {entry["outcome"] for entry in await trail_of(api)} == {"ok"}


async def test_what_only_reads_leaves_none(api: Api) -> None:
    await api.put("/a.txt", b"x")
    before = await trail_of(api)
    await api.get("/a.txt")
    await api.info("/a.txt")
    await api.list()
    await api.usage()
    await api.call("GET", "/auth/session", expect=200)
    assert await trail_of(api) == before


@pytest.mark.parametrize("headers", [{"If-Match": '"x"'}, {"Content-Digest": f"sha-256=:{'A' * 43}=:"}])
async def test_what_was_not_done_is_not_noted(api: Api, headers: dict[str, str]) -> None:
    await api.put("/a.txt", b"x", headers=headers, expect=None)
    await api.delete("/missing", expect=404)
    assert await actions_of(api) == ["register", "login"]


async def test_wrong_password_of_a_known_account_is_noted_without_a_session(api: Api) -> None:
    await api.call("POST", "/auth/jwt/login", json={"username": api.username, "password": "wrong wrong"}, expect=401)
    await until(lambda: _has(api, "login", "refused"))
    line = (await trail_of(api))[0]
    assert (line["session_id"], line["network"]) == (None, "127.0.0.0/24") and line["request_id"]


async def test_wrong_own_password_is_noted(api: Api) -> None:
    await api.call("POST", "/auth/password", json={"old_password": "wrong wrong", "new_password": PASSWORD}, expect=403)
    await api.call("DELETE", "/auth/me", json={"password": "wrong wrong"}, expect=403)
    await until(lambda: _has(api, "password_change", "refused"))
    await until(lambda: _has(api, "account_delete", "refused"))


async def _has(api: Api, action: str, outcome: str) -> bool:
    return any((entry["action"], entry["outcome"]) == (action, outcome) for entry in await trail_of(api))


async def test_guesses_do_not_fill_the_trail(api: Api) -> None:
    for _ in range(150):
        await api.call("POST", "/auth/jwt/login", json={"username": api.username, "password": "wrong wrong"},
                       expect=401)
    workers = 2  # each counts by itself without Redis
    assert len(await trail_of(api)) <= 2 + workers * 61


async def test_second_use_of_a_refresh_token_is_noted_once(api: Api) -> None:
    other = (await api.call("POST", "/auth/jwt/login", json={"username": api.username, "password": PASSWORD},
                            expect=200)).json["refresh_token"]
    for expect in (200, 401, 401):
        await api.call("POST", "/auth/jwt/refresh", json={"refresh_token": other}, expect=expect)
    assert await actions_of(api) == ["register", "login", "login", "token_reuse"]


async def test_logout_is_noted(api: Api) -> None:
    reply = await api.call("POST", "/auth/jwt/login", json={"username": api.username, "password": PASSWORD}, expect=200)
    other = Api(api.session, api.stack, reply.json["access_token"])
    await other.call("POST", "/auth/jwt/logout", expect=204)
    assert (await actions_of(api))[-1] == "logout"


async def test_upload_by_a_visitor_is_in_the_trail_of_the_maker(api: Api, anonymous: Api) -> None:
    await api.put("/inbox/first.txt", b"x")
    reply = await api.call("POST", "/file/link", json={"path": "/inbox", "kind": "upload"}, expect=201)
    address = reply.json["url"].removeprefix(api.stack.url)
    form = aiohttp.FormData()
    form.add_field("file", b"hello", filename="from-a-visitor.txt")
    await anonymous.call("POST", address, data=form, expect=201)
    line = (await trail_of(api))[0]
    assert (line["action"], line["path"], line["session_id"]) == ("upload", "/inbox/from-a-visitor.txt", None)


# --- pages ---

async def test_pages_are_the_whole_without_gap_or_repetition(api: Api) -> None:
    for number in range(7):
        await api.put(f"/{number}", b"")
    whole = await trail_of(api)
    for limit in (1, 2, 3, 9, 100):
        pages, cursor = [], ""
        while True:
            page = (await api.call("GET", f"/auth/audit?limit={limit}{cursor}", expect=200)).json
            assert 0 < len(page["entries"]) <= limit
            pages += page["entries"]
            if page["next_cursor"] is None:
                break
            cursor = f"&cursor={page['next_cursor']}"
        assert pages == whole


async def test_new_lines_do_not_move_the_next_page(api: Api) -> None:
    for number in range(4):
        await api.put(f"/{number}", b"")
    first = (await api.call("GET", "/auth/audit?limit=3", expect=200)).json
    await api.put("/later", b"")
    rest = (await api.call("GET", f"/auth/audit?cursor={first['next_cursor']}", expect=200)).json
    assert [entry["path"] for entry in first["entries"] + rest["entries"]] == ["/3", "/2", "/1", "/0", None, None]


@pytest.mark.parametrize(("query", "field"), [
    ("limit=0", "limit"), ("limit=1001", "limit"), ("limit=x", "limit"), ("cursor=x", "cursor"),
    ("cursor=AAAA", "cursor"), ("cursor=AAAAAAAAABc%3D%3D", "cursor"), ("cursor=%C3%A4", "cursor")])
async def test_odd_parameter_is_named(api: Api, query: str, field: str) -> None:
    assert (await api.call("GET", f"/auth/audit?{query}", expect=422)).json["field"] == field


async def test_cursor_of_somebody_else_or_of_another_list_is_refused(
        api: Api, other_account: Callable[[], Awaitable[Api]]) -> None:
    stranger = await other_account()
    for number in range(3):
        await stranger.put(f"/secret-{number}", b"")
    cursor = (await stranger.call("GET", "/auth/audit?limit=1", expect=200)).json["next_cursor"]
    assert (await api.call("GET", f"/auth/audit?cursor={cursor}")).code == "invalid_field"
    assert (await stranger.call("GET", f"/file/trash?cursor={cursor}")).code == "invalid_field"
    await stranger.call("GET", f"/auth/audit?cursor={cursor}", expect=200)


# --- completeness ---

NOTED = {
    "register": "register", "log_in": "login", "log_out": "logout", "change_password": "password_change",
    "end_session": "session_end", "end_sessions": "session_end", "upload_form": "upload", "upload_bytes": "upload",
    "upload_through_link": "upload", "delete_file": "trash", "restore_trashed": "trash_restore",
    "empty_trash": "trash_delete", "restore_version": "version_restore", "forget_versions": "version_delete",
    "make_link": "link_create", "revoke_link": "link_revoke", "make_folder": "folder_create", "move_file": "move",
    "copy_file": "copy", "run_batch": "move",
}
UNNOTED = {
    "refresh": "goes on with a session that is in the trail; a token used twice is noted",
    "delete_me": "the trail goes with the account; the log has it",
    "sign_address": "changes nothing: an address is computed",
    "open_link": "a visitor shows the password of a link, which changes nothing",
}


def test_each_route_that_changes_something_was_thought_of() -> None:
    """A new one needs `audit.record` in its transaction and a line in the tests above, or a reason why not."""
    changing = {route.handler.__name__ for route in ROUTES if route.method not in ("GET", "HEAD")}
    assert changing == NOTED.keys() | UNNOTED.keys()
    assert set(NOTED.values()) <= set(get_args(Action))
