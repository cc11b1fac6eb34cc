"""Keeps one child process up: starts it, waits until it is ready, starts it again when it ends, ends it."""

import asyncio
import fcntl
import os
import signal
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from service.run import processes
from service.run.logs import Output
from service.run.processes import StartError

POLL_SECONDS = 0.03
STEADY_SECONDS = 20  # a child that lived so long may have another five attempts
MAX_FAILURES = 5
FIRST_PAUSE_SECONDS = 0.1
FORCE_SECONDS = 5
PIPE_BYTES = 2**20  # a supervisor that is stopped for a while (Ctrl-Z) does not stop the workers at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Child:
    """How to start and to end one child."""

    name: str
    prepare: Callable[[], tuple[Sequence[str], Path]]
    """Before each start, in a thread: the command and the folder it starts in."""
    is_ready: Callable[[int], Awaitable[bool]]
    """Whether the process of this number does its work."""
    stop_steps: Sequence[tuple[signal.Signals, float]]
    """Signals to end it, and how many seconds each has; SIGKILL comes after the last."""
    force_signal: signal.Signals = signal.SIGKILL
    on_supervisor_death: signal.Signals = signal.SIGTERM
    identity: str = "same"
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    output: Output | None = None
    """Where its stderr goes; None: where ours goes."""
    ready_seconds: float = 30
    inherits: Sequence[int] = ()
    """Open files of ours that it has too, under the same numbers."""


class Keeper:
    """Keeps a `Child` up; `say` tells the person at the terminal."""

    def __init__(self, child: Child, say: Callable[[str], None]) -> None:
        self.child = child
        self._say = say
        self._process: asyncio.subprocess.Process | None = None
        self._reader: asyncio.Task[None] | None = None
        self._is_ready = False
        self._is_stopping = False

    @property
    def pid(self) -> int | None:
        """Of the running child."""
        return self._process.pid if self._process and self._process.returncode is None else None

    async def start(self) -> None:
        """Start it and return when it is ready; StartError says what it complained about."""
        self._is_ready = False
        command, folder = await asyncio.to_thread(self.child.prepare)
        output = self.child.output
        log, stderr = os.pipe() if output else (None, None)
        self._process = await asyncio.create_subprocess_exec(
            *processes.launch_command(command, on_parent_death=self.child.on_supervisor_death,
                                      identity=self.child.identity),
            stdin=asyncio.subprocess.DEVNULL, stdout=stderr, stderr=stderr, cwd=folder,
            env=dict(self.child.environment), pass_fds=self.child.inherits,
            start_new_session=True)  # a Ctrl-C in the terminal reaches only us
        if output and log is not None and stderr is not None:
            os.close(stderr)
            self._reader = asyncio.create_task(self._read(log, output))
        await self._wait_until_ready(self._process)

    async def _read(self, pipe: int, output: Output) -> None:
        fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        stream = asyncio.StreamReader()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(stream), os.fdopen(pipe, "rb", buffering=0))
        try:
            while chunk := await stream.read(2**16):
                lines = output.feed(chunk)
                if self._is_ready:  # before that, whoever waits for it tells the last of them
                    for line in lines:
                        self._say(line)
        finally:
            transport.close()

    async def _wait_until_ready(self, process: asyncio.subprocess.Process) -> None:
        deadline = time.monotonic() + self.child.ready_seconds
        while process.returncode is None:
            if await self.child.is_ready(process.pid):
                self._is_ready = True
                return
            if time.monotonic() > deadline:
                await self.stop(asyncio.Event())
                raise StartError(f"{self.child.name} was not ready within {self.child.ready_seconds:.0f} s"
                                 + self._complaint())
            await asyncio.sleep(POLL_SECONDS)
        await self._finish_reading()
        raise StartError(f"{self.child.name} ended with {_describe(process.returncode)}{self._complaint()}")

    def _complaint(self) -> str:
        return f":\n{self.child.output.tail}" if self.child.output and self.child.output.tail else ""

    async def _finish_reading(self) -> None:
        """Read what is left; not for ever, since a grandchild may hold the pipe."""
        if self._reader:
            await asyncio.wait([self._reader], timeout=1)
            self._reader.cancel()

    async def keep(self) -> None:
        """Start it again whenever it ends; StartError when that does not help."""
        failures = 0
        while self._process is not None:
            started_at = time.monotonic()
            code = await self._process.wait()
            await self._finish_reading()
            if self._is_stopping:
                return
            failures = 0 if time.monotonic() - started_at > STEADY_SECONDS else failures + 1
            self._say(f"{self.child.name} ended with {_describe(code)}; starting it again")
            failures = await self._restart(failures)

    async def _restart(self, failures: int) -> int:
        """Try until it is up again; return how many attempts in a row have failed before."""
        while True:
            if failures > MAX_FAILURES:
                raise StartError(f"{self.child.name} cannot be kept running: "
                                 f"it ended {failures} times in a row{self._complaint()}")
            await asyncio.sleep(FIRST_PAUSE_SECONDS * 2 ** failures)
            if self._is_stopping:
                return failures
            try:
                await self.start()
                return failures
            except StartError:
                failures += 1

    async def stop(self, forced: asyncio.Event) -> None:
        """End it step by step; at once as soon as `forced` is set."""
        self._is_stopping = True
        process = self._process
        if process is None:
            return
        for number, seconds in self.child.stop_steps:
            if process.returncode is None and not forced.is_set():
                await _end(process, number, seconds, forced)
        for number in (self.child.force_signal, signal.SIGKILL):
            if process.returncode is None:
                await _end(process, number, FORCE_SECONDS, asyncio.Event())
        await self._finish_reading()


async def _end(process: asyncio.subprocess.Process, number: signal.Signals, seconds: float,
               forced: asyncio.Event) -> None:
    """Send a signal and wait for the end, for `forced`, or so long."""
    with suppress(ProcessLookupError):
        process.send_signal(number)
    tasks = [asyncio.ensure_future(process.wait()), asyncio.ensure_future(forced.wait())]
    await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()


def _describe(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"
