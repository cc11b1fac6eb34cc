"""Attack 3: another account's ids and paths.  Each answer is the one for what does not exist, to the byte."""

import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import quote

from service.api.routes import ROUTES
from tests.attacks import disk
from tests.attacks.wire import Answer, ask, form, part, request, upload_form
from tests.client import PASSWORD, Api

Other = Callable[[], Awaitable[Api]]

# Routes that take nothing of another account's: what they show or change is the caller's own, which is tested below.
OWN = {"POST /auth/jwt/logout", "GET /auth/me", "DELETE /auth/me", "POST /auth/password", "GET /auth/session",
       "DELETE /auth/session", "GET /auth/audit", "GET /file/usage_memory", "GET /file/trash"}
# Each route that takes a path or an id in its address, with what may be asked about a file: nothing may tell that it is
# there.
BY_ADDRESS: list[tuple[str, str, tuple[str, ...]]] = [
    ("GET /file/info", "?path={0}", ()), ("GET /file/list", "?folder={0}", ()),
    ("GET /file/list", "?folder={0}&recursive=true&limit=5", ()), ("GET /file/archive", "?path={0}", ()),
    ("GET /file/versions", "?path={0}", ()), ("DELETE /file/versions", "?path={0}", ()),
    ("DELETE /file/versions", "?path={0}&version=1", ()), ("GET /file/link", "?path={0}", ()),
    ("GET /file/download", "?path={0}", ()), ("HEAD /file/download", "?path={0}", ()),
    ("GET /file/download/", "?path={0}", ()), ("GET /file/download", "?path={0}&version=1", ()),
    *(("GET /file/download", "?path={0}", (header,)) for header in (
        "Range: bytes=0-0", "Range: bytes=999-", "If-None-Match: {etag}", "If-None-Match: *", "If-Match: {etag}",
        'If-Match: "x"', "If-Modified-Since: Fri, 01 Jan 2100 00:00:00 GMT",
        "If-Unmodified-Since: Sat, 01 Jan 2000 00:00:00 GMT")),
    ("DELETE /file", "?path={0}", ()), ("DELETE /file", "?path={0}&permanent=true", ()),
    *(("DELETE /file", "?path={0}", (header,)) for header in ("If-Match: {etag}", 'If-Match: "x"', "If-None-Match: *")),
]
# Each route that takes one in JSON.
BY_JSON: list[tuple[str, str]] = [
    ("POST /file/folder", '{"path": "%s"}'), ("POST /file/move", '{"from": "%s", "to": "/mine"}'),
    ("POST /file/move", '{"from": "/own", "to": "%s"}'), ("POST /file/copy", '{"from": "%s", "to": "/mine"}'),
    ("POST /file/copy", '{"from": "/own", "to": "%s", "overwrite": true}'),
    ("POST /file/batch", '{"operations": [{"op": "delete", "path": "%s"}]}'),
    ("POST /file/batch", '{"operations": [{"op": "copy", "from": "%s", "to": "/mine"}]}'),
    ("POST /file/batch", '{"operations": [{"op": "move", "from": "/own", "to": "%s", "overwrite": true}]}'),
    ("POST /file/versions/restore", '{"path": "%s", "version": 1}'), ("POST /file/link", '{"path": "%s"}'),
    ("POST /file/link", '{"path": "%s", "kind": "upload"}'), ("POST /file/sign", '{"path": "%s", "expires_in": 60}'),
]
# And each that takes the id of something else: what is in the trash, a link, a session.
BY_OTHER_ID: list[tuple[str, str, str]] = [
    ("POST /file/trash/restore", "", '{"id": "%s"}'), ("POST /file/trash/restore", "", '{"id": "%s", "to": "/mine"}'),
    ("DELETE /file/trash", "?id={0}", ""), ("DELETE /file/link/{id}", "", ""), ("DELETE /auth/session/{id}", "", ""),
]


@dataclass(frozen=True)
class Victim:
    """An account with one of each thing that has an id."""

    api: Api
    file: dict[str, str]
    ids: list[str]  # of a file, a folder and the root folder
    other_ids: list[str]  # of something in the trash, a link and a session

    @classmethod
    async def make(cls, api: Api) -> "Victim":
        """Give the account something to lose."""
        await api.put("/deep/in/secret.txt", b"former")
        file = (await api.put("/deep/in/secret.txt", b"secret", expect=200)).json
        trashed = (await api.put("/trashed", b"trashed")).json["id"]
        await api.delete("/trashed")
        link = (await api.call("POST", "/file/link", json={"path": "/deep"}, expect=201)).json["id"]
        root = (await api.call("GET", "/auth/me", expect=200)).json["id"]
        (session,) = (await api.call("GET", "/auth/session", expect=200)).json["sessions"]
        return cls(api, file, [file["id"], (await api.info("/deep"))["id"], root], [trashed, link, session["id"]])

    async def state(self) -> object:
        """All that another account must not change."""
        links = (await self.api.call("GET", "/file/link", expect=200)).json["links"]
        trash = (await self.api.call("GET", "/file/trash", expect=200)).json["items"]
        sessions = (await self.api.call("GET", "/auth/session", expect=200)).json["sessions"]
        versions = (await self.api.call("GET", f"/file/versions?path={self.file['id']}", expect=200)).json
        return (await self.api.list(), await self.api.usage(), links, trash, versions, len(sessions),
                (await self.api.get("/deep/in/secret.txt")).body)


def _without_what_differs(answer: Answer) -> tuple[int, list[tuple[str, str]], bytes]:
    """All of an answer but the time and the id of the request."""
    request_id = answer.one("X-Request-Id")
    headers = [(name, value) for name, value in answer.headers if name not in ("date", "x-request-id")]
    return answer.status, headers, answer.body.replace(request_id.encode(), b"ID")


def _assert_same(api: Api, theirs: bytes, nothing: bytes, method: str = "GET") -> None:
    """What is another account's and what is nothing: two refusals that nobody can tell apart."""
    one, other = (ask(api.stack, shot, method=method) for shot in (theirs, nothing))
    assert _without_what_differs(one) == _without_what_differs(other), theirs
    assert one.status in (404, 409, 412, 422), (theirs, one)


def test_every_route_with_an_account_is_in_this_module() -> None:
    """A new route has to be added above, or it is one that nobody has attacked."""
    private = {f"{route.method} {route.path}" for route in ROUTES if not route.is_public}
    covered = {case[0] for table in (BY_ADDRESS, BY_JSON, BY_OTHER_ID) for case in table} | OWN
    assert private == covered - {"HEAD /file/download"} | {"PUT /file", "POST /file"}


def _by_address(api: Api, line: str, query: str, headers: list[str], place: str) -> bytes:
    return request(f"{line.replace('{id}', place)}{query.format(place)}", *headers, token=api.token)


def _by_json(api: Api, line: str, body: str, place: str) -> bytes:
    return request(line, "Content-Type: application/json", token=api.token, body=(body % place).encode())


async def test_another_accounts_ids_answer_like_ids_of_nothing(api: Api, other_account: Other) -> None:
    victim = await Victim.make(await other_account())
    before = await victim.state()
    await api.put("/own", b"mine")
    for found in victim.ids + victim.other_ids:
        nothing = str(uuid.uuid4())
        for line, query, headers in BY_ADDRESS:
            sent = [header.format(etag=victim.file["etag"]) for header in headers]
            _assert_same(api, _by_address(api, line, query, sent, found), _by_address(api, line, query, sent, nothing),
                         line.partition(" ")[0])
        for line, body in BY_JSON:
            _assert_same(api, _by_json(api, line, body, found), _by_json(api, line, body, nothing))
        for line, query, body in BY_OTHER_ID:
            if body:
                _assert_same(api, _by_json(api, line, body, found), _by_json(api, line, body, nothing))
            else:
                _assert_same(api, _by_address(api, line, query, [], found), _by_address(api, line, query, [], nothing))
    assert await victim.state() == before
    assert [file["path"] for file in await api.list()] == ["/own"]
    assert (await api.get("/own")).body == b"mine"


async def test_another_accounts_paths_answer_like_paths_of_nothing(api: Api, other_account: Other) -> None:
    victim = await Victim.make(await other_account())
    before = await victim.state()
    for path, nothing in (("/deep/in/secret.txt", "/deep/in/nothing.txt"), ("/deep", "/none"), ("/deep/in/", "/no/ne/"),
                          ("/trashed", "/nothing")):
        for line, query, headers in BY_ADDRESS:
            sent = [header.format(etag=victim.file["etag"]) for header in headers]
            _assert_same(api, _by_address(api, line, query, sent, path), _by_address(api, line, query, sent, nothing),
                         line.partition(" ")[0])
        for line, body in BY_JSON:
            if line != "POST /file/folder":  # where it is free, everybody may make one
                _assert_same(api, _by_json(api, line, body, path), _by_json(api, line, body, nothing))
    assert await victim.state() == before
    assert await api.list() == []


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
    victim = await Victim.make(await other_account())
    before = await victim.state()
    for found in victim.ids:
        for headers in ((), (f"If-Match: {victim.file['etag']}",), ("If-None-Match: *",), ("If-Match: *",)):
            theirs, nothing = (_uploads_to(place, headers, api.token) for place in (found, str(uuid.uuid4())))
            for one, other in zip(theirs, nothing, strict=True):
                _assert_same(api, one, other)
    assert await victim.state() == before
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


async def test_what_is_shown_is_the_callers_alone(api: Api, other_account: Other) -> None:
    other = (await Victim.make(await other_account())).api
    for extra in ("", f"?user={other.username}", f"?user_id={uuid.uuid4()}", f"?username={quote(other.username)}"):
        assert (await api.call("GET", f"/file/list{extra}", expect=200)).json["files"] == []
        assert (await api.call("GET", f"/file/usage_memory{extra}", expect=200)).json["files"] == 0
        assert (await api.call("GET", f"/auth/me{extra}", expect=200)).json["username"] == api.username
        assert (await api.call("GET", f"/file/trash{extra}", expect=200)).json["items"] == []
        assert (await api.call("GET", f"/file/link{extra}", expect=200)).json["links"] == []
        assert len((await api.call("GET", f"/auth/session{extra}", expect=200)).json["sessions"]) == 1
        audit = (await api.call("GET", f"/auth/audit{extra}", expect=200)).body
        assert b"secret" not in audit and b"trashed" not in audit and other.username.encode() not in audit


async def test_what_is_emptied_or_ended_is_the_callers_alone(api: Api, other_account: Other) -> None:
    victim = await Victim.make(await other_account())
    before = await victim.state()
    await api.put("/mine", b"mine")
    await api.delete("/mine")
    await api.call("DELETE", "/file/trash", expect=204)
    await api.call("DELETE", "/auth/session?all=true", expect=204)
    assert await victim.state() == before
    another = await other_account()
    await another.call("DELETE", "/auth/me", json={"password": PASSWORD})
    assert await victim.state() == before


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
