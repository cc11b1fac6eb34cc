"""What handlers find in the application and in a request; typed, no strings."""

from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

from service.domain.accounts import Accounts
from service.domain.content import Content
from service.domain.files import Files
from service.domain.health import HealthChecks
from service.model import Caller
from service.storage.base import BlobStore, Claim


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """What the service does, built once in `app.py`."""

    accounts: Accounts
    content: Content
    files: Files
    health: HealthChecks


@dataclass(slots=True, kw_only=True)
class Trace:
    """What the log line of a request says; handlers add to `fields` and never put a secret there."""

    request_id: str
    fields: dict[str, Any] = field(default_factory=dict)


DOMAIN = web.AppKey("DOMAIN", Domain)
STORE = web.AppKey("STORE", BlobStore)  # for delivery.py alone: it says where the bytes are
BEHIND_NGINX = web.AppKey("BEHIND_NGINX", bool)

TRACE = web.RequestKey("TRACE", Trace)
CALLER = web.RequestKey("CALLER", Caller)
CLAIM = web.RequestKey("CLAIM", Claim)
