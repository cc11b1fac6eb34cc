"""A worker that is killed during an upload: python -m tests.domain.killed_upload DSN ROOT USER POINT."""

import asyncio
import os
import signal
import sys
from pathlib import Path
from uuid import UUID

import pytest

from service.model import Caller, SessionId, UserId, new_uuid
from tests.domain.failpoints import Failpoints
from tests.domain.retries import as_request
from tests.world import open_world


async def die(_: object) -> None:
    """The end, without any other."""
    os.kill(os.getpid(), signal.SIGKILL)


async def main(dsn: str, root: Path, user_id: UserId, point: str) -> None:
    """Upload, and die at the step; or when the answer would be given, which is no step."""
    caller = Caller(user_id=user_id, session_id=SessionId(new_uuid()))
    async with open_world(dsn, root) as world:
        if point != "the answer":
            Failpoints(pytest.MonkeyPatch(), world).arm(point, die)
        await as_request("key", lambda: world.put(caller, "/a", b"bytes"))
        await die(None)


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], Path(sys.argv[2]), UserId(UUID(sys.argv[3])), sys.argv[4]))
