"""The embedded PostgreSQL, started and killed for real."""

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from service.run import postgres, processes
from service.run.postgres import EmbeddedPostgres, check_server
from service.run.processes import StartError
from tests.run.conftest import wait_for


@pytest.fixture
def sockets() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def test_folder_with_an_odd_name(tmp_path: Path) -> None:
    with EmbeddedPostgres.temporary(tmp_path / "с пробелом, 'and' $HOME [x]") as server:
        server.ensure_database()
        server.ensure_database()
        with psycopg.connect(server.dsn()) as connection:
            assert connection.execute("SELECT lower('ÄЖ'), current_database()").fetchone() == ("äж", "file_storage")
        check_server(server.dsn())
        assert server.version.startswith("18.")
        assert (server.data.stat().st_mode & 0o777) == 0o700
        pid = server.pid
    assert pid and not processes.find_working_in(server.data, "postgres")


def test_sockets_folder_with_an_odd_name(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(prefix='a b"c%d;ж') as sockets:
        with EmbeddedPostgres(tmp_path / "postgres", Path(sockets)) as server:
            assert server.takes_connections()


def test_killed_server_keeps_its_data(tmp_path: Path, sockets: Path) -> None:
    server = EmbeddedPostgres(tmp_path / "postgres", sockets)
    with server:
        with psycopg.connect(server.dsn("postgres")) as connection:
            connection.execute("CREATE TABLE kept AS SELECT 42 AS answer")
        assert server.pid
        os.kill(server.pid, signal.SIGKILL)
        wait_for(lambda: not processes.find_working_in(server.data, "postgres"), "all of it ends")
    with server, psycopg.connect(server.dsn("postgres")) as connection:
        assert connection.execute("SELECT answer FROM kept").fetchone() == (42,)


def test_server_left_running_is_ended_first(tmp_path: Path, sockets: Path) -> None:
    first = EmbeddedPostgres(tmp_path / "postgres", sockets)
    with first, EmbeddedPostgres(tmp_path / "postgres", sockets) as second:
        assert first.pid not in processes.find_working_in(second.data, "postgres")
        assert second.takes_connections()


def test_stale_pid_file_that_names_another_program_is_no_obstacle(tmp_path: Path, sockets: Path) -> None:
    server = EmbeddedPostgres(tmp_path / "postgres", sockets)
    with server:
        pid_file = server.data / "postmaster.pid"
        text = pid_file.read_text()
    pid_file.write_text("\n".join([str(os.getpid()), *text.splitlines()[1:]]) + "\n")
    with server:
        assert server.takes_connections()


def test_interrupted_creation_is_repeated(tmp_path: Path, sockets: Path) -> None:
    half_made = tmp_path / "postgres.new"
    half_made.mkdir()
    (half_made / "PG_VERSION").write_text("18\n")
    with EmbeddedPostgres(tmp_path / "postgres", sockets) as server:
        assert server.takes_connections()
    assert not half_made.exists()


def test_data_of_another_version_is_refused(tmp_path: Path, sockets: Path) -> None:
    server = EmbeddedPostgres(tmp_path / "postgres", sockets)
    server.prepare()
    (server.data / "PG_VERSION").write_text("16\n")
    with pytest.raises(StartError, match="made by PostgreSQL 16, this is 18"):
        server.start()


def test_folder_of_something_else_is_refused(tmp_path: Path, sockets: Path) -> None:
    (tmp_path / "postgres").mkdir()
    (tmp_path / "postgres" / "photo.jpg").touch()
    with pytest.raises(StartError, match="not a PostgreSQL data folder"):
        EmbeddedPostgres(tmp_path / "postgres", sockets).start()


def test_path_too_long_for_a_socket_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StartError, match="too long for a socket"):
        EmbeddedPostgres(tmp_path, tmp_path / ("x" * 100))
    with pytest.raises(StartError, match="comma"):
        EmbeddedPostgres(tmp_path, Path("/tmp/a,b"))


def test_damaged_cluster_is_reported_with_its_log(tmp_path: Path, sockets: Path) -> None:
    server = EmbeddedPostgres(tmp_path / "postgres", sockets)
    server.prepare()
    shutil.rmtree(server.data / "global")
    with pytest.raises(StartError, match=r"ended with exit code .*; see .*postgres\.log"):
        server.start()


@pytest.mark.parametrize("setting", postgres.DURABILITY)
def test_server_that_could_lose_uploads_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                                   setting: str) -> None:
    monkeypatch.setattr(postgres, "SETTINGS", {**postgres.SETTINGS, setting: "off"})
    with EmbeddedPostgres.temporary(tmp_path) as server:
        with pytest.raises(StartError, match=f"turn on {setting}$"):
            check_server(server.dsn("postgres"))


@pytest.mark.parametrize("of", ["DATABASE one", "ROLE postgres", "ROLE postgres IN DATABASE one"])
@pytest.mark.parametrize("value", ["off", "local", "remote_write"])
def test_commits_that_do_not_wait_for_the_disk_are_refused_whoever_has_set_it(
        server: EmbeddedPostgres, of: str, value: str) -> None:
    """Given on the command line by us, it is on; a role or a database may have its own in a server of one's own."""
    server.ensure_database("one")
    with psycopg.connect(server.dsn("postgres"), autocommit=True) as connection:
        connection.execute(f"ALTER {of} SET synchronous_commit = {value}")
        try:
            with pytest.raises(StartError, match="turn on synchronous_commit$"):
                check_server(server.dsn("one"))
        finally:
            connection.execute(f"ALTER {of} RESET synchronous_commit")
    check_server(server.dsn("one"))


def test_database_of_another_encoding_is_refused(server: EmbeddedPostgres) -> None:
    with psycopg.connect(server.dsn("postgres"), autocommit=True) as connection:
        connection.execute("CREATE DATABASE latin ENCODING 'LATIN1' TEMPLATE template0 LOCALE_PROVIDER libc "
                           "LOCALE 'C'")
    with pytest.raises(StartError, match="UTF8"):
        check_server(server.dsn("latin"))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root needs another user")
def test_root_without_user_namespaces_uses_another_user(tmp_path: Path, sockets: Path,
                                                        monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory() as root:  # pytest's own folders are closed to other users, and ours may be
        os.chmod(root, 0o755)
        package = postgres.find_programs().parents[1]
        for folder in package.parent.glob(f"{package.name}*"):  # the programs, and the libraries beside them
            shutil.copytree(folder, Path(root) / folder.name, symlinks=True)
        programs = Path(root) / postgres.find_programs().relative_to(package.parent)
        monkeypatch.setattr(postgres, "find_programs", lambda: programs)
        other = postgres._find_other_user(programs)
        monkeypatch.setattr(postgres, "find_identity", lambda programs: other)
        with EmbeddedPostgres(Path(root) / "postgres", sockets) as server:
            assert server.data.stat().st_uid == int(other.split(":")[0])
            assert server.takes_connections()
    tmp_path.parent.chmod(0o700)
    with pytest.raises(StartError, match=f"user {other.split(':')[0]} that it runs as cannot reach"):
        EmbeddedPostgres(tmp_path / "root" / "postgres", sockets).start()
