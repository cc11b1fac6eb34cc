"""TRUSTED_PROXIES: where a client is says its connection, or a proxy that is believed; nobody else."""

import http.client
import secrets
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from tests.client import PASSWORD
from tests.stack import Stack

PROXIES = "127.0.0.2,127.1.0.0/16,::1"
TRUSTED, STRANGER = "127.0.0.2", "127.0.0.3"
OWN_NETWORK = "127.0.0.0/24"


@pytest.fixture(scope="module")
def proxied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """A service that believes some addresses of this machine."""
    stack = Stack(tmp_path_factory.mktemp("proxied") / "data", {"TRUSTED_PROXIES": PROXIES, "WORKERS": "1"}).start()
    yield stack
    stack.stop()


def post(stack: Stack, path: str, source: str, forwarded: str | None, **fields: str) -> dict[str, str]:
    """The answer to a request from an address of this machine."""
    connection = http.client.HTTPConnection("127.0.0.1", stack.port, timeout=30, source_address=(source, 0))
    headers = {"Content-Type": "application/json"} | ({"X-Forwarded-For": forwarded} if forwarded else {})
    connection.request("POST", path, orjson.dumps(fields), headers)
    answer = connection.getresponse()
    found: dict[str, str] = orjson.loads(answer.read())
    connection.close()
    assert answer.status in (200, 201), found
    return found


def seen_network(stack: Stack, source: str, forwarded: str | None) -> str:
    """What the trail says where an account was made."""
    account = {"username": f"user-{secrets.token_hex(6)}", "password": PASSWORD}
    post(stack, "/auth/register", source, forwarded, **account)
    token = post(stack, "/auth/jwt/login", source, forwarded, **account)["access_token"]
    connection = http.client.HTTPConnection("127.0.0.1", stack.port, timeout=30)
    connection.request("GET", "/auth/audit", headers={"Authorization": f"Bearer {token}"})
    lines = orjson.loads(connection.getresponse().read())["entries"]
    connection.close()
    [network] = {line["network"] for line in lines}
    return str(network)


@pytest.mark.parametrize(("source", "forwarded", "network"), [
    (TRUSTED, "198.51.100.7", "198.51.100.0/24"),
    (TRUSTED, "2001:db8:0:1:2::3", "2001:db8:0:1::/64"),
    (TRUSTED, "203.0.113.9, 198.51.100.7", "198.51.100.0/24"),  # the first is what the client itself has sent
    (TRUSTED, "198.51.100.7, 127.1.2.3", "198.51.100.0/24"),  # by way of two proxies
    (TRUSTED, None, OWN_NETWORK),
    (TRUSTED, "nonsense", OWN_NETWORK),
    (STRANGER, "198.51.100.7", OWN_NETWORK),
    (STRANGER, None, OWN_NETWORK),
])
def test_only_a_trusted_proxy_says_where_a_client_is(
        proxied: Stack, source: str, forwarded: str | None, network: str) -> None:
    assert seen_network(proxied, source, forwarded) == network


def test_nobody_is_believed_unless_named(nginx_stack: Stack) -> None:
    assert seen_network(nginx_stack, TRUSTED, "198.51.100.7") == OWN_NETWORK


def test_without_nginx_there_is_nobody_to_believe_a_proxy(tmp_path: Path) -> None:
    stack = Stack(tmp_path / "data", {"TRUSTED_PROXIES": PROXIES, "NGINX": "off"})
    with pytest.raises(RuntimeError) as caught:
        stack.start()
    assert str(caught.value).splitlines()[1:] == [
        "error: FILE_STORAGE_TRUSTED_PROXIES needs nginx, which is not here or switched off"]
