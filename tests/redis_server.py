"""A real Redis of its own for whoever asks for one."""

import os
import signal
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import redis

from service.run import programs


class RedisServer:
    """A redis-server on a unix socket, and what can happen to it.  Every method returns when it has happened.

    The program is taken from the system's packages if it is not there, so that a new machine needs nothing prepared.
    """

    def __init__(self, folder: Path) -> None:
        program = programs.find_or_install("redis-server")
        assert program, "there is no redis-server to be had; on Debian: apt-get install redis-server"
        self.socket = folder / "redis.sock"
        self.url = f"unix://{self.socket}"
        self._command: list[str | Path] = [
            program.path, "--dir", folder, "--unixsocket", self.socket, "--port", "0", "--save", "",
            "--appendonly", "no", "--daemonize", "no", "--logfile", ""]
        self._environment = {**os.environ, **program.environment}
        self._process: subprocess.Popen[str] | None = None

    def start(self, *options: str, until: str = "ready to accept connections") -> None:
        """Start it (again), until it logs that; `options` come after the default ones."""
        self.stop()
        self._process = subprocess.Popen([*self._command, *options], stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                                         text=True, env=self._environment)
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
