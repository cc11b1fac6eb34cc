"""Requests that are sent again: with the same key (`Idempotency-Key`) a change is carried out once.

`once` is the door that every change of an account's tree and links goes through.  The key, what was asked for and the
result are written in the transaction of the change, so PostgreSQL alone decides who is the first; a change that is
refused leaves no key.  The key of a request is noted by the middleware, what it asks for by whoever reads it: the
functions of the domain need not pass it on.
"""

import hashlib
import hmac
import json
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from dataclasses import dataclass, fields, is_dataclass
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

import orjson

from service.db import requests
from service.db.pool import Connection, Database
from service.errors import Conflict, IdempotencyKeyReused
from service.model import Caller, Contents, File, Folder, Link, UserId

T = TypeVar("T")


@dataclass(slots=True)
class _Request:
    """The request under way: what its key is kept as, and a digest of all that it asks for.

    The key is what the digest is made with, and itself not kept: what was asked for may be a password of a link, which
    nobody can try out then who only has the rows.
    """

    key: str
    digest: hmac.HMAC
    is_used: bool = False
    is_replay: bool = False


_REQUEST: ContextVar[_Request | None] = ContextVar("request_with_a_key", default=None)


def begin(key: str | None) -> None:
    """A request begins; None if it has no key, or is of a kind that takes none."""
    _REQUEST.set(None if key is None else _Request(_kept(key), hmac.new(key.encode(), digestmod="sha256")))


def _kept(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def describe(*parts: object) -> None:
    """Add to what the request asks for: all that makes it another one if it is another one."""
    if (request := _REQUEST.get()) is not None:
        request.digest.update(_as_json(parts))  # an array: two parts are never taken for one


def _as_json(parts: tuple[object, ...]) -> bytes:
    try:
        return orjson.dumps(parts, default=_plain)
    except orjson.JSONEncodeError:
        # what is no UTF-8 in a header came as surrogates, which only this one escapes; orjson writes no such text
        return json.dumps(parts, default=_plain).encode("ascii")


def _plain(value: object) -> object:
    if isinstance(value, bytes):
        return value.hex()
    raise TypeError(f"{type(value)} does not describe a request")


def is_keyed() -> bool:
    """Whether the request under way has a key."""
    return _REQUEST.get() is not None


def is_replay() -> bool:
    """Whether the request under way was carried out before, and got that result."""
    request = _REQUEST.get()
    return request is not None and request.is_replay


async def once(database: Database, caller: Caller, work: Callable[[Connection], Awaitable[T]]) -> T:
    """Do the work in one transaction; for a key with which that was done before, only its result.

    The work of a request with a key returns what `dump` takes.  Raises IdempotencyKeyReused if something else was asked
    for with the key, RequestInProgress if the first request takes too long, and what `Database.in_transaction` does.
    """
    request = _REQUEST.get()
    if request is None:
        return await database.in_transaction(work, share=caller.share)
    if request.is_used:
        raise RuntimeError("a request with a key makes one change")
    request.is_used = True
    fingerprint = request.digest.digest()

    async def keyed(conn: Connection) -> T:
        user_id = caller.user_id
        request.is_replay = not await requests.insert_request(conn, user_id, request.key, fingerprint=fingerprint)
        result: T
        if request.is_replay:
            result = await _replay(conn, user_id, request.key, fingerprint)
            return result
        result = await work(conn)
        await requests.update_result(conn, user_id, request.key, result=dump(result))
        return result

    return await database.in_transaction(keyed, share=caller.share)


async def _replay(conn: Connection, user_id: UserId, key: str, fingerprint: bytes) -> Any:
    found = await requests.get_request(conn, user_id, key)
    if found is None:  # it was so old that it has just been forgotten
        raise Conflict()
    if found[0] != fingerprint:
        raise IdempotencyKeyReused(field="Idempotency-Key")
    assert found[1] is not None, "a key was committed without its result"
    return load(found[1])


async def begun(database: Database, user_id: UserId) -> datetime | None:
    """For a change of several transactions, of which the last one goes through `once`: when it begins.

    None if it was carried out before, and only its result is left to get.  What is newer than that time, by the
    database's clock, came after it: two requests with one key that run at the same time have to leave it alone, since
    one of them may have been answered.
    """
    request = _REQUEST.get()
    async with database.connection() as conn:
        return await requests.get_begin(conn, user_id, None if request is None else request.key)


async def is_done(database: Database, caller: Caller, key: str) -> bool:
    """Whether a request with the key was carried out."""
    async with database.connection() as conn:
        return await requests.get_request(conn, caller.user_id, _kept(key)) is not None


# --- results as text ---

_KINDS: dict[str, type] = {kind.__name__: kind for kind in (Contents, File, Folder, Link)}


def kept(kind: type[T]) -> type[T]:
    """For a dataclass that may be a result."""
    _KINDS[kind.__name__] = kind
    return kind


def dump(result: object) -> str:
    """A result as JSON: dataclasses of `_KINDS`, ids, times, bytes, tuples and lists keep their kinds."""
    return orjson.dumps(_encode(result)).decode()


def load(text: str) -> Any:
    """What `dump` was given; raise Conflict if another version of the service wrote something else."""
    try:
        return _decode(orjson.loads(text))
    except (KeyError, TypeError, ValueError) as error:
        raise Conflict("This was carried out by another version of the service; look at what is there.") from error


def _encode(value: object) -> object:
    match value:
        case None | bool() | int() | str():
            return value
        case UUID():
            return {"id": value.hex}
        case datetime():
            return {"at": value.isoformat()}
        case bytes():
            return {"bytes": value.hex()}
        case list():
            return [_encode(member) for member in value]
        case tuple():
            return {"tuple": [_encode(member) for member in value]}
    if is_dataclass(value) and _KINDS.get(type(value).__name__) is type(value):
        return {type(value).__name__: {member.name: _encode(getattr(value, member.name)) for member in fields(value)}}
    raise TypeError(f"{type(value)} cannot be kept")


def _decode(value: Any) -> Any:
    if isinstance(value, list):
        return [_decode(member) for member in value]
    if not isinstance(value, dict):
        return value
    (kind, inner), = value.items()
    match kind:
        case "id":
            return UUID(inner)
        case "at":
            return datetime.fromisoformat(inner)
        case "bytes":
            return bytes.fromhex(inner)
        case "tuple":
            return tuple(_decode(member) for member in inner)
    return _KINDS[kind](**{name: _decode(member) for name, member in inner.items()})
