"""Accounts and sessions: register, log in, refresh, log out, and who makes a request."""

import hashlib
import unicodedata
from dataclasses import dataclass

from service.cache.base import Cache
from service.db import files, sessions, users
from service.db.pool import Connection, Database
from service.domain.throttle import network, throttle
from service.errors import InvalidCredentials, InvalidField, InvalidRefreshToken, Unauthenticated
from service.model import Caller, SessionId, Tokens, User, UserId, new_uuid
from service.security.passwords import Passwords
from service.security.secrets import new_refresh_token, parse_refresh_token
from service.security.tokens import AccessTokens

# A session that was found open is believed for so long; ending one forgets it at once, so this bounds only what happens
# when the cache could not be told.
SESSION_CACHE_SECONDS = 3.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How often passwords may be tried, and how long what they give lasts."""

    login_attempts_per_minute: int
    requests_per_minute: int
    session_ttl_seconds: int
    access_token_ttl_seconds: int
    quota_bytes: int | None


class Accounts:
    """Who is who."""

    def __init__(self, database: Database, cache: Cache, passwords: Passwords, tokens: AccessTokens,
                 limits: Limits) -> None:
        self._database = database
        self._cache = cache
        self._passwords = passwords
        self._tokens = tokens
        self._limits = limits

    async def register(self, username: str, password: str, *, address: str) -> User:
        """Make an account with its root folder; raise UsernameTaken, InvalidField, TooManyRequests."""
        username = _check_username(username)
        await throttle(self._cache, [(f"register:{network(address)}", self._limits.requests_per_minute)])
        password_hash = await self._passwords.hash(password)

        async def work(conn: Connection) -> User:
            user = await users.insert_user(conn, user_id=UserId(new_uuid()), username=username,
                                           password_hash=password_hash, quota_bytes=self._limits.quota_bytes)
            await files.insert_root(conn, user.id)
            return user

        return await self._database.in_transaction(work)

    async def log_in(self, username: str, password: str, *, address: str) -> Tokens:
        """Begin a session.

        Raises InvalidCredentials, alike and in the same time for an unknown account and a wrong password, and
        TooManyRequests before anything is hashed.
        """
        username = unicodedata.normalize("NFC", username)
        where = network(address)
        account = hashlib.sha256(username.encode()).hexdigest()[:32]
        await throttle(self._cache, [
            (f"login:{where}", self._limits.requests_per_minute),
            (f"login:{where}:{account}", self._limits.login_attempts_per_minute),
            # many networks against one account; wide enough that a stranger can hardly lock its owner out
            (f"login:{account}", 10 * self._limits.login_attempts_per_minute),
        ])
        async with self._database.connection() as conn:
            found = await users.get_credentials(conn, username)
        is_right = await self._passwords.verify(password, None if found is None else found[1])
        if found is None or not is_right:
            raise InvalidCredentials()
        caller = Caller(user_id=found[0], session_id=SessionId(new_uuid()))
        refresh_token, refresh_sha256 = new_refresh_token(caller.session_id)
        async with self._database.connection() as conn:
            await sessions.insert_session(conn, session_id=caller.session_id, user_id=caller.user_id,
                                          refresh_sha256=refresh_sha256, ttl_seconds=self._limits.session_ttl_seconds)
        return self._give(caller, refresh_token)

    def _give(self, caller: Caller, refresh_token: str) -> Tokens:
        return Tokens(access_token=self._tokens.issue(caller), refresh_token=refresh_token,
                      expires_in_seconds=self._limits.access_token_ttl_seconds)

    async def refresh(self, refresh_token: str, *, address: str) -> Tokens:
        """Exchange a refresh token, which is good for one use; used again it ends its session.

        Raises InvalidRefreshToken, TooManyRequests.
        """
        session_id, old_sha256 = parse_refresh_token(refresh_token)
        await throttle(self._cache, [(f"refresh:{network(address)}", 10 * self._limits.requests_per_minute)])
        new_token, new_sha256 = new_refresh_token(session_id)
        async with self._database.connection() as conn:
            user_id = await sessions.update_refresh(conn, session_id, old_sha256=old_sha256, new_sha256=new_sha256,
                                                    ttl_seconds=self._limits.session_ttl_seconds)
            if user_id is None:
                # either a guess, or a token that was stolen or used before: in both cases nobody goes on with it
                await self._end(conn, session_id)
                raise InvalidRefreshToken()
        return self._give(Caller(user_id=user_id, session_id=session_id), new_token)

    async def log_out(self, caller: Caller) -> None:
        """End the caller's session: its tokens are refused from now on."""
        async with self._database.connection() as conn:
            await self._end(conn, caller.session_id)

    async def _end(self, conn: Connection, session_id: SessionId) -> None:
        await sessions.end_session(conn, session_id)
        await self._cache.forget(_session_key(session_id))

    async def authenticate(self, access_token: str) -> Caller:
        """Who sent this token; raise Unauthenticated if it is not valid or its session has ended."""
        caller = self._tokens.verify(access_token)
        key = _session_key(caller.session_id)
        if await self._cache.get(key) == caller.user_id.bytes:
            return caller
        async with self._database.connection() as conn:
            if not await sessions.is_session_open(conn, caller.session_id, caller.user_id):
                raise Unauthenticated("The session of this token has ended.")
        await self._cache.set(key, caller.user_id.bytes, ttl_seconds=SESSION_CACHE_SECONDS)
        return caller

    async def me(self, caller: Caller) -> User:
        """The caller's account."""
        async with self._database.connection() as conn:
            user = await users.get_user(conn, caller.user_id)
        if user is None:
            raise Unauthenticated()
        return user


def _session_key(session_id: SessionId) -> str:
    return f"session:{session_id}"


def _check_username(username: str) -> str:
    """NFC, since two names that look the same must not be two accounts."""
    username = unicodedata.normalize("NFC", username)
    if username != username.strip():
        raise InvalidField("A username may not begin or end with white space.", field="username")
    return username
