"""The books of the keys: who delivers, who does not, and why as far as it shows."""

from __future__ import annotations

import pytest

from tickvault.brokers.upstox.accounts import AGAIN_S, PATIENCE_S, Accounts, Keys, Why
from tickvault.brokers.upstox.observe import Observation, Show
from tickvault.brokers.upstox.phases import Phase
from tickvault.brokers.upstox.plan import chunks
from tickvault.model import Mode, Subscription

LATE_S = PATIENCE_S + 1.0
OPEN = {"NSE_EQ": Phase.OPEN, "NSE_FO": Phase.OPEN}


def seen(*keys: str, empty: tuple[str, ...] = (), at_s: float = 1.0) -> Observation:
    return Observation(conn=1, received_ns=1, received_s=at_s, kind=Show.SNAPSHOT, keys=keys, empty=empty)


def opened(*wanted: tuple[str, Mode], accounts: Accounts | None = None, at_s: float = 0.0) -> Accounts:
    accounts = accounts or Accounts()
    requests = chunks(Subscription(instrument_key=key, mode=mode) for key, mode in wanted)
    accounts.open(requests)
    for number in range(len(requests)):
        accounts.subscribed(number, at_s)
    return accounts


def full(*keys: str) -> list[tuple[str, Mode]]:
    return [(key, Mode.FULL) for key in keys]


def test_keys_that_deliver() -> None:
    """Their requests are answered; other keys are nobody's."""
    accounts = opened(*full("NSE_EQ|A", "NSE_EQ|B"))
    assert not accounts.note(seen("NSE_EQ|X"))
    assert accounts.answered == 0
    assert accounts.note(seen("NSE_EQ|A", "NSE_EQ|X", at_s=3.0))
    assert accounts.answered == 1
    report = accounts.report(5.0, OPEN)
    assert (report.subscribed, report.delivering, report.pending) == (2, 1, 1)
    assert report.oldest == (("NSE_EQ|A", 2.0),)
    assert report.silent == {}


def test_requests_are_answered_one_by_one() -> None:
    """501 keys make two."""
    accounts = opened(*full(*(f"NSE_EQ|{n}" for n in range(501))))
    accounts.note(seen("NSE_EQ|500"))
    assert accounts.answered == 1
    accounts.note(seen("NSE_EQ|0"))
    assert accounts.answered == 2


def test_silent_key_is_reported_after_its_time() -> None:
    """Not before, and no later than 10 s with a report a second."""
    accounts = opened(*full("NSE_EQ|A", "NSE_EQ|B"))
    accounts.note(seen("NSE_EQ|A"))
    assert accounts.report(PATIENCE_S - 0.1, OPEN).silent == {}
    assert accounts.report(PATIENCE_S, OPEN).problems == {Why.NEVER: Keys(count=1, sample=("NSE_EQ|B",))}
    assert PATIENCE_S + 1.0 < 10.0


def test_unsent_request_is_pending() -> None:
    """A key that was not asked for yet cannot be late."""
    accounts = Accounts()
    accounts.open(chunks([Subscription(instrument_key="NSE_EQ|A", mode=Mode.FULL)]))
    assert accounts.report(1000.0, OPEN).pending == 1


def test_wrong_key_is_told_at_once() -> None:
    """An empty entry needs no patience; one with data later takes it back."""
    accounts = opened(*full("NSE_FO|NIFTY", "NSE_FO|1"))
    accounts.note(seen(empty=("NSE_FO|NIFTY", "NSE_FO|OTHER")))
    assert accounts.report(1.0, OPEN).problems == {Why.EMPTY: Keys(count=1, sample=("NSE_FO|NIFTY",))}
    accounts.note(seen("NSE_FO|NIFTY"))
    accounts.note(seen(empty=("NSE_FO|NIFTY",)))
    assert accounts.report(1.0, OPEN).problems == {}


@pytest.mark.parametrize(
    ("phase", "why"),
    [
        (Phase.CLOSED, Why.CLOSED),
        (Phase.QUIET, Why.QUIET),
        (Phase.PRE_OPEN, Why.QUIET),
        (Phase.CLOSING, Why.QUIET),
        (Phase.OPEN, Why.NEVER),
        (Phase.UNKNOWN, Why.NEVER),
    ],
)
def test_market_excuses(phase: Phase, why: Why) -> None:
    """A closed or quiet market is a reason, and no problem."""
    report = opened(*full("NSE_EQ|A")).report(LATE_S, {"NSE_EQ": phase})
    assert set(report.silent) == {why}
    assert bool(report.problems) == (why is Why.NEVER)


def test_keys_over_the_limit() -> None:
    """The last ones, in the order of asking; one that delivers all the same is none."""
    keys = [f"NSE_EQ|{n}" for n in range(2003)]
    accounts = opened(*full(*keys))
    accounts.note(seen(*keys[:2000], keys[2001]))
    assert accounts.report(LATE_S, OPEN).problems == {Why.OVER_LIMIT: Keys(count=2, sample=(keys[2000], keys[2002]))}


def test_limit_is_lower_with_several_modes() -> None:
    """1,500 in full beside another mode."""
    keys = [f"NSE_EQ|{n}" for n in range(1501)]
    accounts = opened(*full(*keys), ("NSE_INDEX|Nifty 50", Mode.LTPC))
    assert accounts.report(LATE_S, OPEN).silent[Why.OVER_LIMIT].count == 1


def test_full_d30_without_plus() -> None:
    """All of it silent while others deliver; one that delivers shows that there is Plus."""
    accounts = opened(*full("NSE_EQ|A"), ("NSE_FO|1", Mode.FULL_D30), ("NSE_FO|2", Mode.FULL_D30))
    assert set(accounts.report(LATE_S, OPEN).problems) == {Why.NEVER}
    accounts.note(seen("NSE_EQ|A"))
    assert accounts.report(LATE_S, OPEN).problems[Why.NO_PLUS].count == 2
    accounts.note(seen("NSE_FO|1"))
    assert set(accounts.report(LATE_S, OPEN).problems) == {Why.NEVER}


def test_new_connection_starts_anew_and_forgets_no_key() -> None:
    """Delivering counts for this connection; never seen, for all."""
    accounts = opened(*full("NSE_EQ|A", "NSE_EQ|B", "NSE_EQ|C"))
    accounts.note(seen("NSE_EQ|A", at_s=2.0))
    accounts = opened(*full("NSE_EQ|A", "NSE_EQ|B"), accounts=accounts, at_s=100.0)
    report = accounts.report(105.0, OPEN)
    assert (report.subscribed, report.delivering, report.pending, accounts.answered) == (2, 0, 2, 0)
    assert report.never_seen == Keys(count=1, sample=("NSE_EQ|B",))
    assert report.oldest == (("NSE_EQ|A", 103.0),)


def test_keys_that_come_and_go_on_one_connection() -> None:
    """What goes is forgotten, what comes is asked for with a number of its own; the limit counts both."""
    accounts = opened(*full("NSE_EQ|A", "NSE_EQ|B"))
    accounts.note(seen("NSE_EQ|A", "NSE_EQ|B"))
    accounts.drop(["NSE_EQ|A", "NSE_EQ|X"])
    more = chunks(Subscription(instrument_key=f"NSE_EQ|{n}", mode=Mode.FULL) for n in range(2000))
    first = accounts.extend(more)
    assert (first, accounts.answered, accounts.keys[:2]) == (1, 1, ("NSE_EQ|B", "NSE_EQ|0"))
    for number in range(first, first + len(more)):
        accounts.subscribed(number, 10.0)
    accounts.note(seen("NSE_EQ|0", at_s=11.0))
    report = accounts.report(10.0 + PATIENCE_S, OPEN)
    assert (report.subscribed, report.delivering, accounts.answered) == (2001, 2, 2)
    assert report.problems[Why.OVER_LIMIT].sample == ("NSE_EQ|1999",)
    accounts.drop(["NSE_EQ|0"])
    accounts.extend(chunks([Subscription(instrument_key="NSE_EQ|0", mode=Mode.LTPC)]))
    assert "NSE_EQ|0" not in accounts.report(12.0, OPEN).never_seen.sample


def test_a_request_that_brings_nothing_is_overdue_once() -> None:
    """While others bring something, be it empty; initial or added later; what was given back meanwhile is left out."""
    keys = [f"NSE_EQ|{n}" for n in range(1500)]
    accounts = opened(*full(*keys))
    assert accounts.overdue(AGAIN_S) == (), "nothing is served at all: the connection is what is wrong"
    accounts.note(seen(keys[0], empty=(keys[500],)))
    accounts.drop(keys[1001:1499])
    assert accounts.overdue(AGAIN_S - 0.1) == ()
    (missed,) = accounts.overdue(AGAIN_S)
    assert (missed.mode, missed.keys) == (Mode.FULL, (keys[1000], keys[1499]))
    first = accounts.extend(chunks([Subscription(instrument_key="NSE_EQ|X", mode=Mode.LTPC)]))
    assert accounts.overdue(1000.0) == (), "not even sent"
    accounts.subscribed(first, 10.0)
    assert [one.keys for one in accounts.overdue(10.0 + AGAIN_S)] == [("NSE_EQ|X",)]
    assert accounts.overdue(1000.0) == ()
    accounts.open(chunks([Subscription(instrument_key=key, mode=Mode.FULL) for key in keys[:501]]))
    for number in range(2):
        accounts.subscribed(number, 20.0)
    accounts.note(seen(keys[0]))
    assert len(accounts.overdue(30.0)) == 1, "a new connection begins anew"


def test_report_is_bounded() -> None:
    """However many keys there are."""
    accounts = opened(*full(*(f"NSE_EQ|{n}" for n in range(1000))))
    report = accounts.report(LATE_S, OPEN)
    assert (report.silent[Why.NEVER].count, len(report.silent[Why.NEVER].sample)) == (1000, 20)
    accounts.note(seen(*(f"NSE_EQ|{n}" for n in range(1000))))
    assert len(accounts.report(LATE_S, OPEN).oldest) == 20


def test_those_silent_for_longest_come_first() -> None:
    """A key that delivers again goes to the end, and one that is given back is not told."""
    accounts = opened(*full("NSE_EQ|A", "NSE_EQ|B", "NSE_EQ|C", "NSE_EQ|D"))
    accounts.note(seen("NSE_EQ|A", "NSE_EQ|B", "NSE_EQ|C", at_s=1.0))
    accounts.note(seen("NSE_EQ|A", "NSE_EQ|X", at_s=2.0))
    accounts.drop(["NSE_EQ|C"])
    assert accounts.report(4.0, OPEN).oldest == (("NSE_EQ|B", 3.0), ("NSE_EQ|A", 2.0))


def test_a_key_goes_missing_once_and_is_found_once() -> None:
    """Since it was asked for; told when its time is over."""
    accounts = opened(*full("NSE_EQ|A", "NSE_EQ|B"), at_s=2.0)
    accounts.note(seen("NSE_EQ|A"))
    assert accounts.missing(2.0 + PATIENCE_S - 0.1, OPEN) == {}
    assert accounts.missing(2.0 + PATIENCE_S, OPEN) == {(Why.NEVER, 2.0): ["NSE_EQ|B"]}
    assert accounts.missing(100.0, OPEN) == {}
    assert accounts.found() == ([], [])
    accounts.note(seen("NSE_EQ|B"))
    assert accounts.found() == (["NSE_EQ|B"], [])
    assert accounts.found() == ([], [])


@pytest.mark.parametrize("phase", [Phase.CLOSED, Phase.PRE_OPEN, Phase.QUIET, Phase.CLOSING])
def test_a_key_whose_market_does_not_trade_is_not_missing(phase: Phase) -> None:
    """It is due from the open on, and has its time then."""
    accounts = opened(*full("NSE_EQ|A"))
    assert accounts.missing(500.0, {"NSE_EQ": phase}) == {}
    assert accounts.missing(501.0, OPEN) == {}
    assert accounts.missing(500.0 + PATIENCE_S, OPEN) == {(Why.NEVER, 500.0): ["NSE_EQ|A"]}


def test_what_is_missing_stays_so_on_the_next_connection() -> None:
    """Until it delivers there; or is no longer wanted, there or before."""
    accounts = opened(*full("NSE_EQ|A", "NSE_EQ|B", "NSE_EQ|C"))
    assert sum(map(len, accounts.missing(LATE_S, OPEN).values())) == 3
    accounts.drop(["NSE_EQ|C"])
    assert accounts.found() == ([], ["NSE_EQ|C"])
    opened(*full("NSE_EQ|A"), accounts=accounts, at_s=20.0)
    assert accounts.found() == ([], ["NSE_EQ|B"])
    assert accounts.missing(20.0 + LATE_S, OPEN) == {}
    accounts.note(seen("NSE_EQ|A"))
    assert accounts.found() == (["NSE_EQ|A"], [])


def test_what_two_connections_have_not_served_has_been_due_since_the_first() -> None:
    """And the second has its time all the same."""
    accounts = opened(*full("NSE_EQ|A"))
    opened(*full("NSE_EQ|A"), accounts=accounts, at_s=6.0)
    assert accounts.missing(PATIENCE_S, OPEN) == {}
    assert accounts.missing(6.0 + PATIENCE_S, OPEN) == {(Why.NEVER, 0.0): ["NSE_EQ|A"]}


def test_while_absence_says_nothing_no_key_goes_missing() -> None:
    """Patience begins anew; of what went by unobserved nothing is known."""
    accounts = opened(*full("NSE_EQ|A"))
    assert accounts.missing(100.0, OPEN, held=True) == {}
    assert accounts.missing(100.0 + PATIENCE_S - 0.1, OPEN) == {}
    assert accounts.missing(100.0 + PATIENCE_S, OPEN) == {(Why.NEVER, 0.0): ["NSE_EQ|A"]}
    accounts.overlook()
    assert accounts.found() == (["NSE_EQ|A"], [])
    assert accounts.missing(1000.0, OPEN) == {}
