"""The verdict on a day, from real files."""

from __future__ import annotations

import datetime as dt
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from doubles import AT_MS, AT_NS, Vault, payload, received
from typer.testing import CliRunner

from tickvault import day as days
from tickvault import query, segments
from tickvault.cli import program
from tickvault.journal import Fact
from tickvault.ledger import Sessions
from tickvault.model import IST, Definition, Gap

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tickvault.verdict import Day

S = 10**9
DATE = dt.date(2026, 9, 1)
MIDNIGHT = int(dt.datetime(2026, 9, 1, tzinfo=IST).timestamp()) * S
KEY, OTHER = "NSE_EQ|A", "NSE_EQ|B"
AFTER = MIDNIGHT + 86_400 * S


def fact(kind: str, at_s: float, **body: object) -> Fact:
    """Return a fact, in s behind the vault's first entry."""
    return Fact(kind, body, AT_NS + int(at_s * S))


def calendar(at_s: float, begin_s: float, end_s: float) -> Fact:
    windows = {"NSE_EQ": ((AT_NS + int(begin_s * S), AT_NS + int(end_s * S)),)}
    return fact("calendar", at_s, **Sessions(from_ns=MIDNIGHT - S, to_ns=AFTER + S, windows=windows).body())


@pytest.fixture
def vault(tmp_path: Path) -> Iterator[Vault]:
    vault = Vault(tmp_path)
    vault.open()
    yield vault
    vault.drop()


def subscribe(vault: Vault, *keys: str) -> None:
    vault.journal.append([fact("conn", 1, conn=1, state="open"), fact("sub", 1, conn=1, mode="full", keys=list(keys))])


def on_two_sockets(vault: Vault, *more: Fact) -> None:
    """Subscribe to a key on each of two sockets."""
    vault.journal.append(
        [
            fact("conn", 1, conn=1, state="open"),
            fact("sub", 1, conn=1, mode="full", keys=[KEY]),
            fact("conn", 1, conn=2, state="open", socket=2),
            fact("sub", 1, conn=2, mode="full", keys=[OTHER], socket=2),
            *more,
        ]
    )


def trade(vault: Vault, first_s: float, last_s: float, *keys: str) -> None:
    for at_s in (first_s, last_s):
        body = payload(1, keys=keys or (KEY,), at_ms=AT_MS + int(at_s * 1000))
        vault.journal.append([received(int(at_s * 1000), body)])


def deliver(vault: Vault) -> None:
    vault.deliver_all(100)


def look(vault: Vault, now_ns: int = AFTER) -> Day:
    return days.look(vault.path, DATE, now_ns=now_ns)


def test_a_whole_day_is_complete(vault: Vault) -> None:
    """Session recorded, keys seen, store up to date."""
    vault.journal.append([calendar(0, 10, 110)])
    subscribe(vault, KEY)
    trade(vault, 1.5, 112)
    vault.journal.append([fact("conn", 112, conn=1, state="closed", reason="stopped"), fact("stop", 112)])
    deliver(vault)
    one = look(vault)
    assert one.why == ()
    assert one.complete
    assert one.hours_known
    assert [(part.segment, part.session_s, part.recorded_s, part.keys) for part in one.segments] == [
        ("NSE_EQ", 100.0, 100.0, 1)
    ]
    assert one.rows["ticks"] == 2
    assert [(store.name, store.behind, store.refused) for store in one.stores] == [("parquet", 0, 0)]


def test_what_is_missing_is_named(vault: Vault) -> None:
    """A lost connection, a key never seen, a key that came late, a store that is behind: each its line."""
    vault.journal.append([calendar(0, 10, 110)])
    subscribe(vault, KEY, OTHER, "NSE_EQ|C")
    trade(vault, 1.5, 20)
    vault.journal.append([fact("conn", 30, conn=1, state="closed", reason="lost", code=1006)])
    again = fact("conn", 42, conn=2, state="open", keys=3), fact("sub", 43, conn=2, keys=[KEY, OTHER, "NSE_EQ|C"])
    vault.journal.append([*again, fact("conn", 45, conn=2, state="live")])
    trade(vault, 50, 112, KEY, OTHER)
    vault.journal.append([fact("stop", 112)])
    one = look(vault)
    assert not one.complete
    assert [(gap.reason, gap.seconds, gap.segments) for gap in one.missing] == [("disconnected", 15.0, ("NSE_EQ",))]
    assert [(late.instrument_key, late.after_s) for late in one.late] == [("NSE_EQ|C", None), (OTHER, 49.0)]
    assert one.why == (
        "15.0 s disconnected",
        "1 of the subscribed instruments never seen: NSE_EQ|C",
        "parquet (stopped) has 4 frames still to take",
    )


def test_a_key_that_a_new_connection_did_not_bring_again_is_missing(vault: Vault) -> None:
    """It was seen before, and no connection is missing: the broker has ignored one request."""
    vault.journal.append([calendar(0, 10, 110)])
    subscribe(vault, KEY, OTHER)
    trade(vault, 1.5, 20, KEY, OTHER)
    again = fact("conn", 31, conn=2, state="open"), fact("sub", 31, conn=2, mode="full", keys=[KEY, OTHER])
    vault.journal.append([fact("conn", 30, conn=1, state="closed", reason="lost", code=1006), *again])
    trade(vault, 31.5, 112)
    vault.journal.append([fact("stop", 112)])
    deliver(vault)
    one = look(vault)
    assert one.why == (
        "1.0 s disconnected",
        f"1 of the subscribed instruments not seen since they were subscribed to again: {OTHER}",
    )
    assert [(late.instrument_key, late.lost_ns) for late in one.late] == [(OTHER, AT_NS + 31 * S)]


def missing(at_s: float, since_s: float, *keys: str) -> Fact:
    detail = "no data of it: never"
    return fact(
        "watch", at_s, conn=1, state="missing", since_ns=AT_NS + int(since_s * S), keys=list(keys), detail=detail
    )


def test_an_instrument_that_was_not_served_for_a_while_is_named(vault: Vault) -> None:
    """Lost with a connection and back with another; late; and one that never came is told once."""
    vault.journal.append([calendar(0, 10, 110)])
    subscribe(vault, KEY, OTHER, "NSE_EQ|C", "NSE_EQ|D")
    trade(vault, 1.5, 20, KEY, OTHER)
    vault.journal.append([missing(18, 1, "NSE_EQ|C", "NSE_EQ|D")])
    vault.journal.append([fact("watch", 50, conn=1, state="delivering", keys=["NSE_EQ|D"])])
    again = fact("conn", 60, conn=2, state="open"), fact("sub", 60, conn=2, keys=[KEY, OTHER, "NSE_EQ|C", "NSE_EQ|D"])
    vault.journal.append([*again, missing(69, 61, OTHER), fact("watch", 80, conn=2, state="delivering", keys=[OTHER])])
    trade(vault, 80.5, 112, KEY, OTHER, "NSE_EQ|D")
    vault.journal.append([fact("stop", 112)])
    deliver(vault)
    one = look(vault)
    assert one.why == (
        "1 of the subscribed instruments never seen: NSE_EQ|C",
        "2 of the subscribed instruments not served for a while: NSE_EQ|D (40.0 s), NSE_EQ|B (19.0 s)",
    )
    assert [(key.instrument_key, key.seconds, key.from_ns, key.to_ns) for key in one.absent] == [
        ("NSE_EQ|C", 100.0, AT_NS + 10 * S, AT_NS + 110 * S),
        ("NSE_EQ|D", 40.0, AT_NS + 10 * S, AT_NS + 50 * S),
        (OTHER, 19.0, AT_NS + 61 * S, AT_NS + 80 * S),
    ]
    assert one.segments[0].recorded_s == 100.0


def test_a_run_that_is_gone_ended_at_its_last_commit(vault: Vault) -> None:
    """Nobody was there to say so."""
    vault.journal.append([calendar(0, 10, 110)])
    subscribe(vault, KEY)
    trade(vault, 1.5, 60)
    deliver(vault)
    assert look(vault).why == ("50.0 s recorder_down",)


def test_a_day_on_which_nobody_recorded_is_incomplete(vault: Vault) -> None:
    """The hours of that day are known from the day before."""
    vault.journal.append([calendar(0, -100, -50)])
    subscribe(vault, KEY)
    deliver(vault)
    assert "50.0 s recorder_down" in look(vault).why


def test_a_holiday_is_complete(vault: Vault) -> None:
    """There was nothing to record."""
    windows = {"NSE_EQ": ()}
    vault.journal.append(
        [fact("calendar", 0, **Sessions(from_ns=MIDNIGHT - S, to_ns=AFTER + S, windows=windows).body())]
    )
    one = look(vault)
    assert one.complete, one.why
    assert one.segments[0].session_s == 0


def test_a_session_that_goes_on_is_not_complete(vault: Vault) -> None:
    """What is recorded so far counts; the rest is to come."""
    vault.journal.append([calendar(0, 10, 110)])
    subscribe(vault, KEY)
    trade(vault, 1.5, 60)
    deliver(vault)
    assert look(vault, AT_NS + 60 * S).why == ("NSE_EQ still to trade today",)


def test_without_hours_the_recording_is_judged(vault: Vault) -> None:
    """From the first connection to the last commit; it says so. While the day lasts, more may come."""
    subscribe(vault, KEY)
    trade(vault, 1.5, 60)
    deliver(vault)
    one = look(vault)
    assert not one.hours_known
    assert one.complete, one.why
    assert one.segments[0].session_s == 59.0
    assert look(vault, AT_NS + 60 * S).why == ("the day is not over",)


def test_rows_that_a_store_refused_are_missing_there(vault: Vault) -> None:
    """A frame that does not decode is a dead letter of its day."""
    vault.journal.append([calendar(0, 10, 20)])
    subscribe(vault, KEY)
    trade(vault, 1.5, 30)
    vault.journal.append([received(30_500, b"\xff broken"), fact("stop", 31)])
    deliver(vault)
    assert look(vault).why == ("parquet refused 1 rows: `tickvault dead-letters list` has its words",)


def test_a_store_of_which_nothing_is_known_has_nothing(vault: Vault) -> None:
    """One that has not begun, and all of them when the state is lost."""
    vault.journal.append([calendar(0, 10, 20)])
    subscribe(vault, KEY)
    trade(vault, 1.5, 30)
    vault.journal.append([fact("stop", 31)])
    deliver(vault)
    behind = "influx (unknown) has 2 frames still to take"
    assert days.look(vault.path, DATE, now_ns=AFTER, sinks=("parquet", "influx")).why == (behind,)
    vault.drop()
    vault.lose_state()
    assert days.look(vault.path, DATE, now_ns=AFTER, sinks=("influx",)).why == (behind,)


def test_two_sockets_are_judged_by_what_each_has_missed(vault: Vault) -> None:
    """A gap of the second one is missing, once, although the first delivers; both again is complete again."""
    vault.journal.append([calendar(0, 10, 110)])
    on_two_sockets(vault)
    trade(vault, 1.5, 20, KEY, OTHER)
    vault.journal.append(
        [
            fact("conn", 30, conn=2, state="closed", reason="lost", socket=2),
            fact("conn", 40, conn=3, state="open", socket=2),
            fact("sub", 40, conn=3, mode="full", keys=[OTHER], socket=2),
        ]
    )
    trade(vault, 50, 112, KEY, OTHER)
    vault.journal.append([fact("stop", 112)])
    deliver(vault)
    one = look(vault)
    assert one.why == ("10.0 s disconnected",)
    assert [(part.segment, part.recorded_s, part.keys) for part in one.segments] == [("NSE_EQ", 90.0, 2)]
    assert one.late == ()


def test_what_a_socket_that_never_opened_was_for_is_missing(vault: Vault) -> None:
    """Although nobody has subscribed to it."""
    hours = {"NSE_EQ": ((AT_NS + 10 * S, AT_NS + 50 * S),), "MCX_FO": ((AT_NS + 10 * S, AT_NS + 110 * S),)}
    vault.journal.append([fact("calendar", 0, **Sessions(from_ns=MIDNIGHT - S, to_ns=AFTER + S, windows=hours).body())])
    subscribe(vault, KEY)
    vault.journal.append([fact("conn", 20, conn=2, state="failed", reason="refused", segments=["MCX_FO"], socket=2)])
    trade(vault, 1.5, 112)
    vault.journal.append([fact("stop", 112)])
    deliver(vault)
    one = look(vault)
    assert one.why == ("90.0 s disconnected",)
    assert [gap.segments for gap in one.missing] == [("MCX_FO",)]


def test_what_left_before_the_market_opened_is_not_asked_for(vault: Vault) -> None:
    """Yesterday's contracts; one that leaves while its segment trades had to be seen."""
    vault.journal.append([calendar(0, 10, 110)])
    subscribe(vault, KEY, OTHER, "NSE_EQ|C")
    vault.journal.append([fact("unsub", 5, conn=1, keys=[OTHER])])
    trade(vault, 6, 20)
    vault.journal.append([fact("unsub", 30, conn=1, keys=["NSE_EQ|C"])])
    trade(vault, 50, 112)
    vault.journal.append([fact("stop", 112)])
    deliver(vault)
    one = look(vault)
    assert one.why == ("1 of the subscribed instruments never seen: NSE_EQ|C",)
    assert one.segments[0].keys == 2


def run(vault: Vault, *arguments: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(vault.path)  # no .env of the tree
    monkeypatch.setenv("TICKVAULT_DATA_DIR", str(vault.path))
    return CliRunner().invoke(program(), ["day", *arguments])


def test_the_command_exits_with_the_verdict(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    """0 or 1, as lines or as JSON; another word than a date is bad usage."""
    vault.journal.append([calendar(0, 10, 110)])
    subscribe(vault, KEY)
    trade(vault, 1.5, 60)
    deliver(vault)
    done = run(vault, "2026-09-01", monkeypatch=monkeypatch)
    assert done.exit_code == 1
    assert "INCOMPLETE" in done.output
    assert "50.0 s recorder_down" in done.output
    told = json.loads(run(vault, "2026-09-01", "--json", monkeypatch=monkeypatch).output)
    assert told["date"] == "2026-09-01"
    assert told["missing"][0]["reason"] == "recorder_down"
    trade(vault, 61, 111)
    vault.journal.append([fact("stop", 111)])
    deliver(vault)
    done = run(vault, "2026-09-01", monkeypatch=monkeypatch)
    assert done.exit_code == 0, done.output
    assert "2026-09-01 COMPLETE" in done.output
    for wrong in ("yesterday", "2999-01-01", "0001-01-01"):
        assert run(vault, wrong, monkeypatch=monkeypatch).exception.exit_code == 2  # type: ignore[union-attr]


def covered(vault: Vault, key: str) -> list[tuple[Any, ...]]:
    begin, end = (f"epoch_ms({AT_MS + at_s * 1000})::TIMESTAMP AT TIME ZONE 'UTC'" for at_s in (0, 100))
    with query.connect(vault.path) as db:
        return db.execute(
            "SELECT ticks, epoch_ms(first_tick), epoch_ms(last_tick), epoch_ms(gap_from), gap_s, reason"
            f" FROM coverage('{key}', {begin}, {end})"
        ).fetchall()


def test_coverage_of_an_instrument(vault: Vault) -> None:
    """First and last tick, and each gap that concerns it, cut to what is asked."""
    trade(vault, 10, 20)
    assert covered(vault, KEY) == [(2, AT_MS + 10_000, AT_MS + 20_000, None, None, None)]
    gaps = [("connection", "feed", -50, 5), ("segment", "NSE_EQ", 90, None), ("segment", "NSE_FO", 30, 40)]
    gaps += [("instrument", OTHER, 50, 60), ("recorder", "", 200, 300)]
    vault.state.put_gaps(
        [
            Gap(
                scope=scope,
                subject=subject,
                opened_ns=AT_NS + begin * S,
                closed_ns=None if end is None else AT_NS + end * S,
                reason=scope,
                planned=False,
                detail="",
            )
            for scope, subject, begin, end in gaps
        ]
    )
    assert [row[3:] for row in covered(vault, KEY)] == [
        (AT_MS, 5.0, "connection"),
        (AT_MS + 90_000, 10.0, "segment"),
    ]
    assert [row[5] for row in covered(vault, OTHER)] == ["connection", "instrument", "segment"]
    assert covered(vault, OTHER)[0][:3] == (0, None, None)


def test_coverage_tells_the_gaps_of_two_sockets_apart(vault: Vault) -> None:
    """A gap of one concerns what that one carries, and what nobody knows of; the start concerns all."""
    on_two_sockets(vault, fact("unsub", 60, conn=1, keys=[KEY]))
    trade(vault, 10, 20, KEY, OTHER)
    gaps = [("connection", "feed", 0, 1), ("connection", "feed", 30, 35), ("connection", "feed 2", 40, 45)]
    gaps += [("segment", "NSE_EQ", 46, 47), ("segment", "NSE_EQ feed 2", 48, 49), ("segment", "NSE_FO feed 2", 50, 51)]
    gaps += [("connection", "feed 2", 70, 75)]
    vault.state.put_gaps(
        [
            Gap(
                scope=scope,
                subject=subject,
                opened_ns=AT_NS + begin * S,
                closed_ns=AT_NS + end * S,
                reason=f"{subject} {begin}",
                planned=False,
                detail="",
            )
            for scope, subject, begin, end in gaps
        ]
    )
    first, second = ["feed 0", "feed 30", "NSE_EQ 46"], ["feed 2 40", "NSE_EQ feed 2 48"]
    assert [row[5] for row in covered(vault, KEY)] == [*first, "feed 2 70"]
    assert [row[5] for row in covered(vault, OTHER)] == [*second, "feed 2 70"]
    unknown = ["feed 0", "feed 30", "feed 2 40", "NSE_EQ 46", "NSE_EQ feed 2 48", "feed 2 70"]
    assert [row[5] for row in covered(vault, "NSE_EQ|C")] == unknown


def waiting(at_s: float, state: str = "waiting") -> Fact:
    return fact("watch", at_s, state=state, segments=["NSE_FO"], detail="chain:NIFTY:1 waits for the master list")


def both_trade(vault: Vault) -> None:
    """Both segments trade for 100 s."""
    span = ((AT_NS + 10 * S, AT_NS + 110 * S),)
    known = Sessions(from_ns=MIDNIGHT - S, to_ns=AFTER + S, windows={"NSE_EQ": span, "NSE_FO": span})
    vault.journal.append([fact("calendar", 0, **known.body())])


def test_what_waited_for_the_master_list_is_missing(vault: Vault) -> None:
    """Of its segment and of no other, in the verdict and in the coverage of its instruments."""
    both_trade(vault)
    vault.journal.append([waiting(0.5)])
    subscribe(vault, KEY)
    trade(vault, 1.5, 60)
    vault.journal.append([fact("sub", 70, conn=1, keys=["NSE_FO|1", "NSE_FO|2"]), waiting(70, "resolved")])
    trade(vault, 71, 112, KEY, "NSE_FO|1", "NSE_FO|2")
    vault.journal.append([fact("stop", 112)])
    deliver(vault)
    one = look(vault)
    assert one.why == ("60.0 s not_subscribed",)
    assert [(part.segment, part.session_s, part.recorded_s) for part in one.segments] == [
        ("NSE_EQ", 100.0, 100.0),
        ("NSE_FO", 100.0, 40.0),
    ]
    gap = Gap(
        scope="segment",
        subject="NSE_FO",
        opened_ns=AT_NS + 10 * S,
        closed_ns=AT_NS + 70 * S,
        reason="not_subscribed",
        planned=False,
        detail="",
    )
    vault.state.put_gaps([gap])
    assert [row[4:] for row in covered(vault, "NSE_FO|1")] == [(60.0, "not_subscribed")]
    vault.state.put_gaps([replace(gap, subject="NSE_EQ")])
    assert [row[4:] for row in covered(vault, KEY)] == [(None, None)], "it was served meanwhile"


def test_what_waits_all_day_is_missing_all_day(vault: Vault) -> None:
    """Though nothing of its segment was ever subscribed to."""
    both_trade(vault)
    vault.journal.append([waiting(0.5)])
    subscribe(vault, KEY)
    trade(vault, 1.5, 112)
    vault.journal.append([fact("stop", 112)])
    deliver(vault)
    one = look(vault)
    assert one.why == ("100.0 s not_subscribed",)
    assert [(part.segment, part.recorded_s, part.keys) for part in one.segments] == [
        ("NSE_EQ", 100.0, 1),
        ("NSE_FO", 0.0, 0),
    ]


def known(*keys: str) -> Fact:
    body = segments.defs_body([Definition(instrument_key=key, symbol=key, segment="NSE_EQ") for key in keys])
    return fact("defs", 0.5, **body)


def day_with_a_key_that_never_came(vault: Vault, *facts: Fact) -> Day:
    vault.journal.append([calendar(0, 10, 110), *facts])
    subscribe(vault, KEY, OTHER)
    trade(vault, 1.5, 50)
    vault.journal.append([missing(60, 1, OTHER)])
    trade(vault, 70, 112)
    vault.journal.append([fact("stop", 112)])
    deliver(vault)
    return look(vault)


def test_a_key_that_nobody_knows_costs_nothing(vault: Vault, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is in no master list, nothing has ever come of it, and other keys of its segment are: a wrong line of a list."""
    one = day_with_a_key_that_never_came(vault, known(KEY))
    assert (one.why, one.unknown, one.absent, one.late) == ((), (OTHER,), (), ())
    done = run(vault, DATE.isoformat(), monkeypatch=monkeypatch)
    assert done.exit_code == 0
    assert "not in the broker's master list" in done.output.replace("\n", " ")


def test_a_key_that_the_list_has_costs_the_day(vault: Vault) -> None:
    """It is an instrument, and it was not served."""
    one = day_with_a_key_that_never_came(vault, known(KEY, OTHER))
    assert one.why == (f"1 of the subscribed instruments never seen: {OTHER}",)
    assert one.unknown == ()


def test_without_a_list_every_key_counts(vault: Vault) -> None:
    """Nobody can say which are wrong."""
    one = day_with_a_key_that_never_came(vault)
    assert one.why == (f"1 of the subscribed instruments never seen: {OTHER}",)


def test_a_key_that_was_seen_on_another_day_counts(vault: Vault) -> None:
    """The list may have lost it."""
    trade(vault, -90_000, -89_999, OTHER)
    one = day_with_a_key_that_never_came(vault, known(KEY))
    assert one.why == (f"1 of the subscribed instruments never seen: {OTHER}",)
