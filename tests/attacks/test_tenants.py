"""Attack 3: another account's ids and paths.  Each answer is the one for what does not exist, to the byte."""

import uuid
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import quote

from service.api.routes import ROUTES
from tests.attacks import disk
from tests.attacks.wire import Answer, ask, form, part, request, upload_form
from tests.client import Api

Other = Callable[[], Awaitable[Api]]

# Routes that take no place: what they show is the caller's own, which is tested below.
WITHOUT_PLACE = {
    "POST /auth/jwt/logout", "GET /auth/me", "GET /file/usage_memory", "DELETE /auth/me", "POST /auth/password",
    "GET /auth/session", "DELETE /auth/session", "GET /auth/audit", "GET /file/trash", "GET /file/link",
}
# Routes that take a place, or an id, in a JSON body; {} is where it goes.
BODIES: list[tuple[str, dict[str, object]]] = [
    ("POST /file/move", {"from": "{}", "to": "/x"}), ("POST /file/move", {"from": "/mine", "to": "{}/x"}),
    ("POST /file/copy", {"from": "{}", "to": "/x"}),
    ("POST /file/copy", {"from": "{}", "to": "/mine", "overwrite": True}),
    ("POST /file/batch", {"operations": [{"op": "delete", "path": "{}"}]}),
    ("POST /file/batch", {"operations": [{"op": "copy", "from": "{}", "to": "/x"}]}),
    ("POST /file/link", {"path": "{}"}), ("POST /file/link", {"path": "{}", "kind": "upload"}),
    ("POST /file/sign", {"path": "{}", "expires_in": 60}),
    ("POST /file/versions/restore", {"path": "{}", "version": 1}), ("POST /file/trash/restore", {"id": "{}"}),
]
# Each route that takes a place, with conditions and ranges: what is asked about a file may not tell that it is there.
LINES: list[tuple[str, tuple[str, ...]]] = [
    ("GET /file/info", ()), ("GET /file/download", ()), ("HEAD /file/download", ()), ("GET /file/download/", ()),
    ("GET /file/download", ("Range: bytes=0-0",)), ("GET /file/download", ("Range: bytes=999-",)),
    ("GET /file/download", ("If-None-Match: {etag}",)), ("GET /file/download", ("If-None-Match: *",)),
    ("GET /file/download", ("If-Match: {etag}",)), ("GET /file/download", ('If-Match: "x"',)),
    ("GET /file/download", ("If-Modified-Since: Fri, 01 Jan 2100 00:00:00 GMT",)),
    ("GET /file/download", ("If-Unmodified-Since: Sat, 01 Jan 2000 00:00:00 GMT",)),
    ("DELETE /file", ()), ("DELETE /file", ("If-Match: {etag}",)), ("DELETE /file", ('If-Match: "x"',)),
    ("DELETE /file", ("If-None-Match: *",)),
    ("GET /file/archive", ()), ("HEAD /file/archive", ()), ("GET /file/versions", ()), ("DELETE /file/versions", ()),
]


def _without_what_differs(answer: Answer) -> tuple[int, list[tuple[str, str]], bytes]:
    """All of an answer but the time and the id of the request."""
    request_id = answer.one("X-Request-Id")
    headers = [(name, value) for name, value in answer.headers if name not in ("date", "x-request-id")]
    return answer.status, headers, answer.body.replace(request_id.encode(), b"ID")


def _assert_same(answers: tuple[Answer, Answer], what: object) -> None:
    theirs, nothing = answers
    assert _without_what_differs(theirs) == _without_what_differs(nothing), what
    assert theirs.status in (404, 412), (what, theirs)


def _ask_twice(api: Api, line: str, headers: list[str], theirs: str, nothing: str) -> tuple[Answer, Answer]:
    method = line.partition(" ")[0]
    one, other = (ask(api.stack, request(f"{line}?path={place}", *headers, token=api.token), method=method)
                  for place in (theirs, nothing))
    return one, other


def test_every_route_with_an_account_is_in_this_module() -> None:
    private = {f"{route.method} {route.path}" for route in ROUTES if not route.is_public}
    covered = {line for line, _ in LINES} | {line for line, _ in BODIES} | WITHOUT_PLACE
    # those below the tables, each in a test of its own; a new folder is always in the caller's own tree
    covered |= {"PUT /file", "POST /file", "GET /file/list", "DELETE /file/trash", "DELETE /file/link/{id}",
                "DELETE /auth/session/{id}", "POST /file/folder"}
    assert private == {line for line in covered if not line.startswith("HEAD")}


def _filled(value: object, place: str) -> object:
    if isinstance(value, dict):
        return {key: _filled(inner, place) for key, inner in value.items()}
    if isinstance(value, list):
        return [_filled(inner, place) for inner in value]
    return value.replace("{}", place) if isinstance(value, str) else value


async def _same(api: Api, method: str, path: str, other: str, **more: Any) -> None:
    """Two requests that have to get the same refusal."""
    answers = []
    for where, place in ((path, "theirs"), (other, "nothing")):
        reply = await api.call(method, where, **{key: value[place] for key, value in more.items()})
        answers.append((reply.status, reply.body.replace(reply.headers["X-Request-Id"].encode(), b"ID")))
    assert answers[0] == answers[1] and answers[0][0] == 404, (method, path, answers)


async def test_another_accounts_ids_in_bodies_answer_like_ids_of_nothing(api: Api, other_account: Other) -> None:
    victim = await other_account()
    file = (await victim.put("/deep/secret.txt", b"secret")).json
    folder = await victim.info("/deep")
    await api.put("/mine", b"mine")
    for found in (file["id"], folder["id"]):
        for line, body in BODIES:
            if "{}/x" in str(body):
                continue  # an id is a place as a whole
            method, _, path = line.partition(" ")
            await _same(api, method, path, path,
                        json={"theirs": _filled(body, found), "nothing": _filled(body, str(uuid.uuid4()))})
    for line, body in BODIES[:-1]:
        method, _, path = line.partition(" ")
        if "{}/x" not in str(body):
            await _same(api, method, path, path, json={"theirs": _filled(body, "/deep/secret.txt"),
                                                       "nothing": _filled(body, "/none/nothing.txt")})
    assert await victim.info("/deep/secret.txt") == file
    assert [found["path"] for found in await api.list()] == ["/mine"]


async def test_another_accounts_links_sessions_and_trash_are_not_there(api: Api, other_account: Other) -> None:
    victim = await other_account()
    file = (await victim.put("/secret.txt", b"secret")).json
    link = (await victim.call("POST", "/file/link", json={"path": "/secret.txt"}, expect=201)).json
    session = (await victim.call("GET", "/auth/session", expect=200)).json["sessions"][0]
    await victim.delete("/secret.txt")
    for address, found in (("/file/link/", link["id"]), ("/auth/session/", session["id"]),
                           ("/file/trash?id=", file["id"])):
        await _same(api, "DELETE", address + found, address + str(uuid.uuid4()))
    await _same(api, "GET", f"/file/list?folder={file['id']}", f"/file/list?folder={uuid.uuid4()}")
    assert (await api.call("GET", "/file/link", expect=200)).json["links"] == []
    assert (await api.call("GET", "/file/trash", expect=200)).json["items"] == []
    await victim.call("GET", "/auth/me", expect=200)
    assert len((await victim.call("GET", "/file/link", expect=200)).json["links"]) == 1
    assert len((await victim.call("GET", "/file/trash", expect=200)).json["items"]) == 1


async def test_another_accounts_ids_answer_like_ids_of_nothing(api: Api, other_account: Other) -> None:
    victim = await other_account()
    file = (await victim.put("/deep/in/secret.txt", b"secret")).json
    folder = await victim.info("/deep")
    root = (await victim.call("GET", "/auth/me", expect=200)).json["id"]
    for found in (file["id"], folder["id"], root):
        for line, headers in LINES:
            sent = [header.format(etag=file["etag"]) for header in headers]
            _assert_same(_ask_twice(api, line, sent, found, str(uuid.uuid4())), (line, headers, found))
    assert (await victim.info("/deep/in/secret.txt")) == file
    assert (await victim.get("/deep/in/secret.txt")).body == b"secret"


async def test_another_accounts_paths_answer_like_paths_of_nothing(api: Api, other_account: Other) -> None:
    victim = await other_account()
    file = (await victim.put("/deep/in/secret.txt", b"secret")).json
    for line, headers in LINES:
        sent = [header.format(etag=file["etag"]) for header in headers]
        for path, nothing in (("/deep/in/secret.txt", "/deep/in/nothing.txt"), ("/deep", "/none"),
                              ("/deep/in/", "/no/ne/")):
            _assert_same(_ask_twice(api, line, sent, path, nothing), (line, headers, path))
    assert (await victim.info("/deep/in/secret.txt")) == file


def _uploads_to(place: str, headers: tuple[str, ...], token: str) -> list[bytes]:
    """Every way to say where an upload goes."""
    content, at = part('name="file"; filename="mine.txt"', b"mine"), place.encode()
    return [
        request(f"PUT /file?path={place}", *headers, token=token, body=b"mine"),
        request(f"PUT /file?path={place}", *headers, token=token),
        upload_form(form(content), *headers, token=token, query=f"?path={place}"),
        upload_form(form(part('name="path"', at), content), *headers, token=token),
        upload_form(form(part('name="file"', at), content), *headers, token=token),
        upload_form(form(part('name="path"', at), part('name="name"', b"x"), content), *headers, token=token),
    ]


async def test_uploads_to_another_accounts_ids_answer_like_ids_of_nothing(api: Api, other_account: Other) -> None:
    victim = await other_account()
    file = (await victim.put("/deep/secret.txt", b"secret")).json
    folder = await victim.info("/deep")
    root = (await victim.call("GET", "/auth/me", expect=200)).json["id"]
    for found in (file["id"], folder["id"], root):
        for headers in ((), (f"If-Match: {file['etag']}",), ("If-None-Match: *",), ("If-Match: *",)):
            theirs, nothing = (_uploads_to(place, headers, api.token) for place in (found, str(uuid.uuid4())))
            for number, (one, other) in enumerate(zip(theirs, nothing, strict=True)):
                _assert_same((ask(api.stack, one), ask(api.stack, other)), (found, headers, number))
    assert await victim.info("/deep/secret.txt") == file
    assert (await victim.get(file["id"])).body == b"secret"
    assert await api.list() == []
    assert (await api.usage())["files"] == 0
    disk.settle(api.stack)


async def test_the_same_paths_of_two_accounts_are_two_files(api: Api, other_account: Other) -> None:
    other = await other_account()
    for path in ("/a", "/ax/y", "/%2e", "/a.b", "/ab"):
        mine, theirs = (await api.put(path, b"mine")).json, (await other.put(path, b"theirs")).json
        assert mine["id"] != theirs["id"]
        assert (await api.get(path)).body == b"mine"
        assert (await other.get(path)).body == b"theirs"
        assert (await api.get(theirs["id"], expect=404)).code == "not_found"
    await api.delete("/a")
    assert (await other.get("/a")).body == b"theirs"
    assert {file["id"] for file in await api.list()} & {file["id"] for file in await other.list()} == set()


async def test_a_prefix_of_a_name_is_not_its_folder(api: Api) -> None:
    """Siblings whose names begin alike: a rule on strings would mix them up."""
    for path in ("/a/x", "/ab/x", "/a.b/x", "/A/x", "/a b/x"):
        await api.put(path, path.encode())
    await api.delete("/a")
    assert sorted(file["path"] for file in await api.list()) == ["/A/x", "/a b/x", "/a.b/x", "/ab/x"]
    for path in ("/ab/x", "/a.b/x", "/A/x", "/a b/x"):
        assert (await api.get(path)).body == path.encode()
    assert (await api.get("/a/x", expect=404)).code == "not_found"


async def test_list_usage_and_me_show_the_caller_alone(api: Api, other_account: Other) -> None:
    other = await other_account()
    await other.put("/theirs", b"12345")
    for extra in ("", f"?user={other.username}", f"?user_id={uuid.uuid4()}", f"?username={quote(other.username)}"):
        assert (await api.call("GET", f"/file/list{extra}", expect=200)).json["files"] == []
        assert (await api.call("GET", f"/file/usage_memory{extra}", expect=200)).json["files"] == 0
        assert (await api.call("GET", f"/auth/me{extra}", expect=200)).json["username"] == api.username


async def test_a_token_of_one_account_with_headers_of_another_is_still_the_one(api: Api, other_account: Other) -> None:
    other = await other_account()
    theirs = (await other.call("GET", "/auth/me", expect=200)).json
    for name in ("X-User", "X-User-Id", "X-Username", "X-Remote-User", "Remote-User", "From", "X-Account", "Cookie"):
        for value in (theirs["id"], theirs["username"]):
            seen = (await api.call("GET", "/auth/me", headers={name: value}, expect=200)).json
            assert seen["username"] == api.username
    twice = ask(api.stack, request("GET /auth/me", f"Authorization: Bearer {other.token}", token=api.token))
    assert (twice.status, twice.code) in ((401, "unauthenticated"), (400, "bad_request"))  # nginx takes one only
    cookie = ask(api.stack, request("GET /auth/me", f"Cookie: access_token={other.token}; token={other.token}"))
    assert (cookie.status, cookie.code) == (401, "unauthenticated")
