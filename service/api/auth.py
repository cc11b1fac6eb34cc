"""Who makes a request."""

from aiohttp import web

from service.api.keys import BEHIND_NGINX, CALLER, DOMAIN
from service.errors import Unauthenticated
from service.model import Caller


async def authenticate(request: web.Request) -> Caller:
    """The account behind the Bearer token (RFC 6750, section 2.1); raise Unauthenticated."""
    values = request.headers.getall("Authorization", [])
    if len(values) != 1:
        raise Unauthenticated()
    scheme, _, token = values[0].partition(" ")
    if scheme.lower() != "bearer":
        raise Unauthenticated()
    return await request.app[DOMAIN].accounts.authenticate(token.strip())


def caller(request: web.Request) -> Caller:
    """The account that the middleware found; only on routes that are not public."""
    return request[CALLER]


def address(request: web.Request) -> str:
    """The client's address: from nginx, which overwrites what a client may have sent, or from the connection."""
    if request.app[BEHIND_NGINX]:
        return request.headers.get("X-Real-IP", "")
    return request.remote or ""
