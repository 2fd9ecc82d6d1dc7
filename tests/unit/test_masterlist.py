"""Reading the master list: conversions, malformed rows, damage, and its size."""

from __future__ import annotations

import datetime as dt
import gzip
import json
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from tickvault.brokers.upstox import masterlist
from tickvault.brokers.upstox.masterlist import parse, scan
from tickvault.brokers.upstox.resolve import Listing
from tickvault.model import Definition, Mode
from tickvault.selections import parse_selection

EQUITY = {
    "segment": "NSE_EQ",
    "name": "JOCIL LIMITED",
    "exchange": "NSE",
    "isin": "INE839G01010",
    "instrument_type": "EQ",
    "instrument_key": "NSE_EQ|INE839G01010",
    "lot_size": 1,
    "tick_size": 5.0,
    "trading_symbol": "JOCIL",
}
INDEX = {
    "segment": "NSE_INDEX",
    "name": "Nifty 50",
    "instrument_type": "INDEX",
    "instrument_key": "NSE_INDEX|Nifty 50",
    "trading_symbol": "NIFTY",
}
OPTION = {
    "weekly": False,
    "segment": "NSE_FO",
    "name": "VODAFONE IDEA LIMITED",
    "expiry": 1706207399000,
    "instrument_type": "CE",
    "underlying_symbol": "IDEA",
    "underlying_key": "NSE_EQ|INE669E01016",
    "instrument_key": "NSE_FO|36708",
    "lot_size": 80000,
    "tick_size": 5.0,
    "trading_symbol": "IDEA 22 CE 25 JAN 24",
    "strike_price": 22.0,
}
FUTURE = {**OPTION, "instrument_type": "FUT", "instrument_key": "NSE_FO|1", "strike_price": 0.0, "tick_size": 10}
ROWS = [EQUITY, INDEX, OPTION, FUTURE]
KEYS = [row["instrument_key"] for row in ROWS]


def packed(rows: object) -> bytes:
    return gzip.compress(json.dumps(rows).encode(), mtime=0)


def test_equity() -> None:
    """Paise become rupees; what an equity has not is absent."""
    assert parse(packed(ROWS), KEYS)["NSE_EQ|INE839G01010"] == Definition(
        instrument_key="NSE_EQ|INE839G01010",
        symbol="JOCIL",
        segment="NSE_EQ",
        instrument_type="EQ",
        lot_size=1,
        tick_size=0.05,
        isin="INE839G01010",
        name="JOCIL LIMITED",
    )


def test_option() -> None:
    """An option has its strike, its side, and the IST date of its last second."""
    assert parse(packed(ROWS), KEYS)["NSE_FO|36708"] == Definition(
        instrument_key="NSE_FO|36708",
        symbol="IDEA 22 CE 25 JAN 24",
        segment="NSE_FO",
        instrument_type="CE",
        underlying_key="NSE_EQ|INE669E01016",
        underlying_symbol="IDEA",
        expiry=dt.date(2024, 1, 25),
        strike=22.0,
        option_type="CE",
        lot_size=80000,
        tick_size=0.05,
        name="VODAFONE IDEA LIMITED",
    )


def test_future_has_no_strike() -> None:
    """The list's 0.0 of a future is no strike."""
    future = parse(packed(ROWS), KEYS)["NSE_FO|1"]
    assert (future.strike, future.option_type, future.tick_size) == (None, None, 0.1)


def test_index_has_no_contract() -> None:
    """An index has a symbol and nothing to trade."""
    index = parse(packed(ROWS), KEYS)["NSE_INDEX|Nifty 50"]
    assert (index.symbol, index.lot_size, index.tick_size, index.expiry) == ("NIFTY", None, None, None)


def test_only_wanted_keys() -> None:
    """A key that the list lacks is left out; a row that nobody wants, too."""
    assert list(parse(packed(ROWS), ["NSE_FO|1", "NSE_FO|999"])) == ["NSE_FO|1"]


@pytest.mark.parametrize(
    "row",
    [
        {**EQUITY, "tick_size": "5"},
        {**EQUITY, "tick_size": True},
        {**EQUITY, "lot_size": float("nan")},
        {**EQUITY, "trading_symbol": 7},
        {**EQUITY, "expiry": 1e300},
        {**EQUITY, "expiry": [1]},
        {**EQUITY, "lot_size": 1e300},
        {**EQUITY, "instrument_key": None},
        {**EQUITY, "instrument_key": ["NSE_EQ|1"]},
        "no object",
        17,
    ],
)
def test_malformed_row_is_skipped_and_counted(row: object) -> None:
    """One bad row costs its own definition and no other."""
    with capture_logs() as logs:
        found = parse(packed([row, INDEX]), [*KEYS, "NSE_FO|999"])
    assert list(found) == ["NSE_INDEX|Nifty 50"]
    assert [(entry["event"], entry["rows"]) for entry in logs] == [("instruments.rows_skipped", 1)]


def test_text_that_nothing_can_hold_becomes_blanks() -> None:
    """Half a character has no bytes, and every sink would be parked for it; a control character steers a terminal."""
    row = EQUITY | {"trading_symbol": "A\ud800B", "name": "A\x1b]0;B\n\u00a0Ä"}
    [found] = parse(packed([row]), [str(EQUITY["instrument_key"])]).values()
    assert (found.symbol, found.name) == ("A B", "A ]0;B \u00a0Ä")


@pytest.mark.parametrize(
    "damaged",
    [
        b"",
        b"<html>",
        packed(ROWS)[:-20],
        packed(ROWS)[:30] + b"\x00\x00" + packed(ROWS)[32:],
        packed({"status": "error"}),
        packed([]),
        gzip.compress(b"<html></html>", mtime=0),
        gzip.compress(json.dumps(ROWS).encode()[:-1], mtime=0),
        gzip.compress(b'[{"a":"\xff"}]', mtime=0),
        gzip.compress(b'[{"a":' + b"[" * 200_000, mtime=0),
    ],
)
def test_damaged_list(damaged: bytes) -> None:
    """A list that is not whole is refused, not half read."""
    with pytest.raises(ValueError):  # noqa: PT011 - the kinds of damage have words of their own
        parse(damaged, ["NSE_FO|999"])


@given(st.integers(1, 300))
def test_rows_are_found_wherever_pieces_end(piece: int) -> None:
    """The size of the pieces read has no influence on the result."""
    rows = [*ROWS, {**EQUITY, "instrument_key": "NSE_EQ|₹", "name": "ünïcode ₹", "trading_symbol": '\\" ]}'}]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(masterlist, "CHUNK_BYTES", piece)
        assert parse(gzip.compress(json.dumps(rows, ensure_ascii=False, indent=1).encode()), [*KEYS, "NSE_EQ|₹"]) == {
            **parse(packed(ROWS), KEYS),
            "NSE_EQ|₹": Definition(
                instrument_key="NSE_EQ|₹",
                symbol='\\" ]}',
                segment="NSE_EQ",
                instrument_type="EQ",
                lot_size=1,
                tick_size=0.05,
                isin="INE839G01010",
                name="ünïcode ₹",
            ),
        }


def test_reading_ends_when_halted() -> None:
    """A reader that nobody waits for any more stops."""
    assert parse(packed(ROWS), KEYS, halted=lambda: True) == {}


def test_endless_row_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row without an end does not fill the memory."""
    monkeypatch.setattr(masterlist, "MAX_ROW_CHARS", 1000)
    monkeypatch.setattr(masterlist, "CHUNK_BYTES", 100)
    with pytest.raises(ValueError, match="array of objects"):
        parse(gzip.compress(b'[{"a":"' + b"x" * 5000), KEYS)


def test_a_large_list_is_never_whole_in_memory() -> None:
    """30,000 rows, about 14 MB of JSON: what nobody asked for is gone when the next row comes."""
    rows = [
        {**OPTION, "instrument_key": f"NSE_FO|{number}", "trading_symbol": f"U{number % 200} {number} CE", "strike_price": number,
         "underlying_symbol": f"U{number % 200}"}
        for number in range(30_000)
    ]  # fmt: skip
    gz, count = packed(rows), len(rows)
    del rows
    asked = [parse_selection("chain:U7:1", Mode.FULL), parse_selection("NSE_EQ:X", Mode.FULL)]
    tracemalloc.start()
    try:
        listing = Listing(asked, scan(gz))
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(listing.derivatives["U7"]) == count / 200
    assert peak_bytes < 4_000_000
