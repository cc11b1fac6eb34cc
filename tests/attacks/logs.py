"""What the service wrote while it was attacked: input alone may never bring it to an error."""

import re
from dataclasses import dataclass
from pathlib import Path

import orjson

from tests.stack import Stack

_NGINX_TROUBLE = re.compile(r"\[(emerg|alert|crit)\]|open(at)?\(\)|signal [0-9]+ ")


@dataclass(frozen=True)
class Mark:
    """How long the logs of a service were at some moment."""

    stack: Stack
    sizes: dict[Path, int]

    @classmethod
    def now(cls, stack: Stack) -> "Mark":
        """From here on."""
        return cls(stack, {path: path.stat().st_size for path in (stack.root / "log").glob("*.log")})

    def lines(self, name: str) -> list[bytes]:
        """What has been written into a log since."""
        path = self.stack.root / "log" / name
        assert not path.with_name(f"{name}.1").exists(), "the log was set aside: raise the limit"
        return path.read_bytes()[self.sizes.get(path, 0):].splitlines() if path.exists() else []

    def text(self) -> str:
        """All that has been written since, into any log."""
        return b"\n".join(line for path in (self.stack.root / "log").glob("*.log")
                          for line in self.lines(path.name)).decode("utf-8", "replace")

    def trouble(self) -> list[str]:
        """Lines that speak of an error of the service's own, and lines that are not what the service writes."""
        found = [line.decode("utf-8", "replace") for line in self.lines("service.log") if not _is_fine(line)]
        return found + [line for line in (raw.decode("utf-8", "replace") for raw in self.lines("nginx.log"))
                        if _NGINX_TROUBLE.search(line)]


def _is_fine(line: bytes) -> bool:
    try:
        entry = orjson.loads(line)
    except orjson.JSONDecodeError:
        return False
    status = entry.get("status", 0)
    return (entry["level"] not in ("error", "critical") and entry["event"] != "request.failed"
            and not (status >= 500 and status not in (503, 507)))
