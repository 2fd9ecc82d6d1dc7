"""Session and watch together, against any weather: no storm, no flapping, and well again when the broker is."""

from __future__ import annotations

from dataclasses import dataclass, field
from random import Random
from typing import Final

import pytest

from tickvault.brokers.upstox.events import Due, Event, Failed, Opened, Plain
from tickvault.brokers.upstox.findings import Condition
from tickvault.brokers.upstox.observe import Observation, Show
from tickvault.brokers.upstox.plan import RateLimit, chunks
from tickvault.brokers.upstox.session import Session
from tickvault.brokers.upstox.supervision import Supervision
from tickvault.brokers.upstox.transitions import Do, State
from tickvault.brokers.upstox.watch import Watch
from tickvault.model import Mode, Subscription

AT_NS: Final = 1_788_238_800_000_000_000  # 10:00 IST on a Tuesday
STEP_S: Final = 0.5
KEYS: Final = tuple(f"NSE_EQ|{n}" for n in range(200))
REQUESTS: Final = chunks(Subscription(instrument_key=key, mode=Mode.FULL) for key in KEYS)

# What the broker does: all is well; it takes no calls; it ends each connection; it serves nothing; snapshots only.
WEATHER: Final = ("fine", "refuses", "drops", "mute", "silent")
Spell = tuple[float, str, str]  # for how long in s, the segment's status, the weather
STATUSES: Final = ("NORMAL_OPEN", "PRE_OPEN_START", "PRE_OPEN_END", "CLOSING_END", "SOMETHING_NEW")


@dataclass
class World:
    """A broker and a feed in simulated time."""

    random: Random
    session: Session = field(init=False)
    supervision: Supervision = field(default_factory=lambda: Supervision(Watch()))
    now_s: float = 1000.0
    status: str = "NORMAL_OPEN"
    weather: str = "fine"
    conn: int = 0
    open: bool = False
    subscribed: bool = False
    calls_s: list[float] = field(default_factory=list)
    moves_s: list[float] = field(default_factory=list)
    opened_s: list[float] = field(default_factory=list)
    next: list[Event] = field(default_factory=list)
    coming: list[Observation] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.session = Session(rate=RateLimit(), random=self.random)
        self.tell(Plain.START)

    @property
    def now_ns(self) -> int:
        return AT_NS + int((self.now_s - 1000.0) * 1e9)

    def tell(self, event: Event) -> None:
        before = self.session.state
        for action in self.session.on(event, self.now_s):
            self.do(action.do)
        if self.session.state is not before:
            self.moves_s.append(self.now_s)
            self.supervision.moved(before, self.session.state, self.now_ns)

    def do(self, do: Do) -> None:
        match do:
            case Do.PREPARE:
                self.next.append(Plain.PREPARED)
            case Do.AUTHORIZE:
                self.calls_s.append(self.now_s)
                self.next.append(Failed() if self.weather == "refuses" else Plain.AUTHORIZED)
            case Do.CONNECT:
                self.conn, self.open, self.subscribed = self.conn + 1, True, False
                self.opened_s.append(self.now_s)
                self.supervision.connected(self.conn, REQUESTS, self.now_s, self.now_ns)
                self.next.append(Opened(len(REQUESTS)))
                self.send(Show.MARKET_INFO)
            case Do.DEFINE:
                self.next.append(Plain.DEFINED)
            case Do.SUBSCRIBE:
                self.supervision.subscribed(0, self.now_s)
                self.next.append(Plain.SENT)
                self.subscribed = self.weather != "mute"
                if self.subscribed:
                    self.send(Show.SNAPSHOT, KEYS)
            case Do.CLOSE | Do.ABANDON:
                self.next.append(Plain.CLOSED)
                self.open = False
            case Do.PING | Do.WAIT:
                pass

    def send(self, kind: Show, keys: tuple[str, ...] = ()) -> None:
        segments = {"NSE_EQ": self.status} if kind is Show.MARKET_INFO else {}
        said = {"conn": self.conn, "received_ns": self.now_ns, "received_s": self.now_s}
        self.coming.append(Observation(kind=kind, keys=keys, segments=segments, **said))

    def pass_s(self, seconds: float) -> None:
        for _ in range(int(seconds / STEP_S)):
            self.now_s += STEP_S
            while self.next:
                self.tell(self.next.pop(0))
            if self.open:
                self.receive()
            else:
                self.tell(Due())

    def receive(self) -> None:
        if self.weather == "drops" and self.session.state is State.LIVE:
            self.open = False
            self.tell(Plain.CLOSED)
            return
        trades = self.status in ("NORMAL_OPEN", "PRE_OPEN_START")
        if self.weather == "fine" and self.subscribed and trades:
            self.send(Show.LIVE, tuple(self.random.sample(KEYS, 20)))
        seen, self.coming = self.coming, []
        self.tell(Plain.HEARD)  # it answers pings, whatever else it does
        for event in self.supervision.digest(seen, self.now_s, self.now_ns, reading=True):
            self.tell(event)
        self.tell(Due(expected=self.supervision.expects(self.now_ns)))

    def play(self, duration_s: float, status: str, weather: str) -> None:
        self.weather = weather
        if status != self.status:
            self.status = status
            if self.open:
                self.send(Show.MARKET_INFO)
        self.pass_s(duration_s)


def most(times_s: list[float], window_s: float) -> int:
    """Return how many of the times lie within any window."""
    return max((sum(first <= one < first + window_s for one in times_s) for first in times_s), default=0)


def spells(random: Random) -> list[Spell]:
    """Return some weather."""
    count = random.randint(1, 5)
    durations = (5.0, 30.0, 120.0, 600.0)
    return [(random.choice(durations), random.choice(STATUSES), random.choice(WEATHER)) for _ in range(count)]


@pytest.mark.parametrize("seed", range(25))
def test_any_weather(seed: int) -> None:
    """At most six calls in any minute, no state left and entered again and again, and live once all is well."""
    random = Random(seed)
    world = World(random)
    for spell in spells(random):
        world.play(*spell)
    assert most(world.calls_s, 60.0) <= 6
    # A connection is some eight states; there are as many in a minute as the calls allow, and not one more besides.
    assert most(world.moves_s, 60.0) <= 60
    world.play(700.0, "NORMAL_OPEN", "fine")
    assert world.session.state is State.LIVE
    assert world.supervision.watched.state is Condition.FRESH
    assert world.supervision.keys.delivering == len(KEYS)


def test_silence_in_an_auction_that_is_used_to_data() -> None:
    """It is found, tried ever more slowly, and does not make the session go to and fro."""
    world = World(Random(3))
    world.play(120.0, "PRE_OPEN_START", "fine")
    world.play(600.0, "PRE_OPEN_START", "silent")
    assert 2 <= world.conn <= 8
    assert len(world.moves_s) <= 10 * world.conn


def test_quiet_night_keeps_one_connection() -> None:
    """Snapshots and pongs, from the close to the next morning."""
    world = World(Random(3))
    world.play(600.0, "NORMAL_OPEN", "fine")
    world.play(6 * 3600.0, "CLOSING_END", "fine")
    world.play(600.0, "PRE_OPEN_START", "fine")
    world.play(360.0, "PRE_OPEN_END", "fine")
    world.play(600.0, "NORMAL_OPEN", "fine")
    assert (world.conn, world.supervision.take_facts()) == (1, [])


def test_mute_hour_costs_few_connections() -> None:
    """It is tried again ever more slowly; with data all is as before, and the next silence is found as soon."""
    world = World(Random(3))
    world.play(600.0, "NORMAL_OPEN", "fine")
    begun_s = world.now_s
    world.play(3600.0, "NORMAL_OPEN", "silent")
    assert world.opened_s[1] - begun_s <= 20.0
    assert 5 <= world.conn <= 10
    world.play(900.0, "NORMAL_OPEN", "fine")
    begun_s, known = world.now_s, world.conn
    world.play(60.0, "NORMAL_OPEN", "mute")
    assert world.opened_s[known] - begun_s <= 20.0
    states = [fact["state"] for fact in world.supervision.take_facts()]
    assert states[:3] == ["silent", "fresh", "silent"]
