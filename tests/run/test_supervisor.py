"""The whole service as a person starts it: `python -m service run` and its siblings, with everything real."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from service.run import folders, processes, supervisor
from service.run.postgres import EmbeddedPostgres
from service.run.programs import Program
from tests.run.conftest import PROJECT, is_alive, wait_for, working_in
from tests.stack import free_port

PATIENCE_SECONDS = 60


def command_line(pid: int) -> str:
    """The arguments of a process, each with a NUL after it; none if it is gone."""
    try:
        return (Path("/proc") / str(pid) / "cmdline").read_text()
    except OSError:
        return ""


@dataclass(slots=True)
class Service:
    """A started supervisor."""

    process: "subprocess.Popen[bytes]"
    root: Path
    port: int
    terminal: Path

    @property
    def said(self) -> str:
        """What stands on the terminal so far."""
        return self.terminal.read_text(encoding="utf-8")

    def wait_until_ready(self) -> "Service":
        wait_for(lambda: "Ctrl-C ends everything" in self.said or self.process.poll() is not None, "the start")
        assert self.process.poll() is None, self.said
        return self

    def end(self, number: signal.Signals = signal.SIGINT) -> int:
        """Ask it to end; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(PATIENCE_SECONDS)

    def request(self, method: str, path: str, body: bytes | None = None, **headers: str) -> tuple[int, bytes]:
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", body, method=method, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read()

    def is_up(self) -> bool:
        """Whether it answers."""
        try:
            return self.request("GET", "/readyz")[0] == 200
        except OSError:
            return False

    def register(self) -> str:
        """Make an account, or use it again, and return a token."""
        account = json.dumps({"username": "ann", "password": "correct horse"}).encode()
        assert self.request("POST", "/auth/register", account, **{"Content-Type": "application/json"})[0] in (201, 409)
        status, answer = self.request("POST", "/auth/jwt/login", b"username=ann&password=correct+horse",
                                      **{"Content-Type": "application/x-www-form-urlencoded"})
        assert status == 200, answer
        return str(json.loads(answer)["access_token"])

    def find(self, word: str) -> list[int]:
        """Its processes with a word in their command line."""
        return [pid for pid in working_in(self.root) if word in command_line(pid)]


Start = Callable[..., Service]


@pytest.fixture
def start(tmp_path: Path, nginx_program: Program) -> Iterator[Start]:
    """Start a service; each one that is left over is ended."""
    started: list[Service] = []

    def begin(root: Path | None = None, port: int = 0, command: str = "run", **settings: str) -> Service:
        port = port or free_port()
        root = root or tmp_path / "data root"
        environment = {name: value for name, value in os.environ.items() if not name.startswith("FILE_STORAGE_")}
        environment |= {f"FILE_STORAGE_{name}": value for name, value in {
            "PORT": str(port), "DATA_ROOT": str(root), "WORKERS": "2", "BCRYPT_COST": "4", **settings}.items()}
        terminal = tmp_path / f"terminal-{len(started)}"
        with terminal.open("wb") as output:
            process = subprocess.Popen([sys.executable, "-m", "service", command], cwd=PROJECT, env=environment,
                                       stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        started.append(Service(process, root, port, terminal))
        return started[-1]

    yield begin
    for service in started:
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGKILL):
            if service.process.poll() is None:
                service.process.send_signal(number)
                try:
                    service.process.wait(10)
                except subprocess.TimeoutExpired:
                    continue
        service.process.wait()


def test_start_use_end_and_start_again(start: Start, tmp_path: Path) -> None:
    root = tmp_path / "мои файлы [1] %~;#"
    service = start(root).wait_until_ready()
    token = service.register()
    authorization = f"Bearer {token}"
    status, answer = service.request("PUT", "/file?path=/a.txt", b"hello", Authorization=authorization)
    assert status == 201, answer
    assert "nginx      1." in service.said and "PostgreSQL 18." in service.said and str(root) in service.said
    assert service.end() == 0
    assert working_in(root) == []
    assert list((root / "spool").iterdir()) == []

    again = start(root).wait_until_ready()
    assert again.request("GET", "/file/download?path=/a.txt", Authorization=authorization) == (200, b"hello")
    for folder in (root, *root.iterdir()):
        assert folder.stat().st_mode & 0o077 == 0, folder
    assert again.end(signal.SIGTERM) == 0
    assert working_in(root) == []


def check_refusal(service: Service, *words: str, code: int = 1) -> None:
    """It ended with one sentence that has these words in it."""
    assert service.process.wait(PATIENCE_SECONDS) == code
    assert all(word in service.said for word in words), service.said
    assert "Traceback" not in service.said
    assert code != 1 or len(service.said.splitlines()) == 1, service.said
    assert working_in(service.root) == []


def test_two_services_side_by_side_but_not_on_one_data_root(start: Start, tmp_path: Path) -> None:
    one, other = start(tmp_path / "one"), start(tmp_path / "other")
    assert one.wait_until_ready().is_up()
    assert other.wait_until_ready().is_up()
    third = start(tmp_path / "one")
    assert third.process.wait(PATIENCE_SECONDS) == 1
    assert f"is in use by another service (process {one.process.pid})" in third.said
    assert len(third.said.splitlines()) == 1
    assert one.is_up()


def test_taken_port_is_one_sentence(start: Start) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        service = start(port=other.getsockname()[1])
        check_refusal(service, f"port {service.port}", "is taken", "PORT=")
    assert not (service.root / "postgres").exists()  # nothing long had begun


def test_unusable_data_root_is_one_sentence(start: Start, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    check_refusal(start(tmp_path / "file" / "data"), "cannot be used", "Not a directory", "DATA_ROOT=")
    check_refusal(start(tmp_path / "file"), "cannot be used", "DATA_ROOT=")
    check_refusal(start(Path("/proc/1/nothing")), "cannot be used", "DATA_ROOT=")


def test_data_root_open_to_others_is_one_sentence(start: Start, tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    check_refusal(start(tmp_path / "open"), "can be written to by other users", "chmod go-w")


def test_name_that_nginx_would_misread_is_one_sentence(start: Start, tmp_path: Path) -> None:
    check_refusal(start(tmp_path / "pri$e"), "pri$e", "FILE_STORAGE_NGINX=off")


def test_wrong_settings_are_all_named(start: Start) -> None:
    service = start(WORKERS="many", QUOTA="-1", NONSENSE="1")
    check_refusal(service, "FILE_STORAGE_WORKERS", "FILE_STORAGE_QUOTA", "FILE_STORAGE_NONSENSE", code=2)


def test_data_root_of_another_database_is_one_sentence(start: Start) -> None:
    service = start().wait_until_ready()
    assert service.end() == 0
    (service.root / "MARKER").write_text("01a20875-cc9a-72d2-8536-cce312f4e9d3\n")  # of another database
    again = start()
    check_refusal(again, "belongs to another database", "MARKER")


def test_worker_that_cannot_start_is_shown(start: Start) -> None:
    service = start(REDIS_URL="redis://localhost/0?socket_timeout=never")
    assert service.process.wait(PATIENCE_SECONDS) == 1
    assert "error: worker" in service.said and "socket_timeout" in service.said
    assert working_in(service.root) == []


def test_killed_child_is_started_again(start: Start) -> None:
    service = start().wait_until_ready()
    token = service.register()
    for word in ("service\0worker", "nginx: master", "nginx: worker", "bin/postgres\0-D"):
        wait_for(lambda: service.find(word), word)
        victims = service.find(word)
        before = service.said.count("starting it again")
        processes.send(victims, signal.SIGKILL)
        wait_for(lambda: not any(map(is_alive, victims)), f"{word} is gone")
        wait_for(lambda: len(service.find(word)) == len(victims) and service.is_up(), f"{word} is back")
        assert service.request("GET", "/file/list", Authorization=f"Bearer {token}")[0] == 200
        assert (service.said.count("starting it again") > before) == (word != "nginx: worker")
    assert service.end() == 0


def test_child_that_keeps_dying_ends_the_service(start: Start) -> None:
    service = start().wait_until_ready()

    def kill_workers() -> bool:
        processes.send(service.find("service\0worker"), signal.SIGKILL)
        return service.process.poll() is not None

    wait_for(kill_workers, "it gives up")
    assert service.process.returncode == 1
    assert "error: worker" in service.said and "cannot be kept running" in service.said
    assert working_in(service.root) == []


def test_killed_supervisor_leaves_nothing_and_the_next_start_works(start: Start) -> None:
    service = start().wait_until_ready()
    service.process.kill()
    service.process.wait()
    again = start(port=service.port).wait_until_ready()  # at once
    assert again.is_up()
    assert again.end() == 0
    assert working_in(service.root) == []


def test_everything_killed_at_once_and_the_next_start_works(start: Start) -> None:
    service = start().wait_until_ready()
    token = service.register()
    service.process.send_signal(signal.SIGSTOP)  # or its end would have nginx end in good order
    processes.send([*service.find("nginx: master"), *service.find("service\0worker"), *service.find("bin/postgres")],
                   signal.SIGKILL)
    service.process.kill()
    service.process.wait()
    assert service.find("nginx: worker")  # they hold the port
    again = start(port=service.port).wait_until_ready()
    assert again.request("GET", "/file/list", Authorization=f"Bearer {token}")[0] == 200
    assert again.end() == 0


def test_second_interrupt_does_not_wait_for_requests(start: Start) -> None:
    service = start().wait_until_ready()
    token = service.register()
    with socket.create_connection(("127.0.0.1", service.port)) as slow:
        slow.sendall(f"PUT /file?path=/a HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
                     "Content-Length: 9999999\r\n\r\n".encode() + b"x" * 1_000_000)
        wait_for(lambda: [path for path in service.root.glob("spool/*/body/?/??/*")], "the upload is under way")
        service.process.send_signal(signal.SIGINT)
        wait_for(lambda: "waiting for running requests" in service.said, "it says what it waits for")
        assert service.process.poll() is None
        assert service.end() == 0
    assert working_in(service.root) == []


def test_upload_under_way_is_finished_first(start: Start) -> None:
    service = start().wait_until_ready()
    token = service.register()
    with socket.create_connection(("127.0.0.1", service.port)) as slow:
        slow.sendall(f"PUT /file?path=/a HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\n"
                     "Content-Length: 2000000\r\n\r\n".encode() + b"x" * 1_000_000)
        wait_for(lambda: [path for path in service.root.glob("spool/*/body/?/??/*")], "the upload is under way")
        service.process.send_signal(signal.SIGINT)
        wait_for(lambda: not service.is_up(), "no more requests are taken")
        slow.sendall(b"x" * 1_000_000)
        assert slow.recv(100).startswith(b"HTTP/1.1 201")
    assert service.process.wait(PATIENCE_SECONDS) == 0


def test_without_nginx_the_workers_serve(start: Start, tmp_path: Path) -> None:
    service = start(tmp_path / "pri$e", NGINX="off").wait_until_ready()
    assert "nginx      none" in service.said
    authorization = f"Bearer {service.register()}"
    assert service.request("PUT", "/file?path=/a.txt", b"hello", Authorization=authorization)[0] == 201
    assert service.request("GET", "/file/download?path=/a.txt", Authorization=authorization) == (200, b"hello")
    victims = service.find("service\0worker")
    assert len(victims) == 2
    processes.send(victims[:1], signal.SIGKILL)
    wait_for(lambda: "starting it again" in service.said and len(service.find("service\0worker")) == 2, "it is back")
    assert service.end() == 0
    assert working_in(service.root) == []


def test_long_data_root_has_its_sockets_elsewhere(start: Start, tmp_path: Path) -> None:
    service = start(tmp_path / ("long" * 30)).wait_until_ready()
    sockets = folders.find_sockets(service.root)
    assert sockets.parent == Path(tempfile.gettempdir()) and sockets.stat().st_mode & 0o777 == 0o700
    assert service.is_up()
    service.process.kill()
    service.process.wait()
    again = start(service.root).wait_until_ready()
    assert not sockets.exists()
    sockets = folders.find_sockets(service.root)
    assert again.end() == 0
    assert not sockets.exists()


def test_symlink_on_the_way_to_the_data_root(start: Start, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    service = start(tmp_path / "link" / "data").wait_until_ready()
    authorization = f"Bearer {service.register()}"
    assert service.request("PUT", "/file?path=/a.txt", b"hello", Authorization=authorization)[0] == 201
    assert service.request("GET", "/file/download?path=/a.txt", Authorization=authorization) == (200, b"hello")


def test_database_of_ones_own(start: Start, server: EmbeddedPostgres) -> None:
    server.ensure_database("own")
    service = start(DATABASE_URL=server.dsn("own")).wait_until_ready()
    assert "as DATABASE_URL says" in service.said
    assert not (service.root / "postgres").exists()
    service.register()
    assert service.end() == 0


def test_database_that_is_not_there_is_one_sentence(start: Start, server: EmbeddedPostgres) -> None:
    check_refusal(start(DATABASE_URL=server.dsn("not_there")), 'database "not_there" does not exist')
    check_refusal(start(DATABASE_URL="postgresql://x/?no_such_option=1"), "no_such_option")


async def test_wait_for_the_database_is_told_and_ends_with_one_sentence(
        monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(supervisor, "PATIENCE_SECONDS", 0)
    monkeypatch.setattr(supervisor, "DATABASE_WAIT_SECONDS", 0.1)
    port = free_port()
    with pytest.raises(processes.StartError) as refused:
        await supervisor._wait_for_database(f"postgresql://ann:secret@127.0.0.1:{port}/files")
    told = capsys.readouterr().err
    for text in (told.strip(), str(refused.value)):
        assert str(port) in text and "Connection refused" in text
        assert "\n" not in text and "secret" not in text
    assert told.startswith("waiting for the database, a minute at most: ")


def test_serve_for_containers(start: Start, server: EmbeddedPostgres) -> None:
    check_refusal(start(command="serve"), "FILE_STORAGE_DATABASE_URL is needed")
    server.ensure_database("contained")
    service = start(command="serve", DATABASE_URL=server.dsn("contained"))
    sockets = [service.root / "run" / f"worker-{number}.sock" for number in range(2)]

    def answers(path: Path) -> bool:
        with socket.socket(socket.AF_UNIX) as client:
            try:
                client.connect(str(path))
                client.sendall(b"GET /livez HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                return client.recv(100).startswith(b"HTTP/1.1 200")
            except OSError:
                return False

    wait_for(lambda: all(map(answers, sockets)), "both workers answer")
    configuration = (service.root / "run" / "nginx.conf").read_text()
    assert all(str(path) in configuration for path in sockets)
    assert service.end(signal.SIGTERM) == 0
    assert working_in(service.root) == []


def run_command(service_root: Path, *arguments: str, **settings: str) -> tuple[int, str]:
    environment = os.environ | {"FILE_STORAGE_DATA_ROOT": str(service_root), **settings}
    done = subprocess.run([sys.executable, "-m", "service", *arguments], cwd=PROJECT, env=environment,
                          stdin=subprocess.DEVNULL, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def test_migrate_by_hand(start: Start, tmp_path: Path) -> None:
    root = tmp_path / "data root"
    code, said = run_command(root, "migrate", "--list")
    assert code == 0 and "missing  0001_users" in said
    count = said.count("missing")
    assert run_command(root, "migrate") == (0, f"{count} migrations applied\n")
    assert run_command(root, "migrate", "--rollback", "1") == (0, "1 migrations taken back\n")
    assert run_command(root, "migrate", "--rollback", "-1")[0] == 2
    assert working_in(root) == []
    start(root).wait_until_ready()
    code, said = run_command(root, "migrate", "--list")  # of the one that runs
    assert code == 0 and "applied  0002_files" in said and "missing  " not in said


def test_optimised_python_is_refused(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-O", "-m", "service", "run"], cwd=PROJECT, capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
