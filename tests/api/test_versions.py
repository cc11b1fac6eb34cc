"""Versions from outside: what a file was stays there for a while."""

from typing import Any
from urllib.parse import quote

from tests.client import Api


async def versions(api: Api, path: str) -> Any:
    return (await api.call("GET", f"/file/versions?path={quote(path)}", expect=200)).json["versions"]


async def test_overwritten_content_can_be_listed_and_downloaded(api: Api) -> None:
    for body in (b"one", b"three", b""):
        last = (await api.put("/a.txt", body, expect=None)).json
    found = await versions(api, "/a.txt")
    assert [(v["version"], v["size"], v["is_current"]) for v in found] == [(3, 0, True), (2, 5, False), (1, 3, False)]
    assert found[0]["etag"] == last["etag"]
    for number, body in ((1, b"one"), (2, b"three"), (3, b"")):
        reply = await api.call("GET", f"/file/download?path=/a.txt&version={number}", expect=200)
        assert reply.body == body
        assert reply.headers["ETag"] == found[3 - number]["etag"]
    missing = (await api.call("GET", "/file/download?path=/a.txt&version=4", expect=404)).json
    assert (missing["field"], missing["detail"]) == ("version", "The file has no such version.")
    for bad in ("0", "x", "-1", "99999999999999999999"):
        assert (await api.call("GET", f"/file/download?path=/a.txt&version={bad}")).code == "invalid_field"
    usage = await api.usage()
    assert (usage["files"], usage["versions"], usage["count"]) == (0, 8, 1)


async def test_only_the_newest_former_versions_are_kept(api: Api) -> None:
    for number in range(14):
        await api.put("/a.txt", b"x" * number, expect=None)
    found = await versions(api, "/a.txt")
    assert [v["version"] for v in found] == list(range(14, 3, -1))
    assert (await api.usage())["versions"] == sum(range(3, 13))


async def test_restored_version_becomes_the_newest(api: Api) -> None:
    first = (await api.put("/a.txt", b"one")).json
    await api.put("/a.txt", b"two", expect=200)
    body = {"path": "/a.txt", "version": 1}
    stale = await api.call("POST", "/file/versions/restore", json=body, headers={"If-Match": first["etag"]})
    assert stale.code == "precondition_failed"
    restored = (await api.call("POST", "/file/versions/restore", json=body, expect=200)).json
    assert (restored["version"], restored["sha256"]) == (3, first["sha256"])
    assert (await api.get("/a.txt")).body == b"one"
    assert (await api.usage())["versions"] == 6


async def test_forgotten_versions_are_gone_and_the_current_one_stays(api: Api) -> None:
    for number in range(4):
        await api.put("/a.txt", b"x" * (number + 1), expect=None)
    await api.call("DELETE", "/file/versions?path=/a.txt&version=2", expect=204)
    assert (await api.call("DELETE", "/file/versions?path=/a.txt&version=4")).code == "conflict"
    await api.call("DELETE", "/file/versions?path=/a.txt&version=2", expect=404)
    assert [v["version"] for v in await versions(api, "/a.txt")] == [4, 3, 1]
    await api.call("DELETE", "/file/versions?path=/a.txt", expect=204)
    assert [v["version"] for v in await versions(api, "/a.txt")] == [4]
    usage = await api.usage()
    assert (usage["files"], usage["versions"]) == (4, 0)


async def test_versions_follow_their_file_into_the_trash_and_back(api: Api) -> None:
    stored = (await api.put("/f/a.txt", b"one")).json
    await api.put("/f/a.txt", b"three", expect=200)
    await api.delete("/f")
    usage = await api.usage()
    assert (usage["files"], usage["versions"], usage["trash"]) == (0, 0, 8)
    [item] = (await api.call("GET", "/file/trash", expect=200)).json["items"]
    assert (item["size"], item["files"]) == (8, 1)
    await api.call("POST", "/file/trash/restore", json={"id": item["id"]}, expect=200)
    usage = await api.usage()
    assert (usage["files"], usage["versions"], usage["trash"]) == (5, 3, 0)
    assert len(await versions(api, stored["id"])) == 2


async def test_folder_has_no_versions(api: Api) -> None:
    await api.put("/f/a.txt", b"1")
    assert (await api.call("GET", "/file/versions?path=/f")).code == "is_a_folder"
