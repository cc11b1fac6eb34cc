"""Moves and copies from outside: where things go, what stays as it is, what is refused and then changes nothing."""

from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import pytest

from tests.client import Api, Reply
from tests.stack import Stack

OtherAccount = Callable[[], Awaitable[Api]]


async def change(api: Api, action: str, source: str, to: str, expect: int | None = None, *,
                 headers: dict[str, str] | None = None, **more: object) -> Reply:
    usual = {"move": 200, "copy": 201}[action]
    return await api.call("POST", f"/file/{action}", json={"from": source, "to": to, **more},
                          expect=expect or usual, headers=headers)


async def tree(api: Api) -> dict[str, tuple[str, int | None]]:
    """Everything below the root, by path."""
    found = (await api.call("GET", "/file/list?recursive=true", expect=200)).json
    return {entry["path"]: (entry["type"], entry.get("size")) for entry in found["folders"] + found["files"]}


@pytest.fixture(params=["move", "copy"])
def action(request: pytest.FixtureRequest) -> str:
    """What is the same for both."""
    return str(request.param)


@pytest.mark.parametrize(("to", "path"), [
    ("/b.txt", "/b.txt"), ("/dir/", "/dir/a.txt"), ("/dir", "/dir/a.txt"), ("/new/", "/new/a.txt"),
    ("/new/deep/b.txt", "/new/deep/b.txt"), ("/dir/b", "/dir/b"), ("b", "/b"), ("/写真", "/写真"),
    ("/e\u0301", "/\u00e9"),
])
async def test_a_file_goes_where_it_is_told(api: Api, action: str, to: str, path: str) -> None:
    stored = (await api.put("/a.txt", b"hello")).json
    await api.put("/dir/other", b"x")
    reply = await change(api, action, "/a.txt", to)
    found = reply.json
    assert (found["path"], found["name"]) == (path, path.rpartition("/")[2])
    assert reply.headers["ETag"] == found["etag"]
    assert (await api.get(path)).body == b"hello"
    if action == "move":
        assert {**found, "path": "", "name": ""} == {**stored, "path": "", "name": ""}
        await api.get("/a.txt", expect=404)
    else:
        assert (found["sha256"], found["size"], found["version"]) == (stored["sha256"], 5, 1)
        assert found["id"] != stored["id"] and found["etag"] != stored["etag"]
        assert (await api.get("/a.txt")).body == b"hello"
    usage = await api.usage()
    assert (usage["files"], usage["count"]) == ((6, 2) if action == "move" else (11, 3))


async def test_a_folder_goes_with_all_that_is_in_it(api: Api, action: str) -> None:
    for path in ("/a/1", "/a/b/2", "/a/b/c/3"):
        await api.put(path, path.encode())
    await api.call("POST", "/file/folder", json={"path": "/a/empty"}, expect=201)
    folder = await api.info("/a")
    found = (await change(api, action, "/a", "/x/y")).json
    assert (found["type"], found["path"]) == ("folder", "/x/y")
    assert (found["id"] == folder["id"]) == (action == "move")
    below = {"": ("folder", None), "/1": ("file", 4), "/b": ("folder", None), "/b/2": ("file", 6),
             "/b/c": ("folder", None), "/b/c/3": ("file", 8), "/empty": ("folder", None)}
    expected: dict[str, tuple[str, int | None]] = {"/x": ("folder", None)} | {
        f"/x/y{path}": what for path, what in below.items()}
    if action == "copy":
        expected |= {f"/a{path}": what for path, what in below.items()}
    assert await tree(api) == expected
    assert (await api.get("/x/y/b/c/3")).body == b"/a/b/c/3"
    usage = await api.usage()
    assert (usage["files"], usage["count"]) == ((18, 3) if action == "move" else (36, 6))


async def test_into_an_existing_folder_under_the_own_name(api: Api, action: str) -> None:
    await api.put("/a/1", b"x")
    await api.put("/b/2", b"x")
    folder = await api.info("/b")
    assert (await change(api, action, "/a", folder["id"])).json["path"] == "/b/a"
    assert (await api.get("/b/a/1")).body == b"x"


async def test_by_id(api: Api, action: str) -> None:
    stored = (await api.put("/a/1", b"x")).json
    assert (await change(api, action, stored["id"], "/2")).json["path"] == "/2"


async def test_a_copy_lives_on_its_own(api: Api) -> None:
    await api.put("/a/1", b"one")
    await change(api, "copy", "/a", "/b")
    await api.put("/b/1", b"two", expect=200)
    assert (await api.get("/a/1")).body == b"one"
    await api.call("DELETE", "/file?path=/a&permanent=true", expect=204)
    assert (await api.get("/b/1")).body == b"two"
    assert (await api.usage())["count"] == 1


@pytest.mark.parametrize(("source", "to", "overwrite", "status", "code", "field"), [
    ("/f", "/g", False, 409, "name_taken", "to"),
    ("/f", "/dir2/", False, 409, "name_taken", "to"),
    ("/f", "/dir2", True, 409, "name_taken", "to"),  # there is a folder /dir2/f
    ("/dir", "/g", False, 409, "name_taken", "to"),
    ("/dir", "/g", True, 409, "name_taken", "to"),
    ("/dir", "/holder", False, 409, "name_taken", "to"),  # there is a folder /holder/dir
    ("/dir", "/holder", True, 409, "name_taken", "to"),
    ("/dir", "/dir", False, 409, "conflict", "to"),
    ("/dir", "/dir/below/it", True, 409, "conflict", "to"),
    ("/dir", "/dir/sub", False, 409, "conflict", "to"),
    ("/", "/x", False, 422, "invalid_path", "from"),
    ("/", "/", True, 422, "invalid_path", "from"),
    ("/nothing", "/x", False, 404, "not_found", "from"),
    ("/f", "/g/x", False, 409, "not_a_folder", "to"),
    ("/f", "/g/", True, 409, "not_a_folder", "to"),
    ("/dir", "/g/x/y", False, 409, "not_a_folder", "to"),
    ("/f", "/a/../b", False, 422, "invalid_path", "to"),
    ("/f\x00", "/b", False, 422, "invalid_path", "from"),
    ("/f", "/" + "y" * 256, False, 422, "invalid_path", "to"),
    ("/f", "/y" * 129, False, 422, "invalid_path", "to"),
])
async def test_what_is_refused_changes_nothing(
        api: Api, action: str, source: str, to: str, overwrite: bool, status: int, code: str,
        field: str | None) -> None:
    for path in ("/f", "/g", "/dir/1", "/dir/sub/2", "/dir2/f/3", "/holder/dir/4"):
        await api.put(path, path.encode())
    before, usage = await tree(api), await api.usage()
    reply = await change(api, action, source, to, status, overwrite=overwrite)
    assert (reply.code, reply.json.get("field")) == (code, field), reply.json
    assert (await tree(api), await api.usage()) == (before, usage)


async def test_overwrite_replaces_a_file(api: Api, action: str) -> None:
    await api.put("/a", b"new")
    old = (await api.put("/dir/b", b"older")).json
    found = (await change(api, action, "/a", "/dir/b", overwrite=True)).json
    assert found["id"] != old["id"]
    assert (await api.get("/dir/b")).body == b"new"
    usage = await api.usage()
    assert (usage["files"], usage["count"]) == ((3, 1) if action == "move" else (6, 2))
    assert usage["trash"] == 5  # the replaced one can come back


async def test_onto_itself(api: Api) -> None:
    stored = (await api.put("/d/a", b"x")).json
    for to in ("/d/a", "/d/", "/d", stored["id"]):
        for overwrite in (False, True):
            assert (await change(api, "move", "/d/a", to, overwrite=overwrite)).json == stored
            assert (await change(api, "copy", "/d/a", to, 409, overwrite=overwrite)).code == "name_taken"


async def test_conditions(api: Api, action: str) -> None:
    etag = (await api.put("/a", b"1")).json["etag"]
    await api.put("/dir/b", b"1")
    for source, headers in (("/a", {"If-Match": '"other"'}), ("/a", {"If-None-Match": "*"}),
                            ("/a", {"If-None-Match": etag}), ("/dir", {"If-Match": "*"})):
        assert (await change(api, action, source, "/c", 412, headers=headers)).code == "precondition_failed"
    assert (await change(api, action, "/a", "/c", 400, headers={"If-Match": "x"})).code == "bad_request"
    await change(api, action, "/a", "/c", headers={"If-Match": etag})


async def test_paths_below_may_not_become_too_long(api: Api, action: str) -> None:
    deep = "/" + "/".join("d" * 3 for _ in range(100))
    await api.put(f"/top{deep}/file", b"x")
    reply = await change(api, action, "/top", "/" + "/".join("e" * 3 for _ in range(28)), 422)
    assert (reply.code, reply.json["field"]) == ("invalid_path", "to")
    await change(api, action, "/top", "/" + "/".join("e" * 3 for _ in range(27)))
    long = "/" + "/".join("x" * 250 for _ in range(15))
    await api.put(f"/long{long}/{'z' * 200}", b"x")  # 5 + 15 * 251 + 201 bytes
    free = 4096 - 15 * 251 - 201
    await change(api, action, "/long", "/" + "y" * (free // 2 - 1) + "/" + "y" * (free - free // 2), 422)
    await change(api, action, "/long", "/" + "y" * (free // 2 - 1) + "/" + "y" * (free - free // 2 - 1))


async def test_another_account_has_nothing_here(api: Api, other_account: OtherAccount, action: str) -> None:
    stranger = await other_account()
    theirs = (await stranger.put("/theirs/a", b"x")).json
    folder = await stranger.info("/theirs")
    await api.put("/a", b"x")
    for source in (theirs["id"], folder["id"]):
        assert (await change(api, action, source, "/b", 404)).json["field"] == "from"
    for to in (theirs["id"], folder["id"]):
        assert (await change(api, action, "/a", to, 404)).json["field"] == "to"


@pytest.mark.parametrize("body", [
    {}, {"from": "/a"}, {"to": "/a"}, {"from": 1, "to": "/b"}, {"from": "/a", "to": None}, {"from": "/a", "to": ["/b"]},
    {"from": "/a", "to": "/b", "overwrite": "maybe"}, [], "text"])
async def test_a_malformed_request_names_the_field(api: Api, action: str, body: Any) -> None:
    await api.put("/a", b"x")
    assert (await api.call("POST", f"/file/{action}", json=body, expect=422)).code == "invalid_field"


async def test_a_copy_needs_room(api: Api, stack: Stack) -> None:
    await api.put("/d/a", b"x" * 60)
    conn = await asyncpg.connect(stack.dsn)
    await conn.execute("UPDATE users SET quota_bytes = 119 WHERE username = $1", api.username)
    for source in ("/d", "/d/a"):
        assert (await change(api, "copy", source, "/e", 507)).code == "quota_exceeded"
    assert set(await tree(api)) == {"/d", "/d/a"}
    await conn.execute("UPDATE users SET quota_bytes = 120 WHERE username = $1", api.username)
    await conn.close()
    await change(api, "copy", "/d", "/e")
    assert (await api.usage())["available"] == 0
