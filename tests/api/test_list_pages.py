"""Lists from outside: folders, everything below, search, orders and pages, each against the same done by hand."""

import asyncio
import itertools
import uuid
from contextlib import suppress
from typing import Any
from urllib.parse import urlencode

import pytest

from tests.client import Api, until

SORTS = ["name", "path", "size", "created_at", "updated_at"]
FILES = {
    "/a/x.txt": 5, "/a.txt": 3, "/a b/y.txt": 5, "/a/b/c/deep.TXT": 0, "/a/b-c.txt": 7, "/a/b/z.txt": 1,
    "/ß/Straße.md": 2, "/ОТЧЁТ.txt": 4, "/a/b/Отчёт за год.txt": 9, "/100%_sure\\.txt": 6, "/zz/zz": 5, "/zz/z": 5}
EMPTY = ["/empty", "/a/b/none/in here"]
FOLDERS = sorted({"/" + "/".join(path.split("/")[1:depth])
                  for path in (*FILES, *(f"{name}/-" for name in EMPTY)) for depth in range(2, path.count("/") + 1)})
STAYING = 50  # entries that nobody touches while others change

Entry = dict[str, Any]


async def listed(api: Api, expect: int = 200, /, **parameters: object) -> Any:
    return (await api.call("GET", f"/file/list?{urlencode(parameters)}", expect=expect)).json


async def paged(api: Api, limit: int, **parameters: object) -> tuple[list[Entry], list[Entry]]:
    """All pages, one after the other; checks that each but the last is full."""
    folders: list[Entry] = []
    files: list[Entry] = []
    cursor: dict[str, object] = {}
    while True:
        page = await listed(api, 200, limit=limit, **parameters, **cursor)
        folders += page.get("folders", [])
        files += page["files"]
        count = len(page["files"]) + len(page.get("folders", []))
        assert not (page.get("folders") and files and files[0] not in page["files"]), "a folder behind a file"
        if page["next_cursor"] is None:
            return folders, files
        assert count == limit
        cursor = {"cursor": page["next_cursor"]}


async def make_tree(api: Api) -> None:
    for path, size in FILES.items():
        await api.put(path, b"x" * size)
    for path in EMPTY:
        await api.call("POST", "/file/folder", json={"path": path}, expect=201)
    await api.put("/a.txt", b"x" * FILES["/a.txt"], expect=200)  # so that two orders by time differ


def sort_key(sort: str, entry: Entry) -> tuple[Any, ...]:
    value = entry.get(sort, entry["name"])  # a folder has no size
    return (value.encode() if sort in ("name", "path", "size") and isinstance(value, str) else value,
            uuid.UUID(entry["id"]).bytes)


def paths(entries: list[Entry]) -> list[str]:
    return [entry["path"] for entry in entries]


async def test_without_parameters_all_files_in_the_order_of_their_paths(api: Api) -> None:
    assert await listed(api) == {"files": []}
    await make_tree(api)
    found = await listed(api)
    assert set(found) == {"files"}
    assert paths(found["files"]) == sorted(FILES, key=str.encode)


async def test_a_folder_has_its_files_and_folders_apart(api: Api) -> None:
    await make_tree(api)
    found = await listed(api, folder="/a")
    assert set(found) == {"files", "folders"}
    assert paths(found["files"]) == ["/a/b-c.txt", "/a/x.txt"]
    assert paths(found["folders"]) == ["/a/b"]
    assert found["folders"][0]["type"] == "folder"
    assert await listed(api, folder=found["folders"][0]["id"]) == await listed(api, folder="/a/b")
    assert await listed(api, folder="/empty") == {"files": [], "folders": []}
    assert paths((await listed(api, folder="/"))["folders"]) == ["/a", "/a b", "/empty", "/zz", "/ß"]


async def test_recursive_has_everything_below(api: Api) -> None:
    await make_tree(api)
    found = await listed(api, recursive="true")
    assert (paths(found["files"]), paths(found["folders"])) == (sorted(FILES, key=str.encode), FOLDERS)
    found = await listed(api, recursive="true", folder="/a/b")
    assert paths(found["files"]) == ["/a/b/c/deep.TXT", "/a/b/z.txt", "/a/b/Отчёт за год.txt"]
    assert paths(found["folders"]) == ["/a/b/c", "/a/b/none", "/a/b/none/in here"]


async def test_every_order_of_every_list_in_pages_of_any_size(api: Api) -> None:
    await make_tree(api)
    scopes: list[dict[str, object]] = [
        {}, {"folder": "/"}, {"folder": "/a"}, {"recursive": "true"}, {"folder": "/a", "recursive": "true"},
        {"q": "t"}, {"folder": "/", "q": "a"}, {"recursive": "true", "q": "B"}]
    for scope, sort, order in itertools.product(scopes, SORTS, ["asc", "desc"]):
        whole = await listed(api, 200, **scope, sort=sort, order=order)
        for kind in ("files", "folders"):
            entries = whole.get(kind, [])
            assert entries == sorted(entries, key=lambda entry: sort_key(sort, entry), reverse=order == "desc"), (
                scope, sort, order, kind)
        for limit in (1, 3, 1000):
            assert await paged(api, limit, **scope, sort=sort, order=order) == (
                whole.get("folders", []), whole["files"]), (scope, sort, order, limit)


@pytest.mark.parametrize(("part", "expected"), [
    ("txt", {"/a/x.txt", "/a.txt", "/a b/y.txt", "/a/b/c/deep.TXT", "/a/b-c.txt", "/a/b/z.txt", "/ОТЧЁТ.txt",
             "/a/b/Отчёт за год.txt", "/100%_sure\\.txt"}),
    ("отчЁт", {"/ОТЧЁТ.txt", "/a/b/Отчёт за год.txt"}),
    ("отче\u0308т", {"/ОТЧЁТ.txt", "/a/b/Отчёт за год.txt"}),
    ("STRAßE", {"/ß/Straße.md"}),
    ("%", {"/100%_sure\\.txt"}), ("_", {"/100%_sure\\.txt"}),
    ("\\", {"/100%_sure\\.txt"}), ("%_", {"/100%_sure\\.txt"}),
    ("x_t", set()), ("/", set()), ("a/x", set()), ("x" * 300, set()),
])
async def test_search_is_for_a_part_of_the_name(api: Api, part: str, expected: set[str]) -> None:
    await make_tree(api)
    assert set(paths((await listed(api, q=part))["files"])) == expected
    assert set(paths((await paged(api, 2, q=part))[1])) == expected


@pytest.mark.parametrize("name", ["Ὀδυσσεύς", "ÅNGSTRÖM", "Ж", "ՀԱՅ", "ქართული", "Dž"])
async def test_search_knows_upper_and_lower_case_of_any_script(api: Api, name: str) -> None:
    await api.put(f"/{name}.txt")
    for part in (name, name.lower(), name.upper()):
        assert len((await listed(api, q=part))["files"]) == 1, part


@pytest.mark.parametrize(("query", "field"), [
    ("limit=0", "limit"), ("limit=1001", "limit"), ("limit=x", "limit"), ("limit=1.5", "limit"), ("sort=color", "sort"),
    ("order=up", "order"), ("recursive=maybe", "recursive"), ("q=%00", "q"), ("q=%E2%80%AE", "q"),
    ("cursor=abc", "cursor"),
    ("limit=1&cursor=abc", "cursor"), ("limit=1&cursor=%00", "cursor"), ("limit=1&cursor=" + "A" * 15000, "cursor"),
    ("limit=1&cursor=%D1%84", "cursor"), ("q=" + "x" * 800, "q"), ("folder=/a/../b", "folder"),
])
async def test_a_parameter_that_cannot_be_used_is_named(api: Api, query: str, field: str) -> None:
    reply = await api.call("GET", f"/file/list?{query}", expect=422)
    assert reply.code == ("invalid_path" if field == "folder" else "invalid_field")
    assert reply.json["field"] == field


async def test_a_cursor_is_good_for_its_own_list_only(api: Api, other_account: Any) -> None:
    for name in "abc":
        await api.put(f"/{name}", b"x")
    mine = {"limit": 1, "sort": "size", "folder": "/"}
    cursor = (await listed(api, 200, **mine))["next_cursor"]
    assert paths((await listed(api, 200, **mine | {"limit": 2}, cursor=cursor))["files"]) != []
    others: list[dict[str, object]] = [
        {"sort": "created_at"}, {"order": "desc"}, {"q": "a"}, {"recursive": "true"}, {"folder": "/other"}]
    await api.call("POST", "/file/folder", json={"path": "/other"}, expect=201)
    for changed in others:
        assert (await listed(api, 422, **mine | changed, cursor=cursor))["field"] == "cursor"
    stranger: Api = await other_account()
    assert (await listed(stranger, 422, **mine, cursor=cursor))["field"] == "cursor"


async def test_a_changed_cursor_is_refused(api: Api) -> None:
    for name in "abc":
        await api.put(f"/{name}", b"x")
    cursor = (await listed(api, limit=1))["next_cursor"]
    for at in range(len(cursor)):
        for letter in ("A", "-", "9", ""):
            changed = cursor[:at] + letter + cursor[at + 1:]
            if changed != cursor:
                problem = await listed(api, 422, limit=1, cursor=changed)
                assert (problem["code"], problem["field"]) == ("invalid_field", "cursor")
    for changed in (cursor + "A", cursor + "=", cursor * 2, " " + cursor):
        await listed(api, 422, limit=1, cursor=changed)


async def test_pages_go_on_where_an_entry_was_deleted(api: Api) -> None:
    for number in range(6):
        await api.put(f"/d/{number}/f", b"x")
    for sort in SORTS:
        first = await listed(api, limit=2, sort=sort, recursive="true", folder="/d", q="f")
        last = first["files"][-1]
        await api.delete(last["path"].rpartition("/")[0])
        rest = await listed(api, limit=1000, sort=sort, recursive="true", folder="/d", q="f",
                            cursor=first["next_cursor"])
        left = set(paths((await listed(api, folder="/d", recursive="true", q="f"))["files"]))
        assert set(paths(rest["files"])) | {first["files"][0]["path"]} == left
        await api.put(last["path"], b"x")


class Others:
    """Files and folders in /d that come, get another name and go, among those that stay."""

    def __init__(self, api: Api) -> None:
        self.changes = 0
        self._api = api
        self._there: list[str] = []

    async def change(self) -> None:
        """Go on until this is cancelled."""
        for number in itertools.count():
            name, later = f"/d/{7 * number % STAYING:02}+{number}", f"/d/{29 * number % STAYING:02}-{number}"
            if number % 3:
                await self._api.put(name, b"x" * (number % 5))
            else:
                await self._api.call("POST", "/file/folder", json={"path": name}, expect=201)
            self.changes += 1
            await self._api.call("POST", "/file/move", json={"from": name, "to": later}, expect=200)
            self.changes += 1
            self._there.append(later)
            if len(self._there) > 8:
                await self._api.delete(self._there.pop(0), permanent=number % 2 == 0)
                self.changes += 1


async def test_what_stays_comes_once_in_every_order_while_others_come_and_go(api: Api) -> None:
    for number in range(STAYING):
        if number % 5:
            await api.put(f"/d/{number:02}", b"x" * (number % 4))
        else:
            await api.call("POST", "/file/folder", json={"path": f"/d/{number:02}"}, expect=201)
    others = Others(api)

    async def is_paged_amid_changes(limit: int, expected: tuple[list[str], ...], parameters: dict[str, str]) -> bool:
        """All pages have what is expected, in its order; whether there were changes between the first and the last."""
        before = others.changes
        found = tuple([path for path in paths(entries) if len(path) == len("/d/00")]
                      for entries in await paged(api, limit, **parameters))
        assert found == expected, (limit, parameters)
        assert not task.done(), task
        return others.changes > before

    wanted = []
    for sort, order in itertools.product(SORTS, ["asc", "desc"]):
        for limit, recursive in ((3, "false"), (10, "true")):
            parameters = {"folder": "/d", "sort": sort, "order": order, "recursive": recursive}
            whole = await listed(api, 200, **parameters)
            wanted.append((limit, (paths(whole["folders"]), paths(whole["files"])), parameters))
    task = asyncio.create_task(others.change())
    try:
        for limit, expected, parameters in wanted:
            await until(lambda: is_paged_amid_changes(limit, expected, parameters))
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def test_what_is_not_a_folder(api: Api, other_account: Any) -> None:
    stored = (await api.put("/a.txt")).json
    assert (await listed(api, 404, folder="/nothing"))["code"] == "not_found"
    assert (await listed(api, 409, folder="/a.txt"))["code"] == "not_a_folder"
    assert (await listed(api, 409, folder=stored["id"], limit=5))["code"] == "not_a_folder"
    stranger: Api = await other_account()
    assert (await listed(stranger, 404, folder=stored["id"]))["code"] == "not_found"
    assert (await listed(api, 404, folder=str(uuid.uuid4()), limit=1))["code"] == "not_found"


async def test_no_cursor_without_pages_and_head_has_no_body(api: Api) -> None:
    await api.put("/ü.txt")
    assert "next_cursor" not in await listed(api, folder="/")
    assert (await api.call("HEAD", "/file/list", expect=200)).body == b""
