"""Health in words, and read back from what a recorder told."""

from __future__ import annotations

import json
from dataclasses import asdict

from tickvault.health import FeedHealth, KeysHealth, MarketHealth

KEYS = KeysHealth(
    subscribed=2003,
    delivering=1998,
    silent={"never": 4, "closed": 1, "empty": 0},
    problems={"never": ["NSE_EQ|A", "NSE_EQ|B", "NSE_EQ|C", "NSE_EQ|D"]},
)
SILENT = MarketHealth(state="silent", segments=["NSE_EQ"], phases={"NSE_EQ": "open", "MCX_FO": "closed"})
FEED = FeedHealth(
    state="live", conn=3, frames=7, reconnects=2, last_frame_age_s=0.5, queued=0, queue_waits=0, held_s=0.0,
    last_error=None, keys=KEYS, market=SILENT,
)  # fmt: skip


def test_keys_in_words() -> None:
    """Three by name, reasons that nobody has to care for without names, and the next step."""
    assert KEYS.shown() == "1,998 of 2,003 deliver; 4 never (NSE_EQ|A, NSE_EQ|B, NSE_EQ|C, …); 1 closed"
    assert KEYS.next_steps().startswith("look up those that never came")
    assert KeysHealth().next_steps() == ""


def test_market_in_words() -> None:
    """What each segment does, and what is the matter, if anything."""
    assert SILENT.shown() == "NSE_EQ open, MCX_FO closed; NSE_EQ: silent"
    assert MarketHealth(state="fresh", segments=["NSE_EQ"], phases={"NSE_EQ": "open"}).shown() == "NSE_EQ open"
    assert MarketHealth().shown() == "no status yet"


def test_several_feeds_together() -> None:
    """Numbers are added, names listed up to a bound, and the worst state is told with its segments."""
    other = KeysHealth(
        subscribed=5, delivering=5, silent={"empty": 2}, problems={"never": ["X"] * 30}, oldest_s={"X": 9}
    )
    both = KeysHealth.of_all([KEYS, other])
    assert (both.subscribed, both.silent) == (2008, {"never": 4, "closed": 1, "empty": 2})
    assert both.problems["never"][3:5] == ["NSE_EQ|D", "X"]
    assert len(both.problems["never"]) == 20
    assert KeysHealth.of_all([KEYS]) == KEYS
    calm = MarketHealth(state="fresh", segments=["MCX_FO"], phases={"MCX_FO": "open"}, unobserved=2, since_ns=1)
    found = MarketHealth.of_all([calm, SILENT])
    assert (found.state, found.segments, found.unobserved) == ("silent", ["NSE_EQ"], 2)
    assert MarketHealth.of_all([calm]) == calm


def test_what_a_recorder_told_is_read_back() -> None:
    """As it was; from another version as far as both know it."""
    told = json.loads(json.dumps(asdict(FEED)))
    assert FeedHealth.of(told) == FEED
    del told["keys"], told["market"]["statuses"]
    told["market"]["new"] = 1
    again = FeedHealth.of(told)
    assert (again.keys, again.market.segments, again.market.statuses) == (KeysHealth(), ["NSE_EQ"], {})


def test_open_gaps_name_what_they_are_of() -> None:
    """The first connection and the recorder need no name."""
    from tickvault.health import _open_gaps
    from tickvault.model import Gap

    subjects = (("connection", "feed"), ("connection", "feed 2"), ("segment", "NSE_EQ"), ("recorder", ""))
    gaps = [
        Gap(scope=scope, subject=name, opened_ns=1, closed_ns=None, reason="lost", planned=False, detail="why")
        for scope, name in subjects
    ]
    assert _open_gaps(gaps) == (
        "connection: lost (why)",
        "connection feed 2: lost (why)",
        "segment NSE_EQ: lost (why)",
        "recorder: lost (why)",
    )
