"""The decoder, rule by rule; tests/property/test_wire_fuzz.py holds it against a slow one."""

from __future__ import annotations

import datetime as dt
import math
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pytest
from doubles import AT_MS, AT_NS, DAY_MS

from tickvault.brokers.upstox import parsing
from tickvault.brokers.upstox.proto import market_data_feed_pb2 as pb
from tickvault.brokers.upstox.wire import Decoded, decode, instrument_rows, last_versions
from tickvault.model import SCHEMAS, TABLES, Definition, Frame

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

KEY = "NSE_EQ|INE531E01026"
BAD_KEYS = ("", "NSE_EQ|A\n", "A\x00B", "A\x7f", "A\x85B", "NSE_EQ|A\\")
BAD_INTERVALS = ("I1\n", "\x00", "I1\x7f", "I\x9f1", "I1\\")
INT64 = (2**63 - 1, -(2**63), 2**62, -(2**62))


def message(**fields: Any) -> pb.FeedResponse:
    return pb.FeedResponse(**{"type": pb.live_feed, "currentTs": AT_MS, **fields})


def market(key: str = KEY, **fields: Any) -> pb.FeedResponse:
    """Return a frame of one full feed with the marketFF fields given."""
    feed = pb.Feed(fullFeed=pb.FullFeed(marketFF=pb.MarketFullFeed(**fields)), requestMode=pb.full_d5)
    return message(feeds={key: feed})


def run(*payloads: pb.FeedResponse | bytes, definitions: dict[str, Definition] | None = None) -> Decoded:
    frames = [
        Frame(
            seq=number,
            received_ns=AT_NS + number,
            conn=1,
            payload=one if isinstance(one, bytes) else one.SerializeToString(),
        )
        for number, one in enumerate(payloads, 1)
    ]
    decoded = decode(frames, recorder_id="r", definitions=definitions or {})
    for name in TABLES:
        assert decoded.tables[name].schema == SCHEMAS[name]
        decoded.tables[name].validate(full=True)
    return decoded


def rows(decoded: Decoded, table: str = "ticks") -> list[dict[str, Any]]:
    return decoded.tables[table].to_pylist()


def only(decoded: Decoded, table: str = "ticks") -> dict[str, Any]:
    assert not decoded.rejected
    [row] = rows(decoded, table)
    return row


def test_an_entry_without_anything_is_a_row_of_nulls() -> None:
    """A sub-message that is not on the wire gives nulls."""
    row = only(run(message(feeds={KEY: pb.Feed()})))
    always = {"time", "received_at", "recorder_id", "seq", "instrument_key", "symbol", "kind", "mode"}
    assert {name for name, value in row.items() if value is not None} == always
    assert (row["instrument_key"], row["symbol"], row["kind"], row["mode"]) == (KEY, KEY, "live", "ltpc")


def test_a_map_entry_without_a_value_is_a_row_of_nulls() -> None:
    """Protobuf leaves a default value out; the entry is there all the same."""
    body = message().SerializeToString() + b"\x12\x03\x0a\x01K"
    assert only(run(body))["instrument_key"] == "K"
    status = message().SerializeToString() + b"\x22\x05\x12\x03\x0a\x01S" + b"\x22\x05\x0a\x03\x0a\x01T"
    found = {row["scope"]: (row["segment"], row["status"]) for row in rows(run(status), "market_status")}
    assert found == {"cas": ("S", ""), "segment": ("T", "PRE_OPEN_START")}


def test_an_index_feed_has_price_and_candles_and_no_book() -> None:
    """An index is a full feed of its own kind."""
    index = pb.IndexFullFeed(ltpc=pb.LTPC(ltp=24_000.5, ltt=AT_MS, cp=23_900.0))
    index.marketOHLC.ohlc.add(interval="1d", open=1.0, ts=AT_MS)
    decoded = run(message(feeds={"NSE_INDEX|Nifty 50": pb.Feed(fullFeed=pb.FullFeed(indexFF=index))}))
    row = only(decoded)
    assert (row["ltp"], row["ltq"], row["cp"], row["bid_price"], row["atp"]) == (24_000.5, 0, 23_900.0, None, None)
    assert only(decoded, "candles")["open"] == 1.0


def test_a_frame_with_only_a_book_has_a_book_and_no_price() -> None:
    """Absent is not zero: a missing ltpc gives nulls beside the levels."""
    level = pb.MarketLevel(bidAskQuote=[pb.Quote(bidQ=1, bidP=2.0, askQ=0, askP=0.0), pb.Quote()])
    row = only(run(market(marketLevel=level)))
    assert (row["bid_price"], row["bid_qty"]) == ([2.0, 0.0], [1, 0])
    assert (row["ask_price"], row["ask_qty"]) == ([0.0, 0.0], [0, 0])
    assert (row["ltp"], row["ltt"], row["delta"]) == (None, None, None)


def test_a_book_of_thirty_levels_is_kept_whole() -> None:
    """As many levels as the wire has, level 1 first."""
    level = pb.MarketLevel(bidAskQuote=[pb.Quote(bidQ=n, bidP=100.0 - n) for n in range(30)])
    row = only(run(market(marketLevel=level)))
    assert row["bid_qty"] == list(range(30))


def test_books_of_different_depth_do_not_run_into_one_another() -> None:
    """Each row has its own levels: none, empty, one, two."""
    books = [
        market(atp=1.0),
        market(marketLevel=pb.MarketLevel()),
        market(marketLevel=pb.MarketLevel(bidAskQuote=[pb.Quote(bidQ=1)])),
        market(marketLevel=pb.MarketLevel(bidAskQuote=[pb.Quote(bidQ=2), pb.Quote(bidQ=3)])),
    ]
    assert [row["bid_qty"] for row in rows(run(*books))] == [None, [], [1], [2, 3]]


def test_the_first_level_with_greeks_fills_the_same_columns() -> None:
    """option_greeks mode has one level, greeks, and three scalars."""
    feed = pb.Feed(requestMode=pb.option_greeks)
    feed.firstLevelWithGreeks.ltpc.ltp = 5.0
    feed.firstLevelWithGreeks.firstDepth.bidQ = 7
    feed.firstLevelWithGreeks.optionGreeks.delta = 0.5
    feed.firstLevelWithGreeks.vtt = 9
    row = only(run(message(feeds={KEY: feed})))
    assert (row["ltp"], row["bid_qty"], row["bid_price"], row["delta"], row["theta"]) == (5.0, [7], [0.0], 0.5, 0.0)
    assert (row["vtt"], row["oi"], row["iv"], row["mode"]) == (9, None, None, "option_greeks")


def test_zeroes_that_cannot_be_told_from_not_sent_are_null() -> None:
    """Scalars and auction fields lose their zeroes; price, greeks and book keep theirs."""
    row = only(run(market(ltpc=pb.LTPC(), optionGreeks=pb.OptionGreeks(), iep=0.0)))
    for name in ("atp", "vtt", "oi", "iv", "tbq", "tsq", "iep", "rp", "ieq", "iiq_total", "iiq_m", "ltt"):
        assert row[name] is None, name
    for name in ("ltp", "ltq", "cp", "delta", "theta", "gamma", "vega", "rho"):
        assert row[name] == 0, name
    assert row["cas_eligible"] is False


def test_scalars_come_under_their_column_names() -> None:
    """Every scalar of a full feed has its column."""
    row = only(
        run(market(atp=1.5, vtt=2, oi=3.0, iv=4.0, tbq=5.0, tsq=6.0, rp=7.0, ieq=8, iiqTotal=9, iiqM=10, iep=11.0))
    )
    names = ("atp", "vtt", "oi", "iv", "tbq", "tsq", "rp", "ieq", "iiq_total", "iiq_m", "iep")
    assert [row[name] for name in names] == [1.5, 2, 3.0, 4.0, 5.0, 6.0, 7.0, 8, 9, 10, 11.0]


def test_the_auction_price_of_the_trade_goes_before_that_of_the_feed() -> None:
    """`ltpc.iep` if it is there, else `marketFF.iep`."""
    trade = pb.LTPC()
    trade.iep.value = 2.0
    assert only(run(market(ltpc=trade, iep=3.0)))["iep"] == 2.0
    assert only(run(market(ltpc=pb.LTPC(), iep=3.0)))["iep"] == 3.0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_null_everywhere(value: float) -> None:
    """NaN and infinities are nulls in scalars, greeks, levels and candles."""
    frame = market(
        ltpc=pb.LTPC(ltp=value, ltq=1),
        atp=value,
        optionGreeks=pb.OptionGreeks(delta=value),
        marketLevel=pb.MarketLevel(bidAskQuote=[pb.Quote(bidP=value, askP=1.0)]),
    )
    frame.feeds[KEY].fullFeed.marketFF.marketOHLC.ohlc.add(interval="I1", open=value, close=1.0, ts=AT_MS)
    decoded = run(frame)
    row, candle = only(decoded), only(decoded, "candles")
    assert (row["ltp"], row["atp"], row["delta"], row["bid_price"], row["ask_price"]) == (
        None,
        None,
        None,
        [None],
        [1.0],
    )
    assert (candle["open"], candle["close"]) == (None, 1.0)


@pytest.mark.parametrize("current", [0, -1, AT_MS - DAY_MS - 1, AT_MS + DAY_MS + 1, *INT64])
def test_a_time_that_cannot_be_is_replaced_by_that_of_receipt(current: int) -> None:
    """A currentTs of 0 or more than a day off gives the receive time, and is counted."""
    decoded = run(message(currentTs=current, feeds={KEY: pb.Feed()}))
    assert (only(decoded)["time"], decoded.restamped) == (only(decoded)["received_at"], 1)


@pytest.mark.parametrize("current", [AT_MS - DAY_MS, AT_MS + DAY_MS, AT_MS + 1])
def test_a_time_within_a_day_is_kept_exactly(current: int) -> None:
    """The frame's own time is its time."""
    decoded = run(message(currentTs=current, feeds={KEY: pb.Feed()}))
    assert only(decoded)["time"] == dt.datetime.fromtimestamp(current / 1000, dt.UTC)
    assert decoded.restamped == 0


def test_two_frames_of_one_millisecond_stay_two() -> None:
    """Identity is the seq, not the time."""
    decoded = run(market(atp=1.0), market(atp=2.0))
    assert [(row["seq"], row["atp"]) for row in rows(decoded)] == [(1, 1.0), (2, 2.0)]


def test_of_a_key_sent_twice_in_a_frame_the_last_wins() -> None:
    """Concatenated messages are one message whose later entries replace the earlier."""
    info = pb.MarketInfo(segmentStatus={"NSE_EQ": pb.PRE_OPEN_START})
    later = pb.MarketInfo(segmentStatus={"NSE_EQ": pb.NORMAL_OPEN})
    first, second = market(atp=1.0), market(atp=2.0)
    first.marketInfo.CopyFrom(info)
    second.marketInfo.CopyFrom(later)
    decoded = run(first.SerializeToString() + second.SerializeToString(), market(atp=3.0))
    assert [row["atp"] for row in rows(decoded)] == [2.0, 3.0]
    assert only(decoded, "market_status")["status"] == "NORMAL_OPEN"


@pytest.mark.parametrize("first", ["ltpc", "fullFeed", "firstLevelWithGreeks", "indexFF"])
@pytest.mark.parametrize("second", ["ltpc", "fullFeed", "firstLevelWithGreeks", "indexFF"])
def test_of_branches_of_which_only_one_may_be_the_last_wins_and_the_same_are_merged(first: str, second: str) -> None:
    """As protobuf has it, whatever the order; no library writes such an entry."""
    entry = b"".join(_branch(name, ltp=price).SerializeToString() for name, price in ((first, 5.0), (second, 0.0)))
    payload = _with_entry(entry)
    canonical = pb.FeedResponse.FromString(payload).SerializeToString()
    assert payload != canonical
    assert rows(run(payload, market(atp=1.0))) == rows(run(canonical, market(atp=1.0)))


def _branch(name: str, ltp: float) -> pb.Feed:
    ltpc = pb.LTPC(ltp=ltp) if ltp else pb.LTPC(cp=2.0)
    if name == "ltpc":
        return pb.Feed(ltpc=ltpc)
    if name == "firstLevelWithGreeks":
        return pb.Feed(firstLevelWithGreeks=pb.FirstLevelWithGreeks(ltpc=ltpc))
    if name == "indexFF":
        return pb.Feed(fullFeed=pb.FullFeed(indexFF=pb.IndexFullFeed(ltpc=ltpc)))
    return pb.Feed(fullFeed=pb.FullFeed(marketFF=pb.MarketFullFeed(ltpc=ltpc)))


def _with_entry(entry: bytes) -> bytes:
    """Return a frame of one feed entry of these bytes."""
    whole = message(feeds={KEY: pb.Feed(ltpc=pb.LTPC(ltp=1.0))}).SerializeToString()
    [value] = (feed.SerializeToString() for feed in pb.FeedResponse.FromString(whole).feeds.values())
    key = b"\x0a" + bytes([len(KEY)]) + KEY.encode()
    old, new = (key + b"\x12" + bytes([len(one)]) + one for one in (value, entry))
    return whole.replace(b"\x12" + bytes([len(old)]) + old, b"\x12" + bytes([len(new)]) + new)


def test_numbers_of_enums_we_do_not_know_are_told_as_digits() -> None:
    """A newer broker's mode or status is a row, not a failure."""
    info = pb.MarketInfo(segmentStatus={"NSE_EQ": 99})
    decoded = run(message(type=7, feeds={KEY: pb.Feed(requestMode=42)}, marketInfo=info))
    assert (only(decoded)["mode"], only(decoded)["kind"]) == ("42", "live")
    assert only(decoded, "market_status")["status"] == "99"


def test_fields_we_do_not_know_are_passed_over() -> None:
    """A newer broker's additions harm nothing."""
    body = market(atp=1.0).SerializeToString() + b"\xfa\x7f\x03abc" + b"\xf8\x7f\x01"
    assert only(run(body))["atp"] == 1.0


@pytest.mark.parametrize("key", BAD_KEYS)
def test_a_key_that_no_store_can_hold_is_rejected_alone(key: str) -> None:
    """The entry is a dead letter with its own bytes, which yield it again; its neighbours are rows."""
    frame = market(atp=1.0)
    frame.feeds[key].fullFeed.marketFF.atp = 2.0
    frame.feeds[key].fullFeed.marketFF.marketOHLC.ohlc.add(interval="I1", ts=AT_MS)
    frame.marketInfo.segmentStatus[key] = pb.NORMAL_OPEN
    decoded = run(frame)
    assert [row["atp"] for row in rows(decoded)] == [1.0]
    assert rows(decoded, "candles") == rows(decoded, "market_status") == []
    assert {(one.seq, one.table, one.instrument_key) for one in decoded.rejected} == {
        (1, "ticks", key),
        (1, "market_status", key),
    }
    assert all("unusable key" in one.reason for one in decoded.rejected)
    for one in decoded.rejected:
        piece = pb.FeedResponse.FromString(one.body)
        assert (list(piece.feeds), list(piece.marketInfo.segmentStatus)) == (
            ([key], []) if one.table == "ticks" else ([], [key])
        )
        assert (piece.type, piece.currentTs) == (frame.type, frame.currentTs)
        assert [(again.table, again.instrument_key) for again in run(piece).rejected] == [(one.table, key)]


@pytest.mark.parametrize("key", ["NSE_INDEX|Nifty 50", "A,b=c d", "MCX_FO|\\x", "é|₹", "'\"|`;--"])
def test_a_key_with_odd_but_printable_characters_is_kept_as_it_is(key: str) -> None:
    """Spaces, commas and equals signs are the sinks' business."""
    frame = market(key, atp=1.0)
    assert only(run(frame))["instrument_key"] == key


@pytest.mark.parametrize("interval", BAD_INTERVALS)
def test_a_candle_whose_interval_no_store_can_hold_is_rejected_alone(interval: str) -> None:
    """The interval becomes a measurement or a tag, so it obeys the rules of a key."""
    frame = market(atp=1.0)
    ohlc = frame.feeds[KEY].fullFeed.marketFF.marketOHLC.ohlc
    ohlc.add(interval=interval, ts=AT_MS)
    ohlc.add(interval="1d", ts=AT_MS)
    decoded = run(frame)
    assert [row["interval"] for row in rows(decoded, "candles")] == ["1d"]
    [rejected] = decoded.rejected
    assert (rejected.table, rejected.instrument_key) == ("candles", KEY)
    assert "unusable interval" in rejected.reason
    assert len(rows(decoded)) == 1


def test_a_candle_without_interval_or_start_is_no_row() -> None:
    """An empty OHLC entry means that there is none."""
    frame = market(atp=1.0)
    ohlc = frame.feeds[KEY].fullFeed.marketFF.marketOHLC.ohlc
    ohlc.add()
    ohlc.add(interval="I1", open=1.0)
    ohlc.add(ts=AT_MS, open=1.0)
    decoded = run(frame)
    assert (rows(decoded, "candles"), decoded.rejected) == ([], ())


@pytest.mark.parametrize("value", INT64)
def test_times_beyond_every_calendar_neither_wrap_nor_pass(value: int) -> None:
    """A candle is rejected, a last trade time is null, a status takes the frame's time."""
    frame = market(ltpc=pb.LTPC(ltp=1.0, ltt=value))
    frame.feeds[KEY].fullFeed.marketFF.marketOHLC.ohlc.add(interval="I1", ts=value)
    frame.marketInfo.casMarketStatus["NSE_EQ"].updatedTime = value
    decoded = run(frame)
    assert [(row["ltp"], row["ltt"]) for row in rows(decoded)] == [(1.0, None)]
    assert rows(decoded, "candles") == []
    assert rows(decoded, "market_status")[0]["time"] == rows(decoded)[0]["time"]
    assert [one.table for one in decoded.rejected] == ["candles"]


def test_of_a_candle_in_several_versions_the_last_is_kept() -> None:
    """The highest seq wins; within a frame the later entry."""
    first, second, third = market(atp=1.0), market(atp=1.0), market(atp=1.0)
    first.feeds[KEY].fullFeed.marketFF.marketOHLC.ohlc.add(interval="I1", ts=AT_MS, open=1.0)
    for value in (2.0, 3.0):
        second.feeds[KEY].fullFeed.marketFF.marketOHLC.ohlc.add(interval="I1", ts=AT_MS, open=value)
    third.feeds[KEY].fullFeed.marketFF.marketOHLC.ohlc.add(interval="I1", ts=AT_MS + 60_000, open=4.0)
    candles = run(first, second, third).tables["candles"]
    assert [(row["open"], row["seq"]) for row in candles.to_pylist()] == [(3.0, 2), (4.0, 3)]
    assert last_versions(candles.slice(0, 0)).num_rows == 0


def test_statuses_carry_scope_words_and_their_own_time() -> None:
    """Segments have enum names; cas and pre-open have the broker's words and times."""
    frame = message(type=pb.market_info)
    frame.marketInfo.segmentStatus["NSE_EQ"] = pb.NORMAL_CLOSE
    frame.marketInfo.casMarketStatus["NSE_FO"].status = "Open, for now"
    frame.marketInfo.casMarketStatus["NSE_FO"].updatedTime = AT_MS - 1000
    frame.marketInfo.preOpenSessionStatus["BSE_EQ"].status = ""
    found = {row["scope"]: (row["segment"], row["status"]) for row in rows(run(frame), "market_status")}
    assert found == {
        "segment": ("NSE_EQ", "NORMAL_CLOSE"),
        "cas": ("NSE_FO", "Open, for now"),
        "pre_open": ("BSE_EQ", ""),
    }
    times = {row["scope"]: row["time"] for row in rows(run(frame), "market_status")}
    assert times["segment"] - times["cas"] == dt.timedelta(seconds=1)


def test_market_info_sent_twice_in_a_frame_is_merged() -> None:
    """So does protobuf; the frame beside it is read as ever."""
    twice = [message(marketInfo=pb.MarketInfo(segmentStatus={name: pb.NORMAL_OPEN})) for name in ("NSE_EQ", "BSE_EQ")]
    decoded = run(b"".join(one.SerializeToString() for one in twice), twice[0])
    found = sorted((row["seq"], row["segment"]) for row in rows(decoded, "market_status"))
    assert (found, decoded.rejected) == ([(1, "BSE_EQ"), (1, "NSE_EQ"), (2, "NSE_EQ")], ())


def test_entries_of_every_branch_stand_in_their_order() -> None:
    """Entries that few have are parsed apart, and come back between the others with what is theirs."""
    full = market(ltpc=pb.LTPC(ltp=1.0), marketOHLC=pb.MarketOHLC(ohlc=[pb.OHLC(interval="1d", open=1, ts=AT_MS)]))
    index = pb.IndexFullFeed(
        ltpc=pb.LTPC(ltp=2.0), marketOHLC=pb.MarketOHLC(ohlc=[pb.OHLC(interval="1d", open=2, ts=AT_MS)])
    )
    first = pb.FirstLevelWithGreeks(ltpc=pb.LTPC(ltp=4.0), firstDepth=pb.Quote(bidP=4.5), vtt=4)
    entries = [
        full.feeds[KEY],
        pb.Feed(fullFeed=pb.FullFeed(indexFF=index)),
        pb.Feed(ltpc=pb.LTPC(ltp=3.0)),
        pb.Feed(firstLevelWithGreeks=first),
        pb.Feed(),
        full.feeds[KEY],
    ]
    decoded = run(*(message(feeds={f"K{number}": one}) for number, one in enumerate(entries)))
    assert [row["ltp"] for row in rows(decoded)] == [1.0, 2.0, 3.0, 4.0, None, 1.0]
    assert [row["bid_price"] for row in rows(decoded)] == [None, None, None, [4.5], None, None]
    assert [row["vtt"] for row in rows(decoded)] == [None, None, None, 4, None, None]
    candles = [(row["instrument_key"], row["open"]) for row in rows(decoded, "candles")]
    assert candles == [("K0", 1.0), ("K1", 2.0), ("K5", 1.0)]


def test_frames_that_do_not_decode_are_found_between_good_ones() -> None:
    """Bisection leaves every good frame its rows, and gives every bad one its reason and bytes."""
    bad = {
        3: b"\xff\xff\xff",
        4: b"\x12\x05",
        8: market(atp=1.0).SerializeToString()[:-1],
        20: b"\x12\x04\x0a\x02\xff\xfe",
    }
    decoded = run(*(bad.get(number, market(atp=1.0)) for number in range(1, 21)))
    assert [row["seq"] for row in rows(decoded)] == [number for number in range(1, 21) if number not in bad]
    assert {one.seq: one.body for one in decoded.rejected} == bad
    assert all(one.table == "frame" and one.reason.startswith("does not decode") for one in decoded.rejected)


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        pytest.param(b"\x7b" * 1_000_000, "expected a protobuf message", id="groups without end"),
        pytest.param(b"\x7b" * 70_000 + b"\x12\x00" * 9000, "expected a protobuf message", id="groups, then entries"),
        pytest.param(b"\x12\xc0\x84\x3d" + b"\x7b" * 1_000_000, "at most 65536 bytes", id="groups in an entry"),
        pytest.param(b"\x7b" * 80_000, "does not decode", id="groups in a small one"),
        pytest.param(b"\x12\x00" * 60_000, "at most 50000 parts", id="entries without end"),
        pytest.param(b"\xf8\xff\x7f\x01" * 60_000, "beside entries", id="unknown fields without end"),
        pytest.param(b"\x12\x05" * 40_000 + b"\x12\x85", "expected a protobuf message", id="cut short"),
    ],
)
def test_a_frame_of_a_shape_that_nobody_sends_is_rejected_before_it_is_parsed(payload: bytes, words: str) -> None:
    """It would end the process, by one call a group, or take a gigabyte; the frames beside it go on."""
    decoded = run(market(), payload, market())
    assert [row["seq"] for row in rows(decoded)] == [1, 3]
    [rejected] = decoded.rejected
    assert (rejected.seq, rejected.table, rejected.body) == (2, "frame", payload)
    assert words in rejected.reason


def test_a_snapshot_of_all_that_a_connection_may_have_is_decoded() -> None:
    """2,000 keys with books and candles are a large frame, and an ordinary one."""
    whole = market(marketLevel=pb.MarketLevel(bidAskQuote=[pb.Quote(bidQ=1, bidP=2.5, askQ=3, askP=4.5)] * 30))
    frame = message(feeds={f"NSE_EQ|{n}": whole.feeds[KEY] for n in range(2000)})
    assert frame.ByteSize() > 20 * 65_536
    decoded = run(frame)
    assert (len(rows(decoded)), decoded.rejected) == (2000, ())


@pytest.mark.parametrize("bad", [10, 11, 5000])
def test_very_many_unusable_keys_in_a_frame_are_one_letter(bad: int) -> None:
    """Each is looked for in the whole frame: thousands would take hours."""
    feeds = {f"A{n}\n": pb.Feed() for n in range(bad)}
    decoded = run(market(), message(feeds={**feeds, KEY: pb.Feed()}))
    assert [row["seq"] for row in rows(decoded)] == [1, 2]
    if bad == 10:
        assert {one.table for one in decoded.rejected} == {"ticks"}
        assert len(decoded.rejected) == 10
    else:
        [rejected] = decoded.rejected
        assert (rejected.seq, rejected.table) == (2, "frame")
        assert rejected.reason.startswith(f"{bad} of its rows are unusable")


def test_a_run_without_a_good_frame_is_empty_tables() -> None:
    """Nothing decodes, nothing fails."""
    decoded = run(b"\xff", b"\xff\xff")
    assert (len(decoded.rejected), decoded.days) == (2, ())
    assert all(decoded.tables[name].num_rows == 0 for name in TABLES)
    assert decode([], recorder_id="r", definitions={}).rejected == ()


def test_an_empty_message_is_a_frame_without_rows() -> None:
    """Zero bytes are a valid message of nothing."""
    decoded = run(b"")
    assert (decoded.rejected, rows(decoded), decoded.restamped) == ((), [], 1)


def test_days_are_those_of_the_indian_calendar() -> None:
    """18:30 UTC is midnight there."""
    midnight = int(dt.datetime(2026, 9, 1, 18, 30, tzinfo=dt.UTC).timestamp() * 1000)
    decoded = run(message(currentTs=midnight - 1), message(currentTs=midnight), message(currentTs=midnight - 1))
    assert dict(decoded.days) == {dt.date(2026, 9, 1): (1, 3), dt.date(2026, 9, 2): (2,)}


def test_symbols_are_those_of_the_definitions_in_force() -> None:
    """The key stands in where no definition, or none with a symbol, is known."""
    known = {KEY: Definition(instrument_key=KEY, symbol="HINDCOPPER"), "B": Definition(instrument_key="B")}
    frame = message(feeds={KEY: pb.Feed(), "B": pb.Feed(), "C": pb.Feed()})
    assert {row["symbol"] for row in rows(run(frame, definitions=known))} == {"HINDCOPPER", "B", "C"}


def test_symbols_follow_the_definitions_that_are_given() -> None:
    """What is kept of one mapping is for that mapping alone."""
    frame = message(feeds={KEY: pb.Feed(), "K": pb.Feed()})
    some, others = ({KEY: Definition(instrument_key=KEY, symbol=name)} for name in ("ONE", "OTHER"))
    found = [{row["symbol"] for row in rows(run(frame, definitions=known))} for known in (some, some, others, {}, some)]
    assert found == [{"ONE", "K"}, {"ONE", "K"}, {"OTHER", "K"}, {KEY, "K"}, {"ONE", "K"}]


def test_definitions_become_rows() -> None:
    """Every field of a definition has its column."""
    one = Definition(instrument_key=KEY, symbol="X", expiry=dt.date(2026, 9, 24), strike=1.5, lot_size=50)
    [row] = instrument_rows(7, [one]).to_pylist()
    assert (row["valid_from_seq"], row["symbol"], row["expiry"], row["lot_size"]) == (7, "X", dt.date(2026, 9, 24), 50)


@pytest.mark.parametrize(
    ("of", "calls"),
    [
        (lambda full, light: (full, full), 2),
        (lambda full, light: (light, light), 3),
        (lambda full, light: (full, light), 3),
    ],
    ids=["full", "ltpc", "both"],
)
def test_no_row_keeps_the_parsers_memory(monkeypatch: pytest.MonkeyPatch, of: Any, calls: int) -> None:
    """A table that is kept costs its own bytes: no buffer of it lies in what the parser gave."""
    parsed: list[pa.RecordBatch] = []

    class Remembering:
        def __init__(self, handler: Any) -> None:
            self._handler = handler

        def list_to_record_batch(self, payloads: Sequence[bytes]) -> pa.RecordBatch:
            parsed.append(self._handler.list_to_record_batch(payloads))
            return parsed[-1]

        def array_to_record_batch(self, payloads: pa.Array) -> pa.RecordBatch:
            parsed.append(self._handler.array_to_record_batch(payloads))
            return parsed[-1]

    monkeypatch.setattr(parsing, "_FRAMES", Remembering(parsing._FRAMES))
    rare = {name: Remembering(handler) for name, handler in parsing._OF_RARE.items()}
    monkeypatch.setattr(parsing, "_OF_RARE", rare)
    full = market(
        ltpc=pb.LTPC(ltp=1.5, ltt=AT_MS, ltq=2, cp=1.0),
        marketLevel=pb.MarketLevel(bidAskQuote=[pb.Quote(bidP=1.0, bidQ=2, askP=3.0, askQ=4)]),
        optionGreeks=pb.OptionGreeks(delta=0.5),
        marketOHLC=pb.MarketOHLC(ohlc=[pb.OHLC(interval="1d", open=1, high=2, low=1, close=1.5, vol=3, ts=AT_MS)]),
        **dict.fromkeys(("atp", "vtt", "oi", "iv", "tbq", "tsq", "rp", "ieq", "iiqTotal", "iiqM"), 1),
        casEligible=True,
    )
    status = message(marketInfo=pb.MarketInfo(segmentStatus={"NSE_EQ": pb.NORMAL_OPEN}))
    light = message(feeds={KEY: pb.Feed(ltpc=full.feeds[KEY].fullFeed.marketFF.ltpc)})
    decoded = run(*of(full, light), status)
    theirs = [(buffer.address, buffer.address + buffer.size) for batch in parsed for buffer in _buffers(batch.columns)]
    ours = [
        buffer for table in decoded.tables.values() for column in table.columns for buffer in _buffers(column.chunks)
    ]
    assert (len(rows(decoded)), len(parsed)) == (2, calls)
    assert not [buffer for buffer in ours if any(low <= buffer.address < high for low, high in theirs)]


def _buffers(arrays: Iterable[pa.Array]) -> list[pa.Buffer]:
    return [buffer for array in arrays for buffer in array.buffers() if buffer is not None and buffer.size]
