"""A real Redis of its own for each test that asks for one."""

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis


class RedisServer:
    """A redis-server on a unix socket, and what can happen to it.  Every method returns when it has happened."""

    def __init__(self, binary: str, folder: Path) -> None:
        self.socket = folder / "redis.sock"
        self.url = f"unix://{self.socket}"
        self._command = [binary, "--dir", str(folder), "--unixsocket", str(self.socket), "--port", "0", "--save", "",
                         "--appendonly", "no", "--daemonize", "no", "--logfile", ""]
        self._process: subprocess.Popen[str] | None = None

    def start(self, *options: str, until: str = "ready to accept connections") -> None:
        """Start it (again), until it logs that; `options` come after the default ones."""
        self.stop()
        self._process = subprocess.Popen([*self._command, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                         text=True)
        assert self._process.stdout is not None
        lines = []
        for line in self._process.stdout:
            lines.append(line)
            if until in line.lower():
                return
        self.stop()
        raise RuntimeError("redis-server does not start:\n" + "".join(lines))

    def start_tcp(self) -> str:
        """Start it on a free port of this host too; return the URL of that."""
        for attempt in range(10):
            with socket.create_server(("127.0.0.1", 0)) as free:
                port = free.getsockname()[1]
            try:
                self.start("--bind", "127.0.0.1", "--port", str(port))
            except RuntimeError:
                if attempt == 9:
                    raise
                continue  # somebody else was given the port meanwhile
            break
        return f"redis://127.0.0.1:{port}/0"

    def stop(self) -> None:
        """End it as an operator would; nothing happens if it does not run."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """End it without a chance to say goodbye."""
        self._end(signal.SIGKILL)

    def pause(self) -> None:
        """Hold it: connections are still taken by the kernel, nothing is answered."""
        os.kill(self._pid, signal.SIGSTOP)
        os.waitid(os.P_PID, self._pid, os.WSTOPPED)

    def resume(self) -> None:
        """Let it go on."""
        os.kill(self._pid, signal.SIGCONT)

    def execute(self, *command: str | bytes | int) -> object:
        """Send a command past the cache."""
        with redis.Redis.from_url(self.url, socket_timeout=30) as client:
            execute: Callable[..., object] = client.execute_command
            return execute(*command)

    @property
    def _pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def _end(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        self._process.send_signal(number)
        self._process.send_signal(signal.SIGCONT)
        self._process.communicate()
        self._process = None


@pytest.fixture
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    """A running, empty Redis; see RedisServer for what can be done to it."""
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.fail("redis-server is not installed; on Debian: apt-get install redis-server", pytrace=False)
    # Not tmp_path: that has the test's name in it, and the path of a socket may have 107 bytes only (unix(7)).
    server = RedisServer(binary, tmp_path_factory.mktemp("redis"))
    server.start()
    yield server
    server.kill()
