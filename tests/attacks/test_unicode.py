"""Attack 19: names that look alike, that hide something, or that are no text at all."""

import unicodedata
from urllib.parse import quote

import orjson
import pytest

from tests.attacks import disk
from tests.attacks.wire import Answer, ask, form, part, request, upload_form
from tests.client import PASSWORD, Api


def _put(api: Api, name: str, content: bytes = b"mine") -> Answer:
    return ask(api.stack, request(f"PUT /file?path=/{quote(name, safe='')}", token=api.token, body=content))


def _by_form(api: Api, name: str) -> list[Answer]:
    """The same name in each place of a form."""
    content = b"mine"
    return [
        ask(api.stack, upload_form(form(part(f'name="file"; filename="{name}"', content)), token=api.token)),
        ask(api.stack, upload_form(form(part(f"name=\"file\"; filename*=utf-8''{quote(name, safe='')}", content)),
                                   token=api.token)),
        ask(api.stack, upload_form(form(part('name="name"', name.encode()), part('name="f"; filename="f"', content)),
                                   token=api.token)),
        ask(api.stack, upload_form(form(part('name="path"', b"/" + name.encode()),
                                        part('name="f"; filename="f"', content)), token=api.token)),
    ]


TWINS = [
    ("é", "e\u0301"), ("Å", "\u212b"), ("한글", "\u1112\u1161\u11ab\u1100\u1173\u11af"), ("ё", "е\u0308"),
    ("が", "か\u3099"), ("Ω", "\u2126"), ("ệ", "e\u0323\u0302"), ("ệ", "e\u0302\u0323"), ("\u0958", "क\u093c"),
    ("豈", "\uf900"), ("ὰ", "α\u0300"), ("q\u0323\u0307", "q\u0307\u0323"), ("\u0f71\u0f72", "\u0f73"),
]


async def test_twins_after_nfc_are_one_file_at_every_door(api: Api) -> None:
    for composed, decomposed in TWINS:
        name = unicodedata.normalize("NFC", composed)
        assert name == unicodedata.normalize("NFC", decomposed)
        first = _put(api, composed + ".txt", b"one")
        assert first.status == 201, ascii(composed)
        for answer in _by_form(api, decomposed + ".txt"):
            assert answer.status == 200, answer
        file = await api.info(f"/{decomposed}.txt")
        assert (file["name"], file["version"]) == (name + ".txt", 5)
        for spelling in (composed, decomposed):
            assert (await api.info(f"/{spelling}.txt"))["id"] == orjson.loads(first.body)["id"]
            assert (await api.get(f"/{spelling}.txt")).body == b"mine"
        await api.put(f"/{decomposed}/x", b"mine")
        assert (await api.info(f"/{composed}/x"))["path"] == f"/{name}/x"
        await api.delete(f"/{decomposed}.txt")
        assert (await api.call("GET", f"/file/info?path=/{quote(composed)}.txt")).code == "not_found"
        await api.delete(f"/{composed}")


APART = [
    ("a", "A"), ("ß", "ss"), ("ı", "i"), ("ﬁ", "fi"), ("Ａ", "A"), ("а", "a"), ("ο", "o"), ("K", "k"), ("σ", "ς"),
    ("\u200b", "\u200c"), ("a\u00ad", "a"), ("a\u200d", "a"), ("１", "1"), ("…", "..."), ("٠", "0"), ("\ufeffa", "a"),
    ("a ", "a"), ("a\u00a0", "a "), ("a.", "a"), ("x\ufe0f", "x"), ("¼", "1⁄4"),
]


async def test_names_that_only_look_alike_are_two_files(api: Api) -> None:
    """Only NFC makes names the same: no folding of case, of width or of compatibility."""
    for number, (one, other) in enumerate(APART):
        for name, content in ((one, b"one"), (other, b"other")):
            assert _put(api, f"{number}/{name}", content).status == 201, ascii((one, other))
        assert (await api.get(f"/{number}/{one}")).body == b"one"
        assert (await api.get(f"/{number}/{other}")).body == b"other"
    assert len(await api.list()) == 2 * len(APART)


BIDI = ["\u202a", "\u202b", "\u202c", "\u202d", "\u202e", "\u2066", "\u2067", "\u2068", "\u2069"]


async def test_bidirectional_controls_are_refused_at_every_door(api: Api) -> None:
    for control in BIDI:
        for name in (f"{control}txt.exe", f"photo{control}gpj.exe", f"x{control}"):
            for answer in (_put(api, name), *_by_form(api, name)):
                assert (answer.status, answer.code) == (422, "invalid_path"), (ascii(name), answer)
            assert _put(api, f"folder{control}/x").status == 422
    assert await api.list() == []
    disk.settle(api.stack)


INVISIBLE = [
    "\u200b", "\u200c", "\u200d", "\u200e", "\u200f", "\u2060", "\u2061", "\ufeff", "\u00ad", "\u034f", "\u061c",
    "\u180e", "\u3164", "\uffa0", "\u2800", "\ufe0f", "\U000e0001", "\U000e0041", "\U000e0100", "\U0001d173", "\u115f",
]


async def test_invisible_characters_are_treated_alike_at_every_door(api: Api) -> None:
    """Emoji and several scripts need some of them, so they are names; what matters is that no door thinks otherwise."""
    for number, character in enumerate(INVISIBLE):
        name = f"{number}{character}b"
        answers = [_put(api, name), *_by_form(api, name)[:2]]
        if answers[0].status == 201:
            assert [answer.status for answer in answers] == [201, 200, 200], ascii(character)
            assert orjson.loads(answers[0].body)["name"] == unicodedata.normalize("NFC", name)
            assert (await api.get(f"/{name}")).body == b"mine"
        else:
            assert {(answer.status, answer.code) for answer in answers} == {(422, "invalid_path")}, ascii(character)


EDGES = [
    ("x" * 255, True), ("x" * 256, False), ("é" * 127 + "x", True), ("é" * 128, False), ("€" * 85, True),
    ("€" * 86, False), ("😀" * 63 + "xxx", True), ("😀" * 64, False), ("e\u0301" * 127 + "x", True),
    ("e\u0301" * 128, False), ("\u1112\u1161\u11ab" * 85, True), ("\u1112\u1161\u11ab" * 86, False),
    ("\u0958" * 42, True), ("\u0958" * 43, False),
]


async def test_255_bytes_after_nfc_are_the_edge_at_every_door(api: Api) -> None:
    """Some names grow by NFC, some shrink; what counts is what is stored."""
    for name, fits in EDGES:
        assert (len(unicodedata.normalize("NFC", name).encode()) <= 255) == fits
        answers = [_put(api, name), *_by_form(api, name)]
        if fits:
            assert [answer.status for answer in answers] in ([201, *[200] * 4], [200] * 5), (name, answers)
            assert (await api.get(f"/{name}")).body == b"mine"
        else:
            assert {(answer.status, answer.code) for answer in answers} == {(422, "invalid_path")}, (name, answers)


async def test_4096_bytes_and_128_levels_are_the_edge_of_a_path(api: Api) -> None:
    for path, fits in ((("x" * 255 + "/") * 15 + "y" * 255, True), (("x" * 255 + "/") * 16, False),
                       ("/".join("a" * 128), True), ("/".join("a" * 129), False), ("a/" * 127 + "é", True),
                       (("é" * 127 + "/") * 16 + "y" * 14, True), (("é" * 127 + "/") * 16 + "y" * 16, False)):
        raw = quote(path)
        answer = ask(api.stack, request(f"PUT /file?path=/{raw}", token=api.token, body=b"mine"))
        by_form = ask(api.stack, upload_form(form(part('name="path"', b"/" + path.encode()),
                                                  part('name="f"; filename="f"', b"mine")), token=api.token))
        if fits:
            assert (answer.status, by_form.status) in ((201, 200), (200, 200)), (path[:40], answer)
            assert (await api.get(f"/{path}")).body == b"mine"
        else:
            assert {(a.status, a.code) for a in (answer, by_form)} == {(422, "invalid_path")}, (path[:40], answer)
    # far beyond: the address itself is too long, or the field is
    for length in (12_289, 16_000, 60_000):
        answer = ask(api.stack, request(f"PUT /file?path=/{'x' * length}", token=api.token, body=b"mine"))
        assert answer.status in (400, 414, 422), answer
        assert answer.code in ("invalid_path", "address_too_long", "bad_request")
        by_form = ask(api.stack, upload_form(form(part('name="path"', b"x" * length),
                                                  part('name="f"; filename="f"', b"mine")), token=api.token))
        assert by_form.code in ("invalid_path", "too_large")


# In the order of their combining classes only for who knows them: newer than the Unicode of some Python or PostgreSQL.
NEW = [
    "\U0001e4ec\U0001e4ee", "\U0001e4ee\U0001e4ec", "\U00010efd\U00010eff", "\U00011f41\U0001133c", "\U000105d2\u0307",
    "\U00016d67\U00016d67", "\U0001611e\U0001611e", "\U000113c2\U000113c2", "\U0001fae8", "\U0001fadc", "\U0001ccf0",
    "\U00010d4e", "\U000323b0", "\u0897\u0300", "\u1c89", "\ua7da", "\ufdd0", "\ufffe", "\uffff", "\U0010ffff",
    "\ue000", "\U000f0000", "\U0001e5ee\U0001e5ef", "\U00010ec5\u0301", "\u0300", "\u0301x", "\U0001fae9\ufe0f",
]


async def test_characters_newer_than_our_tables_are_a_clear_answer(api: Api) -> None:
    """Python and PostgreSQL disagree on what is NFC if one knows a newer Unicode: a refusal then, and no 500."""
    for text in NEW:
        for answer in (_put(api, text), _by_form(api, text)[0], _put(api, f"folder-{text}/x")):
            if answer.status >= 400:
                assert (answer.status, answer.code) == (422, "invalid_path"), (ascii(text), answer)
            else:
                assert answer.status in (200, 201)
                assert (await api.get(orjson.loads(answer.body)["path"])).body == b"mine", ascii(text)
        for line in ("GET /file/info", "GET /file/download", "DELETE /file"):
            answer = ask(api.stack, request(f"{line}?path=/nothing{quote(text)}", token=api.token))
            assert answer.code in ("not_found", "invalid_path"), ascii(text)
        body = orjson.dumps({"username": f"{api.username}{text}", "password": PASSWORD})
        answer = ask(api.stack, request("POST /auth/register", "Content-Type: application/json", body=body))
        assert answer.status == 201 or (answer.status, answer.code) == (422, "invalid_field"), (ascii(text), answer)
        answer = ask(api.stack, request("POST /auth/jwt/login", "Content-Type: application/json", body=body))
        assert answer.status in (200, 401, 422), ascii(text)
    disk.settle(api.stack)


# The raw value of a parameter, and the name that it is for; None: it is for none.
SPELLINGS = [
    ("%ff", None), ("%25ff", "%ff"), ("%2525ff", "%25ff"), ("%c3%a9", "é"), ("%C3%A9", "é"), ("e%cc%81", "é"),
    ("%c3", None), ("%a9", None), ("%c3%28", None), ("%e2%82", None), ("%f0%9f%98", None), ("%c0%80", None),
    ("%e0%80%80", None), ("%f0%80%80%80", None), ("%f8%88%80%80%80", None), ("%fc%84%80%80%80%80", None),
    ("%fe%ff", None), ("%ed%a0%80", None), ("%ed%bf%bf", None), ("%ed%a0%bd%ed%b8%80", None), ("%f0%9f%98%80", "😀"),
    ("%f4%8f%bf%bf", "\U0010ffff"), ("%f4%90%80%80", None), ("%u00e9", None), ("%uD83D", None),
    ("&#233;", "&#233;".partition("&")[0]), ("%26%23233%3b", "&#233;"), ("%e9", None), ("\\u00e9", "\\u00e9"),
    ("%5cu00e9", "\\u00e9"), ("+", " "), ("%2b", "+"), ("%20", " "), ("%EF%BF%BD", "\ufffd"),
]


async def test_each_spelling_of_an_address_names_one_file_or_none(api: Api) -> None:
    """A lenient reader would take %ff and %25ff for the same, or a byte that is no text for a question mark."""
    seen: dict[str, str] = {}
    for raw, name in SPELLINGS:
        answer = ask(api.stack, request(f"PUT /file?path=/n-{raw}", token=api.token, body=b"mine"))
        if name is None:
            assert (answer.status, answer.code) == (400, "bad_request"), (raw, answer)
            continue
        assert answer.status in (200, 201), (raw, answer)
        stored = orjson.loads(answer.body)
        assert stored["name"] == f"n-{name}"
        assert seen.setdefault(stored["name"], stored["id"]) == stored["id"]
    assert sorted(file["name"] for file in await api.list()) == sorted(seen)
    assert len(set(seen.values())) == len(seen)


RAW = [
    b"/\xff", "/é".encode(), b"/a\x80", b"/\xc0\xae", b"/\xed\xa0\x80", b"/a b", b"/a\tb", b"/a\x7fb", b"/a\"b",
    b"/a<b>", b"/a|b", b"/a^b", b"/a`b", b"/a{b}", b"/a#b", b"/a\\b", b"/[", b"/%",
]


@pytest.mark.parametrize("line", [b"GET /file/info", b"PUT /file", b"GET /file/download", b"DELETE /file",
                                  b"POST /file"])
async def test_bytes_that_belong_in_no_address_are_a_clear_answer(api: Api, line: bytes) -> None:
    for raw in RAW:
        kind = ["Content-Type: multipart/form-data; boundary=x"] if line.startswith(b"POST") else []
        answer = ask(api.stack, request(line + b"?path=" + raw, *kind, token=api.token,
                                        body=None if line.startswith((b"GET", b"DELETE")) else b"mine"))
        assert answer.status in (200, 201, 204, 400, 404, 422), (raw, answer)
        if answer.status >= 400:
            assert answer.code in ("bad_request", "not_found", "invalid_path", "incomplete_body"), (raw, answer)
    disk.settle(api.stack)


async def test_bytes_that_are_no_text_in_a_form_are_refused(api: Api) -> None:
    content = part('name="file"; filename="f"', b"mine")
    for raw in (b"\xff", b"\xc0\xae", b"\xed\xa0\x80", b"\xf5\x80\x80\x80", b"a\x80", "é".encode("latin-1"),
                b"\xfe\xff\0a"):
        shots = [form(part('name="path"', b"/" + raw), content), form(part('name="name"', raw), content),
                 form(part(b'name="' + raw + b'"', b"x"), content),
                 form(part(b'name="file"; filename="' + raw + b'"', b"mine")),
                 form(part('name="file"; filename="f"', b"mine", b"Content-Type: text/" + raw)),
                 form(part('name="file"; filename="f"', b"mine", b"X-" + raw + b": x")),
                 form(part(b"name=\"file\"; filename*=utf-8''" + quote(raw).encode(), b"mine"))]
        for shot in shots:
            answer = ask(api.stack, upload_form(shot, token=api.token))
            assert (answer.status, answer.code) in ((400, "bad_request"), (422, "invalid_field")), (raw, shot, answer)
            assert b"Error" not in answer.body and b"codec" not in answer.body, answer.body
    for boundary in (b"\xff", "é".encode(), b"\xed\xa0\x80", b'"\xff"'):
        answer = ask(api.stack, upload_form(form(content), token=api.token,
                                            content_type=b"multipart/form-data; boundary=" + boundary))
        assert (answer.status, answer.code) in ((400, "bad_request"), (422, "missing_file")), answer
    disk.settle(api.stack)
    assert await api.list() == []


async def test_lone_surrogates_in_json_are_refused_at_every_door(api: Api) -> None:
    for text in ("\\ud800", "\\udfff", "a\\ud83d", "\\ude00\\ud83d", "\\ud800\\ud800"):
        for line, field in (("POST /auth/register", "username"), ("POST /auth/register", "password"),
                            ("POST /auth/jwt/login", "username"), ("POST /auth/jwt/login", "password"),
                            ("POST /auth/jwt/refresh", "refresh_token")):
            data = {"username": "someone", "password": PASSWORD, field: "SURROGATE"}
            body = orjson.dumps(data).replace(b"SURROGATE", text.encode() * 9)
            answer = ask(api.stack, request(line, "Content-Type: application/json", body=body))
            assert answer.status in (400, 401, 422), (line, field, answer)
            assert answer.code in ("bad_request", "invalid_field", "invalid_refresh_token")
