"""Starts everything in order and keeps it up: PostgreSQL, the schema, the workers, nginx; ends it in reverse.

Nothing survives this process for long, even if it is killed: each child gets a signal then (launch.py), and the next
start ends whatever is left, since the lock on the data root proves that it belongs to nobody.
"""

import asyncio
import contextlib
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Sequence
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg
from pydantic import SecretStr

from service import __version__, metrics
from service.cache.shared import make_memory
from service.config import PREFIX, Config
from service.run import checks, folders, migrate, nginx, postgres, processes, programs
from service.run.folders import Folders
from service.run.keeper import Child, Keeper
from service.run.logs import NGINX_TROUBLE, POSTGRES_TROUBLE, WORKER_TROUBLE, LogFile, Output
from service.run.postgres import EmbeddedPostgres
from service.run.processes import StartError
from service.security.addresses import SECRET_FILE, AddressSigner
from service.security.tokens import read_or_create_secret

PROJECT = Path(__file__).parents[2]
DRAIN_SECONDS = 30
OPEN_FILES = 65536
SPARE_CONNECTIONS = 10
DATABASE_WAIT_SECONDS = 60
WORKER_LEFTOVER_STEPS = ((signal.SIGTERM, 10.0), (signal.SIGKILL, 5.0))
PATIENCE_SECONDS = 2


def say(line: str) -> None:
    """Tell the person at the terminal."""
    with contextlib.suppress(OSError):  # the terminal may be gone
        print(line, file=sys.stderr, flush=True)


class Supervisor:
    """One running service: `run` returns when it was asked to end, and raises StartError when it cannot go on.

    With `containers` nginx and PostgreSQL run elsewhere, and the children write to our own stderr.
    """

    def __init__(self, config: Config, *, containers: bool = False) -> None:
        self._config = config
        self._containers = containers
        self._keepers: list[Keeper] = []
        self._logs = contextlib.ExitStack()
        self._stop = asyncio.Event()
        self._forced = asyncio.Event()
        self._nginx: programs.Program | None = None

    async def run(self) -> None:
        """Start, keep, end."""
        os.umask(0o077)
        _raise_open_files()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self._ask_to_stop)
        with folders.locked(
                self._config.data_root, containers=self._containers, takes_over=True) as places, self._logs:
            self._config = self._config.model_copy(update={"data_root": places.root})
            try:
                await self._until_stopped(self._start(places))
                await self._until_stopped(self._keep())
            finally:
                await self._end()
                if self._nginx:
                    nginx.stop_leftovers(places.spool)

    def _ask_to_stop(self) -> None:
        if self._forced.is_set():
            os._exit(130)  # a thread that waits cannot be interrupted; the children get their signals from the kernel
        if self._stop.is_set():
            self._forced.set()
        self._stop.set()

    async def _until_stopped(self, work: Coroutine[Any, Any, None]) -> None:
        """Do the work, or as much of it as there is time for before the end is asked for."""
        task = asyncio.ensure_future(work)
        stop = asyncio.ensure_future(self._stop.wait())
        await asyncio.wait([task, stop], return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
        if not task.done():
            task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task

    async def _start(self, places: Folders) -> None:
        await asyncio.to_thread(self._look_before, places)
        dsn = await self._start_database(places)
        await asyncio.to_thread(postgres.check_server, dsn)
        await asyncio.to_thread(migrate.apply, dsn)
        await checks.check_marker(places.root, dsn)
        self._config = self._config.model_copy(update={"database_url": SecretStr(dsn)})
        await asyncio.to_thread(self._start_metrics, places)
        (places.memory / nginx.GENERATIONS).mkdir(mode=folders.MODE, exist_ok=True)
        await self._start_workers(places)
        if self._nginx:
            await self._add(self._nginx_child(places, self._nginx))
        if not self._containers:
            say(self._describe(places, await asyncio.to_thread(_server_version, dsn)))

    def _look_before(self, places: Folders) -> None:
        """End what a killed supervisor left, and find out what would go wrong before anything takes long."""
        if not self._containers:
            nginx.stop_leftovers(places.spool)
        _stop_worker_leftovers(places)
        checks.check_secrets(self._config, places.root)
        folders.empty_staging(places)
        if self._containers or self._config.nginx == "auto":
            nginx.check_data_root(places.root)
        if self._containers:
            self._write_nginx_configuration(places, "nginx.conf", None)
            self._write_nginx_configuration(places, "nginx-njs.conf", Path(f"/{nginx.NJS_MODULE}"))
            return
        folders.check_port(self._config.host, self._config.port)
        if self._config.nginx == "auto":
            self._nginx = nginx.find_or_install(say)
        if not self._nginx and self._config.trusted_proxies:
            raise StartError(f"{PREFIX}TRUSTED_PROXIES needs nginx, which is not here or switched off")
        if self._nginx:
            self._nginx = nginx.find_njs(self._nginx, say) or self._nginx
            self._write_nginx_configuration(places, "nginx.conf", self._nginx.njs)
            nginx.check_configuration(self._nginx, nginx.make_prefix(places.spool), places.run / "nginx.conf")

    def _write_nginx_configuration(self, places: Folders, name: str, njs_module: Path | None) -> None:
        sockets = [places.worker_socket(number) for number in range(self._config.workers)]
        signer = AddressSigner(read_or_create_secret(places.root / SECRET_FILE))
        njs = nginx.Njs(njs_module, places.memory_seen_by_nginx) if njs_module else None
        text = nginx.render(self._config, sockets, as_root=os.geteuid() == 0, signer=signer, njs=njs)
        if njs:
            (places.run / nginx.SCRIPT).write_text(nginx.render_script(njs.memory), encoding="utf-8")
        path = places.run / name
        path.touch(mode=0o600)
        path.chmod(0o600)  # it holds a secret, also where an older version left it open
        path.write_text(text, encoding="utf-8")

    async def _start_database(self, places: Folders) -> str:
        """Start the embedded PostgreSQL or wait for the other one; return its address."""
        if self._config.database_url:
            dsn = self._config.database_url.get_secret_value()
            await _wait_for_database(dsn)
            return dsn
        if self._containers:
            raise StartError(f"{PREFIX}DATABASE_URL is needed here")
        connections = self._config.workers * self._config.database_pool_size + SPARE_CONNECTIONS
        server = await asyncio.to_thread(EmbeddedPostgres, places.postgres, places.sockets,
                                         max_connections=connections)
        await self._add(self._postgres_child(places, server))
        await asyncio.to_thread(server.ensure_database)
        return server.dsn()

    def _start_metrics(self, places: Folders) -> None:
        """Numbers begin with the service; they are answered from here since this process outlives every worker."""
        folder = metrics.folder_of(places.root)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(mode=0o700, exist_ok=True)
        port = self._config.metrics_port
        if port is not None:
            folders.check_port(self._config.metrics_host, port)
            self._logs.callback(metrics.serve(folder, self._config.metrics_host, port))

    async def _start_workers(self, places: Folders) -> None:
        log = self._open_log(places, "service") if not self._containers else None
        shared = make_memory()
        self._logs.callback(os.close, shared)
        await asyncio.gather(*(self._add(self._worker_child(places, number, log, shared))
                               for number in range(self._config.workers)))

    async def _add(self, child: Child) -> None:
        keeper = Keeper(child, say)
        self._keepers.append(keeper)
        await keeper.start()

    async def _keep(self) -> None:
        """Return never, but raise StartError when a child cannot be kept up."""
        tasks = [asyncio.ensure_future(keeper.keep()) for keeper in self._keepers]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _end(self) -> None:
        """nginx first, so that no request arrives at a worker that is gone; PostgreSQL last; the workers together."""
        hint = asyncio.get_running_loop().call_later(
            PATIENCE_SECONDS, say, "waiting for running requests to end; press Ctrl-C again to cut them off")
        groups: dict[str, list[Keeper]] = {}
        for keeper in self._keepers:
            groups.setdefault(keeper.child.name.split()[0], []).append(keeper)
        for group in reversed(groups.values()):
            await asyncio.gather(*(keeper.stop(self._forced) for keeper in group))
        hint.cancel()

    def _open_log(self, places: Folders, name: str) -> LogFile:
        log = LogFile(places.log / f"{name}.log")
        self._logs.callback(log.close)
        return log

    def _postgres_child(self, places: Folders, server: EmbeddedPostgres) -> Child:
        async def is_ready(pid: int) -> bool:
            return await asyncio.to_thread(server.takes_connections)

        def prepare() -> tuple[Sequence[str], Path]:
            server.prepare()
            return server.command(), places.postgres

        return Child(name="postgres", prepare=prepare, is_ready=is_ready, identity=server.identity,
                     stop_steps=[(signal.SIGINT, DRAIN_SECONDS)], force_signal=signal.SIGQUIT,
                     on_supervisor_death=signal.SIGINT, ready_seconds=postgres.RECOVERY_SECONDS,
                     output=Output("postgres", self._open_log(places, "postgres"), POSTGRES_TROUBLE))

    def _worker_child(self, places: Folders, number: int, log: LogFile | None, shared: int) -> Child:
        socket = places.worker_socket(number) if self._nginx or self._containers else None
        command = [sys.executable, "-P", "-m", "service", "worker", "--number", str(number), "--shared", str(shared),
                   "--generations", str(places.memory / nginx.GENERATIONS),
                   *(["--socket", str(socket)] if socket else [])]

        def prepare() -> tuple[Sequence[str], Path]:
            if socket:
                socket.unlink(missing_ok=True)
            return command, places.run

        async def is_ready(pid: int) -> bool:
            if socket:
                return await _answers(partial(asyncio.open_unix_connection, str(socket)))
            return processes.listens(pid, self._config.port)

        environment = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
        environment |= {**self._config.to_environment(), "PYTHONPATH": str(PROJECT)}
        return Child(name=f"worker {number}", prepare=prepare, is_ready=is_ready, environment=environment,
                     stop_steps=[(signal.SIGTERM, DRAIN_SECONDS)], inherits=[shared],
                     # one that is started again may have to wait for the database
                     ready_seconds=postgres.RECOVERY_SECONDS,
                     output=Output(f"worker {number}", log, WORKER_TROUBLE) if log else None)

    def _nginx_child(self, places: Folders, program: programs.Program) -> Child:
        def prepare() -> tuple[Sequence[str], Path]:
            nginx.stop_leftovers(places.spool)
            prefix = nginx.make_prefix(places.spool)
            return nginx.command(program.path, prefix, places.run / "nginx.conf"), prefix

        async def is_ready(pid: int) -> bool:
            return await _answers(partial(asyncio.open_connection, _reachable(self._config.host), self._config.port))

        return Child(name="nginx", prepare=prepare, is_ready=is_ready,
                     environment={**os.environ, **program.environment},
                     stop_steps=[(signal.SIGQUIT, DRAIN_SECONDS)], force_signal=signal.SIGTERM,
                     output=Output("nginx", self._open_log(places, "nginx"), NGINX_TROUBLE))

    def _describe(self, places: Folders, database_version: str) -> str:
        """What runs where, and what to try next."""
        config = self._config
        host = _reachable(config.host)
        url = f"http://{f'[{host}]' if ':' in host else host}:{config.port}"
        embedded = any(keeper.child.name == "postgres" for keeper in self._keepers)
        redis = urlsplit(config.redis_url.get_secret_value()) if config.redis_url else None
        return BANNER.format(
            version=__version__, url=url, root=places.root, workers=config.workers,
            database=f"PostgreSQL {database_version}, {'embedded' if embedded else 'as DATABASE_URL says'}",
            nginx=self._nginx.version_text if self._nginx else "none; the workers send the bytes themselves",
            redis=f"{redis.hostname or redis.path}" if redis else "none; each worker caches by itself",
            log=places.log / "service.log")


BANNER = """
File storage {version} runs on {url}

  data       {root}
  database   {database}
  nginx      {nginx}
  redis      {redis}
  workers    {workers}
  log        {log}

Try in another terminal (the documentation is at {url}/docs):
  curl {url}/auth/register -H 'Content-Type: application/json' -d '{{"username": "ann", "password": "correct horse"}}'
  TOKEN=$(curl -s {url}/auth/jwt/login -d username=ann -d 'password=correct horse' | cut -d '"' -f 4)
  curl -H "Authorization: Bearer $TOKEN" -T README.md '{url}/file?path=/README.md'

Ctrl-C ends everything.
"""


def _raise_open_files() -> None:
    """Each download takes two open files of nginx; the usual limit is 1024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _reachable(host: str) -> str:
    """An address that leads to a server that listens on `host`."""
    return {"0.0.0.0": "127.0.0.1", "*": "127.0.0.1", "::": "::1"}.get(host, host)  # nosec B104: nothing is bound here


def _stop_worker_leftovers(places: Folders) -> None:
    """End the workers of a killed supervisor; they were told to when it ended, but may wait for their clients."""
    find = partial(processes.find_working_in, places.run, processes.own_program())
    if not processes.stop_all(find, WORKER_LEFTOVER_STEPS):
        raise StartError(f"workers that were left running do not end: processes {find()}")


def _connect_once(dsn: str) -> None:
    psycopg.connect(dsn, connect_timeout=5).close()


async def _wait_for_database(dsn: str) -> None:
    """Return when the database takes connections; StartError after a minute, or at once if it refuses us."""
    begin, is_told = time.monotonic(), False
    while True:
        try:
            await asyncio.to_thread(_connect_once, dsn)
            return
        except psycopg.OperationalError as error:
            # a server that answers and refuses us will go on to; one that is starting up says "the database system is"
            refused = "FATAL" in str(error) and "the database system is" not in str(error)
            why, waited = postgres.in_one_line(error), time.monotonic() - begin
            if refused or waited >= DATABASE_WAIT_SECONDS:
                raise StartError(f"the database does not take connections: {why}") from None
            if waited >= PATIENCE_SECONDS and not is_told:
                say(f"waiting for the database, a minute at most: {why}")
                is_told = True
            await asyncio.sleep(0.5)
        except psycopg.Error as error:
            raise StartError(f"the address of the database cannot be used: {postgres.in_one_line(error)}") from None


def _server_version(dsn: str) -> str:
    with psycopg.connect(dsn, connect_timeout=postgres.CONNECT_SECONDS) as connection:
        return connection.info.parameter_status("server_version") or "?"


async def _answers(connect: Callable[[], Coroutine[Any, Any, tuple[asyncio.StreamReader, asyncio.StreamWriter]]]
                   ) -> bool:
    """Whether GET /livez gets a 200."""
    try:
        async with asyncio.timeout(5):
            reader, writer = await connect()
            try:
                writer.write(b"GET /livez HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
                status = await reader.readline()
            finally:
                writer.close()
    except (OSError, TimeoutError):
        return False
    return status.split()[1:2] == [b"200"]
