"""What a master list has lost: only what has not expired, and only much of a segment, is worth a word."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tickvault.brokers.upstox.masterlist import rows
from tickvault.brokers.upstox.shortfall import by_segment, in_words, lost_rows

NOW_MS = 1_790_000_000_000


def listed(segment: str, count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"instrument_key": f"{segment}|{n}", "segment": segment, **more} for n in range(count)]


def kept(before: list[Any], gone: set[str]) -> list[Any]:
    """Return the rows that are kept when some keys have gone."""
    keys = {row["instrument_key"] for row in before if isinstance(row, dict) and "instrument_key" in row} - gone
    packed = lost_rows(lambda: before, keys, NOW_MS)
    return [] if packed is None else list(rows(packed))


def test_much_of_a_segment() -> None:
    """A twentieth of it, at least five; of the other segments nothing is kept."""
    before = listed("BSE_FO", 100, expiry=NOW_MS) + listed("NSE_EQ", 1000)
    few = {f"NSE_EQ|{n}" for n in range(49)}
    assert kept(before, few | {f"BSE_FO|{n}" for n in range(4)}) == []
    lost = kept(before, few | {f"BSE_FO|{n}" for n in range(5)})
    assert lost == before[:5], "as they were, in their order"
    assert by_segment(lost) == {"BSE_FO": 5}
    assert in_words(by_segment(lost)).startswith("the master list has lost rows that have not expired: 5 of BSE_FO")
    assert len(kept(before, few | {"NSE_EQ|99"})) == 50


def test_a_small_segment_loses_no_two_rows_in_vain() -> None:
    """Fewer than five rows say nothing."""
    assert kept(listed("MCX_INDEX", 8), {f"MCX_INDEX|{n}" for n in range(4)}) == []


def test_the_morning_after_an_expiry() -> None:
    """What has expired is not missed, though it is half of the list."""
    before = [*listed("NSE_FO", 500, expiry=NOW_MS - 1), {"instrument_key": "NSE_FO|x", "segment": "NSE_FO"}]
    assert kept(before, {f"NSE_FO|{n}" for n in range(500)}) == []


def test_odd_rows() -> None:
    """What is no row, or has no key, is neither lost nor in the way; strikes of an underlying without expiry are."""
    before = [
        None,
        7,
        {"segment": "X"},
        {"instrument_key": 5},
        *listed("A", 6, expiry=0),
        *listed("B", 6, expiry="soon"),
    ]
    gone = {f"{segment}|{n}" for segment in "AB" for n in range(6)}
    assert by_segment(kept(before, gone)) == {"A": 6, "B": 6}


@given(st.sets(st.integers(0, 99)), st.sets(st.integers(0, 99)))
def test_nothing_is_lost_over_any_two_lists(first: set[int], second: set[int]) -> None:
    """Kept rows count as listed: a list that stays short goes on with them, a whole one ends them."""
    whole = listed("A", 100)
    gone = {f"A|{n}" for n in first}
    held = kept(whole, gone)
    if not held:
        assert len(gone) < 5
        return
    short = [row for row in whole if row["instrument_key"] not in gone]
    again = kept([*short, *held], {f"A|{n}" for n in first | second} & {f"A|{n}" for n in range(100)})
    assert {row["instrument_key"] for row in again} == {f"A|{n}" for n in first | second}
    assert kept([*short, *held], set()) == []
