"""What an address says: its parameters, strictly decoded, and the place in the tree that one names."""

import functools
import re
from collections.abc import Mapping
from uuid import UUID

from aiohttp import web

from service.api.delivery import entity_tags
from service.api.keys import TRACE
from service.api.rest import schema
from service.domain import requests
from service.domain.places import Place
from service.errors import BadRequest, InvalidField
from service.model import Conditions, FileId
from service.names import decode_percent, split_path

MAX_PARAMETERS = 64
_ID = re.compile(r"[0-9A-Fa-f]{8}-(?:[0-9A-Fa-f]{4}-){3}[0-9A-Fa-f]{12}")


def read_query(raw_address: str) -> dict[str, str]:
    """The parameters of an address as it was sent; raise BadRequest for broken escapes and names given twice.

    aiohttp's own decoding is lenient and would give two different addresses one meaning.
    """
    return dict(_read_query(raw_address))


@functools.lru_cache(maxsize=64)  # several look at the address of one request
def _read_query(raw_address: str) -> dict[str, str]:
    members = [member for member in raw_address.partition("?")[2].partition("#")[0].split("&") if member]
    if len(members) > MAX_PARAMETERS:
        raise BadRequest("The address has too many parameters.")
    result: dict[str, str] = {}
    for member in members:
        name, _, value = member.replace("+", " ").partition("=")
        name = decode_percent(name)
        if name in result:
            raise BadRequest("A parameter of the address is given twice.")
        result[name] = decode_percent(value)
    return result


def query_of(request: web.Request) -> dict[str, str]:
    """The parameters of a request."""
    return read_query(request.raw_path)


def parse_place(text: str) -> Place:
    """A path, or the id of a file or folder; raise InvalidPath."""
    return FileId(UUID(text)) if _ID.fullmatch(text) else split_path(text)


def place_of(request: web.Request) -> Place:
    """The place that the parameter `path` names."""
    return place_in(request, query_of(request))


def place_in(request: web.Request, query: Mapping[str, str]) -> Place:
    """The place that `path` names in the parameters of an address that may be another one than the request's own."""
    text = query.get("path")
    if not text:
        raise InvalidField("This parameter is needed.", field="path")
    request[TRACE].fields["path"] = text
    return parse_place(text)


def key_of(request: web.Request) -> str | None:
    """The client's key for this request, None without one (draft-ietf-httpapi-idempotency-key-header, section 2.1).

    With quotes and without them it is the same key.  Raises BadRequest.
    """
    values = request.headers.getall("Idempotency-Key", [])
    if not values:
        return None
    if len(values) > 1 or not re.fullmatch(schema.KEY_PATTERN, values[0]):
        raise BadRequest("Idempotency-Key has to be one string of 1 to 255 visible ASCII characters.")
    text = values[0]
    return re.sub(r"\\(.)", r"\1", text[1:-1]) if text.startswith('"') else text


def begin(request: web.Request) -> None:
    """Note the key of the request, and what its head asks for; see `domain/requests.py`.  Raises BadRequest."""
    if (key := key_of(request)) is None:
        return
    requests.begin(key)
    requests.describe(request.method, request.path, sorted(query_of(request).items()),
                      [request.headers.getall(name, []) for name in ("If-Match", "If-None-Match")])


def conditions_of(request: web.Request) -> Conditions:
    """The preconditions of a change; raise BadRequest for a header without a single entity tag in it."""
    found = {}
    for name in ("If-Match", "If-None-Match"):
        found[name] = entity_tags(request, name)
        if name in request.headers and not found[name]:
            raise BadRequest(f"{name} has to be * or entity tags in quotes.")
    return Conditions(if_match=found["If-Match"], if_none_match=found["If-None-Match"])
