"""What happens to a process is in the ledger, exactly: standing still, being killed."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

from programs import environ_for, recorder, simulator
from servers import wait_until

from tickvault import survey
from tickvault.state import read_view

if TYPE_CHECKING:
    from pathlib import Path

    from tickvault.model import Gap


def gaps(data: Path, reason: str) -> list[Gap]:
    view = read_view(data / "state.db")
    return [] if view is None else [gap for gap in view.gaps if gap.reason == reason]


def test_a_process_that_stands_still_and_one_that_is_killed(tmp_path: Path) -> None:
    """The one from its last commit before to its first one after; the other from its last commit to the next start."""
    data = tmp_path / "data"
    with simulator(tmp_path, "--instruments", "5", "--updates-per-second", "50") as (url, _):
        environ = environ_for(url, data)
        with recorder(tmp_path, environ) as first:
            wait_until(lambda: survey.stats(data / "journal").frames > 10, "frames come")
            first.process.send_signal(signal.SIGSTOP)
            stopped = survey.stats(data / "journal").last_ns
            time.sleep(4)  # what is tested is that time passes
            first.process.send_signal(signal.SIGCONT)
            wait_until(lambda: bool(gaps(data, "recorder_stalled")), "the ledger has it")
            stall = gaps(data, "recorder_stalled")[-1]  # a busy machine may have stood still before
            assert stall.closed_ns is not None
            assert stall.closed_ns - stall.opened_ns > 3 * 10**9
            assert stall.opened_ns >= stopped
            first.kill()
        last_ns = survey.stats(data / "journal").last_ns
        with recorder(tmp_path, environ):
            wait_until(lambda: bool(gaps(data, "recorder_down")), "the next start has told it")
        (down,) = gaps(data, "recorder_down")
        assert (down.opened_ns, down.planned, down.detail) == (last_ns, False, "ended without stopping")
        assert stall in gaps(data, "recorder_stalled")
