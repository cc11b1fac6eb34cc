"""Who makes a request, and how they reached us."""

import re

from aiohttp import web

from service.api.keys import BEHIND_NGINX, CALLER, DOMAIN, PUBLIC_URL
from service.errors import BadRequest, Unauthenticated
from service.model import Caller

MAX_AGENT_CHARACTERS = 120
_HOST = re.compile(r"(?:[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?")


async def authenticate(request: web.Request) -> Caller:
    """The account behind the Bearer token; raise Unauthenticated."""
    return await request.app[DOMAIN].accounts.authenticate(bearer(request))


def bearer(request: web.Request) -> str:
    """The token of the header Authorization (RFC 6750, section 2.1); raise Unauthenticated if there is none."""
    values = request.headers.getall("Authorization", [])
    if len(values) != 1:
        raise Unauthenticated()
    scheme, _, token = values[0].partition(" ")
    if scheme.lower() != "bearer":
        raise Unauthenticated()
    return token.strip()


def caller(request: web.Request) -> Caller:
    """The account that the middleware found; only on routes that are not public."""
    return request[CALLER]


def address(request: web.Request) -> str:
    """The client's address: from nginx, which overwrites what a client may have sent, or from the connection."""
    if request.app[BEHIND_NGINX]:
        return request.headers.get("X-Real-IP", "")
    return request.remote or ""


def user_agent(request: web.Request) -> str | None:
    """What the client's program calls itself, shortened to what fits a list for people; None for nothing."""
    text = "".join(c for c in request.headers.get("User-Agent", "")[:MAX_AGENT_CHARACTERS] if c.isprintable()).strip()
    return text or None


def origin(request: web.Request) -> str:
    """The begin of addresses that we give out: what is configured, or the host that the client used.

    A client may say any host, but only to itself: the addresses are in its own answer, which nothing caches.
    """
    if (configured := request.app[PUBLIC_URL]) is not None:
        return configured
    host = request.headers.get("Host", "")
    if not _HOST.fullmatch(host):
        raise BadRequest("The header Host is not that of an address.")
    return f"http://{host}"
