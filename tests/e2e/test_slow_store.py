"""A store away for the whole run, and a disk whose syncs take their time: nothing lost, no gap, memory flat."""

from __future__ import annotations

import shutil
import subprocess
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import oracle
import pytest
from programs import call, environ_for, globbed, peek, recorder, simulator
from servers import influx_query, influxd, wait_until

from tickvault.state import read_view

if TYPE_CHECKING:
    from programs import Running

MARKET = ("--instruments", "300", "--updates-per-second", "3000")
MOST_GROWTH_MB = 48  # of a recorder that takes about 120: room for its batches and the allocator, none for a backlog
WARM, MEASURED = 12, 24  # frames, of about 400 updates each

# Every sync of the process takes as many ms longer as a file says, and leaves a byte behind in another file.
SLOW_SYNCS = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>
static void linger(void) {
    char told[16] = {0};
    int fd = open(getenv("SLOW_SYNCS_MS"), O_RDONLY);
    if (fd < 0) return;
    ssize_t got = read(fd, told, sizeof told - 1);
    close(fd);
    if (got <= 0 || atoi(told) <= 0) return;
    usleep(1000 * atoi(told));
    fd = open(getenv("SLOW_SYNCS_SEEN"), O_WRONLY | O_APPEND | O_CREAT, 0600);
    if (write(fd, ".", 1) == 1) {}
    close(fd);
}
int fsync(int fd) { linger(); return ((int (*)(int))dlsym(RTLD_NEXT, "fsync"))(fd); }
int fdatasync(int fd) { linger(); return ((int (*)(int))dlsym(RTLD_NEXT, "fdatasync"))(fd); }
"""


def test_a_store_away_for_the_whole_run_costs_no_memory_and_gets_it_all_at_the_next(tmp_path: Path) -> None:
    """What waits, waits in the journal: resident memory stands still while the backlog grows."""
    data, log = tmp_path / "data", tmp_path / "sent.log"
    with influxd(tmp_path / "influx") as influx:
        with simulator(tmp_path, *MARKET, "--log", str(log)) as (url, simulated):
            environ = environ_for(url, data, INFLUX_URL=influx.url, INFLUX_BUCKET="b", TICKVAULT_SHUTDOWN_S="1")
            influx.stop()
            with recorder(tmp_path, environ) as recording:
                wait_until(lambda: peek(data)["last_seq"] > 3, "it records")
                grown_mb = _growth_mb(recording, data, "a store away")
                behind = peek(data)["sinks"]["influx"]
                assert simulated.stop() == 0
                wait_until(lambda: peek(data)["last_seq"] == len(oracle.logged_frames(log)), "all that was sent is in")
                assert recording.stop() == 0
        assert (behind["cursor_seq"], behind["state"]) == (0, "retrying")
        influx.start()
        drained = call("run", "--duration", "0", environ={**environ, "TICKVAULT_SHUTDOWN_S": "60"}, folder=tmp_path)
        assert drained.returncode == 0, drained.stderr
        sent = oracle.logged_frames(log)
        updates = sum(oracle.expected_ticks(sent).values())
        [stored] = influx_query(influx, "SELECT count(seq) FROM tick", "b")
        assert stored["count"] == updates
    assert Counter(map(oracle.stored_tick, globbed(data, "ticks"))) == oracle.expected_ticks(sent)
    assert grown_mb < MOST_GROWTH_MB


def test_a_disk_whose_syncs_take_100_ms_costs_no_frame_and_no_gap(tmp_path: Path) -> None:
    """Batches grow, the queue holds, and when the disk is well again everything sent is stored."""
    cc = shutil.which("cc")
    if cc is None:
        pytest.skip("no C compiler is here to make the syncs of a process slow with")
    library, delay, seen = tmp_path / "slow.so", tmp_path / "delay", tmp_path / "seen"
    source = tmp_path / "slow.c"
    source.write_text(SLOW_SYNCS)
    subprocess.run([cc, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True, capture_output=True)
    data, log = tmp_path / "data", tmp_path / "sent.log"
    with simulator(tmp_path, *MARKET, "--log", str(log)) as (url, simulated):
        slow = {"LD_PRELOAD": str(library), "SLOW_SYNCS_MS": str(delay), "SLOW_SYNCS_SEEN": str(seen)}
        with recorder(tmp_path, environ_for(url, data) | slow) as recording:
            wait_until(lambda: peek(data)["last_seq"] > 3, "it records")
            for ms in ("20", "100"):
                delay.write_text(ms)
                before = seen.stat().st_size if seen.exists() else 0
                grown_mb = _growth_mb(recording, data, f"syncs {ms} ms slower")
                assert seen.stat().st_size > before, "its syncs were slow"
                assert grown_mb < MOST_GROWTH_MB
            delay.unlink()
            reached = peek(data)["last_seq"]
            wait_until(lambda: peek(data)["last_seq"] > reached + 3, "it goes on")
            assert simulated.stop() == 0
            wait_until(lambda: peek(data)["last_seq"] == len(oracle.logged_frames(log)), "all that was sent is in")
            assert recording.stop() == 0, recording.said()
    sent = oracle.logged_frames(log)
    assert Counter(map(oracle.stored_tick, globbed(data, "ticks"))) == oracle.expected_ticks(sent)
    view = read_view(data / "state.db")
    assert view is not None
    # The one that ends with the first connection, and what began when the simulator was stopped.
    while_slow = [
        gap for gap in view.gaps if gap.reason in {"overrun", "recorder_stalled", "disk_full", "recorder_down"}
    ]
    assert while_slow == []


def _growth_mb(recording: Running, data: Path, what: str) -> float:
    """Let a recorder take in further frames; print and return how much its resident memory has grown."""
    reached = peek(data)["last_seq"] + WARM
    wait_until(lambda: peek(data)["last_seq"] >= reached, "it records", 60)
    first, before = peek(data), _resident_mb(recording)
    wait_until(lambda: peek(data)["last_seq"] >= first["last_seq"] + MEASURED, "it goes on recording", 60)
    last, after = peek(data), _resident_mb(recording)
    frames = last["last_seq"] - first["last_seq"]
    print(f"{what}: resident {before:.1f} MB, {frames} frames later {after:.1f} MB")
    return after - before


def _resident_mb(recording: Running) -> float:
    status = Path(f"/proc/{recording.process.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1000
