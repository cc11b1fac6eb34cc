"""What handlers find in the application and in a request; typed, no strings."""

from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from service.domain.accounts import Accounts
from service.domain.audit import Audit
from service.domain.archives import Archives
from service.domain.batch import Batch
from service.domain.content import Content
from service.domain.files import Files
from service.domain.folders import Folders
from service.domain.health import HealthChecks
from service.domain.links import Links
from service.domain.listing import Listing
from service.domain.moves import Moves
from service.domain.sessions import Sessions
from service.domain.throttle import Throttles
from service.domain.trash import Trash
from service.domain.versions import Versions
from service.model import Caller
from service.security.addresses import AddressSigner
from service.security.cursors import Cursors
from service.storage.base import BlobStore, Claim


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """What the service does, built once in `app.py`."""

    accounts: Accounts
    cursors: Cursors
    audit: Audit
    archives: Archives
    batch: Batch
    content: Content
    files: Files
    folders: Folders
    health: HealthChecks
    links: Links
    listing: Listing
    moves: Moves
    sessions: Sessions
    throttles: Throttles
    trash: Trash
    versions: Versions


@dataclass(frozen=True, slots=True, kw_only=True)
class Action:
    """What was asked for, and what came of it; with a `route` it is counted as a request there."""

    name: str
    method: str
    status: int
    route: str | None = None


@dataclass(slots=True, kw_only=True)
class Trace:
    """What the log line of a request says; handlers add to `fields` and never put a secret there.

    `instead`: the action to name, where the request was only a question about another one.
    """

    request_id: str
    fields: dict[str, Any] = field(default_factory=dict)
    instead: Action | None = None


DOMAIN = web.AppKey("DOMAIN", Domain)
STORE = web.AppKey("STORE", BlobStore)  # for delivery.py, where bytes are, and aside.py
BEHIND_NGINX = web.AppKey("BEHIND_NGINX", bool)
PUBLIC_URL: web.AppKey[str | None] = web.AppKey("PUBLIC_URL")
SIGNER = web.AppKey("SIGNER", AddressSigner)

TRACE = web.RequestKey("TRACE", Trace)
CALLER = web.RequestKey("CALLER", Caller)
CLAIM = web.RequestKey("CLAIM", Claim)
