"""The whole chain, in processes of its own: simulator → recorder → InfluxDB and Parquet, held against what was sent."""

from __future__ import annotations

import json
import resource
from collections import Counter
from typing import TYPE_CHECKING, Any

import oracle
import pytest
from doubles import frames_of
from programs import call, environ_for, globbed, recorder, simulator, stats
from servers import influx_query, influxd, victoria_export, victoria_metrics, wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from servers import Server

MARKET = ("--instruments", "60", "--updates-per-second", "400")
INFLUX = {"INFLUX_BUCKET": "market"}
FRAMES = 30  # about seven seconds of the simulated feed


def test_every_update_arrives_and_again_after_a_rewind(tmp_path: Path) -> None:
    """Every logged update is in InfluxDB and in Parquet, field for field, nothing more; and so after a rewind."""
    data, log = tmp_path / "data", tmp_path / "sent.log"
    with influxd(tmp_path / "influx") as influx:
        environ = {**INFLUX, "INFLUX_URL": influx.url}
        with simulator(tmp_path, *MARKET, "--log", str(log)) as (url, simulated):
            environ = environ_for(url, data, **environ)
            with recorder(tmp_path, environ) as recording:
                wait_until(lambda: stats(data)["last_seq"] >= FRAMES, "frames are journalled")
                assert simulated.stop() == 0
                assert recording.stop() == 0, recording.said()
        sent = oracle.logged_frames(log)
        assert stats(data)["last_seq"] == len(sent)
        _assert_parquet(data, sent)
        _assert_influx(influx, sent)
        assert call("journal", "verify", environ=environ, folder=tmp_path).returncode == 0

        influx_query(influx, "DROP DATABASE market")
        for sink in ("influx", "parquet"):
            done = call("rewind", "--sink", sink, "--to-seq", "0", environ=environ, folder=tmp_path)
            assert done.returncode == 0, done.stderr
        assert not list(data.glob("parquet/*/*/*.parquet"))
        # The simulator is gone: nothing new comes, and what the journal holds is delivered again.
        assert call("run", "--duration", "2", environ=environ, folder=tmp_path).returncode == 0
        _assert_parquet(data, sent)
        _assert_influx(influx, sent)


def test_victoria_metrics_holds_every_number(tmp_path: Path) -> None:
    """VictoriaMetrics has every numeric field of every update."""
    data, log = tmp_path / "data", tmp_path / "sent.log"
    with victoria_metrics(tmp_path / "victoria", "-dedup.minScrapeInterval=1ms") as victoria:
        with simulator(tmp_path, *MARKET, "--log", str(log)) as (url, simulated):
            environ = environ_for(url, data, INFLUX_URL=victoria.url, **INFLUX)
            with recorder(tmp_path, environ) as recording:
                wait_until(lambda: stats(data)["last_seq"] >= FRAMES, "frames are journalled")
                assert simulated.stop() == 0
                assert recording.stop() == 0, recording.said()
        sent = oracle.logged_frames(log)
        _assert_parquet(data, sent)
        _assert_victoria(victoria, sent)


def test_victoria_metrics_killed_and_back_at_once_costs_nothing(tmp_path: Path) -> None:
    """What it acknowledged and lost comes again: after a restart that no request noticed, and after our own stop."""
    data, log = tmp_path / "data", tmp_path / "sent.log"
    with victoria_metrics(tmp_path / "victoria", "-dedup.minScrapeInterval=1ms") as victoria:
        with simulator(tmp_path, *MARKET, "--log", str(log)) as (url, simulated):
            environ = environ_for(url, data, INFLUX_URL=victoria.url, **INFLUX)
            with recorder(tmp_path, environ) as recording:
                wait_until(lambda: _cursor(data, "influx") >= 20, "it has the first rows")
                victoria.kill()
                victoria.start()
                reached = stats(data)["last_seq"]
                wait_until(lambda: _cursor(data, "influx") >= reached + 20, "it has further rows")
                assert simulated.stop() == 0
                assert recording.stop() == 0, recording.said()
        victoria.kill()
        victoria.start()
        assert call("run", "--duration", "1", environ=environ, folder=tmp_path).returncode == 0
        _assert_victoria(victoria, oracle.logged_frames(log))


def test_an_outage_of_influxdb_costs_nothing(tmp_path: Path) -> None:
    """With influxd killed for a while in mid-run nothing is lost, we are not restarted, and Parquet never waits."""
    data, log = tmp_path / "data", tmp_path / "sent.log"
    with influxd(tmp_path / "influx") as influx:
        with simulator(tmp_path, *MARKET, "--log", str(log)) as (url, simulated):
            environ = environ_for(url, data, INFLUX_URL=influx.url, **INFLUX)
            with recorder(tmp_path, environ) as recording:
                wait_until(lambda: _cursor(data, "influx") > 0, "InfluxDB has the first rows")
                influx.kill()
                reached = stats(data)["last_seq"]
                wait_until(lambda: stats(data)["last_seq"] >= reached + 4 * 20, "20 s of frames go by", 60)
                assert _state(data, "influx") == "retrying"
                influx.start()
                wait_until(lambda: _cursor(data, "influx") >= reached + 4 * 20, "the backlog is delivered", 60)
                assert recording.alive
                assert simulated.stop() == 0
                assert recording.stop() == 0, recording.said()
        sent = oracle.logged_frames(log)
        _assert_parquet(data, sent)
        _assert_influx(influx, sent)


def test_parquet_goes_on_while_influxdb_was_never_there(tmp_path: Path) -> None:
    """A store that is away from the start delays nothing else; the run says what waits for it, and exits 0."""
    data, log = tmp_path / "data", tmp_path / "sent.log"
    with simulator(tmp_path, *MARKET, "--log", str(log)) as (url, simulated):
        environ = environ_for(url, data, INFLUX_URL="http://127.0.0.1:9", TICKVAULT_SHUTDOWN_S="8", **INFLUX)
        with recorder(tmp_path, environ) as recording:
            wait_until(lambda: stats(data)["last_seq"] >= FRAMES, "frames are journalled")
            assert simulated.stop() == 0
            assert recording.stop() == 0
            assert "wait in the journal for influx" in recording.said()
    _assert_parquet(data, oracle.logged_frames(log))


@pytest.mark.parametrize("kills", [3])
def test_a_killed_recorder_loses_nothing_it_had_committed(tmp_path: Path, kills: int) -> None:
    """After kill -9 and restart every committed frame reaches both stores once; only what was on the wire is missing."""
    data, log = tmp_path / "data", tmp_path / "sent.log"
    with influxd(tmp_path / "influx") as influx:
        with simulator(tmp_path, *MARKET, "--log", str(log)) as (url, simulated):
            environ = environ_for(url, data, INFLUX_URL=influx.url, **INFLUX)
            for _ in range(kills):
                reached = stats(data)["last_seq"]
                with recorder(tmp_path, environ) as recording:
                    wait_until(lambda: stats(data)["last_seq"] >= reached + 10, "frames are journalled")
                    recording.kill()
                assert call("journal", "verify", environ=environ, folder=tmp_path).returncode == 0
                queried = call("query", "SELECT count(*), count(DISTINCT (seq, instrument_key)) FROM ticks",
                               "--format", "csv", environ=environ, folder=tmp_path)  # fmt: skip
                total, distinct = queried.stdout.splitlines()[1].split(",")
                assert total == distinct
                assert int(total) > 0
            committed = stats(data)["last_seq"]
            with recorder(tmp_path, environ) as recording:
                wait_until(lambda: stats(data)["last_seq"] > committed, "it goes on behind")
                assert simulated.stop() == 0
                assert recording.stop() == 0, recording.said()
        sent = oracle.logged_frames(log)
        rows = globbed(data, "ticks")
        stored = Counter(oracle.stored_tick(row) for row in rows)
        assert not stored - oracle.expected_ticks(sent)
        assert len({(row["seq"], row["instrument_key"]) for row in rows}) == len(rows)
        assert {row["seq"] for row in rows} | {row["seq"] for row in globbed(data, "market_status")} == set(
            range(1, stats(data)["last_seq"] + 1)
        )
        points = {(one["seq"], one["instrument_key"]) for one in _influx_ticks(influx)}
        assert points == {(row["seq"], row["instrument_key"]) for row in rows}


def test_the_seeds_points_and_ours_agree_in_one_database(tmp_path: Path) -> None:
    """With the seed's setting names its layout is written too; candles equal the last version sent."""
    data, log = tmp_path / "data", tmp_path / "sent.log"
    with influxd(tmp_path / "influx") as influx:
        with simulator(tmp_path, *MARKET, "--log", str(log)) as (url, simulated):
            environ = environ_for(url, data, INFLUX_DB_URL=influx.url, INFLUX_BUCKET_NAME="market", INFLUX_DB_ORG="o")
            with recorder(tmp_path, environ) as recording:
                wait_until(lambda: stats(data)["last_seq"] >= FRAMES, "frames are journalled")
                assert simulated.stop() == 0
                assert recording.stop() == 0, recording.said()
        candles = oracle.expected_candles(oracle.logged_frames(log))
        ours = {
            (one["instrument_key"], one["interval"], one["time"] // 10**6): tuple(
                one[name] or 0 for name in ("open", "high", "low", "close", "volume")
            )
            for one in influx_query(influx, "SELECT * FROM candle", db="market")
        }
        assert ours == candles
        for interval in ("1d", "I1"):
            seeds = {
                (one["feed_name"], interval, one["time"] // 10**6): tuple(
                    one[name] for name in ("Open", "High", "Low", "Close", "Volume")
                )
                for one in influx_query(influx, f'SELECT * FROM "{interval}"', db="market")
            }
            wanted = {(k.replace(" ", "_"), i, at): one for (k, i, at), one in candles.items() if i == interval}
            assert seeds == wanted


def _cursor(data: Path, sink: str) -> int:
    found: int = stats(data)["sinks"].get(sink, {}).get("cursor_seq", 0)
    return found


def _state(data: Path, sink: str) -> str:
    found: str = stats(data)["sinks"][sink]["state"]
    return found


def _assert_parquet(data: Path, sent: list[bytes]) -> None:
    stored = Counter(oracle.stored_tick(row) for row in globbed(data, "ticks"))
    wanted = oracle.expected_ticks(sent)
    missing, foreign = wanted - stored, stored - wanted
    ends = sorted(row[:2] for row in missing)
    assert not missing, f"{missing.total()} of {wanted.total()} rows are missing from Parquet: {ends[0]} to {ends[-1]}"
    assert not foreign, f"{foreign.total()} rows of Parquet were never sent: {next(iter(foreign))}"
    statuses = Counter((row["scope"], row["segment"], row["status"]) for row in globbed(data, "market_status"))
    assert statuses == oracle.expected_statuses(sent)


def _influx_ticks(influx: Server) -> list[dict[str, Any]]:
    return influx_query(influx, "SELECT * FROM tick", db="market")


def _assert_influx(influx: Server, sent: list[bytes]) -> None:
    """Hold the points against the updates: tags and seq aside, each point is the fields of one update."""
    tags = {"time", "instrument_key", "symbol", "segment", "underlying", "expiry", "strike", "option_type"}
    stored: Counter[tuple[Any, ...]] = Counter()
    for point in _influx_ticks(influx):
        fields = {
            name: value
            for name, value in point.items()
            if value is not None and name not in tags | {"seq", "received_at"}
        }
        assert point["time"] % 10**6 == point["seq"] % 10**6
        stored[point["instrument_key"], point["time"] // 10**6, tuple(sorted(fields.items()))] += 1
    wanted = Counter(
        (row["instrument_key"], row["time_ms"], tuple(sorted(oracle.influx_fields(row, 5).items())))
        for payload in sent
        for row in oracle.ticks_of(payload)
    )
    assert not wanted - stored, "missing from InfluxDB"
    assert not stored - wanted, "in InfluxDB and never sent"


def _assert_victoria(victoria: Server, sent: list[bytes]) -> None:
    wanted: dict[tuple[str, str], dict[int, float]] = {}
    for payload in sent:
        for row in oracle.ticks_of(payload):
            for name, value in oracle.influx_fields(row, 5).items():
                if name == "snapshot":
                    continue
                wanted.setdefault((row["instrument_key"], f"tick_{name}"), {})[row["time_ms"]] = float(value)
    stored: dict[tuple[str, str], dict[int, float]] = {}
    for labels, samples in victoria_export(victoria, '{__name__=~"tick_.*"}').items():
        found = dict(labels)
        if found["__name__"] in {"tick_seq", "tick_received_at", "tick_snapshot"}:
            continue
        stored[found["instrument_key"], found["__name__"]] = samples
    assert stored.keys() == wanted.keys()
    for series, samples in wanted.items():
        assert stored[series].keys() == samples.keys(), series
        for at, value in samples.items():
            # It keeps about twelve digits of a float.
            assert stored[series][at] == pytest.approx(value, rel=1e-11), (series, at)


def _largest(data: Path) -> int:
    """Return the size of the largest file of journal and state."""
    return max(path.stat().st_size for path in (*data.glob("journal/*"), data / "state.db"))


def test_a_full_disk_is_waited_for_and_a_stop_counts_what_it_cost(tmp_path: Path) -> None:
    """With room again everything sent is journalled; a stop while there is none says how much was received for nothing."""
    log = tmp_path / "sent.log"
    with simulator(tmp_path, "--log", str(log)) as (url, _):
        data = tmp_path / "data"
        with recorder(tmp_path, environ_for(url, data)) as recording:
            wait_until(lambda: stats(data)["last_seq"] > 2, "it records")
            _, most = resource.prlimit(recording.process.pid, resource.RLIMIT_FSIZE)
            resource.prlimit(recording.process.pid, resource.RLIMIT_FSIZE, (_largest(data) + 8192, most))
            wait_until(lambda: "journal.full" in recording.said(), "the disk is full")
            resource.prlimit(recording.process.pid, resource.RLIMIT_FSIZE, (most, most))
            wait_until(lambda: "journal.room" in recording.said(), "there is room again")
            resource.prlimit(recording.process.pid, resource.RLIMIT_FSIZE, (_largest(data) + 8192, most))
            wait_until(lambda: recording.said().count("journal.full") == 2, "the disk is full again")
            assert recording.stop() == 1
            lines = [json.loads(line) for line in recording.errors.read_text().splitlines() if line.startswith("{")]
        [told] = [line for line in lines if line["event"] == "recorder.stopped"]
        assert told["received"] > told["journalled"] == stats(data)["last_seq"]
        assert "free space on the disk" in recording.said()
        sent = oracle.logged_frames(log)
        assert [frame.payload for frame in frames_of(data / "journal")] == sent[: told["journalled"]]
