"""`tickvault dead-letters` as a user types it: beside a running recorder, and on its files alone."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest
from programs import call, environ_for, peek, recorder, simulator
from servers import Server, get, influx_query, influxd, wait_until

from tickvault import deadletters
from tickvault.deadletters import Choice

if TYPE_CHECKING:
    from pathlib import Path


def poison(influx: Server) -> None:
    """Make `planned` an integer, so that no gap can be stored: few rows, so that none is a batch refused as a whole."""
    influx_query(influx, "CREATE DATABASE b")
    get(f"{influx.url}/write?db=b", f"gap,scope=x planned=5i {time.time_ns()}".encode())


def listed(environ: dict[str, str], folder: Path, *words: str) -> list[dict[str, Any]]:
    said = call("dead-letters", "list", "--json", *words, environ=environ, folder=folder)
    assert said.returncode == 0, said.stderr
    found: list[dict[str, Any]] = json.loads(said.stdout)
    return found


@pytest.mark.parametrize("running", [True, False], ids=["beside a recorder", "on files alone"])
def test_what_a_store_refused_is_listed_and_stored_once_it_can_be(tmp_path: Path, running: bool) -> None:
    """With the store's words; refused again while nothing is mended; gone when the store has it, and told as stored."""
    data = tmp_path / "data"
    with influxd(tmp_path / "influx") as influx, simulator(tmp_path, "--instruments", "30") as (url, simulated):
        poison(influx)
        environ = environ_for(url, data, INFLUX_URL=influx.url, INFLUX_BUCKET="b")
        with recorder(tmp_path, environ) as recording:
            wait_until(
                lambda: bool(deadletters.read(data / "state.db", Choice())), "the gap of the start is refused", 60
            )
            assert simulated.stop() == 0
            last_seq = peek(data)["last_seq"]
            wait_until(lambda: peek(data)["sinks"]["influx"]["cursor_seq"] == last_seq, "all else is delivered")
            if not running:
                assert recording.stop() == 0
            found = listed(environ, tmp_path)
            assert {(one["sink"], one["table"]) for one in found} == {("influx", "gaps")}
            assert all("field type conflict" in one["reason"] for one in found)
            scope = found[0]["instrument_key"]
            assert {one["rows"][0]["scope"] for one in listed(environ, tmp_path, "--instrument", scope)} == {scope}
            shown = call("dead-letters", "list", environ=environ, folder=tmp_path).stdout
            assert shown.splitlines()[0].split("\t") == ["sink", "seq", "table", "instrument", "refused at", "reason"]

            again = call("dead-letters", "redrive", environ=environ, folder=tmp_path)
            assert again.returncode == 1
            assert f"{len(found):,} were refused again: " in again.stdout
            assert "field type conflict" in again.stdout
            influx.kill()
            away = call("dead-letters", "redrive", "--wait", "1", environ=environ, folder=tmp_path)
            assert away.returncode == 1
            assert ("they stay asked for" in away.stdout) if running else ("the letters are kept" in away.stderr)
            influx.start()
            influx_query(influx, "DROP MEASUREMENT gap", "b")
            mended = call("dead-letters", "redrive", "--json", environ=environ, folder=tmp_path)
            assert mended.returncode == 0, mended.stdout + mended.stderr
            counts = json.loads(mended.stdout)
            assert (counts["refused"], counts["waiting"]) == (0, 0)
            assert counts["letters"] in {0, len(found)}, "the recorder may have come to what was still asked for"
            assert listed(environ, tmp_path) == []
            if running:
                assert recording.stop() == 0
        stored = influx_query(influx, "SELECT * FROM gap", "b")
    refused = [row for one in found for row in one["rows"]]
    assert {(row["scope"], row["reason"], row["planned"], row["duration_s"]) for row in stored} == {
        (row["scope"], row["reason"], row["planned"], row["duration_s"]) for row in refused
    }


def test_what_cannot_be_is_said_with_the_next_step(tmp_path: Path) -> None:
    """Nothing recorded, no such table, nothing dead."""
    environ = {"TICKVAULT_DATA_DIR": str(tmp_path / "none"), "UPSTOX_ACCESS_TOKEN": "t"}
    said = call("dead-letters", "list", environ=environ, folder=tmp_path)
    assert (said.returncode, "nothing is recorded in" in said.stderr) == (1, True)
    (tmp_path / "none" / "journal").mkdir(parents=True)
    assert call("dead-letters", "redrive", environ=environ, folder=tmp_path).stdout == "no dead letters\n"
    said = call("dead-letters", "list", "--table", "tick", environ=environ, folder=tmp_path)
    assert (said.returncode, "expected one of ticks, candles" in said.stderr) == (2, True)
    for words in ("list", "redrive"):
        said = call("dead-letters", words, "--sink", "influx", environ=environ, folder=tmp_path)
        assert (said.returncode, "no sink 'influx' has delivered" in said.stderr) == (1, True)
    assert "redrive" in call("dead-letters", environ=environ, folder=tmp_path).stdout
