"""Downstream is told by webhook, once the data is stored, however often the receiver was away."""

from __future__ import annotations

import hashlib
import hmac
import json
from contextlib import closing
from typing import TYPE_CHECKING

import pytest
from programs import environ_for, globbed, recorder, simulator, stats
from servers import free_ports, influxd, wait_until
from webhooks import Receiver, receiver

from tickvault.state import open_reader

if TYPE_CHECKING:
    from pathlib import Path

SECRET = "webhook-secret"


def test_every_stored_row_is_told_of_although_the_receiver_was_away(tmp_path: Path) -> None:
    """Away at first, then failing, then killed with us: in the end the rows told of are the rows stored; signatures hold."""
    data, (port,) = tmp_path / "data", free_ports(1)
    with influxd(tmp_path / "influx") as influx, simulator(tmp_path, "--instruments", "20") as (url, simulated):
        environ = environ_for(
            url, data, INFLUX_URL=influx.url, INFLUX_BUCKET="b", TICKVAULT_NOTIFY_URL=f"http://127.0.0.1:{port}/told",
            TICKVAULT_NOTIFY_SECRET=SECRET, TICKVAULT_NOTIFY_INTERVAL_S="1", TICKVAULT_NOTIFY_RETRY_S="1",
        )  # fmt: skip
        with recorder(tmp_path, environ) as recording:
            wait_until(lambda: _cursor(data) > 5, "rows are stored while nobody listens")
            recording.kill()
        with receiver(port) as kept:
            kept.status = 500
            with recorder(tmp_path, environ) as recording:
                before = _cursor(data)
                wait_until(lambda: _cursor(data) > before + 5, "rows are stored while the receiver fails")
                kept.status = 200
                wait_until(lambda: bool(kept.events("data.stored")), "it is told")
                assert simulated.stop() == 0
                last = stats(data)["last_seq"]
                wait_until(lambda: _told(kept) >= last, "it is told of everything")
                assert recording.stop() == 0
    stored = [event for event in kept.events("data.stored") if event["sink"] == "influx"]
    ids = [event["id"] for event in stored]
    assert len(set(ids)) == len(ids)
    rows = sum(len(globbed(data, table)) for table in ("ticks", "market_status"))
    # Candles are written once per batch and gaps when they close, so there are more rows told of than ticks and statuses.
    assert sum(event["rows"] for event in stored) >= rows
    assert max(event["high_water_seq"] for event in stored) == stats(data)["last_seq"]
    assert {event["message"] for event in stored} == {"Data feed has been successfully transferred to InfluxDB"}
    assert all(isinstance(event["from"], int) and event["from"] <= event["to"] for event in stored)
    assert kept.events("gap.opened")
    assert kept.events("gap.closed")
    for headers, body in kept.posts:
        wanted = "sha256=" + hmac.new(SECRET.encode(), body, hashlib.sha256).hexdigest()
        assert headers["X-Tickvault-Signature"] == wanted
        assert headers["X-Tickvault-Event-Id"] == json.loads(body)["id"]


@pytest.mark.parametrize("end", ["SIGTERM", "SIGKILL"])
def test_what_a_hanging_receiver_did_not_answer_is_told_again_after_a_restart(tmp_path: Path, end: str) -> None:
    """A receiver that accepts and never answers holds up no end; afterwards the same events come, under their ids."""
    data, (port,) = tmp_path / "data", free_ports(1)
    with receiver(port) as kept, simulator(tmp_path, "--instruments", "5") as (url, _):
        environ = environ_for(
            url, data, TICKVAULT_NOTIFY_URL=f"http://127.0.0.1:{port}/told", TICKVAULT_NOTIFY_INTERVAL_S="0",
            TICKVAULT_SHUTDOWN_S="4",
        )  # fmt: skip
        kept.answering.clear()
        with recorder(tmp_path, environ) as recording:
            wait_until(lambda: bool(kept.hung) and stats(data)["last_seq"] > 5, "frames come, and a post hangs")
            if end == "SIGTERM":
                assert recording.stop(within_s=30) == 0
            else:
                recording.kill()
        assert kept.posts == []
        waiting = _outbox(data)
        kinds = {json.loads(body)["event"] for body in waiting.values()}
        assert kinds >= ({"gap.opened", "gap.closed", "data.stored"} if end == "SIGTERM" else {"gap.opened"})
        hung = {headers["X-Tickvault-Event-Id"]: body for headers, body in kept.hung}
        assert {name: waiting[name].encode() for name in hung} == hung
        kept.answering.set()
        with recorder(tmp_path, environ) as recording:
            wait_until(lambda: waiting.keys() <= _taken(kept).keys(), "all that waited is told")
            assert recording.stop() == 0
    assert {name: _taken(kept)[name] for name in hung} == hung
    told = [headers["X-Tickvault-Event-Id"] for headers, _ in kept.posts]
    assert len(set(told)) == len(told)
    gaps = [
        event["event"] for event in (json.loads(body) for _, body in kept.posts) if event["event"].startswith("gap")
    ]
    assert gaps[:2] == ["gap.opened", "gap.closed"]


def _outbox(data: Path) -> dict[str, str]:
    """Return id → body of what waits."""
    with closing(open_reader(data / "state.db")) as db:
        return dict(db.execute("SELECT id, body FROM outbox").fetchall())


def _taken(kept: Receiver) -> dict[str, bytes]:
    return {headers["X-Tickvault-Event-Id"]: body for headers, body in kept.posts}


def _cursor(data: Path) -> int:
    found: int = stats(data)["sinks"].get("influx", {}).get("cursor_seq", 0)
    return found


def _told(kept: Receiver) -> int:
    return max(
        (event["high_water_seq"] for event in kept.events("data.stored") if event["sink"] == "influx"), default=0
    )
