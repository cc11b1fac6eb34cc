"""Lists of links from outside: whole or in pages, and how many links there may be."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import asyncpg
import pytest

from service.domain.links import MAX_LINKS
from tests.client import Api

INSERT = """
INSERT INTO links (id, user_id, file_id, is_folder, kind, token_sha256, created_at)
SELECT gen_random_uuid(), user_id, id, is_folder, 'download', sha256(convert_to(gen_random_uuid()::text, 'UTF8')),
       now() - make_interval(secs => number / 3)
FROM files, generate_series(1, $2) AS number WHERE id = $1
"""


async def make_links(api: Api, path: str, count: int) -> None:
    """Many links to one thing, three of each second."""
    conn = await asyncpg.connect(api.stack.dsn)
    await conn.execute(INSERT, (await api.info(path))["id"], count)
    await conn.close()


async def listed(api: Api, query: str = "") -> Any:
    return (await api.call("GET", f"/file/link{query}", expect=200)).json


async def paged(api: Api, limit: int, query: str = "") -> list[Any]:
    """All pages, one after the other; each but the last is full."""
    found: list[Any] = []
    cursor = ""
    while True:
        page = await listed(api, f"?limit={limit}{query}{cursor}")
        found += page["links"]
        if page["next_cursor"] is None:
            return found
        assert len(page["links"]) == limit
        cursor = f"&cursor={page['next_cursor']}"


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 20, 1000])
async def test_pages_neither_skip_nor_repeat(api: Api, limit: int) -> None:
    deep = "/" + "/".join(f"level-{number}" for number in range(20)) + "/file"
    for path, count in (("/a", 7), (deep, 12), ("/gone", 1)):
        await api.put(path)
        await make_links(api, path, count)
    await api.delete("/gone")
    whole = await listed(api)
    assert set(whole) == {"links"} and len(whole["links"]) == 20
    assert sorted(link["path"] or "" for link in whole["links"]) == sorted(["/a"] * 7 + [deep] * 12 + [""])
    assert whole["links"] == sorted(whole["links"], key=lambda link: (link["created_at"], link["id"]))
    assert await paged(api, limit) == whole["links"]
    of_one = [link for link in whole["links"] if link["path"] == "/a"]
    assert await paged(api, limit, "&path=/a") == of_one == (await listed(api, "?path=/a"))["links"]


async def test_cursor_is_good_for_its_account_with_a_limit(
        api: Api, other_account: Callable[[], Awaitable[Api]]) -> None:
    await api.put("/a")
    await make_links(api, "/a", 3)
    cursor = (await listed(api, "?limit=2"))["next_cursor"]
    other = await other_account()
    for who, query in ((api, f"?cursor={cursor}"), (other, f"?limit=2&cursor={cursor}"), (api, "?limit=2&cursor=AAAA"),
                       (api, "?limit=0"), (api, "?limit=1001")):
        reply = await who.call("GET", f"/file/link{query}", expect=422)
        assert reply.code == "invalid_field" and reply.json["field"] in ("cursor", "limit")


async def test_account_has_at_most_so_many_links_and_gets_all_of_them(api: Api) -> None:
    await api.put("/a/b")
    await make_links(api, "/a/b", MAX_LINKS - 1)
    link = {"path": "/a"}
    made = (await api.call("POST", "/file/link", json=link, expect=201)).json
    for reply in await asyncio.gather(*(api.call("POST", "/file/link", json=link, expect=409) for _ in range(3))):
        assert reply.code == "too_many_links"
    assert len((await listed(api))["links"]) == MAX_LINKS
    await api.call("DELETE", f"/file/link/{made['id']}", expect=204)
    await api.call("POST", "/file/link", json=link, expect=201)
    await api.call("POST", "/file/link", json=link, expect=409)
