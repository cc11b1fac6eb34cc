"""Signatures and proofs; that nginx computes the same is seen in tests/api/test_signed.py."""

import hashlib
from base64 import urlsafe_b64encode
from dataclasses import replace
from urllib.parse import parse_qsl, urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.security.addresses import AddressSigner, LinkProofs, SignedFile
from service.security.media import KINDS, MAX_SMALL_BYTES, SMALL, content_type, kind_of

FILE = SignedFile(blob="60/01936b2e-7c41-7d52-9f0a-5b1c2d3e4f60", kind="text-plain", name="a.txt",
                  expires_at=1599845725)
NAMES = st.text(st.characters(blacklist_categories=["Cs", "Cc"], blacklist_characters="/"), min_size=1, max_size=80)


def test_signature_is_that_of_nginx() -> None:
    """MD5 of the expression with its variables replaced, in base64url without padding."""
    signer = AddressSigner("s" * 64)
    text = signer.expression
    for variable, value in (("$arg_e", "1599845725"), ("$arg_b", FILE.blob), ("$arg_t", "text-plain"),
                            ("$arg_n", "a%20%3Cb%3E.txt"), ("${uri}", "/d/a <b>.txt")):
        assert text.count(variable) == 1
        text = text.replace(variable, value)
    expected = urlsafe_b64encode(hashlib.md5(text.encode(), usedforsecurity=False).digest()).decode().rstrip("=")
    assert signer.sign(replace(FILE, name="a <b>.txt")).endswith(f"&s={expected}")


def test_expression_is_safe_in_quotes_and_begins_with_a_whole_block() -> None:
    expression = AddressSigner('a"b$c\\d;' * 8).expression
    head = expression.partition("$")[0]
    assert len(head) == 64  # MD5 works on blocks of 64 bytes
    assert head.isalnum() and expression.rpartition("}")[2].isalnum()
    assert not set('"\\;') & set(expression)


@given(name=NAMES)
def test_any_name_comes_back_from_its_address(name: str) -> None:
    signer = AddressSigner("s" * 64)
    parts = urlsplit("http://host" + signer.sign(replace(FILE, name=name)))
    query = dict(parse_qsl(parts.query, strict_parsing=True))
    assert query["n"] == name and list(query) == ["b", "e", "n", "t", "s"]
    assert signer.is_right(query["s"], replace(FILE, name=name), path=f"/d/{name}")
    assert not signer.is_right(query["s"], replace(FILE, name=name + "x"), path=f"/d/{name}")
    assert not AddressSigner("t" * 64).is_right(query["s"], replace(FILE, name=name), path=f"/d/{name}")


@given(st.lists(st.binary(max_size=8), max_size=4), st.lists(st.binary(max_size=8), max_size=4))
def test_proof_is_about_exactly_these_things(one: list[bytes], other: list[bytes]) -> None:
    proofs = LinkProofs("s" * 64)
    proof = proofs.make(*one, ttl_seconds=60)
    assert proofs.is_valid(proof, *one)
    assert proofs.is_valid(proof, *other) == (one == other)


@pytest.mark.parametrize("change", [str.upper, lambda text: text[:-1], lambda text: text + "0", lambda text: "0" + text,
                                    lambda text: " " + text, lambda text: text + "\n", lambda text: "",
                                    lambda text: text.replace(".", ".0"), lambda text: "9" + text[1:]])
def test_changed_proof_is_none(change: object) -> None:
    proofs = LinkProofs("s" * 64)
    proof = proofs.make(b"a", ttl_seconds=60)
    assert callable(change)
    assert not proofs.is_valid(change(proof), b"a") or change(proof) == proof


def test_proof_ends() -> None:
    proofs = LinkProofs("s" * 64)
    assert not proofs.is_valid(proofs.make(b"a", ttl_seconds=0), b"a")


@pytest.mark.parametrize("stored", ["text/html", "image/svg+xml", "application/xhtml+xml", "text/javascript", "x", ""])
def test_types_that_carry_scripts_are_plain_bytes(stored: str) -> None:
    assert content_type(stored) == "application/octet-stream"
    assert KINDS[kind_of(stored, 1)] == KINDS[kind_of(stored, 2**40)] == "application/octet-stream"


def test_each_kind_stands_for_its_type() -> None:
    for kind, shown in KINDS.items():
        assert kind_of(shown, MAX_SMALL_BYTES + (not kind.startswith(SMALL))) == kind and content_type(shown) == shown
