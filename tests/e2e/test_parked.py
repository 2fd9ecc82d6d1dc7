"""A sink that raises what it never should: parked and shown, everything else goes on, and it can be resumed."""

from __future__ import annotations

import json
import sys
from collections import Counter
from typing import TYPE_CHECKING, Any

import oracle
from programs import Running, call, environ_for, globbed, peek, simulator
from servers import free_ports, get, influx_query, influxd, wait_until
from webhooks import receiver

if TYPE_CHECKING:
    from pathlib import Path

# The program as it is, with a bug in one sink while a file says so.
PLANTED = """
import pathlib, sys
from tickvault.cli import main
from tickvault.sinks.influx import InfluxSink
write = InfluxSink.write
async def planted(self, batch):
    if pathlib.Path("bug").exists():
        raise ZeroDivisionError("planted")
    await write(self, batch)
InfluxSink.write = planted
main()
"""


def test_a_bug_in_one_sink_parks_it_alone_and_a_command_resumes_it(tmp_path: Path) -> None:
    """Shown in status, metrics, /readyz, webhook and log; Parquet goes on; resumed without a gap, it gets everything."""
    data, log, (port, told_port) = tmp_path / "data", tmp_path / "sent.log", free_ports(2)
    with (
        influxd(tmp_path / "influx") as influx,
        receiver(told_port) as kept,
        simulator(tmp_path, "--instruments", "20", "--log", str(log)) as (url, simulated),
    ):
        environ = environ_for(
            url, data, INFLUX_URL=influx.url, INFLUX_BUCKET="b", TICKVAULT_HTTP=f"127.0.0.1:{port}",
            TICKVAULT_NOTIFY_URL=f"http://127.0.0.1:{told_port}/",
        )  # fmt: skip
        recording = Running(["run"], environ, tmp_path, "recorder", (sys.executable, "-c", PLANTED))
        try:
            wait_until(lambda: _influx(data)["cursor_seq"] > 0, "InfluxDB has the first rows")
            (tmp_path / "bug").touch()
            wait_until(lambda: _influx(data)["state"] == "parked", "it is parked")
            at = _influx(data)["cursor_seq"]
            reached = peek(data)["last_seq"]
            wait_until(lambda: peek(data)["last_seq"] > reached + 8, "intake goes on")
            shown = json.loads(call("status", "--json", environ=environ, folder=tmp_path).stdout)["sinks"]
            assert shown["influx"]["detail"].startswith("ZeroDivisionError: planted (planted, <string>:")
            assert (shown["influx"]["cursor_seq"], shown["parquet"]["state"]) == (at, "running")
            ready = get(f"http://127.0.0.1:{port}/readyz")
            assert (ready.status, b"parked sinks: influx" in ready.body) == (503, True)
            assert get(f"http://127.0.0.1:{port}/healthz").status == 200
            assert b'tickvault_sink_parked{sink="influx"} 1.0' in get(f"http://127.0.0.1:{port}/metrics").body
            wait_until(lambda: bool(kept.events("sink.parked")), "the webhook tells of it")
            assert "ZeroDivisionError: planted" in kept.events("sink.parked")[0]["message"]

            _resume(environ, tmp_path, "influx is resumed behind seq")
            wait_until(lambda: len(kept.events("sink.parked")) == 2, "it is parked again: nothing was mended")
            (tmp_path / "bug").unlink()
            _resume(environ, tmp_path, "influx is resumed behind seq")
            wait_until(lambda: bool(kept.events("sink.recovered")), "the webhook tells of that too")
            _resume(environ, tmp_path, "influx is not parked: it is running")
            assert get(f"http://127.0.0.1:{port}/readyz").status == 200
            assert simulated.stop() == 0
            wait_until(lambda: _influx(data)["cursor_seq"] >= len(oracle.logged_frames(log)), "it has everything")
            assert recording.stop() == 0, recording.said()
        finally:
            if recording.alive:
                recording.kill()
        sent = oracle.expected_ticks(oracle.logged_frames(log))
        assert influx_query(influx, "SELECT count(seq) FROM tick", "b")[0]["count"] == sum(sent.values())
    assert Counter(map(oracle.stored_tick, globbed(data, "ticks"))) == sent


def test_a_run_that_ends_with_a_parked_sink_exits_1_and_the_next_goes_on(tmp_path: Path) -> None:
    """The end says what waits and why; a restart tries again and tells that it has recovered."""
    data, (told_port,) = tmp_path / "data", free_ports(1)
    with influxd(tmp_path / "influx") as influx, simulator(tmp_path, "--instruments", "5") as (url, simulated):
        environ = environ_for(url, data, INFLUX_URL=influx.url, INFLUX_BUCKET="b")
        (tmp_path / "bug").touch()
        recording = Running(["run"], environ, tmp_path, "recorder", (sys.executable, "-c", PLANTED))
        try:
            wait_until(lambda: _influx(data)["state"] == "parked", "it is parked")
            assert recording.stop() == 1
        finally:
            if recording.alive:
                recording.kill()
        assert "frames wait in the journal for influx: parked; see `tickvault status`" in recording.said()
        _resume(environ, tmp_path, "no recorder runs; the next `tickvault run` goes on with influx by itself")
        assert simulated.stop() == 0
        with receiver(told_port) as kept:
            more = {**environ, "TICKVAULT_NOTIFY_URL": f"http://127.0.0.1:{told_port}/"}
            assert call("run", "--duration", "3", environ=more, folder=tmp_path).returncode == 0
            assert [event["sink"] for event in kept.events("sink.recovered")] == ["influx"]
        assert influx_query(influx, "SELECT count(seq) FROM tick", "b")


def _resume(environ: dict[str, str], folder: Path, expected: str) -> None:
    said = call("resume", "--sink", "influx", environ=environ, folder=folder)
    assert (said.returncode, expected in said.stdout) == (0, True), said.stdout + said.stderr


def _influx(data: Path) -> dict[str, Any]:
    found: dict[str, Any] = peek(data)["sinks"].get("influx", {"cursor_seq": 0, "state": "none"})
    return found
