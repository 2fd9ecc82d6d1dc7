"""The life of the connection to the broker as a state machine: events in, actions out. Pure.

Laws:
    transitions.TABLE has every transition; what it does not list changes nothing and asks for nothing.
    A subscription works only when subscribed keys deliver, and only that (or a market_info while nothing is due) makes
    the next pause short again. Every end of a connection that we did not ask for is a failure, close code 1000 too.
    Liveness and freshness are two clocks: a silent socket is pinged and given up when it answers nothing at all; a
    socket that answers pings and brings no data is judged by whoever knows the market (watch.py), never by a time-out.
    An authorize call is asked for in the instant in which the rate limit is told of it, so two feeds that share one
    cannot both have the last call.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tickvault.backoff import backoff
from tickvault.brokers.upstox.events import Action, Degraded, Delivered, Due, Event, Failed, Opened, Plain, Silent
from tickvault.brokers.upstox.transitions import OPEN, TABLE, Do, Signal, State

if TYPE_CHECKING:
    from collections.abc import Iterator
    from random import Random

    from tickvault.brokers.upstox.plan import RateLimit

__all__ = ["Session", "SessionPatience"]

# How soon a broker that is back is noticed; the rate limit bounds the calls besides.
FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionPatience:
    """How long the session waits for what, in seconds.

    Attributes:
        greet_s: for the first market_info; then it subscribes without.
        snapshots_s: for subscribed keys to deliver, from the last request on.
        unserved_s: more of the same, doubled at each further connection that serves nothing, from 0 to `unserved_max_s`;
            so one that is deaf while its market trades is replaced after 5, 10, 20, 40 and then 60 s, for ever.
        mute_s: for data to come back, once its absence can be no chance.
        ping_s: of silence before a ping; with no subscribed trading, silence is normal.
        pong_s: for anything at all after the ping.
        stop_s: for the broker to close after we did.
    """

    greet_s: float = 2.0
    snapshots_s: float = 5.0
    unserved_s: float = 5.0
    unserved_max_s: float = 55.0
    mute_s: float = 1.0
    ping_s: float = 30.0
    pong_s: float = 10.0
    stop_s: float = 2.0


class Session:
    """One connection after the other, for ever; tells what to do, does nothing.

    Args:
        rate: bounds the authorize calls; shared when several feeds use one account.
        random: jitter of the pauses.
        patience: how long to wait for what.

    Attributes:
        state: what it is doing.
        timer_s: monotonic time at which it wants a Due; None: it waits for something else.
    """

    def __init__(self, *, rate: RateLimit, random: Random, patience: SessionPatience | None = None) -> None:
        self.state = State.IDLE
        self.timer_s: float | None = None
        self._rate = rate
        self._random = random
        self._patience = patience or SessionPatience()
        self._fruitless = 0  # connections in a row that served nothing although it was due
        self._stopping = False
        self._reason, self._detail = "", ""  # of the close to come
        self._retry_after_s = 0.0
        self._heard_s = 0.0
        self._pinged_s: float | None = None
        self._reset_pauses()
        self._open(0, 0.0)

    def on(self, event: Event, now_s: float) -> tuple[Action, ...]:
        """Take an event; return what to do about it, in order.

        Args:
            event: what happened.
            now_s: monotonic clock.
        """
        signal = self._judge(event, now_s)
        row = None if signal is None else TABLE.get((self.state, signal))
        if signal is None or row is None:
            return ()
        if row[0] is not self.state:
            self.timer_s = None
        self.state, todo = row
        self._note(signal, event, now_s)
        return tuple(self._action(do, signal, now_s) for do in todo)

    def _judge(self, event: Event, now_s: float) -> Signal | None:
        """Return what an event means now."""
        match event:
            case Plain():
                return self._judge_plain(event, now_s)
            case Opened():
                return Signal.OPENED
            case Delivered(requests):
                return self._judge_delivery(requests)
            case Due(expected):
                over = self.timer_s is not None and now_s >= self.timer_s
                return self._judge_timer(now_s, expected=expected) if over else None
            case Failed():
                return Signal.FAILED
            case Silent():
                return Signal.SILENT
            case Degraded():
                return Signal.DEGRADED

    def _judge_plain(self, event: Plain, now_s: float) -> Signal | None:
        match event:
            case Plain.RENEWED if self.state in OPEN:
                return Signal.RENEWED
            case Plain.START | Plain.RENEWED:
                return self._if_allowed(Signal(event.value), now_s)
            case Plain.PREPARED if self.state is State.AUTHORIZING:
                return Signal.PREPARED if self._rate.take(now_s) else Signal.LIMITED
            case Plain.DEFINED | Plain.GREETED:
                self._defined |= event is Plain.DEFINED
                self._greeted |= event is Plain.GREETED
                return self._if_ready()
            case Plain.SENT:
                return self._judge_sent()
            case Plain.HEARD:
                self._heard_s, self._pinged_s = now_s, None
                return None
            case Plain.IDLE:
                if self._pinged_s is not None:
                    return Signal.DEAD if now_s - self._pinged_s >= self._patience.pong_s else None
                return Signal.PING_DUE if now_s - self._heard_s >= self._patience.ping_s else None
            case Plain.CLOSED if self._stopping and self.state is State.CLOSING:
                return Signal.STOPPED
            case Plain.STOP:
                self._stopping = True
                return Signal.STOP
            case _:
                return Signal(event.value)

    def _if_allowed(self, signal: Signal, now_s: float) -> Signal:
        return signal if self._rate.delay_s(now_s) <= 0.0 else Signal.LIMITED

    def _if_ready(self) -> Signal | None:
        if not (self._defined and (self._greeted or self._greet_over)):
            return None
        return Signal.READY if self._requests else Signal.BARE

    def _judge_sent(self) -> Signal | None:
        if self.state is not State.SUBSCRIBING:
            return None
        self._sent += 1
        if self._sent < self._requests:
            return Signal.SENT
        return Signal.SERVED if self._served >= self._requests else Signal.SENT_ALL

    def _judge_delivery(self, requests: int) -> Signal | None:
        if self.state not in OPEN or not requests:
            return None
        self._served = requests
        self._fruitless = 0
        self._reset_pauses()
        if self.state is State.SUBSCRIBING:
            return None  # the rest of the requests first
        return Signal.SERVED if self.state is State.MUTE or requests >= self._requests else None

    def _judge_timer(self, now_s: float, *, expected: bool) -> Signal | None:
        match self.state:
            case State.WAITING:
                return self._if_allowed(Signal.DUE, now_s)
            case State.GREETING:
                self._greet_over, self.timer_s = True, None
                return self._if_ready()
            case State.SNAPSHOTS if self._served:
                return Signal.SERVED  # a request that nothing answers must not hold up the rest
            case State.SNAPSHOTS | State.MUTE if self._greeted and not expected:
                return Signal.QUIET
            case State.SNAPSHOTS:
                return Signal.UNSERVED
            case _:
                return Signal.DUE

    def _note(self, signal: Signal, event: Event, now_s: float) -> None:
        """Remember what the transition just made means for the next ones."""
        match signal, event:
            case Signal.OPENED, Opened(requests):
                self._open(requests, now_s)
            case Signal.FAILED, Failed(retry_after_s):
                self._retry_after_s = retry_after_s
            case Signal.QUIET, _:
                self._fruitless = 0
                self._reset_pauses()
            case Signal.UNSERVED, _:
                self._fruitless += 1
                self._reason, self._detail = "mute", "subscribed, and not served"
            case Signal.SILENT, Silent(detail):
                self._reason, self._detail = "mute", detail
            case Signal.DEGRADED, Degraded(reason, detail):
                self._reason, self._detail = reason, detail
            case Signal.RENEWED, _:
                self._reason, self._detail = "renewed", "moves onto another token"
            case Signal.PING_DUE, _:
                self._pinged_s = now_s
            case Signal.DEAD, _:
                self._reason, self._detail = "silent", "no answer to a ping"
            case Signal.STOP, _:
                self._reason, self._detail = "stopped", ""
            case _:
                pass

    def _open(self, requests: int, now_s: float) -> None:
        self._requests, self._sent, self._served = requests, 0, 0
        self._greeted = self._greet_over = self._defined = False
        self._heard_s, self._pinged_s = now_s, None

    def _action(self, do: Do, signal: Signal, now_s: float) -> Action:
        match do:
            case Do.SUBSCRIBE:
                return Action(do=do, request=self._sent)
            case Do.CLOSE | Do.ABANDON:
                return Action(do=do, reason=self._reason, detail=self._detail)
            case Do.WAIT:
                self.timer_s = now_s + self._wait_s(signal, now_s)
                return Action(do=do, at_s=self.timer_s)
            case _:
                return Action(do=do)

    def _wait_s(self, signal: Signal, now_s: float) -> float:
        """Return how long the state just entered may last."""
        patience = self._patience
        match self.state:
            case State.GREETING:
                return patience.greet_s
            case State.SNAPSHOTS:
                return patience.snapshots_s
            case State.MUTE if signal is Signal.SILENT:
                return patience.mute_s
            case State.MUTE:
                # The first such connection is given up at once; one that nobody will ever serve, ever more slowly.
                more_s = patience.unserved_s * (2.0 ** min(self._fruitless - 1, 20) - 1.0)
                return min(more_s, patience.unserved_max_s)
            case State.CLOSING:
                return patience.stop_s
            case _:
                pause_s = 0.0 if signal is Signal.LIMITED else next(self._pauses)
                asked_s, self._retry_after_s = self._retry_after_s, 0.0
                return max(pause_s, asked_s, self._rate.delay_s(now_s))

    def _reset_pauses(self) -> None:
        self._pauses: Iterator[float] = backoff(self._random, first_s=FIRST_PAUSE_S, cap_s=LONGEST_PAUSE_S)
