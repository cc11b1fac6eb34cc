"""Idempotency-Key: a request that is sent again gets its first answer, whoever asks, whichever worker answers."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from service.api.rest.openapi import KEYED
from service.api.routes import ROUTES
from tests.client import Api, Reply, new_account, nothing_stored, until
from tests.domain.commit_proxy import Moment, open_proxy
from tests.stack import Stack

Ask = Callable[[Api, dict[str, str]], Awaitable[Reply]]
KEY = {"Idempotency-Key": '"8e03978e-40d5-43dd-bc93-6894a57f9324"'}


async def fill(api: Api) -> dict[str, Any]:
    """Something to change: /file with a former version, /folder, a thing in the trash, a link; their ids."""
    await api.put("/file", b"first")
    await api.put("/file", b"second", expect=200)
    await api.put("/folder/one", b"1")
    await api.put("/old", b"old")
    await api.delete("/old")
    trashed = (await api.call("GET", "/file/trash", expect=200)).json["items"][0]["id"]
    link = (await api.call("POST", "/file/link", json={"path": "/folder"}, expect=201)).json["id"]
    return {"trashed": trashed, "link": link}


async def holdings(api: Api) -> tuple[Any, ...]:
    """All that the account has, and all that was done to it."""
    trail = (await api.call("GET", "/auth/audit?limit=1000", expect=200)).json["entries"]
    return (await api.list(), await api.usage(), (await api.call("GET", "/file/trash", expect=200)).json,
            (await api.call("GET", "/file/link", expect=200)).json, len(trail))


def form(api: Api, headers: dict[str, str], data: bytes = b"bytes", path: str = "/form/") -> Awaitable[Reply]:
    """An upload as browsers send it; the boundary is another one each time."""
    boundary = f"boundary-{id(data)}-{len(headers)}-{asyncio.get_running_loop().time()}".replace(".", "-")
    body = (f'--{boundary}\r\nContent-Disposition: form-data; name="path"\r\n\r\n{path}\r\n--{boundary}\r\n'
            'Content-Disposition: form-data; name="file"; filename="a.txt"\r\n\r\n').encode() + data
    return api.call("POST", "/file", data=body + f"\r\n--{boundary}--\r\n".encode(), headers={
        **headers, "Content-Type": f"multipart/form-data; boundary={boundary}"})


def post(path: str, body: dict[str, Any]) -> Callable[[Api, dict[str, str], dict[str, Any]], Awaitable[Reply]]:
    """A change by JSON; {names} in its values are ids of what `fill` made."""
    def ask(api: Api, headers: dict[str, str], ids: dict[str, Any]) -> Awaitable[Reply]:
        given = {name: value.format(**ids) if isinstance(value, str) else value for name, value in body.items()}
        return api.call("POST", path, json=given, headers=headers)
    return ask


def delete(path: str) -> Callable[[Api, dict[str, str], dict[str, Any]], Awaitable[Reply]]:
    """A deletion."""
    return lambda api, headers, ids: api.call("DELETE", path.format(**ids), headers=headers)


# operation -> status of its answer, how to ask for it
CHANGES: dict[str, tuple[int, Callable[[Api, dict[str, str], dict[str, Any]], Awaitable[Reply]]]] = {
    "upload_bytes": (201, lambda api, headers, ids: api.put("/new/file", b"bytes", headers=headers, expect=None)),
    "upload_form": (201, lambda api, headers, ids: form(api, headers)),
    "delete_file": (204, delete("/file?path=/file")),
    "make_folder": (201, post("/file/folder", {"path": "/a/b"})),
    "move_file": (200, post("/file/move", {"from": "/file", "to": "/moved"})),
    "copy_file": (201, post("/file/copy", {"from": "/folder", "to": "/copy"})),
    "run_batch": (200, post("/file/batch", {"operations": [{"op": "copy", "from": "/file", "to": "/again"},
                                                           {"op": "delete", "path": "/folder"}]})),
    "restore_trashed": (200, post("/file/trash/restore", {"id": "{trashed}"})),
    "empty_trash": (204, delete("/file/trash")),
    "restore_version": (200, post("/file/versions/restore", {"path": "/file", "version": 1})),
    "forget_versions": (204, delete("/file/versions?path=/file")),
    "make_link": (201, post("/file/link", {"path": "/file", "password": "a secret word"})),
    "revoke_link": (204, delete("/file/link/{link}")),
}


def of_answer(reply: Reply) -> tuple[Any, ...]:
    """What has to be the same again; the time and the id of a request are its own."""
    return (reply.status, reply.body, {name: value for name, value in reply.headers.items()
                                       if name.lower() not in ("date", "x-request-id", "connection")})


def test_every_operation_that_takes_a_key_is_tried_here() -> None:
    assert CHANGES.keys() == KEYED & {route.handler.__name__ for route in ROUTES}


def test_every_change_of_files_and_links_takes_a_key() -> None:
    changing = {route.handler.__name__ for route in ROUTES
                if route.path.startswith("/file") and route.method in ("POST", "PUT", "PATCH", "DELETE")}
    assert changing - CHANGES.keys() == {"sign_address"}  # which changes nothing


async def test_document_names_the_key_where_it_counts(api: Api) -> None:
    document = (await api.call("GET", "/openapi.json", expect=200)).json
    named = {operation["operationId"] for item in document["paths"].values() for operation in item.values()
             if any(given["name"] == "Idempotency-Key" for given in operation.get("parameters", []))}
    assert named == CHANGES.keys()
    for item in document["paths"].values():
        for operation in item.values():
            if operation["operationId"] in named:
                for status, code in (("409", "request_in_progress"), ("422", "idempotency_key_reused"),
                                     ("503", "outcome_unknown"), ("400", "bad_request")):
                    examples = operation["responses"][status]["content"]["application/problem+json"]["examples"]
                    assert code in examples, (operation["operationId"], status)


@pytest.mark.parametrize("name", CHANGES)
async def test_request_that_is_sent_again_gets_its_answer_and_changes_nothing(api: Api, name: str) -> None:
    status, ask = CHANGES[name]
    ids = await fill(api)
    before = await holdings(api)
    first = await ask(api, KEY, ids)
    assert first.status == status, first.body
    after = await holdings(api)
    assert after != before
    async with nothing_stored(api):
        for _ in range(3):  # another worker answers one of them
            assert of_answer(await ask(api, KEY, ids)) == of_answer(first)
    assert await holdings(api) == after


async def test_link_that_is_made_once_has_one_address_that_works(api: Api, anonymous: Api) -> None:
    await api.put("/file", b"bytes")
    made = [(await api.call("POST", "/file/link", json={"path": "/file"}, headers=KEY, expect=201)).json
            for _ in range(2)]
    assert made[0] == made[1]
    path = made[0]["url"].removeprefix(api.stack.url)
    assert (await anonymous.call("GET", path, expect=200)).body == b"bytes"
    other = (await api.call("POST", "/file/link", json={"path": "/file"}, expect=201)).json
    assert other["url"] != made[0]["url"]


async def test_many_at_once_store_one_version(api: Api) -> None:
    replies = await asyncio.gather(*(api.put("/a", b"bytes", headers=KEY, expect=None) for _ in range(20)))
    stored = [reply for reply in replies if reply.status == 201]
    assert {reply.body for reply in stored} == {stored[0].body}
    assert all(reply.status == 201 or (reply.code == "request_in_progress" and reply.headers["Retry-After"])
               for reply in replies)
    assert len((await api.call("GET", "/file/versions?path=/a", expect=200)).json["versions"]) == 1
    assert (await api.usage())["files"] == 5


async def test_upload_that_may_only_be_new_is_answered_again(api: Api) -> None:
    headers = {**KEY, "If-None-Match": "*"}
    first = await api.put("/a", b"bytes", headers=headers)
    assert of_answer(await api.put("/a", b"bytes", headers=headers)) == of_answer(first)
    await api.put("/a", b"bytes", headers={"If-None-Match": "*"}, expect=412)


async def test_large_upload_that_is_sent_again_leaves_nothing_behind(api: Api) -> None:
    data = b"x" * 300_000
    first = await api.put("/large", data, headers=KEY)
    async with nothing_stored(api):
        assert of_answer(await api.put("/large", data, headers=KEY)) == of_answer(first)
    assert (await api.get("/large")).body == data


@pytest.mark.parametrize("second", [
    lambda api: api.put("/a", b"other", headers=KEY, expect=None),
    lambda api: api.put("/b", b"bytes", headers=KEY, expect=None),
    lambda api: api.put("/a", b"bytes", headers={**KEY, "If-None-Match": "*"}, expect=None),
    lambda api: api.put("/a", b"bytes", headers={**KEY, "Content-Type": "image/png"}, expect=None),
    lambda api: form(api, KEY, path="/a"),
    lambda api: api.delete("/a", headers=KEY, expect=None),
    lambda api: api.call("POST", "/file/folder", json={"path": "/a"}, headers=KEY)],
    ids=["bytes", "path", "condition", "type", "form", "deletion", "folder"])
async def test_key_of_another_request_is_refused(api: Api, second: Callable[[Api], Awaitable[Reply]]) -> None:
    await api.put("/a", b"bytes", headers=KEY)
    async with nothing_stored(api):
        reply = await second(api)
        assert (reply.status, reply.code, reply.json["field"]) == (422, "idempotency_key_reused", "Idempotency-Key")


@pytest.mark.parametrize("change", [{"path": "/b"}, {"path": "/a", "x": 1}], ids=["path", "unknown member"])
async def test_key_of_another_body_is_refused(api: Api, change: dict[str, Any]) -> None:
    await api.call("POST", "/file/folder", json={"path": "/a"}, headers=KEY, expect=201)
    assert (await api.call("POST", "/file/folder", json=change, headers=KEY, expect=422)).code \
        == "idempotency_key_reused"


async def test_order_of_parameters_makes_no_other_request(api: Api) -> None:
    for query, status in (("path=/a/&name=b", 201), ("name=b&path=%2Fa%2F", 201), ("path=/a/&name=c", 422)):
        await api.call("PUT", f"/file?{query}", data=b"bytes", headers=KEY, expect=status)


async def test_refused_request_leaves_its_key(api: Api) -> None:
    await api.put("/a", b"bytes", headers={**KEY, "If-Match": "*"}, expect=412)
    await api.delete("/a", headers=KEY, expect=404)
    await api.put("/a", b"bytes", headers=KEY, expect=201)


async def test_accounts_do_not_share_keys(api: Api, other_account: Callable[[], Awaitable[Api]]) -> None:
    await api.put("/a", b"bytes", headers=KEY)
    other = await other_account()
    await other.put("/b", b"others", headers=KEY)
    assert [file["path"] for file in await other.list()] == ["/b"]


async def test_malformed_key_is_refused(api: Api) -> None:
    async with nothing_stored(api):
        for key in ('""', '"', "", '"a', 'a"', '"a b"', "a b", "a,b", '"a", "b"', "a;b", "\\", '"\\a"', "é", "x" * 256,
                    f'"{"x" * 256}"'):
            for data in (b"bytes", b"x" * 100_000):  # the second one is refused before its first byte
                reply = await api.put("/a", data, headers={"Idempotency-Key": key}, expect=400)
                assert reply.code == "bad_request" and "Idempotency-Key" in reply.json["detail"], key
            await api.call("POST", "/file/folder", json={"path": "/a"}, headers={"Idempotency-Key": key}, expect=400)


async def test_key_is_the_same_with_quotes_and_without(api: Api) -> None:
    for one, other in (("key", '"key"'), ("a:b/c=", '"a:b/c="'), ("x" * 255, f'"{"x" * 255}"'),
                       ('"a\\"b"', '"a\\"b"'), ("0", '"0"')):
        first = await api.put("/a", b"bytes", headers={"Idempotency-Key": one}, expect=None)
        assert (await api.put("/a", b"bytes", headers={"Idempotency-Key": other}, expect=None)).body == first.body


async def test_key_means_nothing_where_nothing_is_changed(api: Api) -> None:
    await api.put("/a", b"bytes", headers=KEY)
    for headers in (KEY, {"Idempotency-Key": "not, a key"}):
        assert (await api.get("/a", headers=headers)).body == b"bytes"
        await api.call("POST", "/file/sign", json={"path": "/a", "expires_in": 60}, headers=headers, expect=201)
        await api.call("GET", "/file/list", headers=headers, expect=200)


async def test_key_of_one_request_does_not_stick_to_the_connection(api: Api) -> None:
    """Requests on one connection are handled by one task."""
    await api.put("/a", b"bytes", headers=KEY)
    for version in (2, 3):
        assert (await api.put("/a", b"bytes", expect=200)).json["version"] == version


async def test_log_says_that_a_request_was_sent_again(api: Api) -> None:
    await api.put("/a", b"bytes", headers=KEY)
    again = await api.put("/a", b"bytes", headers=KEY)

    def lines() -> list[str]:
        return [line for line in api.stack.log_text.splitlines() if again.headers["X-Request-Id"] in line]

    await until(lambda: bool(lines()))
    line = lines()[-1]
    assert '"replay":true' in line and KEY["Idempotency-Key"].strip('"') not in line


async def test_commit_whose_answer_is_lost_is_found_out_or_made_good_by_the_next_request(
        session: aiohttp.ClientSession, dsn: str, tmp_path: Path) -> None:
    async with open_proxy(dsn) as (proxy, address):
        stack = Stack(tmp_path / "data", {"DATABASE_URL": address, "NGINX": "off", "WORKERS": "1"})
        await asyncio.to_thread(stack.start)
        try:
            api = await new_account(session, stack)
            moments: tuple[Moment, ...] = ("before", "after")
            for number, moment in enumerate(moments):
                proxy.arm(moment)
                await api.put(f"/{moment}", b"bytes", expect=201)
                proxy.arm(moment, then_shuts=True)
                reply = await api.put(f"/{moment}/again", b"bytes", headers={"Idempotency-Key": moment}, expect=None)
                assert (reply.status, reply.code) == (409, "not_a_folder"), "armed, but nothing to commit"
                reply = await api.put(f"/{moment}-again", b"bytes", headers={"Idempotency-Key": moment}, expect=503)
                assert reply.code == "outcome_unknown" and reply.headers["Retry-After"]
                proxy.open()
                stored = await api.put(f"/{moment}-again", b"bytes", headers={"Idempotency-Key": moment}, expect=201)
                assert stored.json["version"] == 1 and proxy.lost == 2 * (number + 1)
            assert [file["version"] for file in await api.list()] == [1, 1, 1, 1]
            usage = await api.usage()
            assert (usage["files"], usage["versions"], usage["count"]) == (20, 0, 4)
        finally:
            await asyncio.to_thread(stack.stop)
