"""The trash from outside: what is deleted can come back, whatever happened to its place."""

from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import quote

import pytest

from tests.client import Api


async def trash(api: Api, query: str = "") -> Any:
    return (await api.call("GET", f"/file/trash{query}", expect=200)).json


async def restore(api: Api, item_id: str, to: str | None = None, *, expect: int = 200) -> Any:
    body = {"id": item_id} if to is None else {"id": item_id, "to": to}
    return (await api.call("POST", "/file/trash/restore", json=body, expect=expect)).json


async def test_deleted_file_is_in_the_trash_and_comes_back(api: Api) -> None:
    stored = (await api.put("/a/б.txt", b"hello")).json
    await api.delete("/a/б.txt")
    await api.get("/a/б.txt", expect=404)
    await api.get(stored["id"], expect=404)
    assert await api.list() == []
    [item] = (await trash(api))["items"]
    assert (item["id"], item["type"], item["path"], item["size"], item["files"]) == (
        stored["id"], "file", "/a/б.txt", 5, 1)
    usage = await api.usage()
    assert (usage["files"], usage["trash"], usage["count"]) == (0, 5, 0)
    assert (await restore(api, stored["id"]))["path"] == "/a/б.txt"
    assert (await api.get("/a/б.txt")).body == b"hello"
    usage = await api.usage()
    assert (usage["files"], usage["trash"], usage["count"]) == (5, 0, 1)
    assert (await trash(api)) == {"items": [], "next_cursor": None}


async def test_deleted_folder_comes_back_with_everything(api: Api) -> None:
    for name in ("1.txt", "deep/2.txt", "deep/er/3.txt"):
        await api.put(f"/folder/{name}", b"abc")
    folder = await api.info("/folder")
    await api.delete("/folder")
    [item] = (await trash(api))["items"]
    assert (item["type"], item["size"], item["files"]) == ("folder", 9, 3)
    await api.put("/folder/new.txt", b"x")  # the place is taken by a new folder of the same name
    assert (await restore(api, folder["id"]))["path"] == "/folder (2)"
    assert [file["path"] for file in await api.list()] == [
        "/folder (2)/1.txt", "/folder (2)/deep/2.txt", "/folder (2)/deep/er/3.txt", "/folder/new.txt"]
    assert (await api.usage())["count"] == 4


async def test_restore_when_the_old_folder_is_gone_makes_it_again(api: Api) -> None:
    stored = (await api.put("/x/y/file.txt", b"1")).json
    await api.delete("/x/y/file.txt")
    await api.delete("/x", expect=204)
    assert (await restore(api, stored["id"]))["path"] == "/x/y/file.txt"


async def test_restore_when_a_file_has_the_folders_name_goes_to_the_root(api: Api) -> None:
    stored = (await api.put("/x/file.txt", b"1")).json
    await api.delete("/x/file.txt")
    await api.call("DELETE", "/file?path=/x&permanent=true", expect=204)
    await api.put("/x", b"a file now")
    assert (await restore(api, stored["id"]))["path"] == "/file.txt"


async def test_restore_of_a_taken_name_gets_a_number(api: Api) -> None:
    old = (await api.put("/notes.tar.gz", b"old")).json
    await api.delete("/notes.tar.gz")
    await api.put("/notes.tar.gz", b"new")
    assert (await restore(api, old["id"]))["path"] == "/notes.tar (2).gz"
    assert (await api.get("/notes.tar.gz")).body == b"new"


async def test_restore_to_a_place_is_exact(api: Api) -> None:
    stored = (await api.put("/a.txt", b"1")).json
    await api.put("/taken.txt", b"2")
    await api.delete("/a.txt")
    assert (await restore(api, stored["id"], "/taken.txt", expect=409))["code"] == "name_taken"
    assert (await restore(api, stored["id"], "/taken.txt/b", expect=409))["code"] == "not_a_folder"
    assert (await restore(api, stored["id"], "/new/"))["path"] == "/new/a.txt"
    await api.delete("/new/a.txt")
    assert (await restore(api, stored["id"], "/new"))["path"] == "/new/a.txt"
    await api.delete("/new/a.txt")
    assert (await restore(api, stored["id"], "/new/b.txt"))["path"] == "/new/b.txt"


def levels(count: int, name: str) -> str:
    return f"/{name}" * count


async def test_restore_never_makes_a_path_that_no_request_can_name(api: Api) -> None:
    """128 levels and 4096 bytes bound every door; a tree that came back beyond them could not be reached."""
    for deep, far in ((levels(100, "d"), levels(60, "e")), (levels(12, "d" * 250), levels(6, "e" * 250))):
        await api.call("POST", "/file/folder", json={"path": f"/p/a{deep}"}, expect=201)
        item_id = (await api.call("GET", "/file/info?path=/p/a", expect=200)).json["id"]
        await api.delete("/p/a")
        refused = await restore(api, item_id, f"{far}/a", expect=422)
        assert (refused["code"], refused["field"]) == ("invalid_path", "to")
        await api.call("POST", "/file/folder", json={"path": far}, expect=201)
        for to in (far, f"{far}/"):
            refused = await restore(api, item_id, to, expect=422)
            assert (refused["code"], refused["field"]) == ("invalid_path", "to")
        await api.call("POST", "/file/move", json={"from": "/p", "to": f"{far}/p"}, expect=200)
        assert (await restore(api, item_id))["path"] == "/a"  # its old folder is too far down now
        await api.call("GET", f"/file/info?path=/a{deep}", expect=200)
        await api.delete("/a")


async def test_restored_file_has_a_path_that_a_request_can_name(api: Api) -> None:
    folder = levels(15, "x" * 255) + levels(1, "z" * 150)
    path = f"{folder}/{'y' * (4096 - len(folder) - 1)}"
    stored = (await api.put(path, b"1")).json
    await api.delete(path)
    await api.put(path, b"2")
    restored = await restore(api, stored["id"])
    assert len(restored["path"]) == 4096
    assert (await api.get(restored["path"])).body == b"1"


async def test_purge_and_empty_delete_for_good(api: Api) -> None:
    ids = [(await api.put(f"/{number}.txt", b"abc")).json["id"] for number in range(3)]
    for number in range(3):
        await api.delete(f"/{number}.txt")
    await api.call("DELETE", f"/file/trash?id={ids[1]}", expect=204)
    await api.call("DELETE", f"/file/trash?id={ids[1]}", expect=404)
    assert [item["id"] for item in (await trash(api))["items"]] == [ids[2], ids[0]]
    await api.call("DELETE", "/file/trash", expect=204)
    assert (await trash(api))["items"] == []
    usage = await api.usage()
    assert (usage["files"], usage["trash"], usage["count"]) == (0, 0, 0)


async def test_permanent_deletion_skips_the_trash(api: Api) -> None:
    await api.put("/a.txt", b"1")
    await api.call("DELETE", "/file?path=/a.txt&permanent=true", expect=204)
    assert (await trash(api))["items"] == []
    assert (await api.call("DELETE", "/file?path=/a.txt&permanent=yes")).code == "invalid_field"


async def test_pages_of_the_trash_meet_every_item_once(api: Api) -> None:
    ids = []
    for number in range(7):
        ids.append((await api.put(f"/{number}.txt", b"")).json["id"])
        await api.delete(f"/{number}.txt")
    seen: list[str] = []
    cursor = ""
    while True:
        page = await trash(api, f"?limit=3&cursor={quote(cursor)}")
        seen += [item["id"] for item in page["items"]]
        if page["next_cursor"] is None:
            break
        cursor = page["next_cursor"]
    assert seen == ids[::-1]


@pytest.mark.parametrize("cursor", ["x", "AAAA", "%00", "A" * 32 + "====", "f" * 33, "Ж"])
async def test_bad_cursor_is_refused(api: Api, cursor: str) -> None:
    reply = await api.call("GET", f"/file/trash?cursor={quote(cursor)}")
    assert reply.status in (400, 422)
    assert reply.code in ("invalid_field", "bad_request")


async def test_trash_of_another_account_is_not_there(api: Api, other_account: Callable[[], Awaitable[Api]]) -> None:
    stored = (await api.put("/a.txt", b"1")).json
    await api.delete("/a.txt")
    other = await other_account()
    await restore(other, stored["id"], expect=404)
    await other.call("DELETE", f"/file/trash?id={stored['id']}", expect=404)
    await other.call("DELETE", "/file/trash", expect=204)
    assert len((await trash(api))["items"]) == 1


async def test_upload_where_something_was_deleted_makes_a_new_file(api: Api) -> None:
    old = (await api.put("/a.txt", b"old")).json
    await api.delete("/a.txt")
    new = (await api.put("/a.txt", b"new")).json
    assert new["id"] != old["id"] and new["version"] == 1
