"""Addresses that carry their own permission: signed ones, which nginx checks, and the proofs of public links."""

import hashlib
import hmac
import re
import time
from base64 import urlsafe_b64encode
from dataclasses import dataclass
from urllib.parse import quote

SECRET_FILE = "address_secret"  # below the data root, made at the first start

# Apart for each use, so that a signature made for one means nothing to another.
_HEAD, _TAIL, _PROOF = b"signed address: head", b"signed address: tail", b"proof of a link"
_TOKEN = b"token of a link"
_PROOF_TEXT = re.compile(r"([1-9][0-9]{0,11})\.([0-9a-f]{64})")


@dataclass(frozen=True, slots=True, kw_only=True)
class SignedFile:
    """What a signed address stands for.

    `blob`: where the bytes are, below the folder of all blobs.  `kind`: the media type, its slash a dash.
    `expires_at`: seconds of the epoch.
    """

    blob: str
    kind: str
    name: str
    expires_at: int


class AddressSigner:
    """Signs addresses such that nginx's secure_link module can check them: `expression` is what nginx is told.

    That module knows MD5 alone.  What is signed therefore stands between two secrets of 256 bits (RFC 1828, the first
    fills a block of MD5): nobody who does not know the first can prepare two addresses with one digest, which is what
    MD5 is weak in, and nothing can be appended.  What is left is a tag of 128 bits, compared by nginx with memcmp.
    """

    def __init__(self, secret: str) -> None:
        self._head = _derive(secret, _HEAD)
        self._tail = _derive(secret, _TAIL)

    @property
    def expression(self) -> str:
        """The argument of secure_link_md5.  Parameters stand as they were sent, so none has a `&` in it."""
        return f"{self._head}$arg_e&$arg_b&$arg_t&$arg_n&${{uri}}{self._tail}"

    def sign(self, file: SignedFile) -> str:
        """The address, without a host: /d/<name>?..."""
        name = quote(file.name, safe="")
        return (f"/d/{name}?b={file.blob}&e={file.expires_at}&n={name}&t={file.kind}"
                f"&s={self._digest(file, f'/d/{file.name}')}")

    def is_right(self, signature: str, file: SignedFile, *, path: str) -> bool:
        """Whether the signature belongs to the parameters and to the (decoded) path of the address."""
        return hmac.compare_digest(signature.encode(), self._digest(file, path).encode())

    def _digest(self, file: SignedFile, path: str) -> str:
        fields = "&".join([str(file.expires_at), file.blob, file.kind, quote(file.name, safe=""), path])
        # nginx's choice, not ours; see the class
        digest = hashlib.md5(f"{self._head}{fields}{self._tail}".encode(), usedforsecurity=False).digest()
        return urlsafe_b64encode(digest).decode().rstrip("=")


class LinkProofs:
    """Short-lived proofs, kept by a visitor's browser, that something about one link has been shown before.

    And what the tokens of links are made of.
    """

    def __init__(self, secret: str) -> None:
        self._key = bytes.fromhex(_derive(secret, _PROOF))
        self._token_key = bytes.fromhex(_derive(secret, _TOKEN))

    def seed(self, link: bytes) -> bytes:
        """24 bytes that nobody can guess without the secret, the same ones each time for a link."""
        return hmac.digest(self._token_key, link, "sha256")[:24]

    def make(self, *about: bytes, ttl_seconds: int) -> str:
        """A proof about these things, good for so long."""
        expires_at = int(time.time()) + ttl_seconds
        return f"{expires_at}.{self._tag(expires_at, about)}"

    def is_valid(self, proof: str, *about: bytes) -> bool:
        """Whether `make` gave it out about the same things, and not too long ago."""
        match = _PROOF_TEXT.fullmatch(proof)
        if match is None:
            return False
        expires_at = int(match[1])
        return hmac.compare_digest(match[2], self._tag(expires_at, about)) and time.time() < expires_at

    def _tag(self, expires_at: int, about: tuple[bytes, ...]) -> str:
        digests = b"".join(hashlib.sha256(thing).digest() for thing in (str(expires_at).encode(), *about))
        return hmac.new(self._key, digests, "sha256").hexdigest()


def _derive(secret: str, use: bytes) -> str:
    """64 hexadecimal digits: no character that means anything to nginx, whatever the secret holds."""
    return hmac.new(secret.encode(), use, "sha256").hexdigest()
