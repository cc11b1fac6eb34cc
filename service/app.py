"""The composition root: what the service is made of, and one worker of it."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from uuid import UUID

import structlog
from aiohttp import web

from service import logs, metrics
from service.api.keys import BEHIND_NGINX, DOMAIN, PUBLIC_URL, SIGNER, STORE, Domain
from service.api.middleware import identify, observe, stamp
from service.api.protocol import Runner
from service.api.rest.docs import documentation
from service.api.routes import add_routes
from service.cache.base import Cache
from service.cache.generations import Generations
from service.cache.local import LocalCache
from service.cache.redis import RedisCache
from service.cache.shared import SharedFlag
from service.config import Config
from service.db.instance import get_epoch
from service.db.pool import Database
from service.db.turns import Turns
from service.domain import accounts, content, links
from service.domain.archives import Archives
from service.domain.audit import Audit
from service.domain.batch import Batch
from service.domain.files import Files
from service.domain.folders import Folders
from service.domain.health import HealthChecks
from service.domain.housekeeping import Ages, Housekeeping
from service.domain.listing import Listing
from service.domain.moves import Moves
from service.domain.sessions import Sessions
from service.domain.throttle import Throttles
from service.domain.trash import Trash
from service.domain.upkeep import Pacing, Upkeep
from service.domain.versions import Versions
from service.errors import Unavailable
from service.security.addresses import SECRET_FILE, AddressSigner, LinkProofs
from service.security.cursors import Cursors
from service.security.passwords import Passwords
from service.security.tokens import TOKEN_SECRET_FILE, AccessTokens, read_or_create_secret
from service.storage.inspection import LocalInspector
from service.storage.local import LocalStore

# for running requests; of the 30 s that the supervisor gives, the rest is for what they are about to commit
DRAIN_SECONDS = 20.0
# longer than nginx keeps its connections to us, so that it is never we who close one under its request
KEEPALIVE_SECONDS = 75.0
# from a client itself: this bounds the time for the head of its request too, as client_header_timeout of nginx
DIRECT_KEEPALIVE_SECONDS = 15.0
SAMPLE_SECONDS = 2.0
DATABASE_PAUSE_SECONDS = 0.5


def build(config: Config, *, behind_nginx: bool, generations: Path | None = None,
          read_only: SharedFlag | None = None) -> web.Application:
    """The application; what it needs is opened at its start-up and closed at its end."""
    app = web.Application(middlewares=[observe, identify])
    app[BEHIND_NGINX] = behind_nginx
    app[PUBLIC_URL] = config.public_url
    app.on_response_prepare.append(stamp)
    add_routes(app)
    app.cleanup_ctx.append(documentation)
    app.cleanup_ctx.append(_domain(config, Generations(generations), SharedFlag() if read_only is None else read_only))
    return app


def _dsn(config: Config) -> str:
    assert config.database_url is not None  # the supervisor has put in that of the embedded one
    return config.database_url.get_secret_value()


async def _open_database(config: Config, generations: Generations) -> tuple[Database, UUID]:
    """The database and which one it is; it is waited for, since it was there when the service began."""
    while True:
        try:
            database = await Database.open(_dsn(config), size=config.database_pool_size, tell=generations.renew)
            try:
                async with database.connection() as conn:
                    return database, await get_epoch(conn)
            except Unavailable:
                await database.close()
                raise
        except Unavailable as error:
            structlog.get_logger().warning("database_awaited", reason=str(error.__cause__))
            await asyncio.sleep(DATABASE_PAUSE_SECONDS)


def _domain(config: Config, generations: Generations,
            read_only: SharedFlag) -> Callable[[web.Application], AsyncIterator[None]]:
    async def context(app: web.Application) -> AsyncIterator[None]:
        database, epoch = await _open_database(config, generations)
        store = app[STORE] = LocalStore(config.data_root)
        store.open(epoch)
        cache: Cache = RedisCache(config.redis_url.get_secret_value()) if config.redis_url else LocalCache()
        passwords = Passwords(config.bcrypt_cost)
        secret = (config.jwt_secret.get_secret_value() if config.jwt_secret
                  else read_or_create_secret(config.data_root / TOKEN_SECRET_FILE))
        signing_secret = read_or_create_secret(config.data_root / SECRET_FILE)
        app[SIGNER] = AddressSigner(signing_secret)
        door = content.Content(database, store, content.Limits(
            max_upload_bytes=config.max_upload_size, min_free_bytes=config.min_free_space,
            versions_keep=config.versions_keep))
        door.writability.share(read_only)
        trail = Audit(database, cache)
        cursors = Cursors(secret)
        app[DOMAIN] = Domain(
            accounts=accounts.Accounts(
                database, cache, passwords, AccessTokens(secret, config.access_token_ttl),
                accounts.Limits(login_attempts_per_minute=config.login_attempts_per_minute,
                                requests_per_minute=config.requests_per_minute, quota_bytes=config.quota,
                                session_ttl_seconds=config.session_ttl,
                                access_token_ttl_seconds=config.access_token_ttl),
                trail, generations),
            audit=trail, cursors=cursors, archives=Archives(database, store), content=door,
            files=Files(database), folders=Folders(database), moves=Moves(database), batch=Batch(database),
            listing=Listing(database, cursors), health=HealthChecks(database, cache, store),
            links=links.Links(database, door, cache, passwords, LinkProofs(signing_secret),
                              links.Limits(password_attempts_per_minute=config.login_attempts_per_minute,
                                           requests_per_minute=config.requests_per_minute)),
            sessions=Sessions(database, cache), trash=Trash(database),
            throttles=Throttles(cache, config.costly_requests_per_minute),
            versions=Versions(database, keep=config.versions_keep))
        background = [asyncio.create_task(work) for work in (_sample(database), door.writability.watch())]
        keeping = asyncio.create_task(_keep_up(config, database, store))
        yield
        keeping.cancel()
        for task in background:
            task.cancel()
        await app[DOMAIN].content.drain()
        await trail.drain()
        await asyncio.wait([keeping])
        passwords.close()
        await cache.close()
        await database.close()
        store.close()

    return context


async def _keep_up(config: Config, database: Database, store: LocalStore) -> None:
    assert config.database_url is not None
    inspector = LocalInspector(config.data_root)
    ages = Ages(trash_days=config.trash_days, versions_days=config.versions_days, audit_days=config.audit_days)
    try:
        await Upkeep(database, inspector, Turns(config.database_url.get_secret_value()),
                     Housekeeping(database, store, ages), quarantine_days=config.quarantine_days,
                     pacing=Pacing(scrub_rate=config.scrub_rate)).run()
    finally:
        inspector.close()


async def _sample(database: Database) -> None:
    while True:
        connections, in_use = database.usage()
        metrics.sample(connections=connections, in_use=in_use)
        await asyncio.sleep(SAMPLE_SECONDS)


async def run_worker(config: Config, *, unix_socket: Path | None, generations: Path | None = None,
                     shared: int | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then let what is under way end.

    With a `unix_socket` nginx is in front of it; without, the worker serves the public address by itself.
    `generations`: the folder of the marks that all processes of this machine share.  `shared`: the open file of the
    memory in which its workers tell each other that the disk fails.
    """
    logs.configure(config.log_level)
    runner = Runner(build(config, behind_nginx=unix_socket is not None, generations=generations,
                          read_only=SharedFlag(shared)), access_log=None,
                    keepalive_timeout=KEEPALIVE_SECONDS if unix_socket else DIRECT_KEEPALIVE_SECONDS,
                    auto_decompress=False, read_bufsize=2**17, max_line_size=32768, max_field_size=16384,
                    shutdown_timeout=DRAIN_SECONDS)
    await runner.setup()
    try:
        await _listen(runner, config, unix_socket)
        stop = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stop.set)
        await stop.wait()
    finally:
        await runner.cleanup()


async def _listen(runner: web.AppRunner, config: Config, unix_socket: Path | None) -> None:
    if unix_socket is None:
        await web.TCPSite(runner, config.host, config.port, reuse_port=True).start()
        return
    unix_socket.unlink(missing_ok=True)
    mask = os.umask(0o177)  # only for our own uid, from the first moment
    try:
        await web.UnixSite(runner, unix_socket, backlog=1024).start()
    finally:
        os.umask(mask)
