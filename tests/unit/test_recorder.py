"""What the tests of faults say at their end (tests/faults/recorder.py)."""

from tests.faults.recorder import Recorder


def test_lines_that_took_longer_than_is_promised_are_named() -> None:
    recorder = Recorder()
    recorder.line("disk full")  # nothing had to come back
    assert recorder.slow() == ""
    recorder.line("worker killed", "without nginx").recovered(10.0)
    assert recorder.slow() == "all back within 10 s"
    recorder.line("power cut", "xfs").recovered(10.04)
    recorder.line("clock").recovered(31.0)
    assert recorder.slow() == "slower than 10 s: clock (31.0 s), power cut xfs (10.04 s)"
