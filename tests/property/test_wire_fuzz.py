"""The decoder against anything at all, and against a slow decoder that reads protobuf messages one by one."""

from __future__ import annotations

import datetime as dt
import math
import unicodedata
from typing import Any

from doubles import AT_MS, AT_NS, DAY_MS, payload
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tickvault.brokers.upstox.proto import market_data_feed_pb2 as pb
from tickvault.brokers.upstox.wire import Decoded, decode
from tickvault.model import IST, SCHEMAS, TABLES, Definition, Frame

Row = dict[str, Any]

_MAX_MS = (2**63 - 1) // 1_000_000
_EPOCH = dt.datetime(1970, 1, 1, tzinfo=dt.UTC)
DEFINITIONS = {"B": Definition(instrument_key="B", symbol="BEE")}


def frames_of(payloads: list[bytes]) -> list[Frame]:
    return [Frame(seq=n, received_ns=AT_NS + n * 1000, conn=1, payload=one) for n, one in enumerate(payloads, 1)]


def decoded(payloads: list[bytes]) -> Decoded:
    found = decode(frames_of(payloads), recorder_id="r", definitions=DEFINITIONS)
    for name in TABLES:
        found.tables[name].validate(full=True)
        for field in SCHEMAS[name]:
            assert field.nullable or not found.tables[name].column(field.name).null_count, (name, field)
    return found


# -- the slow decoder


class Slow:
    """Decodes frames row by row, from the promises alone."""

    def __init__(self) -> None:
        self.ticks: list[Row] = []
        self.statuses: list[Row] = []
        self.candles: dict[tuple[str, str, int], Row] = {}
        self.rejected: list[tuple[int, str, str]] = []
        self.days: dict[dt.date, list[int]] = {}

    def take(self, seq: int, received_us: int, message: pb.FeedResponse) -> None:
        near = abs(message.currentTs - received_us // 1000) <= DAY_MS
        time_us = message.currentTs * 1000 if message.currentTs and near else received_us
        day = (_EPOCH + dt.timedelta(microseconds=time_us)).astimezone(IST).date()
        self.days.setdefault(day, []).append(seq)
        for key, feed in message.feeds.items():
            if unusable(key) or not key:
                self.rejected.append((seq, "ticks", key))
                continue
            always = {"recorder_id": "r", "seq": seq, "instrument_key": key, "symbol": {"B": "BEE"}.get(key, key)}
            kind = "snapshot" if message.type == pb.initial_feed else "live"
            mode = pb.RequestMode.Name(feed.requestMode) if 0 <= feed.requestMode <= 3 else str(feed.requestMode)
            row = {**always, "time": time_us, "received_at": received_us, "kind": kind, "mode": mode}
            self.ticks.append(row | tick(feed))
            for ohlc in candles(feed):
                self.candle(always, ohlc)
        info = message.marketInfo
        for key, number in info.segmentStatus.items():
            known = 0 <= number < len(pb.MarketStatus.values())
            self.status(seq, time_us, "segment", key, pb.MarketStatus.Name(number) if known else str(number))
        for scope, statuses in (("cas", info.casMarketStatus), ("pre_open", info.preOpenSessionStatus)):
            for key, status in statuses.items():
                updated = status.updatedTime
                self.status(seq, updated * 1000 if 0 < updated < _MAX_MS else time_us, scope, key, status.status)

    def candle(self, always: Row, ohlc: pb.OHLC) -> None:
        if not ohlc.interval or not ohlc.ts:
            return
        if unusable(ohlc.interval) or abs(ohlc.ts) >= _MAX_MS:
            self.rejected.append((always["seq"], "candles", always["instrument_key"]))
            return
        values = {name: finite(getattr(ohlc, name)) for name in ("open", "high", "low", "close")}
        row = {**always, **values, "time": ohlc.ts * 1000, "interval": ohlc.interval, "volume": ohlc.vol}
        self.candles[row["instrument_key"], row["interval"], row["time"]] = row

    def status(self, seq: int, time_us: int, scope: str, key: str, status: str) -> None:
        if unusable(key) or not key:
            self.rejected.append((seq, "market_status", key))
        else:
            self.statuses.append({"time": time_us, "scope": scope, "segment": key, "status": status, "seq": seq})


def unusable(text: str) -> bool:
    return text.endswith("\\") or any(unicodedata.category(one) == "Cc" for one in text)


def finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def unless_zero(value: float) -> float | None:
    return finite(value) if value else None


def tick(feed: pb.Feed) -> Row:
    row: Row = {}
    part: Any = None
    match feed.WhichOneof("FeedUnion"):
        case "ltpc":
            row |= trade(feed.ltpc)
        case "firstLevelWithGreeks":
            part = feed.firstLevelWithGreeks
            row |= {name: unless_zero(getattr(part, name)) for name in ("vtt", "oi", "iv")}
            row |= book([part.firstDepth]) if part.HasField("firstDepth") else {}
        case "fullFeed" if feed.fullFeed.WhichOneof("FullFeedUnion") == "indexFF":
            row |= trade(feed.fullFeed.indexFF.ltpc) if feed.fullFeed.indexFF.HasField("ltpc") else {}
        case "fullFeed" if feed.fullFeed.WhichOneof("FullFeedUnion") == "marketFF":
            part = feed.fullFeed.marketFF
            row["iep"] = unless_zero(part.iep)
            row |= {name: unless_zero(getattr(part, name)) for name in ("atp", "vtt", "oi", "iv", "tbq", "tsq", "rp")}
            row |= {"ieq": part.ieq or None, "iiq_total": part.iiqTotal or None, "iiq_m": part.iiqM or None}
            row["cas_eligible"] = part.casEligible
            row |= book(part.marketLevel.bidAskQuote) if part.HasField("marketLevel") else {}
    if part is not None:
        row |= trade(part.ltpc, row.get("iep")) if part.HasField("ltpc") else {}
        if part.HasField("optionGreeks"):
            row |= {
                name: finite(getattr(part.optionGreeks, name)) for name in ("delta", "theta", "gamma", "vega", "rho")
            }
    return row


def trade(ltpc: pb.LTPC, iep: float | None = None) -> Row:
    return {
        "ltp": finite(ltpc.ltp),
        "ltt": ltpc.ltt if ltpc.ltt and abs(ltpc.ltt) < _MAX_MS else None,
        "ltq": ltpc.ltq,
        "cp": finite(ltpc.cp),
        "iep": unless_zero(ltpc.iep.value) if ltpc.HasField("iep") else iep,
    }


def book(levels: Any) -> Row:
    return {
        "bid_price": [finite(one.bidP) for one in levels],
        "ask_price": [finite(one.askP) for one in levels],
        "bid_qty": [one.bidQ for one in levels],
        "ask_qty": [one.askQ for one in levels],
    }


def candles(feed: pb.Feed) -> Any:
    if feed.WhichOneof("FeedUnion") != "fullFeed":
        return ()
    which = feed.fullFeed.WhichOneof("FullFeedUnion")
    return getattr(feed.fullFeed, which).marketOHLC.ohlc if which else ()


def plain(table: Any) -> list[Row]:
    """Return rows with times as the numbers they are, so that nothing is rounded or refused on the way."""
    columns = {
        field.name: table.column(field.name).cast("int64")
        if str(field.type).startswith("timestamp")
        else table[field.name]
        for field in table.schema
    }
    return [
        dict(zip(columns, values, strict=True))
        for values in zip(*(c.to_pylist() for c in columns.values()), strict=True)
    ]


def ordered(rows: Any) -> list[str]:
    return sorted(repr(sorted((name, value) for name, value in row.items() if value is not None)) for row in rows)


def check(messages: list[pb.FeedResponse], payloads: list[bytes]) -> None:
    slow = Slow()
    for frame, message in zip(frames_of(payloads), messages, strict=True):
        slow.take(frame.seq, frame.received_ns // 1000, message)
    fast = decoded(payloads)
    assert ordered(plain(fast.tables["ticks"])) == ordered(slow.ticks)
    assert ordered(plain(fast.tables["candles"])) == ordered(slow.candles.values())
    assert ordered(plain(fast.tables["market_status"])) == ordered(slow.statuses)
    assert {(one.seq, one.table, one.instrument_key) for one in fast.rejected} == set(slow.rejected)
    assert {day: list(seqs) for day, seqs in fast.days} == slow.days


# -- messages

floats = st.one_of(st.sampled_from([0.0, -0.0, 1.5, math.nan, math.inf, -math.inf]), st.floats())
ints = st.one_of(
    st.sampled_from([0, 1, AT_MS, _MAX_MS, -_MAX_MS, _MAX_MS - 1, 2**63 - 1, -(2**63)]), st.integers(-9, 9)
)
texts = st.one_of(st.sampled_from(["", "A", "B", "a b,c=d", "C\n", "D\\", "\x00", "\x85", "é"]), st.text(max_size=3))


def built(kind: Any, **fields: Any) -> Any:
    """Return messages of a kind in which every field may be missing."""
    return st.fixed_dictionaries({}, optional=fields).map(lambda chosen: kind(**chosen))


iep = st.fixed_dictionaries({}, optional={"value": floats})
ltpc = built(pb.LTPC, ltp=floats, ltt=ints, ltq=ints, cp=floats, iep=iep)
quote = built(pb.Quote, bidQ=ints, bidP=floats, askQ=ints, askP=floats)
greeks = built(pb.OptionGreeks, delta=floats, theta=floats, gamma=floats, vega=floats, rho=floats)
ohlc = built(pb.OHLC, interval=texts, open=floats, high=floats, low=floats, close=floats, vol=ints, ts=ints)
ohlcs = built(pb.MarketOHLC, ohlc=st.lists(ohlc, max_size=3))
level = built(pb.MarketLevel, bidAskQuote=st.lists(quote, max_size=3))
scalars = dict.fromkeys(["atp", "oi", "iv", "tbq", "tsq", "iep", "rp"], floats) | dict.fromkeys(
    ["vtt", "ieq", "iiqTotal", "iiqM"], ints
)
market = built(
    pb.MarketFullFeed,
    ltpc=ltpc, marketLevel=level, optionGreeks=greeks, marketOHLC=ohlcs, casEligible=st.booleans(), **scalars,
)  # fmt: skip
index = built(pb.IndexFullFeed, ltpc=ltpc, marketOHLC=ohlcs)
first = built(pb.FirstLevelWithGreeks, ltpc=ltpc, firstDepth=quote, optionGreeks=greeks, vtt=ints, oi=floats, iv=floats)
numbers = st.integers(-1, 9)
feed = st.one_of(
    built(pb.Feed, ltpc=ltpc, requestMode=numbers),
    built(pb.Feed, fullFeed=built(pb.FullFeed, marketFF=market), requestMode=numbers),
    built(pb.Feed, fullFeed=built(pb.FullFeed, indexFF=index), requestMode=numbers),
    built(pb.Feed, firstLevelWithGreeks=first, requestMode=numbers),
)
status = built(pb.StatusInfo, status=texts, updatedTime=ints)
info = built(
    pb.MarketInfo,
    segmentStatus=st.dictionaries(texts, numbers, max_size=2),
    casMarketStatus=st.dictionaries(texts, status, max_size=2),
    preOpenSessionStatus=st.dictionaries(texts, status, max_size=2),
)
times = st.one_of(ints, st.integers(AT_MS - DAY_MS - 2, AT_MS - DAY_MS + 2), st.integers(AT_MS - 9, AT_MS + DAY_MS + 2))
message = built(
    pb.FeedResponse,
    type=numbers, feeds=st.dictionaries(texts, feed, max_size=3), currentTs=times, marketInfo=info,
)  # fmt: skip

SLOW = [HealthCheck.too_slow, HealthCheck.data_too_large]


@settings(max_examples=250, deadline=None, suppress_health_check=SLOW)
@given(st.lists(message, max_size=4))
def test_the_decoder_agrees_with_a_slow_one(messages: list[pb.FeedResponse]) -> None:
    """Equal tables, rejections and days, whatever the messages hold."""
    check(messages, [one.SerializeToString() for one in messages])


@settings(max_examples=60, deadline=None, suppress_health_check=SLOW)
@given(st.lists(st.tuples(message, message), min_size=1, max_size=2))
def test_concatenated_messages_are_one_message(pairs: list[tuple[pb.FeedResponse, pb.FeedResponse]]) -> None:
    """Two serialized messages in a row are their merge: of equal map keys the last wins."""
    payloads = [one.SerializeToString() + two.SerializeToString() for one, two in pairs]
    check([pb.FeedResponse.FromString(one) for one in payloads], payloads)


def mutated(body: bytes, where: int, change: bytes, cut: int) -> bytes:
    where %= len(body) + 1
    return body[:where] + change + body[where + cut :]


garbage = st.one_of(
    st.binary(max_size=40),
    st.builds(
        mutated,
        st.builds(payload, st.integers(0, 9)),
        st.integers(0, 200),
        st.binary(max_size=4),
        st.integers(0, 4),
    ),
    st.builds(lambda one, *rest: mutated(one.SerializeToString(), *rest), message, st.integers(0, 99), st.binary(max_size=2), st.integers(0, 2)),
)  # fmt: skip


@settings(max_examples=250, deadline=None, suppress_health_check=SLOW)
@example([b"\x12\x03\x0a\x01K", payload(1), b"\x12\x00", b"\x22\x05\x12\x03\x0a\x01S"])
@example([mutated(payload(0), 4, b"\x99\x00\x00\x00", 4)])
@given(st.lists(garbage, min_size=1, max_size=4))
def test_any_bytes_give_rows_or_a_rejection(bodies: list[bytes]) -> None:
    """Nothing but a result: every frame decodes or is rejected whole, and a good frame beside it is a row."""
    good = payload(5)
    found = decoded([*bodies, good])
    whole = {one.seq for one in found.rejected if one.table == "frame"}
    assert {seq for _, seqs in found.days for seq in seqs} == set(range(1, len(bodies) + 2)) - whole
    assert len(bodies) + 1 in found.tables["ticks"]["seq"].to_pylist()
    for one in found.rejected:
        if one.table == "frame":
            assert one.body == [*bodies, good][one.seq - 1]
        else:  # its letter has the piece alone, which is as unusable by itself
            again = {(piece.table, piece.instrument_key) for piece in decoded([one.body]).rejected}
            assert (one.table, one.instrument_key) in again
