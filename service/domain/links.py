"""Public links: what who knows a token may do without an account.

A link acts for its maker, who owns what it leads to: it names the file or folder by id, so it follows a move, and does
nothing while that is in the trash.  Everything but "is there such a link" comes after the password.
"""

from dataclasses import dataclass, field
from datetime import datetime

from service.cache.base import Cache
from service.db import files, links
from service.db.pool import Connection, Database
from service.domain.audit import record
from service.domain.content import Content
from service.domain.places import Place, Target, get, get_locked
from service.domain.requests import begun, once
from service.domain.throttle import network, throttle
from service.errors import (
    Conflict, InvalidLinkPassword, IsAFolder, LinkPasswordRequired, NotAFolder, NotFound, TooManyLinks,
)
from service.model import (
    Caller, Delivery, File, FileId, Folder, Link, LinkChild, LinkId, LinkKind, SessionId, Staged, new_uuid,
)
from service.security.addresses import LinkProofs
from service.security.passwords import Passwords
from service.security.secrets import link_token, parse_link_token

PASSWORD_PROOF_SECONDS = 3600
RESUME_PROOF_SECONDS = 3600
PAGE_CHILDREN = 200
MAX_LINKS = 10_000  # of an account at a time, since all of them may be asked for in one answer

# one text for all that a visitor is not to tell apart: unknown, expired, revoked, used up, its file gone
GONE = "There is nothing here: the address is wrong, or the link is no longer valid."


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """How often the password of a link may be tried from one network, and ten times as often from all of them.

    As often an account may make a link with a password.  `requests_per_minute`: tries from one network, of all links.
    """

    password_attempts_per_minute: int
    requests_per_minute: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """What a visitor shows: a password or the proof of having shown it, the proof of a download begun before."""

    password: str | None = field(default=None, repr=False)
    proof: str = field(default="", repr=False)
    resume: str = field(default="", repr=False)
    address: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A link that may be used: `found` is its file or folder, or what `within` leads to in that folder.

    `is_resumed`: the visitor has the proof of a download of this version that was counted.
    """

    link: Link
    found: File | Folder
    within: tuple[str, ...]
    is_resumed: bool

    @property
    def owner(self) -> Caller:
        """For whom the link acts; the link stands for the session."""
        return Caller(user_id=self.link.user_id, session_id=SessionId(self.link.id), link_id=self.link.id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Children:
    """A part of a folder's list; `next_after` is where the next part begins, None if there is none."""

    children: list[LinkChild]
    next_after: tuple[bool, str] | None


class Links:
    """Making links, and using them."""

    def __init__(self, database: Database, content: Content, cache: Cache, passwords: Passwords, proofs: LinkProofs,
                 limits: Limits) -> None:
        self._database = database
        self._content = content
        self._cache = cache
        self._passwords = passwords
        self._proofs = proofs
        self._limits = limits

    # --- for the maker ---

    async def create(self, caller: Caller, place: Place, *, kind: LinkKind, password: str | None,
                     max_downloads: int | None, expires_in_seconds: int | None) -> tuple[Link, str]:
        """A new link, and its token, which is not to be had again.

        Raises NotFound, NotAFolder (only a folder takes uploads), TooManyLinks, and for a password InvalidField and
        TooManyRequests.
        """
        password_hash = None if password is None else await self._hash(caller, place, kind, password)
        link_id = LinkId(new_uuid())
        _, token_sha256 = link_token(self._proofs.seed(link_id.bytes))

        async def work(conn: Connection) -> Link:
            await files.lock_tree_shared(conn, caller.user_id)
            found = await get_locked(conn, caller.user_id, place)
            _check_kind(kind, found)
            if password is not None and password_hash is None:
                raise Conflict()  # the key was so old that it has just been forgotten
            link = Link(
                id=link_id, user_id=caller.user_id, file_id=found.id, is_folder=isinstance(found, Folder), kind=kind,
                path=found.path, password_hash=password_hash, max_downloads=max_downloads, downloads=0,
                created_at=found.created_at, expires_at=None)
            await links.lock_links(conn, caller.user_id)
            if not await links.make_room(conn, caller.user_id, bound=MAX_LINKS):
                raise TooManyLinks()
            link = await links.insert_link(conn, link, token_sha256=token_sha256,
                                           expires_in_seconds=expires_in_seconds)
            await record(conn, caller.user_id, "link_create", file_id=found.id, path=found.path, link=str(link.id),
                         kind=kind)
            return link

        # nobody keeps the token: it is made again for a request that is sent again, whose link has another id
        link = await once(self._database, caller, work)
        return link, link_token(self._proofs.seed(link.id.bytes))[0]

    async def _hash(self, caller: Caller, place: Place, kind: LinkKind, password: str) -> str | None:
        """The hash of a link's password; None for a request that was carried out before, whose result is left to get.

        Hashing is what costs us: nothing is hashed for what is not there, and no account may fill the queue.
        """
        if await begun(self._database, caller.user_id) is None:
            return None
        async with self._database.connection() as conn:
            _check_kind(kind, await get(conn, caller.user_id, place))
        await throttle(self._cache, [(f"link-password:{caller.user_id}", self._limits.password_attempts_per_minute)])
        return await self._passwords.hash(password)

    async def page(self, caller: Caller, place: Place | None, *, after: tuple[datetime, LinkId] | None,
                   limit: int | None) -> list[Link]:
        """A part of `list`; `after` is the last link of the part before."""
        async with self._database.connection() as conn:
            file_id = None if place is None else (await get(conn, caller.user_id, place)).id
            return await links.list_links(conn, caller.user_id, file_id=file_id, after=after, limit=limit)

    async def list(self, caller: Caller, place: Place | None) -> list[Link]:
        """All links of the caller, the oldest first; with a place only those to the file or folder there."""
        async with self._database.lane(caller.share):
            return await self.page(caller, place, after=None, limit=None)

    async def revoke(self, caller: Caller, link_id: LinkId) -> None:
        """End a link; raise NotFound, also for another account's."""
        async def work(conn: Connection) -> None:
            if not await links.delete_link(conn, caller.user_id, link_id):
                raise NotFound()
            await record(conn, caller.user_id, "link_revoke", link=str(link_id))

        await once(self._database, caller, work)

    # --- for visitors ---

    async def open(self, token: str, key: Key, within: tuple[str, ...] = ()) -> Opened:
        """What the token, or the path from its folder, leads to.

        Raises NotFound, then LinkPasswordRequired, InvalidLinkPassword or TooManyRequests, and only then NotFound for
        the path.
        """
        link, found = await self._find(token)
        if link.is_used_up and not key.resume:
            raise NotFound(GONE)
        await self._check_key(link, key)
        if within:
            if link.kind == "upload":
                raise NotFound(GONE)
            found = await self._find_below(link, within)
        is_resumed = isinstance(found, File) and self._proofs.is_valid(key.resume, *_resume(link, found))
        if link.is_used_up and not is_resumed:
            raise NotFound(GONE)
        return Opened(link=link, found=found, within=within, is_resumed=is_resumed)

    async def _find(self, token: str) -> tuple[Link, File | Folder]:
        digest = parse_link_token(token)
        if digest is None:
            raise NotFound(GONE)
        async with self._database.connection() as conn:
            link = await links.get_link(conn, digest)
            found = None if link is None else await files.get_by_id(conn, link.user_id, link.file_id)
        if link is None or found is None:
            raise NotFound(GONE)
        return link, found

    async def _find_below(self, link: Link, within: tuple[str, ...]) -> File | Folder:
        async with self._database.connection() as conn:
            file_id = await links.find_below(conn, link.file_id, within)
            found = None if file_id is None else await files.get_by_id(conn, link.user_id, file_id)
        if found is None:
            raise NotFound("There is no such file in this folder.")
        return found

    async def _check_key(self, link: Link, key: Key) -> None:
        """Nothing may be told before this: neither a name nor a size."""
        if link.password_hash is None or self._proofs.is_valid(key.proof, *_password(link)):
            return
        if key.password is None:
            raise LinkPasswordRequired()
        # before the hash is computed, which is what costs us
        attempts, where = self._limits.password_attempts_per_minute, network(key.address)
        await throttle(self._cache, [
            (f"link:{link.id}:{where}", attempts),
            (f"link:{where}", self._limits.requests_per_minute),
            # many networks against one link
            (f"link:{link.id}", 10 * attempts),
        ])
        if not await self._passwords.verify(key.password, link.password_hash):
            raise InvalidLinkPassword(field="password")

    async def unlock(self, token: str, key: Key) -> str:
        """Exchange the password for a proof, good for `PASSWORD_PROOF_SECONDS`; raises what `open` does."""
        opened = await self.open(token, key)
        if opened.link.password_hash is None:
            return ""
        return self._proofs.make(*_password(opened.link), ttl_seconds=PASSWORD_PROOF_SECONDS)

    async def list_children(self, opened: Opened, after: tuple[bool, str] = (False, "")) -> Children:
        """A part of what is directly in an opened folder; `after`: (whether it was a file, its name) of the last."""
        limit = PAGE_CHILDREN + 1
        in_files, name = after
        found: list[LinkChild] = []
        async with self._database.connection() as conn:
            if not in_files:
                found = await links.list_child_folders(conn, opened.found.id, after=name, limit=limit)
                name = ""
            if len(found) < limit:
                found += await links.list_child_files(conn, opened.found.id, after=name, limit=limit - len(found))
        shown = found[:PAGE_CHILDREN]
        more = len(found) > PAGE_CHILDREN
        return Children(children=shown, next_after=(not shown[-1].is_folder, shown[-1].name) if more else None)

    async def deliver(self, opened: Opened) -> Delivery:
        """Decide to send the opened file; whether it counts is the next question.  Raises NotFound, IsAFolder."""
        if isinstance(opened.found, Folder):
            raise IsAFolder("This is a folder; only files can be downloaded.", field="path")
        return await self._content.deliver(opened.owner, opened.found.id)

    async def count(self, opened: Opened) -> str:
        """Use the link once, before a byte is sent; raise NotFound if it has been used up in the meantime.

        Returns a proof for a visitor whose download breaks off: with it the rest is not counted again, for
        `RESUME_PROOF_SECONDS`.  Empty where there is no limit.
        """
        link = opened.link

        async def work(conn: Connection) -> bool:
            if link.max_downloads is None:
                await links.do_not_wait_for_disk(conn)
            return await links.count_use(conn, link.id)

        if not await self._database.in_transaction(work):
            raise NotFound(GONE)
        if link.max_downloads is None or not isinstance(opened.found, File):
            return ""
        return self._proofs.make(*_resume(link, opened.found), ttl_seconds=RESUME_PROOF_SECONDS)

    async def admit(self, opened: Opened, size_bytes: int | None) -> None:
        """Refuse an upload before its first byte; raises TooLarge, QuotaExceeded, StorageFull."""
        # a folder's id: an upload through a link replaces nothing that would make room
        await self._content.admit(opened.owner, size_bytes, opened.found.id)

    async def store(self, opened: Opened, name: str, staged: Staged, *, content_type: str | None) -> None:
        """Store an upload under its name or a numbered form of it, and count it, both or neither.

        Raises NotFound if the link or its folder went away meanwhile, or its limit was reached, and what
        `Content.store` raises.
        """
        async def use(conn: Connection) -> None:
            if not await links.count_use(conn, opened.link.id):
                raise NotFound(GONE)

        target = Target(place=FileId(opened.found.id), in_folder=True, own_name=name, never_replaces=True)
        await self._content.store(opened.owner, target, staged, content_type=content_type, also=use)


def _check_kind(kind: LinkKind, found: File | Folder) -> None:
    if kind == "upload" and not isinstance(found, Folder):
        raise NotAFolder("Only a folder can take uploads.", field="path")


def _password(link: Link) -> tuple[bytes, ...]:
    return b"password", link.id.bytes, (link.password_hash or "").encode()


def _resume(link: Link, file: File) -> tuple[bytes, ...]:
    return b"resume", link.id.bytes, file.version_id.bytes
