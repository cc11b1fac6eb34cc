"""I10, confinement: whatever names clients send, the kernel is asked for files of the data root alone, by their keys.

strace writes down every path that the workers and nginx ask for while hostile names come in by every door.
"""

import asyncio
import os
import re
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote
from uuid import uuid4

import aiohttp
import pytest

from service.run import processes
from tests.attacks.test_traversal import AS_NAME, FILENAMES, IN_ADDRESS, IN_FIELD
from tests.client import Api, new_account
from tests.faults.load import PATIENCE_SECONDS, PROBE_SECONDS
from tests.faults.recorder import Recorder
from tests.faults.sites import FaultyStack

BODY_BYTES = 100_000
UUID = r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}"
# below the data root
OWN = re.compile(rf"/?|/MARKER|/blobs(/[0-9a-f]{{2}}(/{UUID})?)?|/staging(/{UUID})?|/quarantine(/{UUID})?"
                 r"|/spool(/[\w-]+(/body(/\d+){0,2}(/\d+)?)?)?|/log(/[\w.-]+)?|/run(/[\w./-]+)?")
# what programs ask for by themselves, whatever is sent; overcommit_memory: the C library, when it gives memory back
OTHERS = re.compile(r"/proc/(self|\d+)/[\w/]+|/proc/sys/vm/overcommit_memory"
                    r"|/etc/(localtime|hosts|resolv\.conf|nsswitch\.conf|host\.conf)"
                    r"|/dev/(u?random|null)|/sys/[\w/.-]+|/dev/shm/[\w./-]+|.*/\.(pgpass|postgresql/[\w.]+)")
CALL = re.compile(r"\b(\w+)\((?:AT_FDCWD(?:<[^>]*>)?, |\d+(?:<([^>]*)>)?, )?\"((?:[^\"\\]|\\.)*)\"")
SOURCE = re.compile(r".*\.(py|pyc|so|pth|pem|conf)|.*/(__pycache__|site-packages|dist-packages|lib-dynload)(/.*)?")


@pytest.fixture
def stack(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[FaultyStack]:
    """One worker, behind nginx or not, with a mistake or none."""
    nginx, faults = request.param
    found = FaultyStack(tmp_path / "data", {"WORKERS": "1", "NGINX": nginx}, faults=faults)
    with found.running():
        yield found


@asynccontextmanager
async def traced(pids: list[int], log: Path) -> AsyncIterator[None]:
    """Write down each path that these processes name to the kernel."""
    tracers = [subprocess.Popen(
        ["strace", "-f", "-y", "-s", "4096", "-e", "trace=%file", "-e", "signal=none", "-p", str(pid), "-o",
         f"{log}.{pid}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) for pid in pids]
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            for pid in pids:
                while "TracerPid:\t0\n" in (processes.PROC / str(pid) / "status").read_text(encoding="ascii"):
                    await asyncio.sleep(PROBE_SECONDS)
        yield
    finally:
        for tracer in tracers:
            tracer.terminate()
            await asyncio.to_thread(tracer.wait)


def paths_in(log: Path) -> list[str]:
    """Each path, made absolute where it was relative to an open folder."""
    found = []
    for file in log.parent.glob(f"{log.name}.*"):
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            for _, folder, path in CALL.findall(line):
                found.append(path if path.startswith("/") or not folder else f"{folder}/{path}".rstrip("/"))
    return found


async def everything(api: Api, mark: str, *, few: int | None = None) -> int:
    """Uploads, downloads, lists, moves, archives with each of the names, or the last few; how many requests."""
    count = 0
    for address, _ in IN_ADDRESS[-few if few else None:]:
        path = address.replace("{m}", mark)
        for method, target, body in (("PUT", "/file?path={}", b"small"), ("PUT", "/file?path={}", bytes(BODY_BYTES)),
                                     ("GET", "/file/download?path={}", None), ("GET", "/file/archive?path={}", None),
                                     ("GET", "/file/info?path={}", None), ("DELETE", "/file?path={}", None)):
            await api.call(method, target.format(path), data=body)
            count += 1
        for target in (f"/_blobs/{path}", f"/d/{path}", f"/assets/{path}"):
            await api.call("GET", target)
            count += 1
    for field, _ in (*IN_FIELD, *AS_NAME):
        name = field.replace("{m}", mark)
        await api.call("POST", "/file/move", json={"from": name, "to": f"/{mark}"})
        await api.call("POST", "/file/folder", json={"path": name})
        await api.call("PUT", f"/file?path=/{mark}", data=b"body", headers={"X-File": f"/{quote(name)}"})
        count += 3
    for text, _ in FILENAMES:
        boundary = uuid4().hex
        body = (f"--{boundary}\r\nContent-Disposition: form-data; name=\"file\"; {text.replace('{m}', mark)}\r\n\r\n"
                f"{'x' * BODY_BYTES}\r\n--{boundary}--\r\n").encode()
        await api.call("POST", "/file", data=body,
                       headers={"Content-Type": f"multipart/form-data; boundary={boundary}"})
        count += 1
    return count


def strangers(paths: list[str], root: Path, mark: str) -> list[str]:
    """What is neither the service's own, by a name of its own making, nor asked for by the programs themselves."""
    def is_right(path: str) -> bool:
        if mark in path:
            return False
        path = os.path.normpath(path)  # nginx's configuration names the blobs by ../..
        if path.startswith(f"{root}/") or path == str(root):
            return OWN.fullmatch(path.removeprefix(str(root))) is not None
        return bool(OTHERS.fullmatch(path) or SOURCE.fullmatch(path))

    return sorted({path for path in paths if not is_right(path)})


async def look(stack: FaultyStack, session: aiohttp.ClientSession, log: Path) -> tuple[int, list[str], list[str]]:
    """How many requests there were, all paths, and those that should not be there."""
    mark = f"needle{uuid4().hex}"
    api = await new_account(session, stack)
    await everything(api, "warm", few=8)  # what is read once, and never again
    async with traced([*stack.workers(), *(stack.nginx()[1:] if stack.is_behind_nginx else [])], log):
        count = await everything(api, mark)
    paths = paths_in(log)
    return count, paths, strangers(paths, stack.root, mark)


@pytest.mark.parametrize("stack", [("auto", ""), ("off", "")], ids=["nginx", "no nginx"], indirect=True)
async def test_no_name_of_a_client_reaches_the_kernel(
        stack: FaultyStack, session: aiohttp.ClientSession, recorder: Recorder, tmp_path: Path) -> None:
    count, paths, wrong = await look(stack, session, tmp_path / "trace")
    assert any("/blobs/" in path for path in paths) and any("/staging" in path for path in paths), "nothing was traced"
    assert wrong == []
    recorder.line("I10 confinement", f"strace, nginx {stack.settings['NGINX']}", note=(
        f"{count} requests with hostile names: {len(paths)} paths asked of the kernel, {len(set(paths))} of them "
        "different, all of the service's own making"))


@pytest.mark.mutant("E10", "a file looked for by the name that a client sent")
@pytest.mark.parametrize("stack", [("off", "named_files")], ids=[""], indirect=True)
async def test_name_that_reaches_the_kernel_is_found_out(
        stack: FaultyStack, session: aiohttp.ClientSession, tmp_path: Path) -> None:
    _, _, wrong = await look(stack, session, tmp_path / "trace")
    assert any("needle" in path for path in wrong)
