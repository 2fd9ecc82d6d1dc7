"""Holds what the simulator logged as sent against what a store contains, update by update.

It knows the broker's protocol and the tables that are promised, and nothing of how tickvault makes the one from the
other: it decodes with protobuf messages, one field after the other.
"""

from __future__ import annotations

import base64
import datetime as dt
import json
import math
from collections import Counter, defaultdict
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tickvault.brokers.upstox.proto import market_data_feed_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping
    from pathlib import Path

TICK_FIELDS = (
    "ltp", "ltt", "ltq", "cp", "atp", "vtt", "oi", "iv", "tbq", "tsq", "delta", "theta", "gamma", "vega", "rho",
    "iep", "rp", "ieq", "iiq_total", "iiq_m", "cas_eligible", "bid_price", "ask_price", "bid_qty", "ask_qty",
)  # fmt: skip
_ZERO_IS_NULL = {"atp": "atp", "vtt": "vtt", "oi": "oi", "iv": "iv", "tbq": "tbq", "tsq": "tsq"}
_AUCTION = {"rp": "rp", "ieq": "ieq", "iiq_total": "iiqTotal", "iiq_m": "iiqM"}
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)


def logged_frames(log: Path) -> list[bytes]:
    """Return the payloads of every frame the simulator logged, in order; a torn last line is not a frame."""
    payloads = []
    for line in log.read_bytes().split(b"\n"):
        try:
            payloads.append(base64.b64decode(json.loads(line)["payload"]))
        except (ValueError, KeyError):
            continue
    return payloads


def expected_ticks(payloads: Iterable[bytes]) -> Counter[tuple[Any, ...]]:
    """Return how often each tick, as the table promises it, was sent."""
    return Counter(canonical(row) for payload in payloads for row in ticks_of(payload))


def ticks_of(payload: bytes) -> Iterator[dict[str, Any]]:
    """Yield one row an entry of a frame: time_ms, instrument_key, kind, mode and TICK_FIELDS."""
    frame = pb.FeedResponse.FromString(payload)
    for key, feed in frame.feeds.items():
        row: dict[str, Any] = dict.fromkeys(TICK_FIELDS)
        row |= {
            "time_ms": frame.currentTs,
            "instrument_key": key,
            "kind": "snapshot" if frame.type == pb.initial_feed else "live",
            "mode": pb.RequestMode.Name(feed.requestMode),
        }
        branch = feed.WhichOneof("FeedUnion")
        if branch == "ltpc":
            _ltpc(row, feed.ltpc)
        elif branch == "firstLevelWithGreeks":
            _first_level(row, feed.firstLevelWithGreeks)
        elif branch == "fullFeed":
            full = feed.fullFeed
            if full.WhichOneof("FullFeedUnion") == "marketFF":
                _market(row, full.marketFF)
            elif full.HasField("indexFF") and full.indexFF.HasField("ltpc"):
                _ltpc(row, full.indexFF.ltpc)
        yield row


def expected_candles(payloads: Iterable[bytes]) -> dict[tuple[str, str, int], tuple[Any, ...]]:
    """Return the last version of each candle: (key, interval, start ms) → (open, high, low, close, volume)."""
    last: dict[tuple[str, str, int], tuple[Any, ...]] = {}
    for payload in payloads:
        for key, feed in pb.FeedResponse.FromString(payload).feeds.items():
            full = feed.fullFeed
            market = full.marketFF if full.HasField("marketFF") else full.indexFF
            for one in market.marketOHLC.ohlc:
                if one.interval and one.ts:
                    last[key, one.interval, one.ts] = (one.open, one.high, one.low, one.close, one.vol)
    return last


def expected_statuses(payloads: Iterable[bytes]) -> Counter[tuple[str, str, str]]:
    """Return how often each (scope, segment, status) was sent."""
    found: Counter[tuple[str, str, str]] = Counter()
    for payload in payloads:
        info = pb.FeedResponse.FromString(payload).marketInfo
        found.update(("segment", name, pb.MarketStatus.Name(one)) for name, one in info.segmentStatus.items())
        found.update(("cas", name, one.status) for name, one in info.casMarketStatus.items())
        found.update(("pre_open", name, one.status) for name, one in info.preOpenSessionStatus.items())
    return found


def canonical(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return a tick row as a value that can be counted."""
    return (
        row["time_ms"],
        row["instrument_key"],
        row["kind"],
        row["mode"],
        *(tuple(row[name]) if isinstance(row[name], list) else row[name] for name in TICK_FIELDS),
    )


def stored_tick(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return a row of the Parquet table `ticks` in the same form."""
    values = dict(row)
    values["time_ms"] = _ms(row["time"])
    values["ltt"] = None if row["ltt"] is None else _ms(row["ltt"])
    return canonical(values)


def influx_fields(row: Mapping[str, Any], depth: int) -> dict[str, Any]:
    """Return the fields that a tick has in InfluxDB, without seq and received_at."""
    fields: dict[str, Any] = {}
    for name in TICK_FIELDS:
        value = row[name]
        if name in {"bid_price", "ask_price", "bid_qty", "ask_qty"}:
            fields |= {f"{name}_{level}": one for level, one in enumerate((value or [])[:depth], 1) if one is not None}
        elif value:
            fields[name] = value
    if row["kind"] == "snapshot":
        fields["snapshot"] = True
    return fields


def _ms(at: dt.datetime) -> int:
    return (at - _EPOCH) // dt.timedelta(milliseconds=1)


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _ltpc(row: dict[str, Any], ltpc: Any) -> None:
    row |= {"ltp": _number(ltpc.ltp), "ltt": ltpc.ltt or None, "ltq": ltpc.ltq, "cp": _number(ltpc.cp)}
    if ltpc.HasField("iep"):
        row["iep"] = _number(ltpc.iep.value) or None


def _greeks(row: dict[str, Any], greeks: Any) -> None:
    row |= {name: _number(getattr(greeks, name)) for name in ("delta", "theta", "gamma", "vega", "rho")}


def _book(row: dict[str, Any], quotes: Iterable[Any]) -> None:
    names = {"bid_price": "bidP", "ask_price": "askP", "bid_qty": "bidQ", "ask_qty": "askQ"}
    levels = list(quotes)
    row |= {name: [_number(getattr(one, field)) for one in levels] for name, field in names.items()}


def _first_level(row: dict[str, Any], first: Any) -> None:
    if first.HasField("ltpc"):
        _ltpc(row, first.ltpc)
    if first.HasField("firstDepth"):
        _book(row, [first.firstDepth])
    if first.HasField("optionGreeks"):
        _greeks(row, first.optionGreeks)
    row |= {name: _number(getattr(first, name)) or None for name in ("vtt", "oi", "iv")}


def _market(row: dict[str, Any], market: Any) -> None:
    if market.HasField("ltpc"):
        _ltpc(row, market.ltpc)
    if market.HasField("marketLevel"):
        _book(row, market.marketLevel.bidAskQuote)
    if market.HasField("optionGreeks"):
        _greeks(row, market.optionGreeks)
    names = _ZERO_IS_NULL | _AUCTION
    row |= {name: _number(getattr(market, field)) or None for name, field in names.items()}
    if not (market.HasField("ltpc") and market.ltpc.HasField("iep")):
        row["iep"] = _number(market.iep) or None
    row["cas_eligible"] = market.casEligible


@dataclass(frozen=True, slots=True)
class Held:
    """What a store holds of what was sent.

    Attributes:
        frames: of those sent, so many are there, whole.
        holes: frames that are missing although a later one of their connection is there.
        twice: frames that are there again.
        strange: frames that were never sent so.
        on_the_wire: frames missing at the ends of connections: on their way when one was cut.
    """

    frames: int
    holes: int
    twice: int
    strange: int
    on_the_wire: int


def held(log: Path, ticks: Iterable[Mapping[str, Any]], statuses: Iterable[Mapping[str, Any]]) -> Held:
    """Hold rows of `ticks` and `market_status`, as a store gives them, against everything that was sent.

    A frame is what rows of one seq say; frames of a connection come in the order in which they were sent.
    """
    stored: dict[int, list[tuple[Any, ...]]] = defaultdict(list)
    for row in ticks:
        stored[row["seq"]].append(stored_tick(row))
    for row in statuses:
        stored[row["seq"]].append((row["scope"], row["segment"], row["status"]))
    places: dict[tuple[Any, ...], list[tuple[int, int]]] = defaultdict(list)
    lengths: list[int] = []
    for payloads in connections(log):
        for number, payload in enumerate(payloads):
            rows = [canonical(row) for row in ticks_of(payload)]
            places[_frame(rows + list(expected_statuses([payload]).elements()))].append((len(lengths), number))
        lengths.append(len(payloads))
    twice = strange = 0
    found: dict[int, set[int]] = defaultdict(set)
    for seq in sorted(stored):
        if not (where := places.get(_frame(stored[seq]))):
            strange += 1
            continue
        # Frames that say the same, such as two of a closed market, stand for one another.
        conn, number = next((one for one in where if one[1] not in found[one[0]]), (-1, -1))
        if conn < 0:
            twice += 1
        else:
            found[conn].add(number)
    holes = sum(max(numbers) + 1 - len(numbers) for numbers in found.values() if numbers)
    frames = sum(map(len, found.values()))
    return Held(frames, holes, twice, strange, on_the_wire=sum(lengths) - frames - holes)


def connections(log: Path) -> list[list[bytes]]:
    """Return the payloads that the simulator logged, connection by connection; a torn last line is not a frame."""
    sent: dict[int, list[bytes]] = defaultdict(list)
    for line in log.read_bytes().split(b"\n"):
        try:
            one = json.loads(line)
            sent[one["conn"]].append(base64.b64decode(one["payload"]))
        except (ValueError, KeyError):
            continue
    return list(sent.values())


def as_point(row: Mapping[str, Any], depth: int) -> tuple[Any, ...]:
    """Return a row of the Parquet table `ticks` as the fields of its point in InfluxDB, which can be compared."""
    ltt = None if row["ltt"] is None else _ms(row["ltt"])
    return tuple(sorted(influx_fields({**row, "ltt": ltt}, depth).items()))


def _frame(rows: Iterable[tuple[Any, ...]]) -> tuple[Any, ...]:
    return tuple(sorted(rows, key=repr))
