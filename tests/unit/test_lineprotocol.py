"""The encoder: every rule of the two layouts, and that a float survives being written."""

from __future__ import annotations

import datetime as dt
import math
import re
import struct
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from servers import AT, AT_MS, KEY, batch_of, candle, tick

from tickvault.model import Definition
from tickvault.sinks import series
from tickvault.sinks.lineprotocol import Lines, chunks, encode_tickvault, encode_tradedatafeed
from tickvault.sinks.series import Dialect

ALWAYS = f"received_at={AT_MS}000000i,seq=1i {AT_MS}000001"
PREFIX = f"tick,instrument_key={KEY},segment=NSE_EQ,symbol=HINDCOPPER"


def texts(lines: Lines) -> list[str]:
    """Return the lines, each of which has its end."""
    found = lines.text.to_pylist()
    assert all(one.endswith("\n") for one in found)
    return [one[:-1] for one in found]


def line(*, depth: int = 5, dialect: Dialect = Dialect.INFLUX, definitions: Any = None, **tables: Any) -> str:
    lines = encode_tickvault(batch_of(definitions, **tables), depth, dialect)
    [text] = texts(lines)
    return text


def test_full_tick_golden_line() -> None:
    """Every column becomes a field of its name, integers with i, floats without, lists flattened."""
    row = tick(
        seq=12_345_678,
        received_at=AT + dt.timedelta(microseconds=456),
        kind="snapshot",
        ltp=1525.05,
        ltt=AT,
        ltq=75,
        cp=1500.0,
        atp=1510.5,
        vtt=1_000_000_000_000,
        oi=100.0,
        iv=0.155,
        tbq=2.0,
        tsq=3.0,
        delta=0.5,
        theta=-1e-7,
        gamma=1e22,
        vega=1.0,
        rho=0.25,
        iep=4.0,
        rp=5.0,
        ieq=6,
        iiq_total=-7,
        iiq_m=8,
        cas_eligible=True,
        bid_price=[1.5, 1.45],
        bid_qty=[10, 20],
        ask_price=[1.55],
        ask_qty=[30],
    )
    assert line(ticks=[row]) == (
        f"{PREFIX} ltp=1525.05,cp=1500,atp=1510.5,oi=100,iv=0.155,tbq=2,tsq=3,delta=0.5,theta=-1e-7,gamma=1e+22,"
        "vega=1,rho=0.25,iep=4,rp=5,ltq=75i,vtt=1000000000000i,ltt=1788234300123i,ieq=6i,iiq_total=-7i,iiq_m=8i,"
        "cas_eligible=true,snapshot=true,bid_price_1=1.5,bid_price_2=1.45,bid_qty_1=10i,bid_qty_2=20i,"
        "ask_price_1=1.55,ask_qty_1=30i,received_at=1788234300123456000i,seq=12345678i 1788234300123345678"
    )


def test_nulls_and_zeros_are_left_out() -> None:
    """A zero scalar cannot be told from not sent, so neither is written; false counts as zero."""
    zeros = tick(ltp=0.0, cp=-0.0, ltq=0, ltt=dt.datetime(1970, 1, 1, tzinfo=dt.UTC), cas_eligible=False)
    assert line(ticks=[zeros]) == line(ticks=[tick()]) == f"{PREFIX} {ALWAYS}"


def test_zeros_stay_in_the_book_and_nulls_in_it_do_not() -> None:
    row = tick(bid_price=[0.0, None, 2.5], bid_qty=[0, None, 3], ask_price=[], ask_qty=None)
    book = "bid_price_1=0,bid_price_3=2.5,bid_qty_1=0i,bid_qty_3=3i"
    assert line(ticks=[row]) == f"{PREFIX} {book},{ALWAYS}"


def test_values_that_line_protocol_lacks_are_left_out() -> None:
    row = tick(ltp=math.nan, cp=math.inf, bid_price=[math.nan, -math.inf, 1.0])
    assert line(ticks=[row]) == f"{PREFIX} bid_price_3=1,{ALWAYS}"


@pytest.mark.parametrize(("depth", "levels"), [(0, []), (1, [1]), (30, [1, 2, 3])])
def test_depth_bounds_the_levels(depth: int, levels: list[int]) -> None:
    row = tick(bid_price=[3.0, 2.0, 1.0])
    assert [i for i in range(1, 31) if f"bid_price_{i}=" in line(depth=depth, ticks=[row])] == levels


def test_books_of_sliced_batches_stay_with_their_rows() -> None:
    """Arrow slices share their buffers; offsets and nulls of lists have to be counted from the slice."""
    prices = [[1.0], None, [], [2.0, 3.0], None, [4.0]]
    batch = batch_of(ticks=[tick(seq=i + 1, bid_price=price) for i, price in enumerate(prices)])
    whole = texts(encode_tickvault(batch, 5))
    for start in range(6):
        for stop in range(start, 7):
            assert texts(encode_tickvault(batch.slice(start, stop), 5)) == whole[start:stop]


def test_a_line_is_the_same_whoever_its_neighbours_are() -> None:
    """Numbers are written column by column, some once for all rows that have them; that shows in no line."""
    rows = [
        tick(seq=1, oi=12345.0, tbq=7.0, cp=1e10, received_at=AT, bid_price=[0.0, -0.0], bid_qty=[5]),
        tick(seq=2, oi=2.5, tbq=3e10, cp=-1e-7, bid_price=[-0.0, 1e10, 123456789.0], ask_price=[0.05]),
        tick(seq=3, oi=-4e9, tsq=1e300, cp=1e10, bid_price=[], bid_qty=[5, 5]),
    ]
    batch = batch_of(ticks=rows)
    together = texts(encode_tickvault(batch, 5))
    alone = [texts(encode_tickvault(batch.slice(i, i + 1), 5))[0] for i in range(3)]
    assert together == alone
    assert "bid_price_1=0,bid_price_2=-0,bid_qty_1=5i" in together[0]
    assert "cp=1e+10,oi=12345,tbq=7," in together[0]


def test_index_ticks_have_no_book_and_escaped_names() -> None:
    row = tick(instrument_key="NSE_INDEX|Nifty 50", symbol="NIFTY", ltp=24500.5, mode="ltpc")
    tags = r"instrument_key=NSE_INDEX|Nifty\ 50,segment=NSE_INDEX,symbol=NIFTY"
    assert line(ticks=[row]) == f"tick,{tags} ltp=24500.5,{ALWAYS}"


def test_time_keeps_updates_of_one_ms_apart() -> None:
    """The time is the ms plus seq mod 10**6 in ns, whatever microseconds the column has."""
    rows = [tick(seq=seq, time=AT + dt.timedelta(microseconds=999)) for seq in (1, 999_999, 1_000_000, 1_000_001)]
    times = [text.rpartition(" ")[2] for text in texts(encode_tickvault(batch_of(ticks=rows), 5))]
    assert times == [f"{AT_MS}{ns:06}" for ns in (1, 999_999, 0, 1)]


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("A B", r"A\ B"),
        ("A,B=C", r"A\,B\=C"),
        ("A\\B", "A\\B"),
        ('say "x"', r"say\ " + '"x"'),
        ("ends\\", "ends"),
        ("two\nlines\x7f", r"two\ lines\ "),
        ("रिलायंस", "रिलायंस"),
    ],
)
def test_tag_values_are_escaped(value: str, written: str) -> None:
    """Comma, equals sign and blank get a backslash; a backslash is not doubled."""
    assert line(ticks=[tick(symbol=value)]) == f"tick,instrument_key={KEY},segment=NSE_EQ,symbol={written} {ALWAYS}"


def test_victoria_reads_backslashes_doubled() -> None:
    assert r"symbol=A\\B\ C " in line(dialect=Dialect.VICTORIA, ticks=[tick(symbol="A\\B C")])


def test_empty_tags_are_left_out() -> None:
    assert line(ticks=[tick(symbol="", instrument_key="|x")]) == f"tick,instrument_key=|x {ALWAYS}"


@pytest.mark.parametrize("key", ["", "NSE_EQ|a\\", "NSE_EQ|a\nb", "NSE_EQ|" + "x" * 66_000])
def test_rows_whose_series_cannot_be_written_are_refused_by_index(key: str) -> None:
    """The rows beside it are written, and each line knows its row."""
    bad = {"instrument_key": key}
    batch = batch_of(ticks=[tick(), tick(**bad), tick()], candles=[candle(**bad), candle()])
    lines = encode_tickvault(batch, 5)
    assert lines.rows.to_pylist() == [0, 2, 4]
    assert set(lines.refused) == {1, 3}
    assert set(encode_tradedatafeed(batch).refused) == {3}


def test_times_beyond_int64_nanoseconds_are_refused() -> None:
    far = dt.datetime(2300, 1, 1, tzinfo=dt.UTC)
    status = {"time": far, "scope": "segment", "segment": "NSE_EQ", "status": "NORMAL_OPEN", "seq": 1}
    lines = encode_tickvault(batch_of(candles=[candle(time=far)], market_status=[status]), 5)
    assert set(lines.refused) == {0, 1}
    assert all("time" in reason for reason in lines.refused.values())


OPTION = Definition(
    instrument_key="NSE_FO|1",
    symbol="NIFTY 24500 CE 29 SEP 26",
    segment="NSE_FO",
    underlying_symbol="NIFTY",
    expiry=dt.date(2026, 9, 29),
    strike=24500.0,
    option_type="CE",
)


def test_options_carry_their_definition_as_tags() -> None:
    """Tags stand sorted by name, the strike in its shortest form."""
    row = tick(instrument_key="NSE_FO|1", symbol=OPTION.symbol)
    assert line(definitions={"NSE_FO|1": OPTION}, ticks=[row]) == (
        "tick,expiry=2026-09-29,instrument_key=NSE_FO|1,option_type=CE,segment=NSE_FO,strike=24500,"
        rf"symbol=NIFTY\ 24500\ CE\ 29\ SEP\ 26,underlying=NIFTY {ALWAYS}"
    )


def test_futures_have_neither_strike_nor_option_type() -> None:
    future = Definition(instrument_key="k", underlying_symbol="NIFTY", expiry=dt.date(2026, 9, 29), strike=0.0)
    text = line(definitions={"MCX|1": future}, candles=[candle(instrument_key="MCX|1", symbol="F", close=22.5)])
    tags = "expiry=2026-09-29,instrument_key=MCX|1,interval=I1,segment=MCX,symbol=F,underlying=NIFTY"
    assert text == f"candle,{tags} close=22.5,seq=1i {AT_MS}000000"


@pytest.mark.parametrize(("strike", "written"), [(22.5, "22.5"), (24500.0, "24500"), (0.05, "0.05")])
def test_strikes_are_shortest_decimals(strike: float, written: str) -> None:
    definition = Definition(instrument_key=KEY, strike=strike, option_type="PE")
    assert f",strike={written}," in line(definitions={KEY: definition}, ticks=[tick()])


def test_shares_get_only_their_segment() -> None:
    """What a definition says beyond the segment is for derivatives."""
    share = Definition(instrument_key=KEY, segment="NSE_EQ_T0", underlying_symbol="no", isin="INE531E01026")
    assert line(definitions={KEY: share}, ticks=[tick()]) == f"{PREFIX.replace('=NSE_EQ,', '=NSE_EQ_T0,')} {ALWAYS}"


def test_candle_golden_line() -> None:
    row = candle(open=1.5, high=2.0, low=1.0, close=1.75, volume=24147, seq=9)
    tags = f"instrument_key={KEY},interval=I1,segment=NSE_EQ,symbol=HINDCOPPER"
    fields = "open=1.5,high=2,low=1,close=1.75,volume=24147i,seq=9i"
    assert line(candles=[row]) == f"candle,{tags} {fields} {AT_MS}000000"


def test_versions_of_a_candle_are_apart_where_the_last_write_does_not_win() -> None:
    text = line(dialect=Dialect.INFLUX3, candles=[candle(seq=7_000_000_042)])
    assert text.endswith(f" {AT_MS}000042")


def test_market_status_golden_line() -> None:
    row = {"time": AT, "scope": "cas", "segment": "NSE EQ", "status": 'say "\\"\n', "seq": 5}
    text = line(market_status=[row])
    assert text == rf'market_status,scope=cas,segment=NSE\ EQ status="say \"\\\" ",seq=5i {AT_MS}000005'


def test_gap_golden_lines() -> None:
    """A zero is a value here: a gap of no length is still a gap."""
    closed = AT + dt.timedelta(seconds=1.5)
    full = {"opened_at": AT, "closed_at": closed, "duration_s": 1.5, "scope": "instrument", "subject": KEY}
    full |= {"reason": "stale", "planned": True, "detail": "no\r\nframes"}
    bare = {"opened_at": AT, "scope": "recorder", "reason": "start", "planned": False, "duration_s": 0.0}
    assert line(gaps=[full]) == (
        f"gap,reason=stale,scope=instrument,subject={KEY} "
        f'duration_s=1.5,closed_at={AT_MS + 1500}000000i,detail="no  frames",planned=true {AT_MS}000000'
    )
    assert line(gaps=[bare]) == f"gap,reason=start,scope=recorder duration_s=0,planned=false {AT_MS}000000"


def test_rows_count_through_the_tables_of_a_batch() -> None:
    """Definitions make no lines but keep their indices, so that Batch.row finds what a line came from."""
    status = {"time": AT, "scope": "segment", "segment": "NSE_EQ", "status": "x", "seq": 1}
    gap = {"opened_at": AT, "scope": "recorder", "reason": "start", "planned": False}
    batch = batch_of(
        ticks=[tick(), tick()],
        candles=[candle()],
        market_status=[status],
        instruments=[{"valid_from_seq": 1, "instrument_key": KEY}],
        gaps=[gap],
    )
    lines = encode_tickvault(batch, 5)
    tables = [batch.row(row)[0] for row in lines.rows.to_pylist()]
    assert tables == ["ticks", "ticks", "candles", "market_status", "gaps"]
    assert encode_tradedatafeed(batch).rows.to_pylist() == [2]


def test_victoria_gets_no_strings_and_no_daily_candles() -> None:
    status = {"time": AT, "scope": "segment", "segment": "NSE_EQ", "status": "x", "seq": 1}
    batch = batch_of(candles=[candle(interval="1d"), candle()], market_status=[status])
    lines = encode_tickvault(batch, 5, Dialect.VICTORIA)
    assert lines.rows.to_pylist() == [1, 2]
    assert not lines.refused
    assert '"' not in bytes(lines.body()).decode()


def test_a_batch_without_rows_gives_no_lines() -> None:
    lines = encode_tickvault(batch_of(), 5)
    assert (len(lines), lines.body(), list(chunks(lines))) == (0, b"", [])


def test_tradedatafeed_golden_line() -> None:
    """The line of the recorder whose buckets go on."""
    row = candle(
        time=dt.datetime(2025, 9, 11, 18, 43, 20, tzinfo=dt.UTC),
        symbol="X",
        open=1.5,
        high=2.0,
        low=1.0,
        close=1.75,
        volume=24147,
    )
    [text] = texts(encode_tradedatafeed(batch_of(candles=[row])))
    golden = "Open=1.5,High=2,Low=1,Close=1.75,Volume=24147 1757616200000"
    assert text == f"I1,feed_name=NSE_EQ|INE531E01026,trade_symbol=X {golden}"


def test_tradedatafeed_replaces_blanks_in_the_key_and_escapes_the_symbol() -> None:
    row = candle(instrument_key="NSE_INDEX|Nifty 50", symbol="NIFTY, 50", interval="1d", open=0.0)
    [text] = texts(encode_tradedatafeed(batch_of(candles=[row])))
    assert text == rf"1d,feed_name=NSE_INDEX|Nifty_50,trade_symbol=NIFTY\,\ 50 Open=0,Volume=0 {AT_MS}"


def test_chunks_keep_both_bounds_and_every_line() -> None:
    lines = encode_tickvault(batch_of(ticks=[tick(seq=seq, ltp=float(seq)) for seq in range(1, 1001)]), 5)
    parts = list(chunks(lines, max_rows=300, max_bytes=20_000))
    assert b"".join(part.body() for part in parts) == lines.body()
    assert [row for part in parts for row in part.rows.to_pylist()] == list(range(1000))
    assert all(len(part) <= 300 and len(part.body()) <= 20_000 for part in parts)
    assert max(map(len, chunks(lines, max_rows=300))) == 300


def test_a_line_longer_than_the_bound_goes_alone() -> None:
    lines = Lines(text=pa.array(["a" * 10, "b" * 99, "c" * 10]), rows=pa.array([0, 1, 2]))
    assert [part.body()[:1] for part in chunks(lines, max_bytes=50)] == [b"a", b"b", b"c"]


@settings(deadline=None)
@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=50))
def test_floats_read_back_as_the_same_double(values: list[float]) -> None:
    """Digits stand on both sides of every point: VictoriaMetrics takes `.5` and `5.` for zero."""
    text = line(depth=50, ticks=[tick(bid_price=values)])
    fields = dict(pair.split("=") for pair in text.split(" ")[1].split(",") if pair.startswith("bid_price"))
    written = [fields[f"bid_price_{level}"] for level in range(1, len(values) + 1)]
    assert [struct.pack("d", float(each)) for each in written] == [struct.pack("d", value) for value in values]
    assert not any(each.startswith((".", "-.", "+")) or each.endswith(".") or ".e" in each for each in written)


_WORDS = st.text(st.characters(codec="utf-8", exclude_categories=["Cs"]), max_size=12)


@settings(deadline=None)
@given(st.lists(st.tuples(_WORDS, _WORDS), min_size=1, max_size=8))
def test_any_key_and_symbol_gives_one_line_or_a_refusal(pairs: list[tuple[str, str]]) -> None:
    """No input breaks a line in two, drops a row silently or gives two instruments one series."""
    lines = encode_tickvault(batch_of(ticks=[tick(instrument_key=key, symbol=symbol) for key, symbol in pairs]), 5)
    assert sorted([*lines.rows.to_pylist(), *lines.refused]) == list(range(len(pairs)))
    assert bytes(lines.body()).count(b"\n") == len(lines)
    written: dict[str, str] = {}
    for text, row in zip(texts(lines), lines.rows.to_pylist(), strict=True):
        key_tag = re.split(r"(?<!\\)[, ]", text)[1]
        assert written.setdefault(key_tag, pairs[row][0]) == pairs[row][0]


def test_series_follow_the_definitions_in_force_and_are_built_once() -> None:
    """What a batch before it had is not built again, and other definitions of the same keys give other series."""
    rows = [tick(instrument_key="NSE_FO|1", symbol=OPTION.symbol)]
    before, after = {"NSE_FO|1": OPTION}, {"NSE_FO|1": replace(OPTION, strike=25000.0)}
    assert ["strike=24500," in line(definitions=of, ticks=rows) for of in (before, after, before, after)] == [
        *(True, False),
        *(True, False),
    ]


def test_more_series_than_are_kept_are_written_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(series, "_SERIES_KEPT", 2)
    definitions = {OPTION.instrument_key: OPTION}  # the same, so that what is kept is
    for first in range(5):
        rows = [tick(instrument_key=f"NSE_EQ|{number}", symbol=f"S{number}") for number in range(first, first + 3)]
        lines = encode_tickvault(batch_of(definitions, ticks=rows), 5)
        assert [re.findall(r"key=NSE_EQ\|(\d+),.*symbol=S(\d+) ", text) for text in lines.text.to_pylist()] == [
            [(f"{number}", f"{number}")] for number in range(first, first + 3)
        ]


def test_no_two_rows_share_a_series_by_what_separates_their_columns() -> None:
    pairs = [("NSE_EQ|a", "b\nc"), ("NSE_EQ|a\nb", "c"), ("NSE_EQ|a", "b c")]
    lines = encode_tickvault(batch_of(ticks=[tick(instrument_key=key, symbol=symbol) for key, symbol in pairs]), 5)
    assert (lines.rows.to_pylist(), list(lines.refused)) == ([0, 2], [1])
    assert all(
        text.startswith(r"tick,instrument_key=NSE_EQ|a,segment=NSE_EQ,symbol=b\ c ") for text in lines.text.to_pylist()
    )
