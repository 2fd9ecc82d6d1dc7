"""Every script of the simulator, played to a whole recorder: it never ends, loses nothing that was sent, and says so.

Of a behaviour that nobody has measured both variants are here.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import oracle
import pytest
from google.protobuf.message import DecodeError
from played import playing
from programs import globbed

from tickvault.brokers.upstox.accounts import Why
from tickvault.brokers.upstox.feed import FeedState
from tickvault.brokers.upstox.findings import Condition
from tickvault.brokers.upstox.phases import Phase
from tickvault.brokers.upstox.proto import market_data_feed_pb2 as pb
from tickvault.model import Mode, Subscription
from tickvault.simulator import script_names
from tickvault.simulator.script import RotateToken
from tickvault.survey import events

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping
    from pathlib import Path
    from typing import TypeAlias

    from played import Played

    Drive: TypeAlias = Callable[[Played], Awaitable[None]]
    Choose: TypeAlias = Callable[[tuple[str, ...]], Iterable[str]]

pytestmark = [pytest.mark.virtual, pytest.mark.timeout(120)]
LIVE, WAITING = FeedState.LIVE, FeedState.WAITING
GAP_OF = {"silent": "silent", "brown_out": "brown_out", "refused": "subscription_refused"}
ABRUPT = ("lost", "silent")
EXPIRED = "NSE_FO|99999"


async def a_moment(played: Played) -> None:
    """Let some data come."""
    await played.more()


@dataclass(frozen=True, kw_only=True)
class Case:
    """What a script does to a recorder.

    Attributes:
        script: its name; `begin` as of `playing`, which gets `more` besides.
        warm: frames that come before it begins.
        serves: whether keys are ever served.
        ends: (reason, code) of the connections before the last; then any number of `again`.
        failed: reasons of attempts that were told.
        watched: states that the watch told; `may`: it may tell these too.
        gaps: reasons of the gaps of the connection, in order; empty: one at the start, and one after each end.
        problems: why keys do not deliver → how many.
        alarms: what it warns of besides.
        known: whether every frame can be decoded by the .proto.
        drive: what to do while it is live; `drops`: then the connection is closed with 1000, the last of `ends`.
        look: what else is to be true afterwards.
        is_day: whether the market opens and closes, at the pace of the script.
        refused: whether the token is, so that only another one is tried.
        races: whether a token may die between the service's answer and its use.
    """

    script: str
    begin: str = "live"
    warm: int = 10
    serves: bool = True
    ends: tuple[tuple[str, int], ...] = ()
    again: tuple[str, int] | None = None
    failed: tuple[str, ...] = ()
    watched: frozenset[str] = frozenset()
    may: frozenset[str] = frozenset()
    gaps: tuple[str, ...] = ()
    problems: Mapping[Why, int] = field(default_factory=dict)
    alarms: frozenset[str] = frozenset()
    known: bool = True
    drive: Drive = a_moment
    drops: bool = False
    look: Callable[[Played], None] = lambda _: None
    is_day: bool = False
    refused: bool = False
    races: bool = False
    more: Mapping[str, Any] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.script


# What to do meanwhile.


def opened(count: int) -> Drive:
    """Wait for so many connections."""

    async def drive(played: Played) -> None:
        await played.live(count)

    return drive


async def called_often(played: Played) -> None:
    """Let it come back more often than a window of the limit allows."""
    await played.until(lambda: len(played.limit.called_s) >= 8, "it comes back again and again")


async def seen_fresh(played: Played) -> None:
    """Wait until the connection was replaced and data is fresh, which is told if its absence was."""
    await played.live(2)
    await played.until(lambda: played.feed.watch.state is Condition.FRESH, "it is fresh")
    await played.live(2)
    await played.more()


async def seen_usual(played: Played) -> None:
    """Wait for the end of a brown-out."""
    await played.until(lambda: played.feed.watch.state is Condition.BROWN_OUT, "a brown-out")
    await played.until(lambda: played.feed.watch.state is Condition.FRESH, "usual again")
    await played.live(2)


async def refused_for_long(played: Played) -> None:
    """It is told, and tried again and again, ever more slowly."""
    await played.until(lambda: len(played.said("feed.closed")) >= 2, "it tries again")
    await played.until(lambda: played.feed.keys.problems, "its keys are named")
    assert played.feed.watch.state is Condition.REFUSED


def told(event: str) -> Drive:
    """Wait for a log line."""

    async def drive(played: Played) -> None:
        await played.until(lambda: played.said(event), event)
        await played.more()

    return drive


def named(*problems: Why) -> Drive:
    """Wait until keys are reported."""

    async def drive(played: Played) -> None:
        await played.until(lambda: set(played.feed.keys.problems) == set(problems), f"keys are {problems}")
        await played.more(60)  # fifteen seconds: they are missing when eight have passed

    return drive


async def all_deliver(played: Played) -> None:
    """Wait until every key does."""
    await played.until(lambda: played.feed.keys.delivering == 20, "all keys deliver")
    await played.more()


async def garbage_came(played: Played) -> None:
    """Let some of it come."""
    await played.more(40)


async def other_mode(played: Played) -> None:
    """Move a key to another mode on the open connection, as a change of the plan does."""
    key = played.simulator.instrument_keys[0]
    assert played.feed.change((Subscription(instrument_key=key, mode=Mode.LTPC),), (key,))
    await played.until(lambda: len(list(events(played.data / "journal", ("sub",)))) == 2, "it is asked for anew")
    await played.until(lambda: played.feed.keys.delivering == 20, "it delivers again")


async def token_changed(played: Played) -> None:
    """The connection outlives its token; the next one takes what the service gives then."""
    await played.until(lambda: played.simulator._gate.token != "simulator-token", "there is another token")
    await played.more()


async def given_another(played: Played) -> None:
    """The broker takes tokens again, and the refused one is not tried; another one is."""
    await played.until(lambda: played.said("feed.failed"), "the token is refused")
    over_ms = played.simulator.now_ms() + 10_000  # twice as long as it is refused
    await played.until(lambda: played.simulator.now_ms() > over_ms, "the broker takes it again")
    assert len(played.limit.called_s) == 1
    played.simulator.play(RotateToken(at_s=0.0))


async def token_died(played: Played) -> None:
    """Wait until it is back with another token."""
    await played.live(2)
    await played.more()


async def calendar_known(played: Played) -> None:
    """Wait until the broker has told its hours."""
    await played.until(lambda: played.calendar.fresh, "the calendar is known")
    await played.more()


async def defined(played: Played) -> None:
    """Wait until definitions are there, late."""
    await played.until(lambda: list(events(played.data / "journal", ("defs",))), "definitions")


async def listed_often(played: Played) -> None:
    """Let the list be compared some times."""
    upto = len(played.refreshed) + 3
    await played.until(lambda: len(played.refreshed) >= upto, "the list is compared")


def relisted(times: int) -> Drive:
    """Wait until other lists are taken over; data goes on."""

    async def drive(played: Played) -> None:
        await played.until(lambda: played.refreshed.count(True) == 1 + times, "another list")
        await listed_often(played)
        await played.more()

    return drive


async def open_now(played: Played) -> None:
    """Wait until everything trades."""
    await played.until(lambda: set(played.feed.phases.values()) == {Phase.OPEN}, "everything is open")
    await played.more()


def rests(played: Played) -> bool:
    """Whether no segment trades, the cash market for today."""
    phases = played.feed.phases
    return phases.get("NSE_EQ") is Phase.CLOSED and set(phases.values()) <= {Phase.CLOSED, Phase.QUIET}


async def closed_now(played: Played) -> None:
    """Snapshots are served all the same, and nothing is expected."""
    await played.until(lambda: set(played.feed.phases.values()) == {Phase.CLOSED}, "everything is closed")
    await played.until(lambda: played.feed.keys.delivering == 20, "snapshots are served all the same")
    assert played.feed.watch.due == ()


async def closed_at_last(played: Played) -> None:
    """Wait until everything has traded."""
    await played.until(lambda: Phase.OPEN in played.feed.phases.values(), "something is open")
    await played.until(lambda: rests(played), "everything is closed")


# What is to be true afterwards.


def definitions_once(played: Played) -> None:
    """However often the list is downloaded, only what differs is journalled."""
    assert sorted(keys_of(played, "defs")) == sorted(played.simulator.instrument_keys)


def whole_again(played: Played) -> None:
    """What was missing is told, with its segment, and that it is there again; definitions stay."""
    definitions_once(played)
    assert [one["rows"] for one in played.said("instruments.lost")] == [{"NSE_FO": 5}]
    assert played.said("instruments.whole")


def definitions_changed(played: Played) -> None:
    """Two keys have a second definition."""
    counts = Counter(keys_of(played, "defs"))
    assert sorted(counts.values()) == [1] * 18 + [2] * 2


def asked_once(played: Played) -> None:
    """A key that is named twice is subscribed to in one mode, whatever the broker makes of two."""
    assert sorted(keys_of(played, "sub")) == sorted(played.simulator.instrument_keys)


def asked_again(played: Played) -> None:
    """The request that nothing answered was made once more, on the same connection."""
    first, missed, again = played.of("sub")
    assert missed["keys"] == again["keys"] == played.of("unsub")[0]["keys"] != first["keys"]


def one_address_each(played: Played) -> None:
    """Every connection has an authorize call of its own."""
    assert len(played.limit.called_s) == len(played.of("conn", "open"))


def deflated(played: Played) -> None:
    """It is negotiated, and told."""
    assert [body["deflate"] for body in played.of("conn", "open")] == [True]


def plain(played: Played) -> None:
    """It was offered, and not taken."""
    assert [body["deflate"] for body in played.of("conn", "open")] == [False]


def garbage_set_aside(played: Played) -> None:
    """What does not decode is journalled like anything else, and told as a dead letter; nothing else is one."""
    broken = [payload for payload in played.frames[1] if not decodes(payload)]
    with contextlib.closing(sqlite3.connect(played.data / "state.db")) as db:
        [[count]] = db.execute("SELECT count(*) FROM dead_letters")
    assert len(broken) == count > 1


def no_storm(played: Played) -> None:
    """A market in which nothing happens is not restarted again and again: patience doubles each time."""
    assert len(played.of("conn", "open")) <= 4


def changed_on_the_spot(played: Played) -> None:
    """It is given back and asked for again: what the broker answers to change_mode does not matter."""
    assert [len(body["keys"]) for body in played.of("unsub")] == [1]
    assert [(body["mode"], len(body["keys"])) for body in played.of("sub")] == [("full", 20), ("ltpc", 1)]


def keys_of(played: Played, kind: str) -> list[str]:
    """Return the keys that facts of a kind name; a new segment's copy of definitions names none anew."""
    if kind == "defs":
        bodies = [body for body in played.of("defs") if not body["carried"]]
        return [one["instrument_key"] for body in bodies for one in body["definitions"]]
    return [key for body in played.of(kind) for key in body["keys"]]


def decodes(payload: bytes) -> bool:
    try:
        pb.FeedResponse.FromString(payload)
    except DecodeError:
        return False
    return True


# What is recorded.


def plus(*more: str) -> Choose:
    """Record these besides."""
    return lambda keys: (*keys, *more)


def equities(keys: tuple[str, ...]) -> Iterable[str]:
    """Record only these: one segment's updates are the feed's."""
    return [key for key in keys if key.startswith("NSE_EQ")]


def in_d30(keys: tuple[str, ...]) -> Iterable[str]:
    """Record five in full_d30."""
    return [f"{key}@full_d30" if number >= 15 else key for number, key in enumerate(keys)]


def in_two_requests(keys: tuple[str, ...]) -> Iterable[str]:
    """Record half of each segment in another mode, which takes a request of its own."""
    return [f"{key}@ltpc" if number % 2 else key for number, key in enumerate(keys)]


def twice(keys: tuple[str, ...]) -> Iterable[str]:
    """Name the indices in one mode, and let another selection bring them in another."""
    return (*keys, "index:*@ltpc")


SILENCE, REFUSAL = frozenset({"silent", "fresh"}), frozenset({"refused", "served"})
REJECTED = ("disconnected", "token_rejected")
NOVEL = frozenset({"feed.novelty"})
# A token that never changes, for what the broker refuses for other reasons.
STATIC = {"environ": {"UPSTOX_ACCESS_TOKEN": "simulator-token"}}

CASES = (
    Case(script="steady", look=definitions_once),
    Case(script="steady", look=plain),
    # How connections end
    Case(script="close-1000", ends=(("closed", 1000),)),
    Case(script="close-1006", ends=(("lost", 1006),)),
    Case(script="close-1008", ends=(("closed", 1008),)),
    Case(script="close-1011", ends=(("closed", 1011),)),
    Case(script="reset", ends=(("lost", 1006),)),
    Case(script="stale-snapshot", ends=(("lost", 1006),)),
    Case(script="close-every-minute", ends=(("closed", 1000),), again=("closed", 1000), drive=opened(4)),
    Case(script="close-again-and-again", ends=(("closed", 1000),), again=("closed", 1000), drive=called_often),
    # Silence
    Case(script="mute", ends=(("mute", 1000),), again=("mute", 1000), watched=SILENCE, may=REFUSAL,
         drive=seen_fresh, warm=400),
    Case(script="mute-one-socket", ends=(("mute", 1000),), watched=SILENCE, drive=seen_fresh),
    Case(script="stall", ends=(("silent", 1006),), again=("mute", 1000), may=REFUSAL | SILENCE, drive=seen_fresh),
    Case(script="deaf", begin="feed", serves=False, ends=(("mute", 1000),), again=("mute", 1000), watched=frozenset({"refused"}),
         problems={Why.NEVER: 20}, drive=refused_for_long),
    Case(script="missing-chunk", begin="feed", drive=all_deliver, alarms=frozenset({"feed.unanswered"}),
         look=asked_again, more={"choose": in_two_requests}),
    Case(script="missing-snapshot", begin="feed", more={"choose": in_two_requests}),
    Case(script="unseen-keys", begin="feed", problems={Why.NEVER: 2}, drive=named(Why.NEVER)),
    Case(script="brown-out", ends=(("brown_out", 1000),), watched=frozenset({"brown_out", "usual"}),
         drive=seen_usual, more={"choose": equities}, warm=600),
    Case(script="quiet-market", ends=(("mute", 1000),), again=("mute", 1000), watched=SILENCE,
         drive=seen_fresh, look=no_storm),
    # What is not served
    Case(script="steady", problems={Why.EMPTY: 1, Why.NEVER: 2}, drive=named(Why.EMPTY, Why.NEVER),
         more={"choose": plus("NSE_FO|NIFTY18NOV2025PE25950", "NSE_INDEX|NIFTY 50", "NSE_EQ|INE000000000")}),
    Case(script="expired-keys-silent", problems={Why.NEVER: 1}, drive=named(Why.NEVER), more={"choose": plus(EXPIRED)}),
    Case(script="expired-keys-empty", problems={Why.EMPTY: 1}, drive=named(Why.EMPTY), more={"choose": plus(EXPIRED)}),
    Case(script="no-plus", problems={Why.NO_PLUS: 5}, drive=named(Why.NO_PLUS), alarms=frozenset({"feed.unanswered"}),
         more={"choose": in_d30, "environ": {"UPSTOX_PLUS": "true"}}),
    Case(script="two-modes-last", look=asked_once, more={"choose": twice}),
    Case(script="two-modes-first", look=asked_once, more={"choose": twice}),
    Case(script="change-mode-silent", drive=other_mode, look=changed_on_the_spot),
    # Refusals
    Case(script="authorize-401", begin="feed", failed=("token_rejected",), gaps=REJECTED, refused=True),
    Case(script="authorize-403", begin="feed", failed=("token_rejected",), gaps=REJECTED, refused=True),
    Case(script="error-snake", begin="feed", failed=("token_rejected",), gaps=REJECTED, refused=True),
    Case(script="error-camel", begin="feed", failed=("token_rejected",), gaps=REJECTED, refused=True),
    Case(script="token-not-for-feed", begin="feed", failed=("token_rejected",), gaps=REJECTED, refused=True),
    Case(script="authorize-429", begin="feed", failed=("rate_limited",)),
    Case(script="authorize-500", begin="feed", failed=("refused",)),
    Case(script="authorize-503", begin="feed", failed=("refused",)),
    Case(script="handshake-401", begin="feed", failed=("refused",)),
    Case(script="handshake-403", begin="feed", failed=("refused",)),
    Case(script="handshake-reset", begin="feed", failed=("unreachable",)),
    Case(script="rate-limited", begin="start", failed=("rate_limited",), drive=calendar_known,
         alarms=frozenset({"calendar.unavailable"}), more=STATIC),
    Case(script="cloudflare-1010", begin="start", failed=("refused",), drive=calendar_known,
         alarms=frozenset({"calendar.unavailable"}), more=STATIC),
    Case(script="cloudflare-1010-json", begin="start", failed=("refused",), drive=calendar_known,
         alarms=frozenset({"calendar.unavailable"}), more=STATIC),
    Case(script="slow-handshake"),
    Case(script="address-lives-5s", ends=(("closed", 1000),), drops=True, look=one_address_each),
    Case(script="address-lives-60s", ends=(("closed", 1000),), drops=True, look=one_address_each),
    Case(script="reused-address-403", ends=(("closed", 1000),), drops=True, look=one_address_each),
    # Tokens
    Case(script="token-changes-old-dies", ends=(("closed", 1000),), drive=token_changed, drops=True,
         races=True),
    Case(script="token-changes-old-lives", ends=(("closed", 1000),), drive=token_changed, drops=True),
    Case(script="token-expiry-survives", ends=(("closed", 1000),), drive=token_changed, drops=True),
    Case(script="token-expiry-closes", ends=(("closed", 1008),), drive=token_died),
    Case(script="stale-token-service", ends=(("closed", 1008),), failed=("token_rejected",), drive=token_died,
         gaps=("disconnected", *REJECTED)),
    # What is in a frame
    Case(script="book-only", begin="feed"),
    Case(script="trade-only", begin="feed"),
    Case(script="quotes-only", begin="feed"),
    Case(script="duplicate-frames"),
    Case(script="reordered-frames"),
    Case(script="zero-scalars"),
    Case(script="unknown-type", drive=told("feed.novelty"), alarms=NOVEL, known=False),
    Case(script="unknown-mode", drive=told("feed.novelty"), alarms=NOVEL, known=False),
    Case(script="unknown-status", drive=told("feed.novelty"), alarms=NOVEL, known=False),
    Case(script="unknown-field", drive=told("feed.novelty"), alarms=NOVEL),
    Case(script="garbage", drive=garbage_came, look=garbage_set_aside, known=False),
    Case(script="text-refusal", drive=told("feed.text"), alarms=frozenset({"feed.text"})),
    Case(script="deflate", look=deflated),
    Case(script="ping-at-open"),
    # The lists
    Case(script="master-503", begin="start", drive=defined, alarms=frozenset({"instruments.unavailable"}),
         look=definitions_once),
    Case(script="master-misses", drive=relisted(2), look=whole_again, alarms=frozenset({"instruments.lost"})),
    Case(script="master-no-etag", drive=listed_often, look=definitions_once),
    Case(script="master-weak-etag", drive=listed_often, look=definitions_once),
    Case(script="reused-exchange-token", drive=relisted(1), look=definitions_changed),
    Case(script="market-needs-token", drive=calendar_known),
    # The market
    Case(script="weekend", is_day=True, warm=0, drive=closed_now),
    Case(script="holiday", is_day=True, warm=0, drive=closed_now),
    Case(script="settlement-holiday", drive=open_now),
    Case(script="morning", is_day=True, warm=0, drive=open_now),
    Case(script="closing-auction", is_day=True, warm=0, drive=closed_at_last),
    Case(script="market-day", is_day=True, warm=0, drive=closed_at_last),
    Case(script="muhurat", is_day=True, warm=0, drive=closed_at_last),
)  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
async def test_the_recorder_goes_on(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every frame sent is in the journal and in Parquet, connections and gaps are told, and nothing else is alarming."""
    async with playing(
        case.script, tmp_path, monkeypatch, speed=None if case.is_day else 1.0, begin=case.begin, **case.more
    ) as played:
        if case.serves and not case.refused:
            await played.live()
            if case.begin == "live" and case.warm:
                await played.more(case.warm)
        played.begin()
        if case.refused:
            await given_another(played)
        if case.serves:
            await played.live(1 + len(case.ends) - case.drops)
        await case.drive(played)
        if case.drops:
            await played.simulator.drop_connections(code=1000)
            await played.live(1 + len(case.ends))
            await played.more()
        problems = {why: keys.count for why, keys in played.feed.keys.problems.items()}
    assert problems == case.problems
    check(case, played)
    if case.known:
        payloads = [payload for of in played.frames.values() for payload in of]
        wanted = oracle.expected_ticks(payloads)
        assert Counter(map(oracle.stored_tick, globbed(played.data, "ticks") if wanted else ())) == wanted
    case.look(played)


def check(case: Case, played: Played) -> None:
    """Hold the journal, the ledger and the log against what a case says."""
    ends = [(body["reason"], body["code"]) for body in played.of("conn", "closed")]
    assert len(played.of("conn", "open")) == len(ends)
    if ends[-1] == ("stopped", 1000):  # or it was stopped while none was open
        ends.pop()
    assert ends[: len(case.ends)] == list(case.ends)
    assert set(ends[len(case.ends) :]) <= {case.again}
    failed = [body["reason"] for body in played.of("conn", "failed")]
    assert failed == list(case.failed) or (case.races and set(failed) == {"token_rejected"})
    watched = {body["state"] for body in played.of("watch") if "keys" not in body}
    assert case.watched <= watched <= case.watched | case.may
    told = [
        reason
        for scope, reason in played.gaps
        if scope == "connection" and not (case.races and reason == "token_rejected")
    ]
    if case.is_day:  # what is missed at the start ends with the calendar, and begins again with the session
        told = sorted(set(told))
    # One that ended before it served, or was refused, leaves the gap as it was.
    served = [one["conn"] for one in played.of("conn", "live")]
    fewest = 1 + sum(body["conn"] in served for body in played.of("conn", "closed")[: len(ends)])
    assert told == list(case.gaps or ["disconnected"] * min(max(len(told), fewest), 1 + len(ends)))
    gaps = {GAP_OF[state] for state in watched if state in GAP_OF}
    assert {reason for scope, reason in played.gaps if scope == "segment"} == gaps
    assert {scope for scope, _ in played.gaps} <= {"connection", "segment", "instrument"}
    missing = {key for body in played.of("watch", "missing") for key in body["keys"]}
    unserved = 0 if "refused" in watched else sum(case.problems.values())
    assert len(missing) == unserved, "keys that are not served, while others are, are gaps of their own"
    assert missing <= played.subjects
    log = {
        "feed.closed": bool(ends),
        "feed.failed": bool(failed),
        "feed.watch": bool(gaps),
        "feed.keys_silent": bool(case.problems),
    }
    # A connection that serves nothing has silent keys, too.
    free = {"feed.keys_silent"} if "refused" in case.may & watched else set()
    assert played.alarms - free == case.alarms | {event for event, is_told in log.items() if is_told}
    # The log of what was sent may be a frame ahead of what left; a connection that broke may have lost some more.
    for body in played.of("conn", "closed"):
        missing = played.missing.get(body["conn"], 0)
        assert missing <= 1 or body["reason"] in ABRUPT, f"{missing} frames of {body} are missing"
    assert played.outcome.received == played.outcome.journalled == sum(map(len, played.frames.values()))
    assert played.outcome.remaining == {}
    assert played.limit.is_kept
    assert "simulator-token" not in repr(played.logs)


async def test_a_connection_too_many_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is told once, with what to do; as soon as another one ends, ours opens."""
    case = Case(script="third-socket-refused", failed=("refused",))
    async with playing(case.script, tmp_path, monkeypatch, guests=2) as played:
        await played.until(lambda: len(played.limit.called_s) >= 2, "it is tried again")
        assert played.said("feed.failed")
        await played.guests[0].aclose()
        await played.live()
        await played.more()
    check(case, played)


async def test_a_connection_too_many_evicts_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ours may evict one, and may be evicted: it comes back, no oftener than the limit lets it."""
    case = Case(script="third-socket-evicts", ends=(("closed", 1008),))
    async with playing(case.script, tmp_path, monkeypatch, guests=2) as played:
        await played.live()
        await played.more()
        for _ in range(2):
            await played.guest()
        await played.live(2)
        await played.more()
    check(case, played)


ALL = {"instruments": 4001, "choose": tuple, "environ": {"UPSTOX_PLUS": "true"}}


@pytest.mark.parametrize("name", ["third-socket-refused", "third-socket-evicts"])
async def test_an_account_has_fewer_connections_than_was_said(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three of ours where two are allowed: the one that is missing is a gap of its own, and nobody is hammered."""
    async with playing(name, tmp_path, monkeypatch, **ALL) as played:
        if name == "third-socket-refused":
            await played.until(lambda: len(played.limit.called_s) >= 8, "it is tried again and again")
        else:
            await played.until(lambda: played.said("feed.evicted"), "one stays away")
            await played.until(lambda: [feed.state for feed in played.feeds] == [LIVE, LIVE, WAITING], "two are served")
            assert "fewer connections than are planned" in (played.feeds[2].last_error or "")
        calls = len(played.limit.called_s)
        await played.more()
    assert name == "third-socket-refused" or len(played.limit.called_s) == calls <= 8
    assert played.limit.is_kept
    assert all(missing <= 1 for missing in played.missing.values())
    opened = {body["conn"]: body.get("socket", 1) for body in played.of("conn", "open")}
    lost = {opened[body["conn"]] for body in played.of("conn", "closed") if body["reason"] != "stopped"}
    if name == "third-socket-refused":
        assert (sorted(opened.values()), lost) == ([1, 2], set())
        assert [body["socket"] for body in played.of("conn", "failed")] == [3]
        assert played.subjects == {"feed", "feed 2", "feed 3"}
    else:
        assert lost == {1, 2, 3}, "each evicts another one in its turn, until the last one stays away"
        assert played.subjects == {"feed", "feed 2", "feed 3"}


ALONE = {"third-socket-refused", "third-socket-evicts"}


def test_every_script_has_a_case() -> None:
    """None is added without a recorder that it is played to."""
    assert {case.script for case in CASES} | ALONE == set(script_names())
