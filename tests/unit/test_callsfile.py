"""The limit of authorize calls, over restarts."""

from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from structlog.testing import capture_logs

from tickvault.brokers.upstox.callsfile import RememberedLimit

if TYPE_CHECKING:
    from pathlib import Path

WALL_NS = 1_795_400_000_000_000_000


def limit(path: Path, *, wall_s: float, monotonic_s: float) -> RememberedLimit:
    return RememberedLimit(path, wall_ns=lambda: WALL_NS + int(wall_s * 1e9), monotonic_s=lambda: monotonic_s)


def test_the_calls_of_the_run_before_count(tmp_path: Path) -> None:
    """Six calls, a kill, and a start with another monotonic clock: the seventh waits until the first is old enough."""
    path = tmp_path / "authorize.json"
    before = limit(path, wall_s=0, monotonic_s=500.0)
    for _ in range(6):
        before.note(500.0)
    assert path.stat().st_mode & 0o777 == 0o600
    with capture_logs() as logs:
        again = limit(path, wall_s=10, monotonic_s=3.0)
    assert logs == [{"event": "authorize.limited", "calls": 6, "wait_s": 60, "log_level": "warning"}]
    assert again.delay_s(3.0) == pytest.approx(60.0)
    assert again.delay_s(64.0) == 0.0
    assert limit(path, wall_s=71, monotonic_s=3.0).delay_s(3.0) == 0.0


def test_a_clock_that_was_set_back_makes_it_longer(tmp_path: Path) -> None:
    """Never shorter, and never longer than a whole window."""
    path = tmp_path / "authorize.json"
    for _ in range(6):
        limit(path, wall_s=3600, monotonic_s=0.0).note(0.0)
    assert limit(path, wall_s=0, monotonic_s=9.0).delay_s(9.0) == 70.0


@pytest.mark.parametrize("content", ["", "{", "null", '{"a": 1}', '["x", null]', "[1e400]", "\udcff"])
def test_a_damaged_file_is_none(tmp_path: Path, content: str) -> None:
    """It costs the memory of a minute and no start."""
    path = tmp_path / "authorize.json"
    path.write_bytes(content.encode(errors="surrogateescape"))
    assert limit(path, wall_s=0, monotonic_s=0.0).delay_s(0.0) == 0.0


def test_where_nothing_can_be_written_calls_are_limited_all_the_same(tmp_path: Path) -> None:
    """In this process at least."""
    one = limit(tmp_path / "missing" / "authorize.json", wall_s=0, monotonic_s=0.0)
    for _ in range(6):
        one.note(0.0)
    assert one.delay_s(0.0) == 70.0


def test_two_programs_share_the_calls(tmp_path: Path) -> None:
    """Each sees the other's at once, though their monotonic clocks have nothing in common."""
    path = tmp_path / "authorize.json"
    run, check = limit(path, wall_s=0, monotonic_s=500.0), limit(path, wall_s=0, monotonic_s=3.0)
    for _ in range(3):
        assert run.take(500.0)
        assert check.take(3.0)
    assert not run.take(500.0)
    assert not check.take(3.0)
    assert run.delay_s(500.0) == 70.0
    assert run.take(570.0)


def test_what_the_wall_clock_does_meanwhile_is_nothing_to_what_is_known(tmp_path: Path) -> None:
    """Set forward it does not shorten the wait, set back it does not lengthen it for ever."""
    wall_s = [0.0]
    one = RememberedLimit(tmp_path / "a.json", wall_ns=lambda: WALL_NS + int(wall_s[0] * 1e9), monotonic_s=lambda: 0.0)
    for _ in range(6):
        one.note(0.0)
    wall_s[0] = 3600.0
    assert one.delay_s(1.0) == 69.0
    wall_s[0] = -3600.0
    assert one.delay_s(2.0) == 68.0
    assert one.delay_s(70.0) == 0.0
    assert one.delay_s(71.0) == 0.0


_CALLER = """
import sys, time
from pathlib import Path
from tickvault.brokers.upstox.callsfile import RememberedLimit
one = RememberedLimit(Path(sys.argv[1]), wall_ns=time.time_ns)
print("ready", flush=True)
sys.stdin.readline()
print(sum(one.take(time.monotonic()) for _ in range(6)))
"""


def test_programs_that_call_at_one_moment_make_six_calls(tmp_path: Path) -> None:
    """Four processes that want six each."""
    arguments = [sys.executable, "-c", _CALLER, str(tmp_path / "authorize.json")]
    programs = [subprocess.Popen(arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) for _ in range(4)]
    for one in programs:
        assert one.stdout is not None
        assert one.stdout.readline() == "ready\n"
    for one in programs:
        assert one.stdin is not None
        one.stdin.write("\n")
        one.stdin.flush()
    assert sum(int(one.communicate(timeout=60)[0]) for one in programs) == 6
