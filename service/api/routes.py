"""THE table: every address, its method, its handler, and whether it works without an account."""

from collections.abc import Awaitable, Callable
from typing import NamedTuple

from aiohttp import web

from service.api.rest import (
    accounts, archives, audit, batch, decide, docs, files, folders, health, links, listing, metrics, moves, preflight,
    sessions, signed, trash, versions,
)
from service.api.web import links as visits

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Route(NamedTuple):
    """A line of the table."""

    method: str
    path: str
    handler: Handler
    is_public: bool = False


PUBLIC = True

ROUTES = (
    Route("GET", "/ping/all", health.ping_all, PUBLIC),
    Route("GET", "/livez", health.live, PUBLIC),
    Route("GET", "/readyz", health.ready, PUBLIC),
    Route("GET", "/metrics", metrics.show_metrics, PUBLIC),
    Route("POST", "/auth/register", accounts.register, PUBLIC),
    Route("POST", "/auth/jwt/login", accounts.log_in, PUBLIC),
    Route("POST", "/auth/jwt/refresh", accounts.refresh, PUBLIC),
    Route("POST", "/auth/jwt/logout", accounts.log_out),
    Route("GET", "/auth/me", accounts.show_me),
    Route("DELETE", "/auth/me", accounts.delete_me),
    Route("POST", "/auth/password", accounts.change_password),
    Route("GET", "/auth/session", sessions.list_sessions),
    Route("DELETE", "/auth/session", sessions.end_sessions),
    Route("DELETE", "/auth/session/{id}", sessions.end_session),
    Route("GET", "/auth/audit", audit.list_audit),
    Route("POST", "/file", files.upload_form),
    Route("PUT", "/file", files.upload_bytes),
    Route("DELETE", "/file", files.delete_file),
    Route("GET", "/file/list", listing.list_files),
    Route("POST", "/file/folder", folders.make_folder),
    Route("POST", "/file/move", moves.move_file),
    Route("POST", "/file/copy", moves.copy_file),
    Route("POST", "/file/batch", batch.run_batch),
    Route("GET", "/file/info", files.show_file),
    Route("GET", "/file/download", files.download_file),
    Route("GET", "/file/download/", files.download_file),
    Route("GET", "/file/usage_memory", files.show_usage),
    Route("GET", "/file/archive", archives.download_archive),
    Route("GET", "/file/trash", trash.list_trash),
    Route("POST", "/file/trash/restore", trash.restore_trashed),
    Route("DELETE", "/file/trash", trash.empty_trash),
    Route("GET", "/file/versions", versions.list_versions),
    Route("POST", "/file/versions/restore", versions.restore_version),
    Route("DELETE", "/file/versions", versions.forget_versions),
    Route("POST", "/file/link", links.make_link),
    Route("GET", "/file/link", links.list_links),
    Route("DELETE", "/file/link/{id}", links.revoke_link),
    Route("POST", "/file/sign", signed.sign_address),
    Route("GET", "/s/{token}", visits.visit_link, PUBLIC),
    Route("POST", "/s/{token}", visits.upload_through_link, PUBLIC),
    Route("POST", "/s/{token}/open", visits.open_link, PUBLIC),
    Route("GET", "/assets/{name}", visits.page_asset, PUBLIC),
    Route("GET", "/d/{name:[^/]+}", signed.download_signed, PUBLIC),  # a name may have braces
    Route("GET", "/docs", docs.show_docs, PUBLIC),
    Route("GET", "/docs/{name}", docs.docs_asset, PUBLIC),
    Route("GET", "/openapi.json", docs.show_openapi, PUBLIC),
    # these ask for the account by themselves, so that a refusal gets the shape that nginx needs
    Route("GET", "/_preflight", preflight.ask_preflight, PUBLIC),
    Route("GET", "/_decide", decide.decide_download, PUBLIC),
)

PUBLIC_HANDLERS = frozenset(route.handler for route in ROUTES if route.is_public)


async def _expect_nothing(request: web.Request) -> None:
    """Expect: 100-continue is answered by `body.invite`, after the upload was admitted."""


def add_routes(app: web.Application) -> None:
    """Give the application its routes; a GET answers HEAD too."""
    for route in ROUTES:
        if route.method == "GET":
            app.router.add_get(route.path, route.handler, expect_handler=_expect_nothing)
        else:
            app.router.add_route(route.method, route.path, route.handler, expect_handler=_expect_nothing)
