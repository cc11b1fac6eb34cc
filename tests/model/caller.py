"""Requests of one account, one after the other on one connection, for code that is not asynchronous."""

import http.client
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode, urlsplit

import orjson
import psycopg

from tests.client import PASSWORD
from tests.model.reference import Path
from tests.stack import Stack


NO_KEY: Mapping[str, str] = {}  # as headers: a request that takes no key


@dataclass(frozen=True)
class Answer:
    """An answer, read to its end."""

    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        """The body as JSON."""
        return orjson.loads(self.body)


def text_of(path: Path) -> str:
    """A path as the service takes it."""
    return "/" + "/".join(path)


@dataclass(frozen=True)
class Keyed:
    """A change that was asked for with a key, and made."""

    method: str
    address: str
    data: object
    headers: Mapping[str, str]
    query: Mapping[str, object] | None
    answer: Answer


class Client:
    """An account with a quota, in bytes.  Every other change is asked for with a key of its own."""

    def __init__(self, stack: Stack, quota: int) -> None:
        self.last: Keyed | None = None
        self._changes = 0
        self._connection = http.client.HTTPConnection("127.0.0.1", stack.port, timeout=60)
        self._token = ""
        self.username = f"model-{uuid.uuid4().hex}"
        self._credentials = {"username": self.username, "password": PASSWORD}
        assert self.send("POST", "/auth/register", self._credentials).status == 201
        with psycopg.connect(stack.dsn) as database:
            database.execute("UPDATE users SET quota_bytes = %s WHERE username = %s", (quota, self.username))
        self.log_in()

    def log_in(self) -> None:
        """Begin a session."""
        self._token = ""
        self._take(self.send("POST", "/auth/jwt/login", self._credentials))

    def renew(self) -> None:
        """Take the next token of the session."""
        self._take(self.send("POST", "/auth/jwt/refresh", {"refresh_token": self._refresh_token}, headers=NO_KEY))

    def log_out(self) -> None:
        """End the session; its token is still sent."""
        assert self.send("POST", "/auth/jwt/logout", headers=NO_KEY).status == 204

    def _take(self, answer: Answer) -> None:
        assert answer.status == 200, answer
        self._token, self._refresh_token = answer.json["access_token"], answer.json["refresh_token"]

    def send(self, method: str, address: str, data: object = None, *, headers: Mapping[str, str] | None = None,
             query: Mapping[str, object] | None = None) -> Answer:
        """One request; `data` is bytes, or what is sent as JSON; a parameter that is None is left out."""
        asked = dict(headers or {})
        if method not in ("GET", "HEAD") and self._token and headers is not NO_KEY:
            self._changes += 1
            if self._changes % 2:
                asked.setdefault("Idempotency-Key", f'"{uuid.uuid4()}"')
        sent = dict(asked)
        if self._token:
            sent["Authorization"] = f"Bearer {self._token}"
        body = data if isinstance(data, bytes) else None
        if data is not None and body is None:
            body, sent["Content-Type"] = orjson.dumps(data), "application/json"
        parameters = ""
        if given := {name: value for name, value in (query or {}).items() if value is not None}:
            parameters = "?" + urlencode(given, quote_via=quote)
        answer = self._exchange(method, address + parameters, body, sent)
        if answer.status < 300 and "Idempotency-Key" in asked:
            self.last = Keyed(method, address, data, asked, query, answer)
        return answer

    def _exchange(self, method: str, target: str, body: bytes | None, headers: Mapping[str, str]) -> Answer:
        self._connection.request(method, target, body=body, headers=dict(headers))
        with self._connection.getresponse() as response:
            answer = Answer(response.status, {name.lower(): value for name, value in response.getheaders()},
                            response.read())
        assert answer.status < 500 or answer.status == 507, (method, target, answer)
        return answer

    def follow(self, url: str, *, method: str = "GET", data: bytes | None = None,
               headers: Mapping[str, str] | None = None) -> Answer:
        """Use a public address, as somebody without an account."""
        parts = urlsplit(url)
        return self._exchange(method, parts.path + (f"?{parts.query}" if parts.query else ""), data, headers or {})

    def close(self) -> None:
        """End the connection."""
        self._connection.close()
