"""Every ordinary mistake: one clear line with the next step, the right exit code, never a traceback."""

from __future__ import annotations

import json
import socket
from typing import TYPE_CHECKING

import pytest
from doubles import Vault
from programs import call, environ_for, recorder, simulator, stats
from servers import wait_until

if TYPE_CHECKING:
    from pathlib import Path

TOKEN = {"UPSTOX_ACCESS_TOKEN": "t"}
KEY = {"TICKVAULT_INSTRUMENTS": "NSE_EQ|INE002A01018"}


@pytest.mark.parametrize(
    ("words", "environ", "code", "told"),
    [
        pytest.param(["run"], KEY, 2, ["UPSTOX_ACCESS_TOKEN", "UPSTOX_TOKEN_URL", "demo"], id="no token"),
        pytest.param(["run"], TOKEN, 2, ["TICKVAULT_INSTRUMENTS"], id="no instruments"),
        pytest.param(["run"], {**TOKEN, **KEY, "TICKVAULT_MOED": "x"}, 2, ["TICKVAULT_MOED", "TICKVAULT_MODE"], id="unknown"),
        pytest.param(["run"], {**TOKEN, "TICKVAULT_INSTRUMENTS": "RELIANCE"}, 2, ["RELIANCE", "SEGMENT|name"], id="bad key"),
        pytest.param(["run"], {**TOKEN, **KEY, "TICKVAULT_QUEUE_FRAMES": "many"}, 2, ["TICKVAULT_QUEUE_FRAMES"], id="not a number"),
        pytest.param(["run"], {**TOKEN, "ACCESS_TOKEN": "u", **KEY}, 2, ["UPSTOX_ACCESS_TOKEN", "ACCESS_TOKEN"], id="two names differ"),
        pytest.param(["run"], {**TOKEN, **KEY, "INFLUX_URL": "http://8.8.8.8:8086"}, 2, ["INFLUX_URL", "TICKVAULT_ALLOW_PLAINTEXT"], id="plain http"),
        pytest.param(["run"], {**TOKEN, **KEY, "TICKVAULT_DATA_DIR": "/proc/nowhere"}, 1, ["/proc belongs to the kernel", "TICKVAULT_DATA_DIR"], id="no place"),
        pytest.param(["run"], {**TOKEN, **KEY, "TICKVAULT_DATA_DIR": "/dev/null/data"}, 1, ["/dev/null is not a folder", "TICKVAULT_DATA_DIR"], id="a file"),
        pytest.param(["run"], {**TOKEN, **KEY, "TICKVAULT_SINKS": "kafka"}, 2, ["kafka", "parquet, influx"], id="unknown sink"),
        pytest.param(["run"], {**TOKEN, **KEY, "TICKVAULT_SINKS": "nats", "NATS_URL": "nats://127.0.0.1:4222"}, 2, ["nats", "parquet, influx"], id="no such sink yet"),
        pytest.param(["run", "--config", "missing.toml"], {}, 2, ["missing.toml"], id="no config"),
        pytest.param(["query", "SELECT 1"], {}, 1, ["nothing is recorded", "TICKVAULT_DATA_DIR"], id="nothing recorded"),
        pytest.param(["status"], {}, 1, ["nothing is recorded"], id="no status"),
        pytest.param(["rnu"], {}, 2, ["run", "--help"], id="no such command"),
        pytest.param(["demo", "--duration", "soon"], {}, 2, ["--duration"], id="not a duration"),
        pytest.param(["simulate", "--port", "70000"], {}, 2, ["--port", "65535"], id="no such port"),
        pytest.param(["instruments", "resolve"], {}, 2, ["nothing to resolve", "TICKVAULT_INSTRUMENTS"], id="nothing to resolve"),
        pytest.param(["rewind", "--sink", "parquet"], {}, 2, ["--to-seq", "--to-time"], id="rewind to nowhere"),
    ],
)  # fmt: skip
def test_a_mistake_gets_one_line_with_the_next_step(
    tmp_path: Path, words: list[str], environ: dict[str, str], code: int, told: list[str]
) -> None:
    """The line names what is wrong and what to do; nothing else is printed."""
    done = call(*words, environ=environ, folder=tmp_path)
    assert done.returncode == code, done.stderr
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("tickvault: ")
    assert "Traceback" not in done.stdout + done.stderr
    for word in told:
        assert word in done.stderr
    assert list(tmp_path.iterdir()) == []  # a mistake leaves nothing behind


def test_a_second_recorder_is_told_who_has_the_folder(tmp_path: Path) -> None:
    """It exits 1 and names the pid; after kill -9 no lock is left."""
    with simulator(tmp_path) as (url, _):
        environ = environ_for(url, tmp_path / "data")
        with recorder(tmp_path, environ) as first:
            wait_until(lambda: stats(tmp_path / "data")["last_seq"] > 0, "the first one records")
            second = call("run", environ=environ, folder=tmp_path)
            assert second.returncode == 1
            assert f"pid {first.process.pid}" in second.stderr
            done = call("rewind", "--sink", "parquet", "--to-seq", "0", environ=environ, folder=tmp_path)
            assert done.returncode == 1
            assert f"pid {first.process.pid}" in done.stderr
            first.kill()
        assert call("run", "--duration", "0", environ=environ, folder=tmp_path).returncode == 0


def test_a_refused_token_at_the_very_start_exits_3(tmp_path: Path) -> None:
    """A static token that the broker does not accept is a matter for the user."""
    script = tmp_path / "reject.json"
    script.write_text('{"steps": [{"at_s": 0, "do": "reject_token", "seconds": 60}]}')
    with simulator(tmp_path, "--script", str(script)) as (url, _):
        done = call("run", environ=environ_for(url, tmp_path / "data"), folder=tmp_path)
    assert done.returncode == 3, done.stderr
    assert "test-token" not in done.stdout + done.stderr
    assert "Traceback" not in done.stderr


def test_a_second_signal_ends_it_at_once(tmp_path: Path) -> None:
    """With a store away the drain takes its time; a second SIGTERM ends that with 143, and the journal is whole."""
    with simulator(tmp_path) as (url, _):
        data = tmp_path / "data"
        environ = environ_for(url, data, INFLUX_URL="http://127.0.0.1:9", INFLUX_BUCKET="b")
        with recorder(tmp_path, environ) as recording:
            wait_until(lambda: stats(data)["last_seq"] > 2, "it records")
            recording.process.terminate()
            wait_until(lambda: "feed.stopped" in recording.said(), "it drains")
            assert recording.stop(15) == 143
            assert "second SIGTERM" in recording.said()
        assert call("journal", "verify", environ=environ, folder=tmp_path).returncode == 0


def test_the_end_of_the_duration_is_no_signal(tmp_path: Path) -> None:
    """A SIGTERM while it drains after --duration is the first one: it goes on draining, and exits 0."""
    with simulator(tmp_path) as (url, _):
        data = tmp_path / "data"
        environ = environ_for(url, data, INFLUX_URL="http://127.0.0.1:9", INFLUX_BUCKET="b", TICKVAULT_SHUTDOWN_S="4")
        with recorder(tmp_path, environ, "--duration", "1") as recording:
            wait_until(lambda: "feed.stopped" in recording.said(), "it drains")
            assert recording.stop(15) == 0
            assert "wait in the journal for influx" in recording.said()


def test_a_rewind_and_a_failed_start_leave_the_ledger_true(tmp_path: Path) -> None:
    """Downtime stays one interval whatever is rewound in it; a start that fails leaves no gap open; reasons are kept."""
    data = tmp_path / "data"
    environ = environ_for(
        "http://127.0.0.1:9", data, UPSTOX_INSTRUMENTS_URL="off", TICKVAULT_INSTRUMENTS="NSE_EQ|INE002A01018"
    )
    del environ["TICKVAULT_INSTRUMENTS_URL"]
    assert call("run", "--duration", "1", environ=environ, folder=tmp_path).returncode == 0
    for to_seq, code in (("0", 0), ("7", 1)):
        done = call("rewind", "--sink", "parquet", "--to-seq", to_seq, environ=environ, folder=tmp_path)
        assert done.returncode == code, done.stderr
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        busy = {**environ, "TICKVAULT_HTTP": f"127.0.0.1:{taken.getsockname()[1]}"}
        assert call("run", "--duration", "1", environ=busy, folder=tmp_path).returncode == 1
    # The next real start is what ends the downtime.
    assert call("run", "--duration", "1", environ=environ, folder=tmp_path).returncode == 0
    asked = call(
        "query", "SELECT * FROM gaps ORDER BY opened_at, scope", "--format", "json", environ=environ, folder=tmp_path
    )
    gaps = [json.loads(line) for line in asked.stdout.splitlines()]
    assert all(gap["closed_at"] for gap in gaps)
    assert [gap["planned"] for gap in gaps if gap["scope"] == "recorder"] == [True]
    assert "unreachable" in gaps[0]["detail"]


@pytest.mark.parametrize(
    ("sql", "told"),
    [
        ("SELECT 1; SELECT 2", "one SQL statement"),
        ("", "one SQL statement"),
        ("COPY (SELECT 1) TO 'data/state.db'", "a statement that reads"),
        ("DROP VIEW ticks", "a statement that reads"),
    ],
)
def test_query_only_answers_questions(tmp_path: Path, sql: str, told: str) -> None:
    """Several statements, none, or one that writes: refused with what to do instead, nothing touched."""
    environ = environ_for("http://127.0.0.1:9", tmp_path / "data")
    assert call("run", "--duration", "0", environ=environ, folder=tmp_path).returncode == 0
    state = (tmp_path / "data" / "state.db").read_bytes()
    done = call("query", sql, environ=environ, folder=tmp_path)
    assert done.returncode == 2
    assert told in done.stderr
    assert (tmp_path / "data" / "state.db").read_bytes() == state
    for asked in ("DESCRIBE ticks", "SUMMARIZE ticks", "FROM ticks", "SHOW TABLES", "EXPLAIN SELECT 1"):
        assert call("query", asked, environ=environ, folder=tmp_path).returncode == 0, asked


def test_a_rewind_on_a_lost_state_brings_its_gaps_back_too(tmp_path: Path) -> None:
    """As a start does; until the next one `query` would otherwise show a ledger without a gap."""
    environ = environ_for(
        "http://127.0.0.1:9", tmp_path / "data", UPSTOX_INSTRUMENTS_URL="off", TICKVAULT_INSTRUMENTS="NSE_EQ|A"
    )
    del environ["TICKVAULT_INSTRUMENTS_URL"]
    assert call("run", "--duration", "1", environ=environ, folder=tmp_path).returncode == 0
    (tmp_path / "data" / "state.db").unlink()
    assert call("rewind", "--sink", "parquet", "--to-seq", "0", environ=environ, folder=tmp_path).returncode == 0
    asked = "SELECT DISTINCT reason FROM gaps WHERE closed_at IS NOT NULL"
    done = call("query", asked, "--format", "csv", environ=environ, folder=tmp_path)
    assert done.stdout.split() == ['"reason"', '"disconnected"'], done.stderr


def test_a_damaged_state_file_is_named_with_its_cure(tmp_path: Path) -> None:
    """`status` says that the next run rebuilds it, and it does."""
    environ = environ_for("http://127.0.0.1:9", tmp_path / "data")
    assert call("run", "--duration", "0", environ=environ, folder=tmp_path).returncode == 0
    (tmp_path / "data" / "state.db").write_text("garbage" * 1000)
    done = call("status", environ=environ, folder=tmp_path)
    assert done.returncode == 1
    assert "tickvault run" in done.stderr
    assert call("run", "--duration", "0", environ=environ, folder=tmp_path).returncode == 0
    assert call("status", environ=environ, folder=tmp_path).returncode == 0


def test_a_rewind_that_moves_nothing_says_so(tmp_path: Path) -> None:
    """To the cursor: nothing moved; beyond it or to a time yet to come: refused; a stopped recorder's sink is stopped."""
    vault = Vault(tmp_path / "data")
    vault.open()
    vault.append(10)
    vault.deliver(3)
    vault.journal.close()
    vault.drop()
    environ = {"TICKVAULT_DATA_DIR": str(vault.path)}
    for where, code, told in (
        (("--to-seq", "3"), 0, "nothing has moved"),
        (("--to-seq", "4"), 1, "between 0"),
        (("--to-time", "2099-01-01"), 2, "yet to come"),
        (("--to-time", "0001-01-01"), 0, "delivered again"),
        (("--to-seq", "0"), 0, "nothing has moved"),
    ):
        done = call("rewind", "--sink", "parquet", *where, environ=environ, folder=tmp_path)
        assert done.returncode == code, done.stderr
        assert told in done.stdout + done.stderr
    assert stats(vault.path)["sinks"]["parquet"]["state"] == "stopped"
    shown = call("journal", "stats", environ=environ, folder=tmp_path).stdout
    assert "10 frames" in shown


@pytest.mark.parametrize("words", [[], ["journal"], ["instruments"], ["token"]])
def test_what_each_command_does_can_be_read_on_a_narrow_terminal(tmp_path: Path, words: list[str]) -> None:
    """No line of the list of commands is cut off at 80 columns."""
    shown = call(*words, "--help", environ={"COLUMNS": "80"}, folder=tmp_path).stdout
    told = shown.partition("Commands:")[2]
    assert told
    assert "..." not in told
