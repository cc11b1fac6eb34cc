"""Accounts: register, log in, refresh, log out, change the password, delete; and who makes a request."""

import hashlib
import time
import unicodedata
from dataclasses import dataclass, field

from service import metrics
from service.cache.base import Cache
from service.cache.generations import Generations
from service.db import blobs, files, sessions, users
from service.db.pool import Connection, Database, mark_changed
from service.domain.audit import Audit, record
from service.domain.sessions import forget, key_of
from service.domain.throttle import network, throttle
from service.errors import (
    Conflict, InvalidCredentials, InvalidField, InvalidRefreshToken, Unauthenticated, Unavailable, WrongPassword,
)
from service.model import Action, Caller, SessionId, Tokens, User, UserId, new_uuid
from service.security.passwords import Passwords
from service.security.secrets import new_refresh_token, parse_refresh_token
from service.security.tokens import AccessTokens

# A session that was found open is believed for so long; ending one is known at once on its machine and wherever its
# cache is shared, so this bounds only what others believe, and what happens when neither could be told.  What is
# decided for a session that is only believed is remembered too: together for generations.TTL_SECONDS at most.
SESSION_CACHE_SECONDS = 2.0
LOGIN_TRIES = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How often passwords may be tried, and how long what they give lasts."""

    login_attempts_per_minute: int
    requests_per_minute: int
    session_ttl_seconds: int
    access_token_ttl_seconds: int
    quota_bytes: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Proven:
    """An account whose password was given, and the hash that it was checked against."""

    user_id: UserId
    password: str = field(repr=False)
    password_hash: str = field(repr=False)


class Accounts:
    """Who is who."""

    def __init__(self, database: Database, cache: Cache, passwords: Passwords, tokens: AccessTokens,
                 limits: Limits, trail: Audit, generations: Generations = Generations(None)) -> None:
        self._database = database
        self._cache = cache
        self._passwords = passwords
        self._tokens = tokens
        self._limits = limits
        self._trail = trail
        self._generations = generations

    async def register(self, username: str, password: str, *, address: str) -> User:
        """Make an account with its root folder; raise UsernameTaken, InvalidField, TooManyRequests."""
        username = _check_username(username)
        await throttle(self._cache, [(f"register:{network(address)}", self._limits.requests_per_minute)])
        password_hash = await self._passwords.hash(password)

        async def work(conn: Connection) -> User:
            user = await users.insert_user(conn, user_id=UserId(new_uuid()), username=username,
                                           password_hash=password_hash, quota_bytes=self._limits.quota_bytes)
            await files.insert_root(conn, user.id)
            await record(conn, user.id, "register")
            return user

        return await self._database.in_transaction(work)

    # --- passwords ---

    async def _throttle_password(self, username: str, address: str) -> None:
        where = network(address)
        account = hashlib.sha256(username.encode()).hexdigest()[:32]
        await throttle(self._cache, [
            (f"login:{where}:{account}", self._limits.login_attempts_per_minute),
            (f"login:{where}", self._limits.requests_per_minute),
            # many networks against one account; wide enough that a stranger can hardly lock its owner out
            (f"login:{account}", 10 * self._limits.login_attempts_per_minute),
        ])

    async def _prove(self, caller: Caller, password: str, *, address: str, action: Action,
                     named: str) -> _Proven:
        """Check the caller's password again; raise WrongPassword, and TooManyRequests before anything is hashed."""
        async with self._database.connection() as conn:
            found = await users.get_password(conn, caller.user_id)
        if found is None:
            raise Unauthenticated()
        username, password_hash = found
        await self._throttle_password(username, address)
        if not await self._passwords.verify(password, password_hash):
            self._trail.refused(caller.user_id, action)
            raise WrongPassword(field=named)
        return _Proven(user_id=caller.user_id, password=password, password_hash=password_hash)

    async def change_password(self, caller: Caller, old_password: str, new_password: str, *, address: str) -> None:
        """Change the password and end all other sessions of the account; the caller's own goes on.

        Raises WrongPassword, InvalidField, TooManyRequests, and Conflict if somebody else has just changed it.
        """
        proven = await self._prove(caller, old_password, address=address, action="password_change",
                                   named="old_password")
        new_hash = await self._passwords.hash(new_password, field="new_password")

        async def work(conn: Connection) -> list[SessionId]:
            if not await users.update_password(conn, caller.user_id, old_hash=proven.password_hash, new_hash=new_hash):
                raise Conflict("The password was changed at the same time; try again.")
            ended = await sessions.end_sessions(conn, caller.user_id, keep=caller.session_id)
            await record(conn, caller.user_id, "password_change", sessions_ended=len(ended))
            return ended

        await forget(self._cache, await self._database.in_transaction(work))

    async def delete(self, caller: Caller, password: str, *, address: str) -> None:
        """Delete the account and everything in it; the bytes follow after the grace time of the sweeper.

        Raises WrongPassword, TooManyRequests, and Conflict if somebody has just changed the password.
        """
        proven = await self._prove(caller, password, address=address, action="account_delete", named="password")

        async def work(conn: Connection) -> list[SessionId]:
            await files.lock_tree(conn, caller.user_id)  # uploads under way come first, later ones find nothing
            if not await users.lock_user(conn, caller.user_id, proven.password_hash):
                raise Conflict("The password was changed at the same time; try again.")
            ended = await sessions.end_sessions(conn, caller.user_id, keep=None)
            await blobs.release_user(conn, caller.user_id)
            await users.delete_user(conn, caller.user_id)
            mark_changed(caller.user_id, ends_sessions=True)
            return ended

        await forget(self._cache, await self._database.in_transaction(work))

    # --- sessions and their tokens ---

    async def log_in(self, username: str, password: str, *, address: str, user_agent: str | None = None) -> Tokens:
        """Begin a session.

        Raises InvalidCredentials, alike and in the same time for an unknown account and a wrong password, and
        TooManyRequests before anything is hashed.
        """
        username = unicodedata.normalize("NFC", username)
        await self._throttle_password(username, address)
        for _ in range(LOGIN_TRIES):
            async with self._database.connection() as conn:
                found = await users.get_credentials(conn, username)
            is_right = await self._passwords.verify(password, None if found is None else found[1])
            if found is None or not is_right:
                if found is not None:
                    self._trail.refused(found[0], "login")
                raise InvalidCredentials()
            proven = _Proven(user_id=found[0], password=password, password_hash=found[1])
            # None: the hash is another one by now, and what was right may be wrong
            if (tokens := await self._begin(proven, address=address, user_agent=user_agent)) is not None:
                return tokens
        raise Unavailable("The password is being changed; try again.", retry_after_seconds=1)

    async def _begin(self, proven: _Proven, *, address: str, user_agent: str | None) -> Tokens | None:
        """A session for a password that was right, if it still is when the session is there."""
        caller = Caller(user_id=proven.user_id, session_id=SessionId(new_uuid()))
        refresh_token, refresh_sha256 = new_refresh_token(caller.session_id)
        new_hash = (await self._passwords.hash(proven.password)
                    if self._passwords.is_outdated(proven.password_hash) else None)

        async def work(conn: Connection) -> bool:
            if not await _keep_password(conn, proven, new_hash):
                return False
            await sessions.insert_session(
                conn, session_id=caller.session_id, user_id=caller.user_id, refresh_sha256=refresh_sha256,
                ttl_seconds=self._limits.session_ttl_seconds, user_agent=user_agent, network=network(address))
            await record(conn, caller.user_id, "login", session_id=caller.session_id)
            return True

        return self._give(caller, refresh_token) if await self._database.in_transaction(work) else None

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
            await self._end(session_id, "token_reuse")
            raise InvalidRefreshToken()
        return self._give(Caller(user_id=user_id, session_id=session_id), new_token)

    async def log_out(self, caller: Caller) -> None:
        """End the caller's session: its tokens are refused from now on."""
        await self._end(caller.session_id, "logout")

    async def _end(self, session_id: SessionId, action: Action) -> None:
        async def work(conn: Connection) -> None:
            user_id = await sessions.end_session(conn, session_id)
            if user_id is not None:
                await record(conn, user_id, action, session_id=session_id)

        await self._database.in_transaction(work)
        await forget(self._cache, [session_id])

    async def authenticate(self, access_token: str) -> Caller:
        """Who sent this token; raise Unauthenticated if it is not valid or its session has ended.

        That a session is open is remembered under the mark that its account's sessions had when this was asked: no
        worker of this machine believes it any more once an end of it was answered for.
        """
        caller = self._tokens.verify(access_token)
        key = key_of(caller.session_id)
        believed = caller.user_id.bytes + (self._generations.read(caller.user_id, sessions=True) or "").encode("ascii")
        if await self._cache.get(key) == believed:
            metrics.CACHE.labels("hit").inc()
            return caller
        metrics.CACHE.labels("miss").inc()
        self._generations.read(caller.user_id)  # makes the mark by which nginx remembers what workers decide
        asked_at = time.monotonic()
        async with self._database.connection() as conn:
            if not await sessions.is_session_open(conn, caller.session_id, caller.user_id):
                raise Unauthenticated("The session of this token has ended.")
        # counted from the question: a slow answer may be about a session that has ended since
        rest = asked_at + SESSION_CACHE_SECONDS - time.monotonic()
        if rest > 0:
            await self._cache.set(key, believed, ttl_seconds=rest)
        return caller

    def token_expires_at(self, access_token: str) -> int:
        """When a token that is valid ends, in seconds of the epoch."""
        return self._tokens.expires_at(access_token)

    async def me(self, caller: Caller) -> User:
        """The caller's account."""
        async with self._database.connection() as conn:
            user = await users.get_user(conn, caller.user_id)
        if user is None:
            raise Unauthenticated()
        return user


async def _keep_password(conn: Connection, proven: _Proven, new_hash: str | None) -> bool:
    """Whether the password is still the one that was checked; a change of it now waits for this transaction.

    Without this a login that was checked before a change could begin its session after it, and outlive it.
    """
    if new_hash is None:
        return await users.lock_password(conn, proven.user_id, proven.password_hash)
    return await users.update_password(conn, proven.user_id, old_hash=proven.password_hash, new_hash=new_hash)


def _check_username(username: str) -> str:
    """NFC, since two names that look the same must not be two accounts."""
    username = unicodedata.normalize("NFC", username)
    if username != username.strip():
        raise InvalidField("A username may not begin or end with white space.", field="username")
    return username
