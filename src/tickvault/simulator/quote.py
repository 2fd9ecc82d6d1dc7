"""One instrument's state: fair value, book, trades, candles (pure)."""

from __future__ import annotations

import datetime as dt
import math
from typing import TYPE_CHECKING, Final

from tickvault.model import IST
from tickvault.simulator.book import Book
from tickvault.simulator.pricing import RATE, YEAR_S, black_scholes, day_start_ms, smile
from tickvault.simulator.universe import Kind

if TYPE_CHECKING:
    import random

    from tickvault.simulator.climate import Climate
    from tickvault.simulator.universe import Instrument

__all__ = ["Candle", "Quote"]

_YEAR_MS: Final = 365 * 86_400_000
_MINUTE_MS: Final = 60_000
_LAST_HOUR: Final = 3_600_000  # time value never goes below an hour's: a contract that ran out is still quoted
_NO_GREEKS: Final = (0.0, 0.0, 0.0, 0.0, 0.0)


class Candle:
    """Open, high, low, close in INR, volume, and the start in epoch ms."""

    __slots__ = ("close", "high", "low", "open", "start_ms", "volume")

    def __init__(self, start_ms: int, price: float) -> None:
        """Begin with one price."""
        self.start_ms, self.volume = start_ms, 0
        self.open = self.high = self.low = self.close = price

    def add(self, price: float, quantity: int) -> None:
        """Take in one trade."""
        self.close = price
        self.high, self.low = max(self.high, price), min(self.low, price)
        self.volume += quantity


class Quote:
    """What the exchange knows about one instrument at its latest change.

    Attributes:
        fair: the value that the book surrounds, INR.
        ltp: last traded price, INR; 0 while it never traded.
        ltt: time of the last trade, epoch ms; 0 while it never traded.
        vtt: quantity traded today; it only grows until the next IST day.
        day: today's candle; None before the first trade. Its volume may lag behind vtt by one update.
        minute: the last completed minute.
        greeks: delta, theta, gamma, vega, rho.
    """

    __slots__ = (
        "_factor",
        "_fair_ms",
        "_flow",
        "_forming",
        "_spot",
        "_spread",
        "_today_ms",
        "_traded_ms",
        "_turnover",
        "atp",
        "book",
        "cp",
        "day",
        "fair",
        "greeks",
        "instrument",
        "iv",
        "ltp",
        "ltq",
        "ltt",
        "minute",
        "oi",
        "vtt",
    )  # fmt: skip

    def __init__(
        self,
        one: Instrument,
        rng: random.Random,
        climate: Climate,
        spot: Quote | None,
        weight: float,
        start_ms: int,
        fraction: float,
    ) -> None:
        """Start as it would be at `start_ms`, `fraction` of the session having passed."""
        self.instrument, self._spot = one, spot
        self._fair_ms, self._factor = start_ms, _factor(one, climate)
        self.fair, self.iv, self.greeks = one.price, 0.0, _NO_GREEKS
        self.cp = self.fair
        self._revalue(climate, start_ms)
        calm = weight > 0.05
        self._spread = 1 if calm else 1 + int(4 * rng.random())
        thin = one.underlying is not None and not calm
        self.book = Book(
            rng,
            lot=one.lot_size,
            size=2.0 if one.underlying is not None else max(2.0, 12.6 - math.log(one.price)),
            step=1 if calm else 1 + int(2 * rng.random()),
            quoted=(int(6 * rng.random()), 1 + int(6 * rng.random())) if thin else (30, 30),
        )
        self._place(rng)
        # Quantity a second: about ₹15 lakh of shares, or 100 contracts, at full activity.
        busy = 1.5e6 / one.price if one.underlying is None else 100.0 * one.lot_size
        self._flow = busy * weight * math.exp(rng.gauss(0.0, 0.5))
        self._begin_history(rng, start_ms, fraction, never=thin and rng.random() < 0.3)

    def _begin_history(self, rng: random.Random, start_ms: int, fraction: float, *, never: bool) -> None:
        one = self.instrument
        self._today_ms, self._traded_ms = day_start_ms(start_ms), start_ms
        price = self._tick_price(self.book.bid if self.book.quoted_bids else self.book.ask)
        self.cp = self._nearest(self.fair * math.exp(one.volatility / 16.0 * rng.gauss(0.0, 1.0)))
        self.oi = 0.0
        self.minute: Candle | None = None
        self.day: Candle | None = None
        self._forming: Candle | None = None
        self.ltq = self.vtt = self.ltt = 0
        self.ltp = self.atp = self._turnover = 0.0
        if never:
            return
        if one.underlying is not None:
            self.oi = float(one.lot_size * int(math.exp(rng.gauss(7.0 if one.lot_size > 100 else 10.0, 1.0))))
        index = one.kind is Kind.INDEX
        self.ltp = self._nearest(self.fair) if index else price
        self.ltt = start_ms - int(rng.expovariate(1.0) * 4_000.0)
        if not index:
            self.ltq = one.lot_size
            self.vtt = one.lot_size * max(1, int(self._flow * 22_500 * fraction / one.lot_size))
        self.day = self._candle_around(rng, self._today_ms, one.volatility / 16.0)
        self.day.volume = self.vtt
        self.atp = round((self.day.high + self.day.low + self.ltp) / 3.0, 2)
        self._turnover = self.atp * self.vtt
        self.minute = self._candle_around(rng, self.ltt // _MINUTE_MS * _MINUTE_MS - _MINUTE_MS, one.volatility / 300.0)
        if not index:
            self.minute.volume = one.lot_size * int(self._flow * 60.0 / one.lot_size)

    def _candle_around(self, rng: random.Random, start_ms: int, spread: float) -> Candle:
        candle = Candle(start_ms, self._nearest(self.ltp * math.exp(spread * 0.5 * rng.gauss(0.0, 1.0))))
        for price in (candle.open * math.exp(spread * rng.gauss(0.0, 0.5)), self.ltp):
            candle.add(self._nearest(price), 0)
        return candle

    def change(self, rng: random.Random, climate: Climate, now_ms: int, today_ms: int, *, trade: bool) -> None:
        """Bring everything to `now_ms`; with `trade` at least one trade has taken place since the last change."""
        if today_ms > self._today_ms:
            self._begin_day(today_ms)
        forming = self._forming
        if forming is not None and now_ms // _MINUTE_MS * _MINUTE_MS > forming.start_ms:
            self.minute, self._forming = forming, None
        self.walk(rng, climate, now_ms)
        if self.instrument.kind is Kind.INDEX:
            self._print(now_ms, self._nearest(self.fair), 0)
            return
        self._place(rng)
        if trade:
            self._trade(rng, climate, now_ms)

    def walk(self, rng: random.Random, climate: Climate, now_ms: int) -> None:
        """Move the fair value to `now_ms`."""
        one, elapsed_s = self.instrument, (now_ms - self._fair_ms) / 1000.0
        factor = _factor(one, climate)
        if one.kind is Kind.EQUITY:
            if elapsed_s <= 0:
                return
            own = one.volatility * climate.pulse * math.sqrt(elapsed_s / YEAR_S) * rng.gauss(0.0, 1.0)
            self.fair *= math.exp(one.beta * (factor - self._factor) + own)
        elif one.kind is Kind.INDEX:
            self.fair = climate.vix if one.symbol == "INDIA VIX" else one.price * math.exp(factor)
        elif self._spot is not None:
            self._spot.walk(rng, climate, now_ms)
            self._revalue(climate, now_ms)
        self._fair_ms, self._factor = max(now_ms, self._fair_ms), factor

    def level(self, side: int, index: int) -> tuple[int, float]:
        """Return quantity and price of a rung: side 0 the bid, 1 the ask; (0, 0.0) where nobody quotes."""
        book = self.book
        if side == 0:
            ticks = book.bid - index * book.step
            return (book.bids[index], self._tick_price(ticks)) if index < book.quoted_bids and ticks > 0 else (0, 0.0)
        if index >= book.quoted_asks:
            return 0, 0.0
        return book.asks[index], self._tick_price(book.ask + index * book.step)

    def _begin_day(self, today_ms: int) -> None:
        self._today_ms = today_ms
        self.cp = self.ltp or self.cp
        self.vtt = self.ltq = 0
        self.atp = self._turnover = 0.0
        self.day = self.minute = self._forming = None

    def _revalue(self, climate: Climate, now_ms: int) -> None:
        """Derive a derivative's value from its underlying's."""
        one, spot = self.instrument, self._spot
        if spot is None or one.expiry is None:
            return
        years = max(_LAST_HOUR, _expiry_ms(one.expiry) - now_ms) / _YEAR_MS
        if one.kind is Kind.FUTURE:
            self.fair = spot.fair * math.exp(RATE * years)
            return
        nervous = climate.vix / 13.5
        self.iv = round(smile(spot.fair, one.strike, one.volatility * nervous), 6)
        value = black_scholes(spot.fair, one.strike, years, self.iv, call=one.kind is Kind.CALL)
        self.fair = max(value.price, 0.01)
        self.greeks = (
            round(value.delta, 4),
            round(value.theta, 4),
            round(value.gamma, 4),
            round(value.vega, 4),
            round(value.rho, 4),
        )

    def _place(self, rng: random.Random) -> None:
        """Lay the book round the fair value: never crossed, never below one tick."""
        middle = self.fair * 100.0 / self.instrument.tick_paise
        spread = self._spread + (rng.random() < 0.15)
        bid = math.floor(middle - 0.5 * (spread - 1))
        self.book.move(rng, max(0, bid), max(1, bid + spread))

    def _trade(self, rng: random.Random, climate: Climate, now_ms: int) -> None:
        book, lot = self.book, self.instrument.lot_size
        buyer = book.quoted_bids == 0 or book.bid <= 0 or rng.random() < 0.5
        price = self._tick_price(book.ask if buyer else book.bid)
        quantity = lot * max(1, int(math.exp(rng.gauss(book.size - 0.7, 1.1))))
        # What is shown is conflated: other trades went by since the last change.
        elapsed_s = min(60.0, max(0, now_ms - self._traded_ms) / 1000.0)
        self._traded_ms = now_ms
        passed = lot * int(self._flow * elapsed_s * climate.pulse * rng.expovariate(1.0) / lot)
        book.take(rng, quantity, buyer=buyer)
        if self.instrument.underlying is not None:
            self.oi = max(0.0, self.oi + lot * round(rng.gauss(0.2, 2.0)))
        lagging = rng.random() < 0.1
        volume = self.vtt
        self.ltq = quantity
        # Never back into a minute whose candle is complete.
        self._print(max(now_ms - int(120 * rng.random()), now_ms // _MINUTE_MS * _MINUTE_MS), price, quantity + passed)
        if self.day is not None:
            self.day.volume = volume if lagging else self.vtt

    def _print(self, at_ms: int, price: float, quantity: int) -> None:
        """Take a trade (an index: a new value) into price, volume and candles."""
        self.ltp, self.ltt = price, max(self.ltt, at_ms)
        self.vtt += quantity
        self._turnover += price * quantity
        if self.vtt:
            self.atp = round(self._turnover / self.vtt, 2)
        if self.day is None:
            self.day = Candle(self._today_ms, price)
        self.day.add(price, 0)
        if self._forming is None:
            self._forming = Candle(self.ltt // _MINUTE_MS * _MINUTE_MS, price)
        self._forming.add(price, quantity)

    def _tick_price(self, ticks: int) -> float:
        return ticks * self.instrument.tick_paise / 100.0

    def _nearest(self, value: float) -> float:
        """Round to the instrument's price step, at least one."""
        return self._tick_price(max(1, round(value * 100.0 / self.instrument.tick_paise)))


def _factor(one: Instrument, climate: Climate) -> float:
    return climate.bank if one.symbol == "BANKNIFTY" else climate.market


def _expiry_ms(expiry: dt.date) -> int:
    return int(dt.datetime.combine(expiry, dt.time(15, 30), IST).timestamp() * 1000)
