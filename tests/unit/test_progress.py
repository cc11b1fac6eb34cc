"""What commands write to a terminal."""

import io

import pytest

from service.run import progress
from service.run.progress import Progress, format_bytes, printable


class Terminal(io.StringIO):
    """Somebody looks."""

    def isatty(self) -> bool:
        """Yes."""
        return True


@pytest.mark.parametrize(("count", "text"), [
    (0, "0 B"), (1023, "1023 B"), (1024, "1.0 KiB"), (1_500_000, "1.4 MiB"), (3 * 2**30, "3.0 GiB"),
    (5 * 2**50, "5120.0 TiB")])
def test_sizes_are_written_for_people(count: int, text: str) -> None:
    assert format_bytes(count) == text


def test_names_do_nothing_to_a_terminal() -> None:
    assert printable("имя é\x1b[2J\u202e\n") == "имя é\\u001b[2J\\u202e\\u000a"


def test_line_is_written_over_and_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr(progress, "EVERY_SECONDS", 0)
    line = Progress("saved")
    line.show(1, 2, 512, 2048)
    line.show(2, 2, 2048, 2048)
    line.clear()
    assert terminal.getvalue() == ("\r\x1b[Ksaved 1 of 2 blobs, 512 B of 2.0 KiB (25 %)"
                                   "\r\x1b[Ksaved 2 of 2 blobs, 2.0 KiB of 2.0 KiB (100 %)\r\x1b[K")


def test_line_is_not_written_more_often_than_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr("sys.stderr", terminal)
    monkeypatch.setattr(progress, "EVERY_SECONDS", 3600.0)
    line = Progress("saved")
    for number in range(100):
        line.show(number, 100, number, 100)
    assert terminal.getvalue().count("saved") == 1


def test_nothing_is_written_where_nobody_looks(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr("sys.stderr", stream)
    line = Progress("saved")
    line.show(1, 2, 3, 4)
    line.clear()
    assert stream.getvalue() == ""
