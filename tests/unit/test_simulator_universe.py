"""The simulated exchange's list of instruments."""

from __future__ import annotations

import datetime as dt
import gzip
import itertools
import json
from collections import Counter

import pytest

from tickvault.simulator.master import master_list, master_row
from tickvault.simulator.universe import Kind, build_universe, monthly_expiries, weekly_expiry

TODAY = dt.date(2026, 11, 23)  # a Monday
IST = dt.timezone(dt.timedelta(hours=5, minutes=30))


@pytest.mark.parametrize("count", [1, 2, 3, 4, 6, 10, 100, 517, 5000])
def test_lists_exactly_as_many_distinct_instruments_as_asked(count: int) -> None:
    """Any count is met, and no key or symbol occurs twice."""
    universe = build_universe(count, TODAY)
    assert len(universe) == count
    assert len({one.key for one in universe}) == count
    assert len({one.symbol for one in universe}) == count


def test_keys_do_not_depend_on_the_date() -> None:
    """Tomorrow's list has the same keys in the same order; only expiries move."""
    today, later = (build_universe(300, day) for day in (TODAY, TODAY + dt.timedelta(days=40)))
    assert [one.key for one in today] == [one.key for one in later]
    assert [one.symbol for one in today] != [one.symbol for one in later]


def test_well_known_keys_come_first() -> None:
    """Indices lead, then the equities that users try first."""
    keys = [one.key for one in build_universe(100, TODAY)]
    assert keys[:3] == ["NSE_INDEX|Nifty 50", "NSE_INDEX|Nifty Bank", "NSE_INDEX|India VIX"]
    assert keys[3:6] == ["NSE_EQ|INE531E01026", "NSE_EQ|INE047A01021", "NSE_EQ|INE844O01030"]


def test_a_hundred_instruments_have_every_kind() -> None:
    """The default mix has indices, equities, futures, calls and puts, and two option series."""
    universe = build_universe(100, TODAY)
    kinds = Counter(one.kind for one in universe)
    assert kinds[Kind.INDEX] == 3
    assert kinds[Kind.EQUITY] > 30
    assert kinds[Kind.FUTURE] >= 5
    assert kinds[Kind.CALL] > 15
    assert kinds[Kind.PUT] > 15
    assert {one.symbol.split()[0] for one in universe if one.kind is Kind.CALL} == {"NIFTY", "BANKNIFTY"}


def test_isins_have_their_check_digit() -> None:
    """Every ISIN satisfies the Luhn sum of ISO 6166."""
    for one in build_universe(2000, TODAY):
        if one.isin is not None:
            digits = [int(d) for d in "".join(str(int(c, 36)) for c in one.isin)]
            total = sum(sum(divmod(d * 2, 10)) if i % 2 else d for i, d in enumerate(reversed(digits)))
            assert len(one.isin) == 12
            assert total % 10 == 0, one.isin


@pytest.mark.parametrize("day", range(14))
def test_expiries_are_tuesdays_still_to_come(day: int) -> None:
    """No contract expires today or earlier, and months follow one another."""
    today = TODAY + dt.timedelta(days=day)
    months = list(itertools.islice(monthly_expiries(today), 3))
    assert today < weekly_expiry(today) <= today + dt.timedelta(days=7)
    assert weekly_expiry(today) < months[0] < months[1] < months[2]
    assert {one.weekday() for one in (*months, weekly_expiry(today))} == {1}


def test_master_list_has_the_brokers_fields() -> None:
    """An option's row has every field of the published format, paise and milliseconds included."""
    universe = build_universe(100, TODAY)
    option = next(one for one in universe if one.kind is Kind.CALL)
    row = master_row(option, universe)
    assert row["trading_symbol"] == "NIFTY 24500 CE 24 NOV 26"
    assert row["tick_size"] == 5.0
    assert row["strike_price"] == 24500.0
    assert row["underlying_key"] == "NSE_INDEX|Nifty 50"
    assert row["underlying_type"] == "INDEX"
    assert row["minimum_lot"] == row["lot_size"] == 75
    assert row["instrument_key"] == f"NSE_FO|{row['exchange_token']}"
    assert row["expiry"] == int(dt.datetime(2026, 11, 24, 23, 59, 59, tzinfo=IST).timestamp()) * 1000
    assert {"weekly", "freeze_quantity", "qty_multiplier", "asset_key", "asset_symbol", "asset_type"} <= set(row)


def test_master_list_is_the_same_bytes_each_time_and_decodes() -> None:
    """Equities carry an ISIN, indices no tick size, and `cas_eligible` is there only when true."""
    universe = build_universe(100, TODAY)
    packed = master_list(universe)
    assert packed == master_list(universe)
    rows = {row["instrument_key"]: row for row in json.loads(gzip.decompress(packed))}
    equity, index = rows["NSE_EQ|INE531E01026"], rows["NSE_INDEX|Nifty 50"]
    assert equity["isin"] == "INE531E01026"
    assert equity["security_type"] == "NORMAL"
    assert equity["tick_size"] == 1.0
    assert index["instrument_type"] == "INDEX"
    assert index["trading_symbol"] == "NIFTY"
    assert "tick_size" not in index
    assert all(row.get("cas_eligible", True) is True for row in rows.values())
    future = next(row for row in rows.values() if row["instrument_type"] == "FUT")
    assert future["strike_price"] == 0.0
