"""Batches from outside: in their order, all or nothing, the failed one named."""

import io
import time
from typing import Any

import orjson
import pytest

from tests.client import Api, Reply


async def batch(api: Api, *operations: Any, expect: int = 200) -> Reply:
    return await api.call("POST", "/file/batch", json={"operations": operations}, expect=expect)


async def paths(api: Api) -> list[str]:
    found = (await api.call("GET", "/file/list?recursive=true", expect=200)).json
    return sorted(entry["path"] for entry in found["files"] + found["folders"])


async def test_all_are_carried_out_in_their_order(api: Api) -> None:
    await api.put("/a/1", b"one")
    await api.put("/b", b"two")
    results = (await batch(
        api,
        {"op": "move", "from": "/a", "to": "/x/"},
        {"op": "copy", "from": "/x/a/1", "to": "/c"},  # what the one before it made
        {"op": "move", "from": "/b", "to": "/c", "overwrite": True},
        {"op": "delete", "path": "/x/a/1", "permanent": True})).json["results"]
    assert [result["op"] for result in results] == ["move", "copy", "move", "delete"]
    assert [result["object"] and result["object"]["path"] for result in results] == ["/x/a", "/c", "/c", None]
    assert await paths(api) == ["/c", "/x", "/x/a"]
    assert (await api.get("/c")).body == b"two"
    usage = await api.usage()
    assert (usage["files"], usage["count"], usage["trash"]) == (3, 1, 3)


@pytest.mark.parametrize(("bad", "status", "code"), [
    ({"op": "delete", "path": "/nothing"}, 404, "not_found"),
    ({"op": "delete", "path": "/"}, 422, "invalid_path"),
    ({"op": "move", "from": "/b", "to": "/a/1"}, 409, "name_taken"),
    ({"op": "move", "from": "/a", "to": "/a/b"}, 409, "conflict"),
    ({"op": "copy", "from": "/b", "to": "/a/1/x"}, 409, "not_a_folder"),
    ({"op": "delete", "path": "/b", "if_match": '"other"'}, 412, "precondition_failed"),
    ({"op": "move", "from": "/b", "to": "/z", "if_match": '"other"'}, 412, "precondition_failed"),
])
async def test_the_first_failure_takes_back_all_and_is_named(api: Api, bad: Any, status: int, code: str) -> None:
    await api.put("/a/1", b"one")
    await api.put("/b", b"two")
    await api.put("/c", b"three")
    before, usage = await paths(api), await api.usage()
    reply = await batch(api, {"op": "delete", "path": "/c"}, {"op": "copy", "from": "/a", "to": "/new/a"}, bad,
                        {"op": "delete", "path": "/nothing else"}, expect=status)
    assert (reply.code, reply.json["operation"]) == (code, 2)
    assert (await paths(api), await api.usage()) == (before, usage)


@pytest.mark.parametrize(("operation", "field"), [
    ({"op": "delete"}, "path"), ({"op": "move", "from": "/b"}, "to"), ({"op": "copy", "to": "/b"}, "from"),
    ({"op": "explode"}, "op"), ({"path": "/b"}, "op"), ({"op": "delete", "path": "/a/../b"}, "path"),
    ({"op": "move", "from": "/b", "to": "/" + "x" * 256}, "to"), ({"op": "delete", "path": ""}, "path"),
    ({"op": "delete", "path": "/b", "if_match": "x"}, "if_match"), ({"op": "delete", "path": 5}, "path"),
    ({"op": "delete", "path": "/b", "permanent": "perhaps"}, "permanent"),
])
async def test_a_wrong_field_is_named_with_its_operation(api: Api, operation: Any, field: str) -> None:
    await api.put("/b", b"x")
    reply = await batch(api, {"op": "delete", "path": "/b"}, operation, expect=422)
    assert reply.json["field"] == f"operations.1.{field}"
    assert await paths(api) == ["/b"]


@pytest.mark.parametrize("body", [{}, [], {"operations": []}, {"operations": {}}, {"operations": [5]},
                                  {"operations": [{"op": "delete", "path": "/x"}] * 1001}])
async def test_not_a_batch(api: Api, body: Any) -> None:
    assert (await api.call("POST", "/file/batch", json=body, expect=422)).code == "invalid_field"


async def test_conditions_that_hold(api: Api) -> None:
    etag = (await api.put("/b", b"x")).json["etag"]
    await batch(api, {"op": "move", "from": "/b", "to": "/c", "if_match": etag},
                {"op": "delete", "path": "/c", "if_match": f'"other", {etag}'})
    assert await paths(api) == []


async def test_a_thousand(api: Api) -> None:
    await api.put("/f", b"x")
    begin = time.monotonic()
    await batch(api, *({"op": "copy", "from": "/f", "to": f"/copies/{number}"} for number in range(1000)))
    assert (await api.usage())["count"] == 1001
    await batch(api, *({"op": "move", "from": f"/copies/{number}", "to": f"/moved/{number}"} for number in range(1000)))
    await batch(api, *({"op": "delete", "path": f"/moved/{number}"} for number in range(1000)))
    assert time.monotonic() - begin < 60
    assert (await api.usage())["count"] == 1


async def test_more_than_a_mebibyte_is_refused(api: Api) -> None:
    await api.put("/f", b"x")
    operations = [{"op": "copy", "from": "/f", "to": "/" + "/".join(["y" * 250] * 8)} for _ in range(600)]
    body = io.BytesIO(orjson.dumps({"operations": operations}))
    reply = await api.call("POST", "/file/batch", data=body, headers={"Content-Type": "application/json"}, expect=413)
    assert reply.code == "too_large"
    assert await paths(api) == ["/f"]
