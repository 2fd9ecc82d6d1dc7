"""The limit of authorize calls, over restarts."""

from __future__ import annotations

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
