"""schemathesis against the service behind nginx, by its own document: as two accounts, as a stranger, through links.

All phases and all checks, nothing left out; the same requests in each run, and no error in any log.  `make fuzz` lets
it make more of them, others each time.
"""

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import aiohttp
import orjson
import pytest

from tests.attacks.logs import Mark
from tests.client import PASSWORD, Api, new_account
from tests.stack import Stack

HERE = Path(__file__).parent
PROJECT = HERE.parents[1]
# of each operation, in each phase; `make fuzz` asks for more
EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
FEW = 8
GIVEN = 20
PASSWORD_OF_FUZZED = "a password that no example has"  # so that nobody finds out how to delete the account

Choices = dict[str, Sequence[str | int]]


def login_of(username: str) -> dict[str, object]:
    """An account in the format of Web Fuzzing Commons."""
    return {"name": username, "loginEndpointAuth": {
        "endpoint": "/auth/jwt/login", "verb": "POST", "contentType": "application/json",
        "payloadUserPwd": {"username": username, "usernameField": "username",
                           "password": PASSWORD_OF_FUZZED, "passwordField": "password"},
        "token": {"extractFrom": "body", "extractSelector": "/access_token", "sendIn": "header",
                  "sendName": "Authorization", "sendTemplate": "Bearer {token}"}}}


def settings(folder: Path, more: str, choices: Choices) -> Path:
    """The configuration for one run: tests/suites/schemathesis.toml, and values that mean something here."""
    text = (HERE / "schemathesis.toml").read_text(encoding="utf-8")
    top, found, sections = text.partition("\n[cache]")
    assert found
    text = f"{top}\n{found}{sections}\n{more}\n[parameters]\n"
    for number, name in enumerate(choices):
        text += f'"{name}" = {{dictionary = "choice{number}", probability = 0.8}}\n'
    for number, values in enumerate(choices.values()):
        text += f"[dictionaries.choice{number}]\nvalues = {orjson.dumps(values).decode()}\n"
    path = folder / "schemathesis.toml"
    path.write_text(text, encoding="utf-8")
    return path


def run(stack: Stack, configuration: Path, *options: str) -> str:
    """One run; its report.  Fails if schemathesis finds anything, and if it did not get to try."""
    amount = ["--max-examples", str(EXAMPLES or FEW), *([] if EXAMPLES else ["--generation-deterministic"])]
    done = subprocess.run(
        [Path(sys.executable).with_name("st"), "--config-file", configuration, "run", f"{stack.url}/openapi.json",
         "--checks", "all", "--phases", "examples,coverage,fuzzing,stateful", "--no-color", *amount, *options],
        cwd=PROJECT, env={**os.environ, "PYTHONPATH": str(PROJECT)}, capture_output=True, text=True)
    assert done.returncode == 0, (done.stdout + done.stderr)[-20_000:]
    (generated,) = re.findall(r"(\d+) generated", done.stdout)
    print(f"{generated} requests were made up")
    assert int(generated) > 100, done.stdout[-5000:]
    assert "API Operations" in done.stdout
    return done.stdout


async def owner_of_something(session: aiohttp.ClientSession, stack: Stack) -> tuple[Api, Choices]:
    """An account with files, links of every kind and a signed address; and what leads to them."""
    api = await new_account(session, stack)
    await api.put("/homework/notes.txt", b"hello")
    await api.put("/homework/sub/page.html", b"<script>1</script>")
    tokens = []
    for more in ({}, {"kind": "upload"}, {"password": PASSWORD}, {"max_downloads": 1000}):
        made = await api.call("POST", "/file/link", json={"path": "/homework", **more}, expect=201)
        tokens.append(made.json["url"].rpartition("/")[2])
    made = await api.call("POST", "/file/link", json={"path": "/homework/notes.txt"}, expect=201)
    tokens.append(made.json["url"].rpartition("/")[2])
    signed = await api.call("POST", "/file/sign", json={"path": "/homework/notes.txt", "expires_in": 86400}, expect=201)
    address = urlsplit(signed.json["url"])
    return api, {"path.token": tokens, "path.name": [address.path.rpartition("/")[2]],
                 **{f"query.{name}": [int(value)] if name == "e" else [value]
                    for name, value in parse_qsl(address.query)}}


@pytest.fixture
def quiet(nginx_stack: Stack) -> Callable[[], None]:
    """Asserts that nothing in the logs since speaks of a fault of the service's own."""
    mark = Mark.now(nginx_stack)

    def assert_quiet() -> None:
        trouble = mark.trouble()
        assert not trouble, trouble[:5]

    return assert_quiet


async def give_things(api: Api) -> Choices:
    """More of everything that an account can have than a run is likely to remove, at paths that are alike."""
    files = [f"/given/{number}" for number in range(GIVEN)]
    items, links = [], []
    for path in files:
        await api.put(path, b"former")
        await api.put(path, b"now", expect=200)
        made = await api.call("POST", "/file/link", json={"path": path}, expect=201)
        links.append(made.json["id"])
        items.append((await api.put(f"/trashed{path}")).json["id"])
        await api.delete(items[-1])
        await api.call("POST", "/auth/jwt/login", expect=200,
                       json={"username": api.username, "password": PASSWORD_OF_FUZZED})
    sessions = [session["id"] for session in (await api.call("GET", "/auth/session", expect=200)).json["sessions"]]
    return {"query.path": files, "body.path": files, "body.from": files, "query.folder": ["/given"],
            "query.version": [1], "body.version": [1], "query.id": items, "body.id": items,
            "path.id": [*links, *sessions]}


async def test_two_accounts(nginx_stack: Stack, session: aiohttp.ClientSession, tmp_path: Path,
                            quiet: Callable[[], None]) -> None:
    """Neither may see what the other has."""
    names = [f"fuzzed-{tmp_path.parent.name}-{number}" for number in range(2)]
    choices: Choices = {}
    for name in names:
        api = Api(session, nginx_stack)
        api.username, login = name, {"username": name, "password": PASSWORD_OF_FUZZED}
        await api.call("POST", "/auth/register", expect=201, json=login)
        api.token = (await api.call("POST", "/auth/jwt/login", expect=200, json=login)).json["access_token"]
        for place, values in (await give_things(api)).items():
            choices[place] = list(dict.fromkeys([*choices.get(place, []), *values]))
    (tmp_path / "accounts.json").write_bytes(orjson.dumps({"auth": [login_of(name) for name in names]}))
    section = f'[auth.wfc]\npath = "{tmp_path}/accounts.json"\npeers = {orjson.dumps(names).decode()}'
    await asyncio.to_thread(run, nginx_stack, settings(tmp_path, section, choices))
    quiet()


async def test_stranger(nginx_stack: Stack, tmp_path: Path, quiet: Callable[[], None]) -> None:
    await asyncio.to_thread(run, nginx_stack, settings(tmp_path, "", {}))
    quiet()


async def test_through_links(nginx_stack: Stack, session: aiohttp.ClientSession, tmp_path: Path,
                             quiet: Callable[[], None]) -> None:
    """Public links, and addresses that nginx checks by itself."""
    _, choices = await owner_of_something(session, nginx_stack)
    await asyncio.to_thread(run, nginx_stack, settings(tmp_path, "", choices), "--include-path-regex", "^/(s|d)/")
    quiet()
