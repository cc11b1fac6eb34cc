"""What the name or the path of a file may be: pure, no disk, used at every door.

A path is a tuple of names; the root is the empty tuple.  Names are compared after NFC, case matters.
"""

import mimetypes
import re
import unicodedata
from urllib.parse import unquote_to_bytes

from service.errors import BadRequest, InvalidField, InvalidPath

MAX_NAME_BYTES = 255
MAX_PATH_BYTES = 4096
MAX_DEPTH = 128

UNKNOWN_MEDIA_TYPE = "application/octet-stream"
_COMPRESSED = {"gzip": "application/gzip", "bzip2": "application/x-bzip2", "xz": "application/x-xz"}

# C0 and C1 controls with DEL (they break logs, headers and terminals), bidirectional overrides and isolates
# (they make a name look like another), surrogates (not encodable) and the line separators of Unicode.
_REFUSED = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_NOT_PORTABLE = re.compile(r'[<>:"|?*\\]')
_DEVICES = frozenset({"CON", "PRN", "AUX", "NUL", *(f"{port}{n}" for port in ("COM", "LPT") for n in "123456789¹²³")})
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")


def check_name(name: str) -> str:
    """Return the name in NFC; raise InvalidPath if no file may have it."""
    if _REFUSED.search(name):
        raise InvalidPath("A name may not contain control characters or bidirectional overrides.", field="path")
    # The cheap bound first, as normalising takes time quadratic in a run of combining marks.  NFC never makes a text
    # shorter than a third.
    if len(name) > 3 * MAX_NAME_BYTES:
        raise InvalidPath(f"A name may have at most {MAX_NAME_BYTES} bytes in UTF-8.", field="path")
    name = unicodedata.normalize("NFC", name)
    if name in ("", ".", ".."):
        raise InvalidPath("A name may not be empty, '.' or '..'.", field="path")
    if "/" in name:
        raise InvalidPath("A name may not contain '/'.", field="path")
    if len(name.encode()) > MAX_NAME_BYTES:
        raise InvalidPath(f"A name may have at most {MAX_NAME_BYTES} bytes in UTF-8.", field="path")
    return name


def check_part(text: str) -> str:
    """Return a part of names to search for in NFC; raise InvalidField if no name can contain it."""
    if _REFUSED.search(text):
        raise InvalidField("Names have no control characters or bidirectional overrides.", field="q")
    if len(text) > 3 * MAX_NAME_BYTES:
        raise InvalidField(f"A name has at most {MAX_NAME_BYTES} bytes in UTF-8.", field="q")
    return unicodedata.normalize("NFC", text)


def split_path(text: str) -> tuple[str, ...]:
    """Return the names of an absolute path; a leading and a trailing slash may be there or not.

    Raises InvalidPath for anything that is not a path: an empty name between slashes, '..', a name or the whole
    too long, too many levels.
    """
    if len(text) > 3 * MAX_PATH_BYTES:
        raise InvalidPath(f"A path may have at most {MAX_PATH_BYTES} bytes in UTF-8.", field="path")
    if text in ("", "/"):
        return ()
    path = tuple(check_name(name) for name in text.removeprefix("/").removesuffix("/").split("/"))
    check_path(path)
    return path


def check_path(path: tuple[str, ...]) -> None:
    """Raise InvalidPath if the whole is too long or too deep."""
    if len(path) > MAX_DEPTH:
        raise InvalidPath(f"A path may have at most {MAX_DEPTH} levels.", field="path")
    if len(join_path(path).encode()) > MAX_PATH_BYTES:
        raise InvalidPath(f"A path may have at most {MAX_PATH_BYTES} bytes in UTF-8.", field="path")


def portable(name: str) -> str:
    """The name as every system can have it: Windows has characters, endings and whole names that it does not take.

    Source: "Naming Files, Paths, and Namespaces" of the Win32 documentation.
    """
    name = _NOT_PORTABLE.sub("_", name)
    if name[-1:] in (".", " "):
        name = name[:-1] + "_"
    if name.partition(".")[0].rstrip(" ").upper() in _DEVICES:
        name = f"_{name}"
    return name


def numbered(name: str, number: int, *, max_bytes: int = MAX_NAME_BYTES) -> str:
    """The name with a number before its ending, `notes (2).txt`; the stem gives way if that would be too long."""
    stem, dot, ending = name.rpartition(".")
    if not stem:
        stem, dot, ending = name, "", ""
    tail = f" ({number}){dot}{ending}"
    if len(tail.encode()) > max_bytes // 2:
        stem, tail = name, f" ({number})"
    room = max(0, max_bytes - len(tail.encode()))
    return unicodedata.normalize("NFC", stem.encode()[:room].decode("utf-8", "ignore") + tail)


def join_path(path: tuple[str, ...]) -> str:
    """The absolute path as text; the root is '/'."""
    return "/" + "/".join(path)


def decode_percent(text: str) -> str:
    """Undo percent-encoding strictly (RFC 3986, section 2.1): every escape whole, the result valid UTF-8.

    Lenient decoders give '%ff' and '%25ff' the same text, so two addresses would name one file.
    Raises BadRequest.
    """
    if _BAD_ESCAPE.search(text):
        raise BadRequest("The address has a broken percent escape.")
    try:
        return unquote_to_bytes(text).decode("utf-8", "strict")
    except UnicodeError:  # aiohttp keeps bytes that are not UTF-8 as surrogates, which cannot be encoded again
        raise BadRequest("The address is not valid UTF-8.") from None


def media_type_of(name: str) -> str:
    """What the ending of a name says about the content, for a client that did not say it.

    What the name calls compressed is that and not what is in it: `notes.txt.gz` is no text.
    """
    # the slash keeps a name like "data:text,x.png" from being read as an address
    found, compression = mimetypes.guess_type(f"/{name}", strict=False)
    if compression is not None:
        return _COMPRESSED.get(compression, UNKNOWN_MEDIA_TYPE)
    return found or UNKNOWN_MEDIA_TYPE
