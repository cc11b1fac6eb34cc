"""Small files: load by wrk, a client in C whose own cost is small and the same for everybody; its answers are checked.

Downloads: wrk counts every status and byte, and beside it samples are compared by their hash during the whole run.
Uploads: every status is looked at, and afterwards what is stored: how many files, and samples of their bytes.
"""

import json
import os
import random
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from service.run import programs
from tests.bench.contenders import Contender, sha256
from tests.bench.figures import Timed, WrongAnswer

FOLDER = Path(__file__).parent
SAMPLE_PAUSE_SECONDS = 0.05
STORED_SAMPLES = 20
BYTES_TOLERANCE = 0.03
UPLOAD_CONNECTIONS = 16


def _run(contender: Contender, script: str, options: Sequence[str], arguments: Sequence[str]) -> Mapping[str, int]:
    """What the script prints at its end."""
    found = programs.find_or_install("wrk")
    if found is None:
        raise RuntimeError("there is no wrk to be had: without a cheap client nothing can be measured")
    headers = [part for name, value in contender.headers.items() for part in ("-H", f"{name}: {value}")]
    done = subprocess.run([str(found.path), *options, "--timeout", "30s", "-s", str(FOLDER / script), *headers,
                           f"http://127.0.0.1:{contender.port}", "--", *arguments], capture_output=True, text=True,
                          env={**os.environ, **found.environment}, stdin=subprocess.DEVNULL)
    if done.returncode != 0:
        raise RuntimeError(f"wrk: {done.stdout}{done.stderr}")
    result: Mapping[str, int] = json.loads(done.stdout.splitlines()[-1])
    return result


class Sampler:
    """Downloads one file after the other while the load is on, and compares each with what it should be."""

    def __init__(self, contender: Contender, targets: Mapping[str, str]) -> None:
        self._contender = contender
        self._targets = list(targets.items())
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._work)
        self.count = 0
        self.problem: str | None = None

    def __enter__(self) -> "Sampler":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _work(self) -> None:
        while self.problem is None:
            target, digest = random.choice(self._targets)
            try:
                reply = self._contender.call("GET", target)
                if reply.status != 200 or sha256(reply.body) != digest:
                    self.problem = f"status {reply.status}, {len(reply.body)} bytes of {target}"
                self.count += 1
            except Exception as error:
                self.problem = repr(error)
            if self._is_over.wait(SAMPLE_PAUSE_SECONDS):
                return


def check_downloads(name: str, result: Mapping[str, int], answer_bytes: int, connections: int,
                    problem: str | None) -> None:
    """WrongAnswer unless all answers of a run can have been right: `answer_bytes` is what a right one takes."""
    if problem is not None:
        raise WrongAnswer(f"{name}: a sample was wrong: {problem}")
    if result["failed"]:
        raise WrongAnswer(f"{name}: {result['failed']} of {result['requests']} requests failed")
    if not result["requests"]:
        raise WrongAnswer(f"{name}: there was no answer")
    lowest = result["requests"] * answer_bytes * (1 - BYTES_TOLERANCE)
    highest = (result["requests"] + connections) * answer_bytes * (1 + BYTES_TOLERANCE)
    if not lowest <= result["bytes"] <= highest:
        raise WrongAnswer(f"{name}: {result['requests']} answers had {result['bytes']} bytes, "
                          f"{answer_bytes} were expected of each")


def _answer_bytes(contender: Contender, target: str, digest: str) -> int:
    """How long a right answer is, its head included."""
    received = contender.raw("GET", target)
    head, _, body = received.partition(b"\r\n\r\n")
    if not head.startswith(b"HTTP/1.1 200") or sha256(body) != digest:
        raise WrongAnswer(f"{contender.name}: {target}: {received[:300]!r}")
    return len(received)


def download(contender: Contender, targets: Mapping[str, str], *, connections: int,
             seconds: int) -> Timed:
    """Download for so long, the targets in turn, each given with its digest; the answers, and the seconds it took."""
    answer_bytes = _answer_bytes(contender, *next(iter(targets.items())))
    with tempfile.NamedTemporaryFile("w", suffix=".txt") as file:
        file.write("".join(f"{target}\n" for target in targets))
        file.flush()
        with Sampler(contender, targets) as sampler:
            result = _run(contender, "download.lua", ["-t1", f"-c{connections}", f"-d{seconds}s"], [file.name])
    check_downloads(contender.name, result, answer_bytes, connections, sampler.problem)
    return Timed(result["requests"], result["microseconds"] / 1e6)


def check_uploads(name: str, result: Mapping[str, int]) -> None:
    """WrongAnswer if a body was not taken, or not forced to the disk."""
    if result["failed"] or not result["requests"]:
        raise WrongAnswer(f"{name}: {result['failed']} uploads failed beside {result['requests']}, "
                          f"the last status was {result['status']}")


def upload(contender: Contender, folder: str, statuses: str, *, size: int, seconds: int, names: int = 0,
           is_forced: bool = False) -> Timed:
    """Upload for so long on 16 connections; the stored files, and the seconds it took.

    `names` and `is_forced` are NAMES and FOLDER of upload.lua.
    """
    prefix, suffix = contender.address(f"{folder}/x")
    forced = str(contender.files / folder.lstrip("/")) if is_forced else ""
    result = _run(contender, "upload.lua", [f"-t{UPLOAD_CONNECTIONS}", f"-c{UPLOAD_CONNECTIONS}", f"-d{seconds}s"],
                  [prefix, suffix, statuses, str(size), str(names), forced])
    check_uploads(contender.name, result)
    return Timed(result["requests"], result["microseconds"] / 1e6)


def check_stored(contender: Contender, folder: str, size: int, at_least: int, at_most: int) -> None:
    """WrongAnswer unless so many files are in the folder, and samples of them hold what was sent."""
    found = contender.names(folder)
    if not at_least <= len(found) <= at_most:
        raise WrongAnswer(f"{contender.name}: {len(found)} files are there, {at_least} to {at_most} were expected")
    for name in random.sample(found, min(STORED_SAMPLES, len(found))):
        data = contender.fetch(f"{folder}/{name}")
        counter = data[9:16]
        if data != name.encode() + counter + b"x" * (size - 16) or not counter.isdigit():
            raise WrongAnswer(f"{contender.name}: {folder}/{name} holds {data[:64]!r}")
