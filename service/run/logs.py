"""Where the children's output goes: all of it into a file, what a person has to know into the terminal too."""

import re
from collections import deque
from pathlib import Path

MAX_BYTES = 32 * 2**20
TAIL_LINES = 20
MAX_TERMINAL_CHARACTERS = 600

# JSON lines of the workers at level error or worse, and anything that is not JSON: a traceback of a start that failed
WORKER_TROUBLE = re.compile(rb'"level": ?"(error|critical)"|^[^{\n]', re.MULTILINE)
NGINX_TROUBLE = re.compile(rb"\[(emerg|alert|crit)\]")
POSTGRES_TROUBLE = re.compile(rb" PANIC: | ERROR: .*(corrupt|checksum|could not (read|write|fsync|extend))")


class LogFile:
    """A file that is set aside when it is full, as NAME.1; two of them at most.

    The workers share one, so lines come in whole.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("ab", buffering=0)

    def write(self, lines: bytes) -> None:
        """Append whole lines.  A disk that is full costs the lines, not the service."""
        try:
            if self._file.tell() > MAX_BYTES:
                self._file.close()
                self.path.replace(self.path.with_name(self.path.name + ".1"))
                self._file = self.path.open("ab", buffering=0)
            self._file.write(lines)
        except OSError:
            pass

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class Output:
    """The output of one child: cuts it into lines, keeps the last of them, passes all on."""

    def __init__(self, name: str, log: LogFile, trouble: re.Pattern[bytes]) -> None:
        self._name = name
        self._log = log
        self._trouble = trouble
        self._rest = b""
        self._tail: deque[str] = deque(maxlen=TAIL_LINES)

    @property
    def tail(self) -> str:
        """The last lines, for whoever has to be told why the child ended."""
        return "\n".join(self._tail)

    def feed(self, chunk: bytes) -> list[str]:
        """Take what the child wrote; return what the terminal should show."""
        lines, newline, self._rest = (self._rest + chunk).rpartition(b"\n")
        if not newline:
            return []
        self._log.write(lines + newline)
        split = lines.split(b"\n")
        self._tail.extend(line.decode("utf-8", "replace") for line in split[-TAIL_LINES:])
        if not self._trouble.search(lines):  # the usual case: one search for many lines
            return []
        return [f"{self._name}: {line.decode('utf-8', 'replace')[:MAX_TERMINAL_CHARACTERS]}"
                for line in split if self._trouble.search(line)]
