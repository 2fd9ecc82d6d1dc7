"""The watch over simulated hours: what is found, how soon, and what is no reason for alarm."""

from __future__ import annotations

import datetime as dt
import math
from dataclasses import dataclass, field
from random import Random
from typing import TYPE_CHECKING, Any

import pytest

from tickvault.brokers.upstox.baseline import Baseline
from tickvault.brokers.upstox.findings import Condition, Fact
from tickvault.brokers.upstox.freshness import WatchSettings
from tickvault.brokers.upstox.observe import Observation, Said, Show
from tickvault.brokers.upstox.phases import Calendar, Hours, Phase
from tickvault.brokers.upstox.watch import Watch

if TYPE_CHECKING:
    from collections.abc import Callable

IST = dt.timezone(dt.timedelta(hours=5, minutes=30))
MANY = tuple(f"NSE_EQ|{n}" for n in range(500))
THREE = MANY[:3]


def at_ns(clock: str, day: int = 1) -> int:
    hour, minute = map(int, clock.split(":"))
    return int(dt.datetime(2026, 9, day, hour, minute, tzinfo=IST).timestamp()) * 1_000_000_000


def calendar(*days: int) -> Calendar:
    """Return a calendar that knows NSE's hours on days of September 2026; other weekdays go by the nearest."""
    hours = {dt.date(2026, 9, day): {"NSE": Hours(at_ns("9:15", day), at_ns("15:30", day))} for day in days}
    return Calendar(timings=hours)


@dataclass
class Hall:
    """A trading hall in which time passes: frames at a rate, looked at every half second."""

    watch: Watch = field(default_factory=Watch)
    now_ns: int = at_ns("10:00")
    now_s: float = 1000.0
    keys: tuple[str, ...] = MANY
    random: Random = field(default_factory=lambda: Random(7))
    facts: list[Fact] = field(default_factory=list)
    silent_s: list[float] = field(default_factory=list)
    degraded: list[tuple[float, str]] = field(default_factory=list)
    conn: int = 0

    def connect(self, snapshot: bool = True) -> Hall:
        self.conn += 1
        self.facts += self.watch.connected(self.conn, self.keys, self.now_s, self.now_ns)
        if snapshot:
            self.tell(Show.SNAPSHOT, self.keys)
        return self

    def tell(self, kind: Show, keys: tuple[str, ...] = (), **said: Any) -> None:
        origin = {"conn": self.conn, "received_ns": self.now_ns, "received_s": self.now_s}
        self.watch.note(Observation(kind=kind, keys=keys, **origin, **said))

    def status(self, **segments: str) -> Hall:
        self.tell(Show.MARKET_INFO, segments=segments)
        return self

    def pass_s(
        self,
        seconds: float,
        rate: float | Callable[[float], float] = 0.0,
        *,
        per_frame: int = 20,
        keys: tuple[str, ...] | None = None,
        until: Callable[[], object] = lambda: False,
    ) -> float:
        """Let time pass with so many updates a second, by chance; return how long it was until `until`."""
        begin_s, step_s = self.now_s, 0.5
        keys = keys or self.keys
        while self.now_s - begin_s < seconds and not until():
            self.now_s += step_s
            self.now_ns += int(step_s * 1e9)
            mean = (rate(self.now_s - begin_s) if callable(rate) else rate) * step_s / per_frame
            for _ in range(poisson(self.random, mean)):
                self.tell(Show.LIVE, tuple(self.random.choices(keys, k=per_frame)))
            self.look()
        return self.now_s - begin_s

    def look(self, *, reading: bool = True) -> None:
        verdict = self.watch.look(self.now_s, self.now_ns, reading=reading)
        self.facts += verdict.facts
        if verdict.silent:
            self.silent_s.append(self.now_s)
        if verdict.degraded:
            self.degraded.append((self.now_s, verdict.degraded[0]))

    def states(self) -> list[Condition]:
        return [fact.state for fact in self.facts]


def poisson(random: Random, mean: float) -> int:
    bound, count, product = math.exp(-mean), 0, random.random()
    while product > bound:
        count, product = count + 1, product * random.random()
    return count


def open_hall(**changed: Any) -> Hall:
    return Hall(**changed).connect().status(NSE_EQ="NORMAL_OPEN")


def test_mute_connection_is_found_within_twenty_seconds() -> None:
    """Snapshots, statuses and keys that nobody asked for do not hide it; told once, and its end once."""
    hall = open_hall()
    hall.pass_s(300, 80.0)
    assert hall.facts == []
    assert hall.watch.report().state is Condition.FRESH
    waited_s = hall.pass_s(60, until=lambda: hall.silent_s)
    assert 15.0 <= waited_s <= 17.0
    assert hall.watch.report().state is Condition.SILENT
    hall.tell(Show.SNAPSHOT, MANY)
    hall.tell(Show.LIVE, ("NSE_EQ|other",))
    hall.pass_s(5)
    assert hall.states() == [Condition.SILENT]
    hall.pass_s(5, 80.0)
    assert hall.states() == [Condition.SILENT, Condition.FRESH]
    silent = hall.facts[0].body
    assert silent["segments"] == ["NSE_EQ"]
    assert silent["conn"] == 1
    assert hall.facts[1].since_ns - hall.facts[0].since_ns >= 15_000_000_000


@pytest.mark.parametrize("seed", range(5))
def test_one_frame_a_second_is_enough(seed: int) -> None:
    """A dozen liquid keys: no false alarm in two hours, and found within half a minute."""
    hall = open_hall(random=Random(seed), keys=MANY[:12])
    hall.pass_s(7200, 1.0, per_frame=1)
    assert hall.states() == []
    assert hall.pass_s(120, until=lambda: hall.silent_s) <= 35.0


def test_mute_from_the_beginning() -> None:
    """Nothing learned yet: many keys were served, so data is to be expected."""
    hall = open_hall()
    assert hall.pass_s(60, until=lambda: hall.silent_s) <= 20.0


@pytest.mark.parametrize("seed", range(5))
def test_three_illiquid_keys_give_no_false_alarm(seed: int) -> None:
    """A frame in ten minutes, all day."""
    hall = open_hall(random=Random(seed), keys=THREE)
    hall.pass_s(20_000, 1 / 600, per_frame=1)
    assert hall.facts == []
    assert hall.silent_s == []


def test_subscription_that_was_ignored_before_the_market_opened() -> None:
    """Nobody missed its data then; when it is due, a connection that has served no key at all is not waited for."""
    hall = Hall(keys=THREE).connect(snapshot=False).status(NSE_EQ="PRE_OPEN_END")
    hall.pass_s(600)
    assert hall.silent_s == []
    hall.status(NSE_EQ="NORMAL_OPEN")
    assert hall.pass_s(60, until=lambda: hall.silent_s) <= 20.0


def test_wrong_keys_are_not_expected_to_bring_anything() -> None:
    """A hundred keys, and only three of them were ever served."""
    hall = Hall().connect(snapshot=False).status(NSE_EQ="NORMAL_OPEN")
    hall.tell(Show.SNAPSHOT, THREE)
    hall.pass_s(600)
    assert hall.silent_s == []


@pytest.mark.parametrize("status", ["PRE_OPEN_END", "NORMAL_CLOSE", "CLOSING_START", "CLOSING_END", "SOMETHING_NEW"])
def test_quiet_market_is_not_watched(status: str) -> None:
    """Whatever was usual before."""
    hall = open_hall()
    hall.pass_s(300, 80.0)
    hall.status(NSE_EQ=status).pass_s(3600)
    assert (hall.facts, hall.silent_s, hall.degraded) == ([], [], [])
    assert hall.watch.report().state is Condition.USUAL
    assert not hall.watch.expects(hall.now_ns)


def test_morning() -> None:
    """Minutes of silence before 09:00 and before 09:15; then the market opens and nothing comes."""
    hall = Hall(watch=Watch(lambda: calendar(1)), now_ns=at_ns("8:55")).connect().status(NSE_EQ="CLOSING_END")
    hall.pass_s(300)
    hall.status(NSE_EQ="PRE_OPEN_START").pass_s(540, 350.0)
    hall.status(NSE_EQ="PRE_OPEN_END").pass_s(360)
    assert hall.facts == []
    hall.status(NSE_EQ="NORMAL_OPEN")
    assert hall.pass_s(60, until=lambda: hall.silent_s) <= 20.0


def test_subscription_ignored_before_the_market_is_found_in_the_pre_open() -> None:
    """Even a closed market's instruments have a snapshot; a connection that has served none is deaf."""
    hall = Hall(watch=Watch(lambda: calendar(1)), now_ns=at_ns("8:50")).connect(snapshot=False)
    hall.status(NSE_EQ="CLOSING_END").pass_s(600)
    assert hall.facts == []
    hall.status(NSE_EQ="PRE_OPEN_START")
    assert hall.pass_s(60, until=lambda: hall.silent_s) <= 20.0
    assert 0 <= hall.facts[0].since_ns - at_ns("9:00") <= 10**9


def test_pre_open_counts_once_data_is_usual_in_it() -> None:
    """Without any data in it so far, silence is normal; with data, it is not."""
    hall = Hall(now_ns=at_ns("9:00")).connect().status(NSE_EQ="PRE_OPEN_START")
    hall.pass_s(120)
    assert hall.silent_s == []
    hall.pass_s(120, 350.0)
    assert not hall.watch.expects(hall.now_ns)
    assert hall.pass_s(60, until=lambda: hall.silent_s) <= 20.0
    assert hall.watch.expects(hall.now_ns), "a session that is told of silence must not be told that none is due"
    hall.status(NSE_EQ="PRE_OPEN_END").pass_s(1)
    assert not hall.watch.expects(hall.now_ns)


def test_pauses_of_the_closing_auction() -> None:
    """The segment stays open while its stocks stop; a pause of another day is over."""
    hall = open_hall(now_ns=at_ns("15:00"))
    hall.pass_s(300, 80.0)
    now_ms = hall.now_ns // 1_000_000
    hall.tell(Show.MARKET_INFO, cas={"NSE_EQ": Said("CTS_CLOSE", now_ms)})
    hall.pass_s(300)
    hall.tell(Show.MARKET_INFO, cas={"NSE_EQ": Said("CAS_LM_START", now_ms)})
    hall.pass_s(60)
    assert hall.facts == []
    hall.tell(Show.MARKET_INFO, cas={"NSE_EQ": Said("CAS_STOP", now_ms - 86_400_000)})
    assert hall.pass_s(60, until=lambda: hall.silent_s) <= 20.0


def test_open_that_nobody_told() -> None:
    """A socket that went mute in the night never says that the market has opened; said anew, its word counts."""
    hall = Hall(watch=Watch(lambda: calendar(1)), now_ns=at_ns("8:00")).connect().status(NSE_EQ="CLOSING_END")
    hall.pass_s(4500)
    assert hall.silent_s == []
    assert hall.pass_s(180, until=lambda: hall.silent_s) <= 90.0
    hall.connect().status(NSE_EQ="CLOSING_END")  # after the open: a holiday that the calendar lacks
    hall.silent_s.clear()
    hall.pass_s(600)
    assert hall.silent_s == []
    assert hall.states() == [Condition.SILENT, Condition.FRESH]


def test_close_that_nobody_told() -> None:
    """A minute after the calendar's end nothing is due any more, nor on a day on which nobody trades."""
    watch = Watch(lambda: calendar(1))
    late = Hall(watch=watch, now_ns=at_ns("15:00")).connect().status(NSE_EQ="NORMAL_OPEN")
    assert watch.phases(at_ns("15:30")) == {"NSE_EQ": Phase.OPEN}
    assert watch.phases(at_ns("15:31")) == {"NSE_EQ": Phase.CLOSED}
    late.now_ns = at_ns("10:00", 5)
    late.status(NSE_EQ="NORMAL_OPEN")  # a special Saturday: today's word counts
    assert watch.expects(late.now_ns)
    assert not watch.expects(at_ns("10:00", 6))


def test_an_index_has_closed_when_its_equities_have() -> None:
    """Of indices nobody has seen a CLOSING_END; until their equities say it, the closing session is to come."""
    watch = Watch(lambda: calendar(1))
    hall = Hall(watch=watch, keys=("NSE_INDEX|Nifty 50",), now_ns=at_ns("15:45")).connect()
    hall.status(NSE_INDEX="NORMAL_CLOSE", NSE_EQ="CLOSING_START")
    assert watch.phases(hall.now_ns) == {"NSE_INDEX": Phase.QUIET}
    hall.status(NSE_EQ="CLOSING_END")
    assert watch.phases(hall.now_ns) == {"NSE_INDEX": Phase.CLOSED}
    hall.status(NSE_INDEX="NORMAL_OPEN")
    assert watch.phases(hall.now_ns) == {"NSE_INDEX": Phase.OPEN}


def test_calendar_alone_decides_before_the_first_status() -> None:
    """Hours that are known."""
    hall = Hall(watch=Watch(lambda: calendar(1))).connect()
    assert hall.watch.expects(hall.now_ns)
    assert not hall.watch.expects(at_ns("8:00"))
    assert not Hall().connect().watch.expects(hall.now_ns)


def test_patience_doubles_while_new_connections_bring_nothing() -> None:
    """No storm: 15, 30, 60 s …; data makes it short again."""
    hall = open_hall()
    hall.pass_s(300, 80.0)
    waited = []
    for _ in range(4):
        hall.silent_s.clear()
        waited.append(hall.pass_s(600, until=lambda: hall.silent_s))
        hall.connect()
    assert waited == pytest.approx([15, 30, 60, 120], rel=0.2)
    assert hall.states() == [Condition.SILENT]
    hall.pass_s(60, 80.0)
    hall.silent_s.clear()
    assert hall.pass_s(60, until=lambda: hall.silent_s) <= 20.0


def test_time_in_which_we_did_not_read_does_not_count() -> None:
    """A slow disk, a machine that slept."""
    hall = open_hall()
    hall.pass_s(300, 80.0)
    for _ in range(100):
        hall.now_s, hall.now_ns = hall.now_s + 0.5, hall.now_ns + 500_000_000
        hall.look(reading=False)
    hall.pass_s(10)
    hall.now_s += 3600.0
    hall.look()
    hall.pass_s(10)
    assert hall.facts == []
    assert hall.pass_s(10, until=lambda: hall.silent_s) < 10.0


def test_one_segment_of_several() -> None:
    """It is told; a new connection is tried once, late, since it costs the others theirs."""
    keys = (*MANY, *(f"NSE_FO|{n}" for n in range(200)))
    hall = Hall(keys=keys).connect().status(NSE_EQ="NORMAL_OPEN", NSE_FO="NORMAL_OPEN")
    hall.pass_s(300, 160.0)
    begin_s = hall.now_s
    hall.pass_s(600, 80.0, keys=MANY)
    assert hall.states() == [Condition.SILENT]
    assert hall.facts[0].segments == ("NSE_FO",)
    assert hall.silent_s == []
    assert [(at_s - begin_s >= 45.0, reason) for at_s, reason in hall.degraded] == [(True, "mute")]
    hall.pass_s(60, 160.0)
    assert hall.states() == [Condition.SILENT, Condition.FRESH]


def test_brown_out_is_found_within_two_minutes_and_tried_once() -> None:
    """A tenth of the usual: told, one new connection, then only the alarm; told again when it is over."""
    hall = open_hall()
    hall.pass_s(900, 80.0)
    assert hall.facts == []
    assert 30.0 <= hall.pass_s(300, 8.0, until=lambda: hall.facts) <= 120.0
    assert hall.watch.report().state is Condition.BROWN_OUT
    hall.connect()
    hall.pass_s(900, 8.0)
    assert hall.states() == [Condition.BROWN_OUT]
    assert [reason for _, reason in hall.degraded] == ["brown_out"]
    hall.pass_s(120, 80.0)
    assert hall.states() == [Condition.BROWN_OUT, Condition.USUAL]
    assert hall.silent_s == []


def test_brown_out_of_several_segments_is_tried_once() -> None:
    """The new connection that one of them was worth began the others' count anew; they get none of their own."""
    keys = (*MANY, *(f"NSE_FO|{n}" for n in range(500)))
    hall = Hall(keys=keys).connect().status(NSE_EQ="NORMAL_OPEN", NSE_FO="NORMAL_OPEN")
    hall.pass_s(900, 160.0)
    hall.pass_s(300, lambda at_s: 50.0 if at_s < 30 else 10.0, until=lambda: hall.degraded)
    hall.connect()
    hall.pass_s(300, 10.0)
    assert {fact.segments for fact in hall.facts} == {("NSE_EQ",), ("NSE_FO",)}
    assert len(hall.degraded) == 1


def test_brown_out_that_stays_is_the_new_usual() -> None:
    """After half an hour nobody is told any more, and a further fall is one again."""
    hall = open_hall()
    hall.pass_s(900, 300.0)
    hall.pass_s(2400, 30.0)
    assert hall.states() == [Condition.BROWN_OUT, Condition.USUAL]
    hall.pass_s(300, 3.0, per_frame=2)
    assert hall.states()[2:] == [Condition.BROWN_OUT]


def lunch(at_s: float) -> float:
    """Return a rate that falls to a sixth over an hour and comes back."""
    depth = 0.5 - 0.5 * math.cos(2 * math.pi * at_s / 7200)
    return 100.0 * math.exp(-math.log(6.0) * depth)


def opening(at_s: float) -> float:
    """Return a rate that falls to a quarter in the first ten minutes."""
    return 50.0 + 150.0 * math.exp(-at_s / 300)


@pytest.mark.parametrize("shape", [lunch, opening])
@pytest.mark.parametrize("seed", range(3))
def test_gradual_decline_is_no_brown_out(shape: Callable[[float], float], seed: int) -> None:
    """The lunch hour, and the minutes after the open, on the first day."""
    hall = open_hall(random=Random(seed))
    hall.pass_s(7200, shape)
    assert hall.facts == []


def test_slow_trickle_means_nothing() -> None:
    """Too few updates to tell few from fewer."""
    hall = open_hall(keys=THREE)
    hall.pass_s(900, 0.5, per_frame=1)
    hall.pass_s(900, 0.05, per_frame=1)
    assert Condition.BROWN_OUT not in hall.states()


def test_baseline_of_an_earlier_day() -> None:
    """It knows from its first minute on that a morning is low, and that a low lunch hour is usual."""
    hall = open_hall()
    hall.pass_s(1800, 100.0)
    learned = Baseline.from_json(hall.watch.baseline.to_json())
    assert learned.usual("NSE_EQ", 500, 10 * 60 + 10) == pytest.approx(100.0, rel=0.2)
    today = open_hall(watch=Watch(baseline=learned), now_ns=at_ns("10:00", 2))
    assert today.pass_s(300, 10.0, until=lambda: today.facts) <= 120.0
    assert today.states() == [Condition.BROWN_OUT]
    known = Baseline()
    for minute in range(600, 720):
        known.learn("NSE_EQ", 500, minute, 100.0 if minute < 660 else 12.0)
    noon = open_hall(watch=Watch(baseline=known), now_ns=at_ns("10:30", 2))
    noon.pass_s(1800, 100.0)
    noon.pass_s(1200, 12.0)
    assert noon.facts == []


def test_ten_keys_of_which_earlier_days_tell() -> None:
    """Mute from the first moment: what this minute usually brings is reason enough to expect something."""
    known = Baseline()
    for minute in range(600, 720):
        known.learn("NSE_EQ", 10, minute, 10.0)
    hall = open_hall(watch=Watch(baseline=known), keys=MANY[:10], now_ns=at_ns("10:30", 2))
    assert hall.pass_s(60, until=lambda: hall.silent_s) <= 20.0
    slow = open_hall(watch=Watch(baseline=known), keys=MANY[:10], now_ns=at_ns("10:30", 2))
    slow.pass_s(900, 1.0, per_frame=1)  # a tenth of the usual is a brown-out, and no silence
    assert set(slow.states()) == {Condition.BROWN_OUT}


def test_statuses_are_kept_by_scope() -> None:
    """Whatever the broker calls them."""
    hall = Hall().connect().status(NSE_EQ="NORMAL_OPEN", NSE_NEW="42")
    hall.tell(Show.MARKET_INFO, cas={"NSE_EQ": Said("CAS_LM_START", 1)}, pre_open={"NSE_EQ": Said("SOMETHING", 1)})
    assert hall.watch.statuses == {
        "segment": {"NSE_EQ": "NORMAL_OPEN", "NSE_NEW": "42"},
        "cas": {"NSE_EQ": "CAS_LM_START"},
        "pre_open": {"NSE_EQ": "SOMETHING"},
    }


def test_refused_and_served_are_told_once_each() -> None:
    """However often it is said."""
    hall = open_hall()
    told = [*hall.watch.refuse(hall.now_ns, "no key delivers"), *hall.watch.refuse(hall.now_ns, "again")]
    assert [(fact.state, fact.segments, fact.detail) for fact in told] == [
        (Condition.REFUSED, ("NSE_EQ",), "no key delivers")
    ]
    assert hall.watch.report().state is Condition.REFUSED
    assert [fact.state for fact in (*hall.watch.serve(1), *hall.watch.serve(2))] == [Condition.SERVED]


def test_refusal_counts_from_the_open_connection() -> None:
    """The seconds until it is known were not served either."""
    hall = open_hall()
    hall.connect()
    opened_ns = hall.now_ns
    hall.now_ns += 5 * 10**9
    (told,) = hall.watch.refuse(hall.now_ns, "no key delivers")
    assert told.since_ns == hall.watch.report().since_ns == opened_ns


def test_refusal_of_what_is_no_longer_wanted_ends_too() -> None:
    """It ends for the segments that it was told of."""
    hall = open_hall()
    hall.watch.refuse(hall.now_ns, "no key delivers")
    hall.keys = ("NSE_FO|1",)
    hall.connect()
    assert [fact.segments for fact in hall.watch.serve(1)] == [("NSE_EQ",)]


def test_segment_that_is_no_longer_wanted() -> None:
    """What was told of it ends with it."""
    hall = open_hall()
    hall.pass_s(300, 80.0)
    hall.pass_s(20)
    hall.keys = ("NSE_FO|1",)
    hall.connect()
    assert hall.states() == [Condition.SILENT, Condition.FRESH]


def test_keys_that_come_and_go_on_one_connection() -> None:
    """A segment that stays goes on as it was; one that goes takes with it what was told of it."""
    hall = open_hall()
    hall.pass_s(300, 80.0)
    hall.keys = (*MANY[:400], "NSE_FO|1")
    hall.watch.amend(hall.keys, hall.now_s, hall.now_ns)
    assert set(hall.watch.phases(hall.now_ns)) == {"NSE_EQ", "NSE_FO"}
    assert hall.pass_s(60, until=lambda: hall.silent_s) <= 20.0
    ended = hall.watch.amend(("NSE_FO|1",), hall.now_s, hall.now_ns)
    assert [(fact.state, fact.segments) for fact in ended] == [(Condition.FRESH, ("NSE_EQ",))]


def test_feeds_of_one_recorder_have_parts_of_their_own() -> None:
    """What the second socket usually brings says nothing of the first."""
    shared = Baseline()
    for socket in (1, 2):
        hall = open_hall(watch=Watch(baseline=shared, socket=socket), keys=MANY[: 300 // socket**3])
        hall.pass_s(180, 60.0 / socket)
    assert shared.usual("NSE_EQ", 300, 601) == pytest.approx(60.0, rel=0.3)
    assert shared.usual("NSE_EQ 2", 37, 601) == pytest.approx(30.0, rel=0.3)


def test_silence_began_when_data_was_due() -> None:
    """Not with the last data before a pause."""
    hall = open_hall()
    hall.pass_s(300, 80.0)
    hall.status(NSE_EQ="PRE_OPEN_END").pass_s(600)
    hall.status(NSE_EQ="NORMAL_OPEN")
    opened_ns = hall.now_ns
    hall.pass_s(60, until=lambda: hall.silent_s)
    assert 0 <= hall.facts[0].since_ns - opened_ns <= 1_000_000_000


def test_scaled_down() -> None:
    """Every time is a setting, so that tests with real sockets can be quick."""
    hall = open_hall(watch=Watch(settings=WatchSettings(silent_s=2.0, prior_s=1.0, chance=1e-2)))
    hall.pass_s(20, 80.0)
    assert hall.pass_s(20, until=lambda: hall.silent_s) <= 3.0
