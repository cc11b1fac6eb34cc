"""What the layers pass to each other: frozen values, no behaviour beyond their own shape."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, NewType
from uuid import UUID

import uuid_utils.compat

UserId = NewType("UserId", UUID)
SessionId = NewType("SessionId", UUID)
FileId = NewType("FileId", UUID)
VersionId = NewType("VersionId", UUID)
BlobKey = NewType("BlobKey", UUID)
LinkId = NewType("LinkId", UUID)
LinkKind = Literal["download", "upload"]
Outcome = Literal["ok", "refused"]
# what can be wrong with the bytes of a blob
Damage = Literal["missing", "size", "digest", "unreadable"]
# stable words, which stay in the trail for as long as it is kept
Action = Literal[
    "register", "login", "logout", "token_reuse", "session_end", "password_change", "account_delete",
    "upload", "folder_create", "move", "copy", "trash", "delete", "trash_restore", "trash_delete",
    "version_restore", "version_delete", "link_create", "link_revoke"]


def new_uuid() -> UUID:
    """A fresh UUIDv7 (RFC 9562, section 5.7): ordered by time, never used twice."""
    return uuid_utils.compat.uuid7()


def uuid_at(milliseconds: int, random: int) -> UUID:
    """The UUIDv7 of a moment of the epoch and of 74 random bits: the same for the same."""
    return UUID(int=(milliseconds & (1 << 48) - 1) << 80 | 0x7 << 76 | (random >> 62 & 0xFFF) << 64
                | 0b10 << 62 | random & (1 << 62) - 1)


def shard_of(user_id: UserId) -> str:
    """The last three digits of an account's id: 4096 shares of all accounts.

    Tokens name it in their header, where it is four characters of Base64 (nginx/decisions.js).
    """
    return user_id.hex[-3:]


@dataclass(frozen=True, slots=True, kw_only=True)
class User:
    """An account."""

    id: UserId
    username: str
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who makes a request: an account, through one of its sessions."""

    user_id: UserId
    session_id: SessionId
    link_id: LinkId | None = None
    """The link by which a visitor makes it; it stands for the session then."""

    @property
    def share(self) -> Hashable:
        """Whose part it takes of what all use: visitors of an account's links have one of their own."""
        return self.user_id if self.link_id is None else ("links", self.user_id)


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """What a login or a refresh gives out."""

    access_token: str
    expires_in_seconds: int
    refresh_token: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Session:
    """What a login began; `network` and `user_agent` are those of the login, None if they are not known."""

    id: SessionId
    created_at: datetime
    refreshed_at: datetime
    expires_at: datetime
    user_agent: str | None
    network: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class AuditEntry:
    """A line of an account's trail."""

    id: int
    at: datetime
    action: Action
    outcome: Outcome
    session_id: SessionId | None
    network: str | None
    request_id: str | None
    file_id: FileId | None
    path: str | None
    details: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A file as its owner sees it: a place in the tree and its current version."""

    id: FileId
    name: str
    path: str
    size_bytes: int
    sha256: bytes
    content_type: str
    version: int
    version_id: VersionId
    blob_key: BlobKey
    created_at: datetime
    updated_at: datetime

    @property
    def etag(self) -> str:
        """The strong entity tag (RFC 9110, section 8.8.3), quotes included; new for each version."""
        return f'"{self.version_id.hex}"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Contents:
    """What is below a folder, at any depth."""

    file_count: int
    folder_count: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Folder:
    """A folder as its owner sees it; `contents` only where they were asked for."""

    id: FileId
    name: str
    path: str
    created_at: datetime
    updated_at: datetime
    contents: Contents | None = None


Kind = Literal["file", "folder"]
Sort = Literal["name", "path", "size", "created_at", "updated_at"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A part of a list; `cursor` begins the next one, None: this is the end."""

    folders: list[Folder]
    files: list[File]
    cursor: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrashItem:
    """A file or folder in the trash; `path` and `parent_id` are where it was, the sizes include what is below it."""

    id: FileId
    is_folder: bool
    name: str
    path: str
    parent_id: FileId | None
    size_bytes: int
    file_count: int
    deleted_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Version:
    """What a file held or holds."""

    id: VersionId
    number: int
    size_bytes: int
    sha256: bytes
    content_type: str
    blob_key: BlobKey
    created_at: datetime
    is_current: bool

    @property
    def etag(self) -> str:
        """The strong entity tag, quotes included."""
        return f'"{self.id.hex}"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What an account holds, in bytes; `quota_bytes` None means no limit."""

    files_bytes: int
    trash_bytes: int
    versions_bytes: int
    count: int
    quota_bytes: int | None

    @property
    def available_bytes(self) -> int | None:
        """How much more can be stored; None without a quota."""
        if self.quota_bytes is None:
            return None
        return max(0, self.quota_bytes - self.files_bytes - self.trash_bytes - self.versions_bytes)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """Preconditions of a change (RFC 9110, section 13.1); entity tags as sent, quotes included."""

    if_match: tuple[str, ...] = ()
    if_none_match: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Staged:
    """A body that is complete, hashed and forced to the disk, but still in staging.

    `data`: all of a small body, which is in memory instead and gets to the disk when it is placed.
    """

    key: BlobKey
    size_bytes: int
    sha256: bytes
    crc32: int | None = None
    data: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """A decision to send one version's bytes; how they travel is decided by `api/delivery.py`."""

    key: BlobKey
    name: str
    content_type: str
    size_bytes: int
    sha256: bytes
    etag: str
    modified_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A public link.  `path`: of its file, None if that is in the trash or was not asked for."""

    id: LinkId
    user_id: UserId
    file_id: FileId
    is_folder: bool
    kind: LinkKind
    path: str | None
    password_hash: str | None = field(repr=False)
    max_downloads: int | None
    downloads: int
    created_at: datetime
    expires_at: datetime | None

    @property
    def is_used_up(self) -> bool:
        """Whether its limit is reached."""
        return self.max_downloads is not None and self.downloads >= self.max_downloads


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkChild:
    """What a visitor of a link sees of a file or folder in the linked folder."""

    name: str
    is_folder: bool
    updated_at: datetime
    size_bytes: int
    content_type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """Access times in milliseconds, None for what is down; `essential` names what must be up."""

    milliseconds: Mapping[str, float | None]
    essential: frozenset[str] = field(default=frozenset({"db", "storage"}))

    @property
    def is_serving(self) -> bool:
        """Whether everything that the service cannot work without answered."""
        return all(self.milliseconds[name] is not None for name in self.essential)
