"""What a download's head says: a name that cannot break out, a type that cannot run, ranges as RFC 9110 has them."""

import re
from typing import Literal

import pytest
from aiohttp.multipart import content_disposition_filename, parse_content_disposition
from aiohttp.test_utils import make_mocked_request
from hypothesis import example, given, settings, strategies as st
from multidict import CIMultiDict

from service.api.delivery import MAX_RANGES, content_type, disposition, entity_tags, parse_range
from service.errors import InvalidPath
from service.names import check_name

any_number = settings(deadline=None, max_examples=200)


def is_name(text: str) -> bool:
    try:
        return check_name(text) == text
    except InvalidPath:
        return False


file_names = st.text(st.characters(codec="utf-8") | st.sampled_from("\"\\%;='*\u0301é "), min_size=1).filter(is_name)

# --- Content-Disposition: RFC 6266, RFC 8187 ---

_DISPOSITION = re.compile(r"""attachment; filename="[ !#-$&-\[\]-~]*"(; filename\*=UTF-8''([\w.~-]|%[0-9A-F]{2})+)?""",
                          re.ASCII)


@any_number
@given(file_names)
@example('a"; filename="evil.html')
@example("a\\")
@example("100%41.txt")
@example("x" * 255)
def test_any_name_is_sent_in_ascii_and_comes_back_the_same(name: str) -> None:
    header = disposition(name)
    assert _DISPOSITION.fullmatch(header)
    kind, parameters = parse_content_disposition(header)
    assert kind == "attachment"
    assert content_disposition_filename(parameters) == name


@pytest.mark.parametrize(("name", "header"), [
    ("report.pdf", 'attachment; filename="report.pdf"'),
    ("a b;c='d.txt", 'attachment; filename="a b;c=\'d.txt"'),
    ("naïve.txt", "attachment; filename=\"na_ve.txt\"; filename*=UTF-8''na%C3%AFve.txt"),
    ('q"q\\q%q', "attachment; filename=\"q_q_q_q\"; filename*=UTF-8''q%22q%5Cq%25q"),
    ("😀", "attachment; filename=\"_\"; filename*=UTF-8''%F0%9F%98%80"),
])
def test_extended_form_is_there_only_if_ascii_does_not_say_it_all(name: str, header: str) -> None:
    assert disposition(name) == header


# --- Content-Type ---

@pytest.mark.parametrize("stored", [
    "text/html", "TEXT/HTML; charset=utf-8", "image/svg+xml", "application/xhtml+xml", "text/xml", "application/xml",
    "text/javascript", "application/javascript", "text/css", "application/pdf+html", "multipart/mixed", "", ";", "text",
    "text/html;image/png", " text/html ", "image/png, text/html", "image/png text/html", "\u0130mage/png",
    "text/plain\nX: y"])
def test_type_that_might_run_a_script_is_sent_as_plain_bytes(stored: str) -> None:
    assert content_type(stored) == "application/octet-stream"


@pytest.mark.parametrize(("stored", "sent"), [
    ("image/png", "image/png"), ("IMAGE/JPEG", "image/jpeg"), ("application/pdf; version=1.7", "application/pdf"),
    ("text/plain", "text/plain; charset=utf-8"), ("text/plain; charset=koi8-r", "text/plain; charset=utf-8"),
    ("image/png; x=\"; text/html\"", "image/png"), (" video/mp4 ;", "video/mp4")])
def test_harmless_type_is_sent_without_its_parameters(stored: str, sent: str) -> None:
    assert content_type(stored) == sent


@any_number
@given(st.text() | st.from_regex(r"(?i)(image/png|text/plain|text/html) ?(;.*)?", fullmatch=True))
def test_any_stored_type_becomes_one_harmless_line(stored: str) -> None:
    sent = content_type(stored)
    assert re.fullmatch(r"(image|video|audio|text|application)/[a-z0-9.-]+(; charset=utf-8)?", sent)
    assert not re.search("html|svg|xml|script|css", sent)


# --- Range ---

Expected = list[tuple[int, int]] | Literal["ignored"]


def ranges_by_hand(specs: list[str], size: int) -> Expected:
    """The answer by looking at every byte of the file and asking each spec whether it wants it."""
    if len(specs) > MAX_RANGES:
        return "ignored"
    found = []
    for spec in specs:
        first, last = spec.split("-")
        if first and last and int(first) > int(last) or not first and not last:
            return "ignored"
        if first:
            wanted = [n for n in range(size) if n >= int(first) and (not last or n <= int(last))]
        else:
            wanted = [n for n in range(size) if n >= size - int(last)]
        if wanted:
            found.append((wanted[0], len(wanted)))
    return "ignored" if sum(length for _, length in found) > size else found


numbers = st.integers(0, 30) | st.sampled_from([10**17, 10**18 - 1])
specs = st.one_of(
    st.tuples(numbers, numbers).map(lambda pair: f"{pair[0]}-{pair[1]}"),
    st.tuples(numbers, numbers).map(lambda pair: f"{min(pair)}-{max(pair)}"),
    numbers.map(lambda number: f"{number}-"), numbers.map(lambda number: f"-{number}"),
    numbers.map(lambda number: f"00{number % 31}-"), st.just("-"))


@any_number
@given(st.lists(specs, min_size=1, max_size=MAX_RANGES + 2), st.integers(0, 25),
       st.sampled_from([",", ", ", " ,\t"]), st.sampled_from(["bytes", "Bytes", " bytes"]))
@example(["0-0", "-1"], 10, ",", "bytes")
@example(["0-"], 0, ",", "bytes")
@example(["-0"], 5, ",", "bytes")
@example(["5-"], 5, ",", "bytes")
@example(["4-"], 5, ",", "bytes")
def test_ranges_are_those_found_by_looking_at_every_byte(wanted: list[str], size: int, comma: str, unit: str) -> None:
    expected = ranges_by_hand(wanted, size)
    assert parse_range(f"{unit}={comma.join(wanted)}", size) == (None if expected == "ignored" else expected)


@any_number
@given(st.text() | st.from_regex(r"bytes=[-0-9, \u0661]{0,40}", fullmatch=True), st.integers(0, 2**62))
def test_any_text_gives_ranges_within_the_file_or_is_ignored(text: str, size: int) -> None:
    ranges = parse_range(text, size)
    if ranges is None:
        return
    assert len(ranges) <= MAX_RANGES
    assert all(length > 0 and 0 <= first and first + length <= size for first, length in ranges)
    assert sum(length for _, length in ranges) <= size


@pytest.mark.parametrize("text", [
    "", "bytes", "bytes=", "bytes=-", "bytes=a-b", "bytes=1", "bytes=2-1", "bytes=0-0,", "bytes=,0-0", "bytes=0-0,,1-1",
    "bytes=--1", "bytes=-1-", "bytes=+0-1", "bytes=0 - 1", "bytes=\u0660-\u0661", "bytes=\uff10-", "bytes=0x0-1",
    "items=0-1", "bytes:0-1", "bytes=0-1;1-2", "bytes=1_0-", f"bytes={'9' * 19}-",
    f"bytes=0-{'9' * 5000}", "bytes=0-1\x00"])
def test_malformed_range_is_ignored(text: str) -> None:
    assert parse_range(text, 100) is None


def test_many_ranges_or_more_bytes_than_the_file_are_answered_with_the_whole() -> None:
    assert parse_range("bytes=" + ",".join(["0-0"] * MAX_RANGES), 100) == [(0, 1)] * MAX_RANGES
    assert parse_range("bytes=" + ",".join(["0-0"] * (MAX_RANGES + 1)), 100) is None
    assert parse_range("bytes=0-,0-0", 100) is None


def test_range_beyond_the_end_cannot_be_satisfied() -> None:
    assert parse_range("bytes=100-", 100) == []
    assert parse_range("bytes=-0", 100) == []
    assert parse_range("bytes=100-200,99-99", 100) == [(99, 1)]


# --- entity tags ---

@pytest.mark.parametrize(("lines", "tags"), [
    (['"a"'], ('"a"',)), (['"a", "b"'], ('"a"', '"b"')), (['"a"', 'W/"b"'], ('"a"', 'W/"b"')), (["*"], ("*",)),
    ([" * "], ("*",)), (['"a,b"'], ('"a,b"',)), (['"*"'], ('"*"',)), ([], ()), ([""], ()), (["a"], ()), (['"a'], ()),
    (['"a b"'], ())])
def test_entity_tags_are_taken_as_they_were_sent(lines: list[str], tags: tuple[str, ...]) -> None:
    request = make_mocked_request("GET", "/", headers=CIMultiDict([("If-None-Match", line) for line in lines]))
    assert entity_tags(request, "If-None-Match") == tags
