"""What a process of the service writes to its log of what nobody asked for."""

import subprocess
import sys

GIVEN_UP = """
import asyncio, gc, sys
import uvloop
from service import logs

logs.configure("info")

async def main():
    loop = asyncio.get_running_loop()
    lookup, other = asyncio.ensure_future(loop.getaddrinfo("no-such-host.invalid", 80)), loop.create_future()
    await asyncio.wait([lookup])
    assert sys.argv[1] == "lookup" or lookup.exception()
    if sys.argv[1] == "other":
        other.set_exception(OSError("a fault that nobody has seen"))

uvloop.run(main())
gc.collect()
"""


def said_after(what: str) -> str:
    done = subprocess.run([sys.executable, "-c", GIVEN_UP, what], capture_output=True, text=True, check=True,
                          timeout=60)
    return done.stderr


def test_look_for_a_host_that_was_given_up_is_no_error_of_its_own() -> None:
    """A time-out has ended whoever waited for it, and is told; a host that is gone would be told twice."""
    assert said_after("lookup") == ""
    assert "a fault that nobody has seen" in said_after("other")
