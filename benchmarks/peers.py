"""What others make of the same frames, on one core, against L.

The official SDK decodes with `MessageToDict`; here that is fed ready frames, without its socket. `influxdb-client` gets a
`Point` a row and has its batching writer encode them, without a server; `questdb` fills its buffer from rows, as an encoder.
The rows of both are those of our tables, already decoded. They are installed for this only, by `make bench`, beside the
environment.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from google.protobuf.json_format import MessageToDict

from benchmarks.columns import against_l, one_core
from benchmarks.frames import definitions, frames, parse
from benchmarks.rows import Row, alternate
from tickvault.brokers.upstox.proto import market_data_feed_pb2 as pb
from tickvault.brokers.upstox.wire import decode

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["TITLE", "rows"]

TITLE: Final = "Peers"
_ROUNDS: Final = 3
_UPDATES: Final = 2_000


def rows(_: object) -> list[Row]:
    """Measure those that are installed."""
    one_core()
    sys.path.append(str(Path("build/peers").resolve()))
    of = frames(200, updates=_UPDATES)
    payloads = of.payloads
    ticks = decode(of.frames, recorder_id="0123456789ab", definitions=definitions()).tables["ticks"].to_pylist()
    work: dict[str, Callable[[], object]] = {
        "L": lambda: parse(payloads),
        "the SDK's MessageToDict": lambda: [MessageToDict(pb.FeedResponse.FromString(one)) for one in payloads],
    }
    missing = []
    for name, module, encode in (
        ("influxdb-client, Point, encoding alone", "influxdb_client", _points),
        ("questdb, buffer, encoding alone", "questdb", _buffer),
    ):
        if importlib.util.find_spec(module) is None:
            missing.append(Row(name, f"NOT INSTALLED: {module}", "", 0.0))
        else:
            work[name] = lambda encode=encode: encode(ticks)
    spent = alternate(work, _ROUNDS)
    return [against_l(f"peer: {name}", of, spent, name, None) for name in work if name != "L"] + missing


def _fields(row: dict[str, Any]) -> dict[str, Any]:
    """Return what the tick measurement has of a row: numbers, and five levels of the book."""
    fields = {name: value for name, value in row.items() if isinstance(value, int | float) and value}
    for name in ("bid_price", "ask_price", "bid_qty", "ask_qty"):
        fields |= {f"{name}_{level}": value for level, value in enumerate(row[name] or (), 1)}
    return fields


def _points(ticks: list[dict[str, Any]]) -> int:
    from influxdb_client import Point, WritePrecision

    size = 0
    for row in ticks:
        point = Point("tick").tag("instrument_key", row["instrument_key"]).tag("symbol", row["symbol"])
        for name, value in _fields(row).items():
            point.field(name, value)
        size += len(point.time(row["time"], WritePrecision.NS).to_line_protocol())
    return size


def _buffer(ticks: list[dict[str, Any]]) -> int:
    from questdb.ingress import Buffer, TimestampNanos

    buffer = Buffer(protocol_version=1)
    for row in ticks:
        symbols = {"instrument_key": row["instrument_key"], "symbol": row["symbol"]}
        at = TimestampNanos(int(row["time"].timestamp() * 1e9))
        buffer.row("tick", symbols=symbols, columns=_fields(row), at=at)
    return len(buffer)
