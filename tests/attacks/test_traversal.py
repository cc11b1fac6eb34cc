"""Attack 1: names that would be paths elsewhere.  Each is refused, or is a plain name that comes back as sent."""

import uuid
from collections.abc import Callable
from urllib.parse import quote

import orjson
import pytest

from tests.attacks import disk
from tests.attacks.wire import Answer, Door, ask, form, part, request, upload_form
from tests.client import Api

REFUSED = "invalid_path"
MALFORMED = "bad_request"

# What stands in the address, and what becomes of it: a code, or the path of the stored file.  {m} is new in each test.
IN_ADDRESS = [
    ("/..", REFUSED), ("..", REFUSED), ("../{m}", REFUSED), ("/../{m}", REFUSED), ("/a/../{m}", REFUSED),
    ("/a/../../../../../../../../tmp/{m}", REFUSED), ("/./{m}", REFUSED), ("/a/.", REFUSED), ("/a/..", REFUSED),
    ("/a/../", REFUSED), ("//{m}", REFUSED), ("/a//{m}", REFUSED), ("///etc/{m}", REFUSED), ("//", REFUSED),
    ("%2e%2e/{m}", REFUSED), ("%2e%2e%2f{m}", REFUSED), ("/%2E%2E%2F%2e%2e%2F{m}", REFUSED), (".%2e/{m}", REFUSED),
    ("/a%2f..%2f{m}", REFUSED), ("%2f..%2f{m}", REFUSED), ("..%2f..%2f..%2f..%2fetc%2f{m}", REFUSED),
    ("..%00/{m}", REFUSED), ("/{m}%00.txt", REFUSED), ("%00", REFUSED), ("/a%00/../{m}", REFUSED),
    ("/{m}%0d%0aX:1", REFUSED), ("/{m}%7f", REFUSED), ("/{m}%c2%85", REFUSED), ("/{m}%1b[31m", REFUSED),
    ("%c0%ae%c0%ae/{m}", MALFORMED), ("%c0%ae%c0%ae%c0%af{m}", MALFORMED), ("%c1%9c{m}", MALFORMED),
    ("%e0%80%ae%e0%80%ae/{m}", MALFORMED), ("%f0%80%80%af{m}", MALFORMED), ("/{m}%ff", MALFORMED),
    ("%ed%a0%80{m}", MALFORMED), ("/{m}%", MALFORMED), ("/{m}%2", MALFORMED), ("/{m}%zz", MALFORMED),
    ("%u002e%u002e/{m}", MALFORMED), ("/{m}%f5%80%80%80", MALFORMED),
    ("%252e%252e%252f{m}", "/%2e%2e%2f{m}"), ("/{m}%25ff", "/{m}%ff"), ("/{m}%2500", "/{m}%00"),
    ("..%5c..%5c{m}", "/..\\..\\{m}"), ("C:%5c{m}", "/C:\\{m}"), ("%5c%5chost%5c{m}", "/\\\\host\\{m}"),
    ("....//{m}", REFUSED), ("....%2f{m}", "/..../{m}"), ("..;/{m}", "/..;/{m}"), ("..%20/{m}", "/.. /{m}"),
    ("/etc/{m}", "/etc/{m}"), ("file:%2f%2f/{m}", REFUSED), ("~root/{m}", "/~root/{m}"), ("$HOME/{m}", "/$HOME/{m}"),
    ("%ef%bc%8e%ef%bc%8e%ef%bc%8f{m}", "/．．／{m}"), ("%e2%80%a5/{m}", "/‥/{m}"), ("%e2%88%95{m}", "/∕{m}"),
    ("|{m}", "/|{m}"), ("`id`{m}", "/`id`{m}"), ("/-rf/{m}", "/-rf/{m}"), ("/{m}%3fx=y%23z", "/{m}?x=y#z"),
    ("CON/{m}", "/CON/{m}"), ("/.htaccess/{m}", "/.htaccess/{m}"), ("/{m}.", "/{m}."), ("%20/{m}", "/ /{m}"),
    ("/_blobs/{m}", "/_blobs/{m}"), ("/spool/{m}", "/spool/{m}"),
]
# The same for a text field of a form, where nothing is percent-decoded.
IN_FIELD = [
    ("..", REFUSED), ("/..", REFUSED), ("../{m}", REFUSED), ("/a/../../../../../../../tmp/{m}", REFUSED),
    ("/./{m}", REFUSED), ("//{m}", REFUSED), ("/a//{m}", REFUSED), ("/{m}\x00", REFUSED), ("/{m}\r\nX: 1", REFUSED),
    ("/a\x00/../{m}", REFUSED), ("%2e%2e%2f{m}", "/%2e%2e%2f{m}"), ("..\\..\\{m}", "/..\\..\\{m}"),
    ("/{m}%00", "/{m}%00"), ("/{m}%ff", "/{m}%ff"), ("/etc/{m}", "/etc/{m}"), ("．．／{m}", "/．．／{m}"),
]
# And for one name.
AS_NAME = [
    ("..", REFUSED), (".", REFUSED), ("a/../{m}", REFUSED), ("../{m}", REFUSED), ("/{m}", REFUSED), ("{m}/", REFUSED),
    ("{m}\x00", REFUSED), ("{m}\x1b[2J", REFUSED), ("..\\{m}", "/..\\{m}"), ("%2e%2e%2f{m}", "/%2e%2e%2f{m}"),
]

Shot = Callable[[str], bytes]


def _shoot(door: Door, shot: bytes, expected: str) -> Answer:
    """One request, whose answer is the refusal, or the stored file at that path."""
    answer = ask(door, shot)
    if expected.startswith("/"):
        assert answer.status == 201, (shot[:300], answer)
    else:
        assert answer.code == expected, (shot[:300], answer)
        assert answer.status == {REFUSED: 422, MALFORMED: 400}[expected]
    return answer


async def _check_stored(api: Api, stored: list[str], refused: int, marker: str) -> None:
    assert refused and stored
    assert sorted(file["path"] for file in await api.list()) == sorted(stored)
    for path in stored:
        assert (await api.get(path)).body == b"mine"
    assert (await api.usage())["files"] == 4 * len(stored)
    disk.settle(api.stack)
    disk.assert_confined(api.stack, marker)


async def _run_matrix(api: Api, table: list[tuple[str, str]], shot: Shot) -> None:
    marker = f"m{uuid.uuid4().hex}"
    stored = []
    for text, outcome in table:
        expected = outcome.format(m=marker)
        _shoot(api.stack, shot(text.format(m=marker)), expected)
        if expected.startswith("/"):
            stored.append(expected)
    await _check_stored(api, stored, len(table) - len(stored), marker)


async def test_put_with_a_traversing_path_is_refused_or_a_plain_name(api: Api) -> None:
    await _run_matrix(api, IN_ADDRESS, lambda text: request(f"PUT /file?path={text}", token=api.token, body=b"mine"))


async def test_form_with_a_traversing_path_in_its_address_is_refused_or_a_plain_name(api: Api) -> None:
    body = form(part('name="file"; filename="f"', b"mine"))
    await _run_matrix(api, IN_ADDRESS, lambda text: upload_form(body, token=api.token, query=f"?path={text}"))


@pytest.mark.parametrize("field", ["path", "file"])
async def test_form_with_a_traversing_path_field_is_refused_or_a_plain_name(api: Api, field: str) -> None:
    await _run_matrix(api, IN_FIELD, lambda text: upload_form(form(
        part(f'name="{field}"', text.encode()), part('name="upload"; filename="f"', b"mine")), token=api.token))


async def test_form_with_a_traversing_name_field_is_refused_or_a_plain_name(api: Api) -> None:
    await _run_matrix(api, AS_NAME, lambda text: upload_form(form(
        part('name="name"', text.encode()), part('name="file"; filename="f"', b"mine")), token=api.token))


async def test_form_with_a_traversing_name_in_its_address_is_refused_or_a_plain_name(api: Api) -> None:
    body = form(part('name="file"; filename="f"', b"mine"))
    await _run_matrix(api, AS_NAME, lambda text: upload_form(
        body, token=api.token, query=f"?name={quote(text, safe='')}"))


# Browsers of old send a whole path of their own machine, so only the last name of a filename counts.
FILENAMES = [
    ('filename=".."', REFUSED), ('filename="."', REFUSED), ('filename="a/.."', REFUSED),
    ('filename="../../../../tmp/{m}"', "/{m}"), ('filename="/etc/{m}1"', "/{m}1"),
    ('filename="C:\\\\a\\\\{m}2"', "/{m}2"), ('filename="%2e%2e%2f{m}"', "/%2e%2e%2f{m}"),
    ('filename="{m}%0D%0AX: 1"', REFUSED), ('filename="{m}\x00"', REFUSED),
    ("filename*=utf-8''..%2f..%2f{m}3", "/{m}3"), ("filename*=utf-8''{m}%00", REFUSED),
    ("filename*=utf-8''{m}%ff", MALFORMED), ("filename*=utf-8''{m}%c0%ae", MALFORMED),
    ("filename*=utf-8''..", REFUSED), ("filename*=UTF-8''%2e%2e", REFUSED),
]


async def test_form_with_a_traversing_filename_is_refused_or_a_plain_name(api: Api) -> None:
    await _run_matrix(api, FILENAMES, lambda text: upload_form(
        form(part(f'name="file"; {text}', b"mine")), token=api.token))


@pytest.mark.parametrize("line", ["GET /file/download", "HEAD /file/download", "GET /file/download/", "GET /file/info",
                                  "DELETE /file"])
async def test_other_verbs_with_a_traversing_path_find_nothing(api: Api, line: str) -> None:
    await api.put("/a/keep", b"mine")
    marker = f"m{uuid.uuid4().hex}"
    method = line.partition(" ")[0]
    for text, outcome in IN_ADDRESS:
        answer = ask(api.stack, request(f"{line}?path={text.format(m=marker)}", token=api.token), method=method)
        assert answer.status == {REFUSED: 422, MALFORMED: 400}.get(outcome, 404), (text, answer)
        if method != "HEAD":
            assert answer.code == (outcome if answer.status != 404 else "not_found")
    assert [file["path"] for file in await api.list()] == ["/a/keep"]
    assert (await api.get("/a/keep")).body == b"mine"


# Every other door that takes a path.
QUERIES = ["GET /file/list?folder={}", "GET /file/list?folder={}&recursive=true&limit=3", "GET /file/archive?path={}",
           "GET /file/versions?path={}", "DELETE /file/versions?path={}", "GET /file/link?path={}",
           "GET /file/download?version=1&path={}"]
BODIES: list[tuple[str, dict[str, object], str]] = [
    ("POST /file/folder", {}, "path"), ("POST /file/move", {"from": "/own"}, "to"),
    ("POST /file/move", {"to": "/x"}, "from"), ("POST /file/copy", {"from": "/own"}, "to"),
    ("POST /file/copy", {"to": "/x"}, "from"), ("POST /file/versions/restore", {"version": 1}, "path"),
    ("POST /file/link", {}, "path"), ("POST /file/sign", {"expires_in": 60}, "path"),
    ("POST /file/trash/restore", {"id": str(uuid.UUID(int=1))}, "to")]
OPERATIONS: list[tuple[dict[str, object], str]] = [
    ({"op": "delete"}, "path"), ({"op": "move", "to": "/x"}, "from"), ({"op": "copy", "from": "/own"}, "to")]


async def test_traversing_paths_at_every_other_door_are_refused_or_plain_names(api: Api) -> None:
    """Whatever is asked for: the account stays as it is, or has one more plain name."""
    await api.put("/own", b"mine")
    marker = f"m{uuid.uuid4().hex}"
    shots = [(request(query.format(text.format(m=marker)), token=api.token), outcome)
             for query in QUERIES for text, outcome in IN_ADDRESS]
    for text, outcome in IN_FIELD:
        given = text.format(m=marker)
        documents: list[tuple[str, object]] = [
            *((line, {**more, field: given}) for line, more, field in BODIES),
            *(("POST /file/batch", {"operations": [{**more, field: given}]}) for more, field in OPERATIONS)]
        shots += [(request(line, "Content-Type: application/json", token=api.token, body=orjson.dumps(document)),
                   outcome) for line, document in documents]
    for shot, outcome in shots:
        answer = ask(api.stack, shot)
        if outcome.startswith("/"):
            assert answer.status in (200, 201, 204, 404, 409), (shot[:400], answer)
        else:
            status = {REFUSED: 422, MALFORMED: 400}[outcome]
            assert (answer.status, answer.code) == (status, outcome), (shot[:400], answer)
    for file in await api.list():
        assert (await api.get(file["id"])).body == b"mine"
        assert not {"", ".", ".."} & set(file["path"][1:].split("/"))
    disk.settle(api.stack)
    disk.assert_confined(api.stack, marker)


ADDRESSES = [
    "/file/../../../../etc/passwd", "/file/..%2f..%2f..%2fetc/passwd", "/docs/../../../../etc/passwd",
    "/docs/..%2f..%2fopenapi.py", "/docs/%2e%2e/%2e%2e/service/app.py", "/docs/%2e%2e%2f%2e%2e%2fsetup.cfg",
    "/docs/..%5c..%5csetup.cfg", "/docs/%00", "/docs/start.js%00.html", "/docs//etc/passwd", "/docs/%2fetc%2fpasswd",
    "/docs/....//setup.cfg", "/%2e%2e/%2e%2e/etc/passwd", "/..", "/../", "/%c0%ae%c0%ae/etc/passwd", "/etc/passwd",
    "/.git/config", "/var/MARKER", "/MARKER", "/jwt_secret", "/run/nginx.conf", "/log/service.log", "/spool/",
    "/staging/", "/file/download/../../jwt_secret", "/file/download/%2e%2e/%2e%2e/jwt_secret", "/static/../jwt_secret",
]


async def test_traversing_addresses_find_no_file_of_the_server(api: Api) -> None:
    secret = (api.stack.root / "jwt_secret").read_bytes().strip()
    epoch = (api.stack.root / "MARKER").read_bytes().strip()
    for address in ADDRESSES:
        for token in ("", api.token):
            answer = ask(api.stack, request(f"GET {address}", token=token))
            # 405: the address is that of an upload after all, where there is nothing to get
            assert answer.status in (400, 401, 404, 405, 422), (address, answer)
            assert answer.code
            for leak in (b"root:", b"[core]", b"aiohttp", secret, epoch, b"worker_processes"):
                assert leak not in answer.body, address


ALMOST_IDS = [
    "{0}0", "0{0}", "{{{0}}}", "urn:uuid:{0}", "{1}", "{0} ", " {0}", "{2}", "({0})", "{0}%0a", "{0}%00", "{0}/../{0}",
    "../{0}", "{3}",
]


@pytest.mark.parametrize("verb", ["download", "info"])
async def test_what_is_almost_an_id_is_a_path_and_never_that_file(api: Api, verb: str) -> None:
    known = (await api.put("/a", b"mine")).json["id"]
    for almost in ALMOST_IDS:
        text = almost.format(known, known.replace("-", ""), known[:-1], known.replace("-", "‐"))
        answer = ask(api.stack, request(f"GET /file/{verb}?path={quote(text, safe='%')}", token=api.token))
        assert answer.status in (404, 422), (almost, answer)
    for spelling in (known, known.upper()):
        assert ask(api.stack, request(f"GET /file/{verb}?path={spelling}", token=api.token)).status == 200
