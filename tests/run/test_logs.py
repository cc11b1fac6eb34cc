"""What is kept of the children's output, and what of it is shown."""

import re
from pathlib import Path

import pytest

from service.run import logs
from service.run.logs import LogFile, Output

INFO = b'{"event":"upload","level":"info"}\n'
ERROR = b'{"event":"request.failed","level":"error"}\n'


def test_lines_are_kept_whole_and_errors_shown(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "service.log")
    one, other = Output("worker 0", log, logs.WORKER_TROUBLE), Output("worker 1", log, logs.WORKER_TROUBLE)
    assert one.feed(INFO + ERROR[:10]) == []
    assert other.feed(INFO) == []
    assert one.feed(ERROR[10:] + INFO) == ["worker 0: " + ERROR.decode().strip()]
    assert other.feed(b"Traceback (most recent call last):\n") == ["worker 1: Traceback (most recent call last):"]
    log.close()
    assert log.path.read_bytes() == INFO + INFO + ERROR + INFO + b"Traceback (most recent call last):\n"
    assert one.tail.splitlines()[-1] == INFO.decode().strip()


@pytest.mark.parametrize(("pattern", "line", "is_shown"), [
    (logs.NGINX_TROUBLE, b'2026/11/23 [error] 1#1: *3 open() failed', False),
    (logs.NGINX_TROUBLE, b'2026/11/23 [emerg] 1#1: bind() failed', True),
    (logs.POSTGRES_TROUBLE, b'2026-11-23 UTC [1] ERROR:  duplicate key value', False),
    (logs.POSTGRES_TROUBLE, b'2026-11-23 UTC [1] ERROR:  invalid page; checksum failed', True),
    (logs.POSTGRES_TROUBLE, b'2026-11-23 UTC [1] ERROR:  could not extend file: No space left on device', True),
    (logs.POSTGRES_TROUBLE, b'2026-11-23 UTC [1] PANIC:  could not write', True),
    (logs.POSTGRES_TROUBLE, b'2026-11-23 UTC [1] LOG:  ready', False),
])
def test_only_what_a_person_has_to_know_is_shown(tmp_path: Path, pattern: re.Pattern[bytes], line: bytes,
                                                 is_shown: bool) -> None:
    log = LogFile(tmp_path / "x.log")
    assert bool(Output("x", log, pattern).feed(line + b"\n")) is is_shown
    log.close()


def test_full_log_is_set_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "MAX_BYTES", 100)
    log = LogFile(tmp_path / "service.log")
    for number in range(20):
        log.write(b"%019d\n" % number)
    log.close()
    old, new = (tmp_path / "service.log.1").read_bytes(), log.path.read_bytes()
    assert len(old) <= 120 and len(new) <= 120
    assert (old + new).endswith(b"".join(b"%019d\n" % number for number in range(12, 20)))
    assert len(list(tmp_path.iterdir())) == 2


def test_long_line_is_cut_for_the_terminal_only(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "x.log")
    [shown] = Output("x", log, logs.WORKER_TROUBLE).feed(b"x" * 10_000 + b"\n")
    log.close()
    assert len(shown) < 1000 < log.path.stat().st_size
