"""When segments trade: what is told later, and what is not known."""

from __future__ import annotations

import pytest

from tickvault.ledger import Sessions

A, B = "NSE_EQ", "MCX_FO"
ALWAYS = ((-(2**63) + 1, 2**63 - 1),)


def test_what_is_told_later_counts_from_then_on() -> None:
    """The days before it remain known."""
    first = Sessions(from_ns=0, to_ns=300, windows={A: ((10, 20), (110, 120), (210, 220))})
    second = Sessions(from_ns=100, to_ns=400, windows={A: ((110, 115), (310, 320))})
    assert first.then(second) == Sessions(from_ns=0, to_ns=400, windows={A: ((10, 20), (110, 115), (310, 320))})
    assert Sessions.of(second.body()) == second
    assert first.then(Sessions()) == first
    assert Sessions().then(first) == first


def test_where_nothing_was_told_every_hour_counts() -> None:
    """Between two tellings, and where only one of them has the segment; the rest stays known."""
    first = Sessions(from_ns=0, to_ns=100, windows={A: ((10, 20),)})
    distant = Sessions(from_ns=900, to_ns=1000, windows={A: ((910, 920),), B: ((950, 960),)})
    assert first.then(distant).windows == {A: ((10, 20), (100, 900), (910, 920)), B: ((0, 900), (950, 960))}
    assert distant.then(first) == first


def test_trading_is_the_union_of_segments_and_the_unknown() -> None:
    """Any of those asked for; without any, any; a segment that is not known may trade at any time."""
    known = Sessions(from_ns=0, to_ns=100, windows={A: ((10, 20), (50, 60)), B: ((15, 30),)})
    outside = (ALWAYS[0][0], 0), (100, ALWAYS[0][1])
    assert known.trading((A,)) == (outside[0], (10, 20), (50, 60), outside[1])
    assert known.trading((A, B)) == known.trading() == (outside[0], (10, 30), (50, 60), outside[1])
    assert known.trading((A, "X")) == Sessions().trading((A,)) == ALWAYS


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"from_ns": 1, "to_ns": 2},
        {"from_ns": 1, "to_ns": 9, "sessions": []},
        {"from_ns": "1", "to_ns": 9, "sessions": {}},
        {"from_ns": 9, "to_ns": 1, "sessions": {}},
    ],
)
def test_a_body_of_another_form_tells_nothing(body: dict[str, object]) -> None:
    """And one of another row within it leaves out that row."""
    assert Sessions.of(body) == Sessions()
    rows = [[1, 2], [3], "ab", [4, "x"], [7, 6], [5, 6]]
    assert Sessions.of({"from_ns": 0, "to_ns": 9, "sessions": {A: rows, B: 1}}).windows == {A: ((1, 2), (5, 6)), B: ()}
