"""What would go wrong later, found out at the start: each refusal is a StartError of one sentence."""

import re
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path

from aiohttp import http_parser

from service.config import Config
from service.db.instance import get_epoch, has_blobs
from service.db.pool import Database
from service.run.processes import StartError
from service.security.addresses import SECRET_FILE
from service.security.tokens import TOKEN_SECRET_FILE, read_or_create_secret
from service.storage.base import StoreError
from service.storage.local import MARKER, LocalStore

# below these there are known holes; pyproject.toml says the same, but nothing keeps others from being installed
FLOORS: Mapping[str, str] = {
    "aiohttp": "3.14.5", "PyJWT": "2.15.1", "bcrypt": "5", "asyncpg": "0.32", "multipart": "2.0.1",
}


def check_runtime() -> None:
    """Refuse a Python in which the service is not what it was tested to be."""
    if http_parser.HttpRequestParser is http_parser.HttpRequestParserPy:
        raise StartError("aiohttp runs without its C parser, and the other one is not fit to face the network: "
                         "unset AIOHTTP_NO_EXTENSIONS, or install a wheel of aiohttp for this platform")
    for name, floor in FLOORS.items():
        if _order(found := metadata.version(name)) < _order(floor):
            raise StartError(f"{name} {found} is too old: {floor} or newer is needed")


def _order(version: str) -> tuple[tuple[int, ...], bool]:
    """A key to compare versions by (PEP 440): the numbers of the release, and whether it is one."""
    match = re.match(r"[0-9]+(?:\.[0-9]+)*", version)
    numbers = [int(number) for number in match[0].split(".")] if match else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers), re.search(r"(a|b|rc|dev)[0-9]*", version) is None


def check_secrets(config: Config, root: Path) -> None:
    """Make the secrets that are missing; refuse those that are too short, or open to others."""
    names = [SECRET_FILE] if config.jwt_secret else [SECRET_FILE, TOKEN_SECRET_FILE]
    for name in names:
        try:
            read_or_create_secret(root / name)
        except ValueError as error:
            raise StartError(str(error)) from None
        except OSError as error:
            raise StartError(f"the secret {root / name} cannot be used: {error.strerror or error}") from None


async def check_marker(root: Path, dsn: str) -> None:
    """Refuse a data root that is not this database's: another one, or an empty place where a disk is to be mounted."""
    database = await Database.open(dsn, size=2)
    try:
        async with database.connection() as conn:
            epoch, is_in_use = await get_epoch(conn), await has_blobs(conn)
    finally:
        await database.close()
    if is_in_use and not (root / MARKER).exists():
        raise StartError(f"the database has files, but {root} has no {MARKER}: is its disk mounted?  "
                         f"If it is the right place, write {epoch} into that file")
    store = LocalStore(root)
    try:
        store.open(epoch)
    except StoreError as error:
        raise StartError(str(error)) from None
    finally:
        store.close()
