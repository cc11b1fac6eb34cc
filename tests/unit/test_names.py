"""Names and paths: one rule at every door, so its properties are checked on any text and against a slow twin."""

import unicodedata
from urllib.parse import quote

import pytest
from hypothesis import example, given, settings, strategies as st

from service.errors import BadRequest, InvalidPath, ServiceError
from service.names import (
    MAX_DEPTH, MAX_NAME_BYTES, check_name, check_path, decode_percent, join_path, split_path,
)

any_number = settings(deadline=None, max_examples=150)

# what normalisation does most to: marks, jamo, composition exclusions, singletons, marks that are reordered
TRICKY = "e\u0301\u0323\u0307\u1100\u1161\u11a8\u0958\u2126\u212b\ufb2c\U0001d160\u0344\u037e\u1fef\uac00\u0345a\u030a"
ALLOWED = st.characters(codec="utf-8", exclude_categories=["Cc", "Zl", "Zp"],
                        exclude_characters="/\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
names = st.text(ALLOWED | st.sampled_from(TRICKY), min_size=1, max_size=40).filter(lambda name: set(name) != {"."})
texts = st.text(st.characters() | st.sampled_from(TRICKY + "/.\x00\u202e\ud800"))
paths = st.lists(names, max_size=6).map(lambda path: tuple(unicodedata.normalize("NFC", name) for name in path))


def is_acceptable(name: str) -> bool:
    """The rule once more, as reliability.md words it."""
    normal = unicodedata.normalize("NFC", name)
    try:
        size = len(normal.encode("utf-8"))
    except UnicodeEncodeError:
        return False
    refused = {*range(0x20), 0x7F, *range(0x80, 0xA0), *range(0x2028, 0x202F), *range(0x2066, 0x206A)}
    return (normal not in ("", ".", "..") and "/" not in normal and size <= MAX_NAME_BYTES
            and not any(ord(character) in refused for character in name))


# --- one name ---

@any_number
@given(texts)
def test_any_text_is_taken_exactly_if_the_rule_allows_it(text: str) -> None:
    if is_acceptable(text):
        assert check_name(text) == unicodedata.normalize("NFC", text)
    else:
        with pytest.raises(InvalidPath) as caught:
            check_name(text)
        assert caught.value.field == "path"


@any_number
@given(names)
def test_accepted_name_is_accepted_again_and_stays_the_same(name: str) -> None:
    once = check_name(name)
    assert check_name(once) == once
    assert is_acceptable(once)


@any_number
@given(names)
def test_twins_in_other_normal_forms_are_one_name(name: str) -> None:
    assert check_name(unicodedata.normalize("NFD", name)) == check_name(name)


@any_number
@given(names, names)
def test_names_that_differ_after_nfc_stay_different(one: str, other: str) -> None:
    are_same = unicodedata.normalize("NFC", one) == unicodedata.normalize("NFC", other)
    assert (check_name(one) == check_name(other)) == are_same


@pytest.mark.parametrize("code", [*range(0x20), *range(0x7F, 0xA0), *range(0x2028, 0x202F), *range(0x2066, 0x206A),
                                  0xD800, 0xDBFF, 0xDC00, 0xDCFF, 0xDFFF], ids=lambda code: f"U+{code:04X}")
def test_refused_character_anywhere_refuses_the_name(code: int) -> None:
    for name in (chr(code), f"{chr(code)}a", f"a{chr(code)}", f"a{chr(code)}b"):
        with pytest.raises(InvalidPath):
            check_name(name)
        with pytest.raises(InvalidPath):
            split_path(f"/folder/{name}/file")


@pytest.mark.parametrize("name", [
    " ", "~", "-", "\u00a0", "\u2027", "\u202f", "\u2065", "\u206a", "\u200b", "\ufeff", "...", ". .", "..a", " .",
    "CON", "aux.txt", "a\\b", "a:b", "*", "?", '"', "<img src=x onerror=alert(1)>", "%2e%2e", "привет", "写真", "😀"])
def test_odd_but_harmless_name_is_kept_as_it_is(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize("name", ["", ".", "..", "/", "a/b", "/a", "a/"])
def test_name_that_means_another_place_is_refused(name: str) -> None:
    with pytest.raises(InvalidPath):
        check_name(name)


# --- the limits ---

@pytest.mark.parametrize("character", ["x", "я", "写", "😀"])
def test_name_of_255_bytes_is_taken_and_one_more_refused(character: str) -> None:
    size = len(character.encode())
    full = character * (MAX_NAME_BYTES // size)
    full += "x" * (MAX_NAME_BYTES - len(full.encode()))
    assert len(check_name(full).encode()) == 255
    with pytest.raises(InvalidPath):
        check_name(full + "x")


@pytest.mark.parametrize(("character", "bytes_after"), [("\U0001d160", 12), ("\u0958", 6), ("\ufb2c", 6)])
def test_name_that_grows_by_nfc_is_measured_after_it(character: str, bytes_after: int) -> None:
    count = MAX_NAME_BYTES // bytes_after
    assert len((character * (count + 1)).encode()) <= MAX_NAME_BYTES
    assert len(check_name(character * count).encode()) == count * bytes_after
    with pytest.raises(InvalidPath):
        check_name(character * (count + 1))


@pytest.mark.parametrize(("characters", "bytes_after"), [
    ("e\u0301", 2), ("u\u0308\u0304", 2), ("\u1100\u1161\u11a8", 3), ("\u03b1\u0313\u0300\u0345", 3)])
def test_name_that_shrinks_by_nfc_is_measured_after_it(characters: str, bytes_after: int) -> None:
    count = MAX_NAME_BYTES // bytes_after
    assert len((characters * count).encode()) > MAX_NAME_BYTES
    assert len(check_name(characters * count).encode()) == count * bytes_after
    with pytest.raises(InvalidPath):
        check_name(characters * (count + 1))


def test_path_of_4096_bytes_is_taken_and_one_more_refused() -> None:
    path = "/" + "/".join(["x" * 255] * 15 + ["y" * 254])
    assert len(path) == 4096 - 1
    assert join_path(split_path(path + "y")) == path + "y"
    with pytest.raises(InvalidPath):
        split_path(f"/a{path}")
    with pytest.raises(InvalidPath):
        check_path(("a", *split_path(path)))


def test_path_is_measured_after_nfc() -> None:
    name = "e\u0301" * 127
    assert len(split_path(f"{name}/" * 16)) == 16
    with pytest.raises(InvalidPath):
        split_path(f"{name}/" * 17)


def test_path_of_128_levels_is_taken_and_one_more_refused() -> None:
    assert len(split_path("a/" * MAX_DEPTH)) == 128
    with pytest.raises(InvalidPath):
        split_path("a/" * (MAX_DEPTH + 1))


@pytest.mark.parametrize("text", ["x" * 10**6, "/" * 10**6, "a/" * 10**6, "e" + "\u0301" * 10**5])
def test_huge_text_is_refused(text: str) -> None:
    with pytest.raises(InvalidPath):
        split_path(text)
    with pytest.raises(InvalidPath):
        check_name(text)


# --- paths ---

@any_number
@given(paths)
def test_path_survives_being_joined_and_split(path: tuple[str, ...]) -> None:
    text = join_path(path)
    assert split_path(text) == path
    assert split_path(text.removeprefix("/")) == path
    assert split_path(f"{text.rstrip('/')}/") == path
    assert join_path(split_path(text)) == text


@any_number
@given(texts | st.lists(names | st.sampled_from(["..", ".", "", "a", "b"]), max_size=5).map("/".join))
@example("/../etc/passwd")
@example("a/..")
@example("..")
@example("a//b")
@example("//")
def test_any_text_is_refused_or_gives_a_path_of_good_names(text: str) -> None:
    try:
        path = split_path(text)
    except InvalidPath:
        return
    assert all(is_acceptable(name) and check_name(name) == name for name in path)
    assert not {"", ".", ".."} & set(path)
    assert split_path(join_path(path)) == path
    check_path(path)


@any_number
@given(paths, paths)
def test_different_paths_have_different_texts(one: tuple[str, ...], other: tuple[str, ...]) -> None:
    assert (join_path(one) == join_path(other)) == (one == other)


@pytest.mark.parametrize("text", ["//", "//a", "a//b", "a//", "/a//", "///", "/./a", "/../a", "a/.", "a/..", "..", "."])
def test_path_with_an_empty_name_or_dots_is_refused(text: str) -> None:
    with pytest.raises(InvalidPath):
        split_path(text)


@pytest.mark.parametrize("text", ["", "/"])
def test_root_is_the_empty_path(text: str) -> None:
    assert split_path(text) == ()
    assert join_path(()) == "/"


def test_case_matters() -> None:
    assert split_path("/A") != split_path("/a")


# --- addresses ---

def encode_all(text: str, digits: str) -> str:
    return "".join(f"%{byte:{digits}}" for byte in text.encode())


@any_number
@given(st.text(), st.sampled_from(["", "/", "/?&=+é"]))
def test_text_survives_being_encoded_and_decoded(text: str, safe: str) -> None:
    assert decode_percent(quote(text, safe=safe)) == text
    assert decode_percent(encode_all(text, "02x")) == decode_percent(encode_all(text, "02X")) == text


@any_number
@given(st.text(st.sampled_from("%25fFé0a/+\u0301\ud800\udcff") | st.characters()))
@example("\udcff")
@example("%e9\ud800")
def test_any_address_is_decoded_or_refused(text: str) -> None:
    try:
        decoded = decode_percent(text)
    except BadRequest:
        return
    assert decode_percent(quote(decoded, safe="")) == decoded
    if "%" not in text:
        assert decoded == text


@any_number
@given(st.lists(st.sampled_from(["%25", "%ff", "ff", "%", "%C3", "%A9", "é", "2", "5", "%2", "a"]), max_size=6))
def test_two_addresses_give_one_text_only_if_they_spell_the_same_bytes(pieces: list[str]) -> None:
    text = "".join(pieces)
    try:
        decoded = decode_percent(text)
    except BadRequest:
        return
    spelt, index = bytearray(), 0
    while index < len(text):
        if text[index] == "%":
            spelt.append(int(text[index + 1:index + 3], 16))
            index += 3
        else:
            spelt += text[index].encode()
            index += 1
    assert decoded.encode() == bytes(spelt)


def test_broken_byte_is_not_the_same_as_its_escaped_spelling() -> None:
    with pytest.raises(BadRequest):
        decode_percent("%ff")
    assert decode_percent("%25ff") == "%ff"


@pytest.mark.parametrize("text", [
    "%", "%%", "%2", "a%", "%2g", "%g2", "%u0041", "% 41", "%+1", "%\uff11\uff11", "%ff", "%c3", "%c3%28", "%e2%82",
    "%c0%af", "%c0%80", "%e0%80%af", "%f0%80%80%af", "%ed%a0%80", "%f4%90%80%80", "%fe", "%80", "\udcff", "\ud800"])
def test_broken_escape_or_text_is_refused(text: str) -> None:
    with pytest.raises(BadRequest):
        decode_percent(text)


@pytest.mark.parametrize(("text", "decoded"), [("a%2Fb", "a/b"), ("%2e%2e", ".."), ("%252e", "%2e"), ("%00", "\0"),
                                               ("a+b", "a+b"), ("%D0%9F", "П"), ("П", "П"), ("", "")])
def test_escapes_are_undone_once(text: str, decoded: str) -> None:
    assert decode_percent(text) == decoded


@any_number
@given(st.lists(st.sampled_from(["..", "%2e%2e", "%2E.", "%252e", "/", "%2f", "%5c", "\\", "%00", "a"]), max_size=8))
def test_no_spelling_of_dots_leads_upwards(pieces: list[str]) -> None:
    try:
        path = split_path(decode_percent("".join(pieces)))
    except ServiceError as error:
        assert isinstance(error, BadRequest | InvalidPath)
        return
    assert not {"", ".", ".."} & set(path)
