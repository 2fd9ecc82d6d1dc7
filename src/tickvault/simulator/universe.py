"""Which instruments the simulated exchange lists (pure): a function of how many, and of the date for expiries.

The order is indices, equities, futures, options; keys depend on the number only, never on the date.
"""

from __future__ import annotations

import datetime as dt
import itertools
import math
import random
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Instrument", "Kind", "build_universe", "monthly_expiries", "weekly_expiry"]

# Of everything that is not an index.
_EQUITY_SHARE: Final = 0.45
_FUTURE_SHARE: Final = 0.08
_MAX_UNDERLYINGS: Final = 200  # about as many stocks have derivatives on the NSE
_SERIES_SIZE: Final = 22  # options of one underlying and expiry: 11 strikes, each a call and a put
_TUESDAY: Final = 1  # index and stock derivatives of the NSE expire on Tuesdays since September 2025

# key's name, trading symbol, exchange token, level
_INDICES: Final = (
    ("Nifty 50", "NIFTY", "26000", 24_500.0),
    ("Nifty Bank", "BANKNIFTY", "26009", 52_300.0),
    ("India VIX", "INDIA VIX", "26017", 13.5),
)
# ISIN, trading symbol, name, price; the prices are of the right magnitude and no more
_KNOWN: Final = (
    ("INE531E01026", "HINDCOPPER", "HINDUSTAN COPPER LTD", 241.35),
    ("INE047A01021", "GRASIM", "GRASIM INDUSTRIES LTD", 2_712.4),
    ("INE844O01030", "GUJGASLTD", "GUJARAT GAS LIMITED", 431.8),
    ("INE002A01018", "RELIANCE", "RELIANCE INDUSTRIES LTD", 1_402.3),
    ("INE040A01034", "HDFCBANK", "HDFC BANK LTD", 968.55),
    ("INE090A01021", "ICICIBANK", "ICICI BANK LTD.", 1_352.7),
    ("INE009A01021", "INFY", "INFOSYS LIMITED", 1_481.2),
    ("INE467B01029", "TCS", "TATA CONSULTANCY SERV LT", 3_022.6),
    ("INE062A01020", "SBIN", "STATE BANK OF INDIA", 872.45),
    ("INE154A01025", "ITC", "ITC LTD", 402.15),
    ("INE397D01024", "BHARTIARTL", "BHARTI AIRTEL LIMITED", 1_934.5),
    ("INE018A01030", "LT", "LARSEN & TOUBRO LTD.", 3_688.9),
    ("INE238A01034", "AXISBANK", "AXIS BANK LIMITED", 1_128.1),
    ("INE030A01027", "HINDUNILVR", "HINDUSTAN UNILEVER LTD.", 2_519.3),
    ("INE585B01010", "MARUTI", "MARUTI SUZUKI INDIA LTD.", 15_980.0),
    ("INE044A01036", "SUNPHARMA", "SUN PHARMACEUTICAL IND L", 1_629.4),
    ("INE280A01028", "TITAN", "TITAN COMPANY LIMITED", 3_402.2),
    ("INE075A01022", "WIPRO", "WIPRO LTD", 241.08),
    ("INE081A01020", "TATASTEEL", "TATA STEEL LIMITED", 171.52),
    ("INE733E01010", "NTPC", "NTPC LTD", 334.75),
    ("INE669E01016", "IDEA", "VODAFONE IDEA LIMITED", 8.11),
)


class Kind(StrEnum):
    """What an instrument is; futures and options by the exchange's own abbreviations."""

    INDEX = "INDEX"
    EQUITY = "EQ"
    FUTURE = "FUT"
    CALL = "CE"
    PUT = "PE"


@dataclass(frozen=True, slots=True, kw_only=True)
class Instrument:
    """One listed instrument.

    Attributes:
        price: INR at the start of the simulation; for derivatives that of the underlying.
        volatility: annual, a fraction; that of the underlying for derivatives.
        beta: how strongly it follows the market.
        tick_paise: price step; 1 for an index, whose values have two decimals.
        underlying: position of the underlying in the universe.
        strike: INR; 0 unless an option.
        rank: 0 = the busiest kind of its neighbours; activity falls with it.
    """

    key: str
    symbol: str
    name: str
    kind: Kind
    exchange_token: str
    price: float
    volatility: float
    beta: float
    tick_paise: int
    lot_size: int
    rank: float
    isin: str | None = None
    underlying: int | None = None
    expiry: dt.date | None = None
    weekly: bool = False
    strike: float = 0.0
    cas_eligible: bool = False

    @property
    def segment(self) -> str:
        """The exchange segment, first part of the key."""
        return self.key.partition("|")[0]


def build_universe(count: int, today: dt.date) -> tuple[Instrument, ...]:
    """List `count` instruments, the same keys in the same order for the same count.

    Args:
        count: 1 or more.
        today: IST date, which expiries follow.
    """
    listed = list(itertools.islice(_indices(), count))
    rest = count - len(listed)
    equities = min(rest, max(3, round(rest * _EQUITY_SHARE)))
    futures = min(rest - equities, math.ceil(rest * _FUTURE_SHARE))
    listed.extend(itertools.islice(_equities(), equities))
    tokens = itertools.count(35_001)
    spots = _underlyings(listed)
    listed.extend(itertools.islice(_futures(listed[:], spots, today, tokens), futures))
    options = count - len(listed)
    listed.extend(itertools.islice(_options(listed[:], spots, today, tokens, options), options))
    return tuple(listed)


def weekly_expiry(today: dt.date) -> dt.date:
    """Return the first Tuesday after `today`, so that no contract is in its last hours."""
    return today + dt.timedelta(days=(_TUESDAY - today.weekday() - 1) % 7 + 1)


def monthly_expiries(today: dt.date) -> Iterator[dt.date]:
    """Yield the last Tuesday of each month, the first one later than the weekly expiry of `today`."""
    month = today.replace(day=1)
    while True:
        following = (month + dt.timedelta(days=32)).replace(day=1)
        last = following - dt.timedelta(days=1)
        expiry = last - dt.timedelta(days=(last.weekday() - _TUESDAY) % 7)
        if expiry > weekly_expiry(today):
            yield expiry
        month = following


def _indices() -> Iterator[Instrument]:
    for name, symbol, token, level in _INDICES:
        yield Instrument(
            key=f"NSE_INDEX|{name}",
            symbol=symbol,
            name=name,
            kind=Kind.INDEX,
            exchange_token=token,
            price=level,
            volatility=0.8 if symbol == "INDIA VIX" else 0.12,
            beta=1.15 if symbol == "BANKNIFTY" else 1.0,
            tick_paise=1,
            lot_size={"NIFTY": 75, "BANKNIFTY": 35}.get(symbol, 1),
            rank=0.0,
            cas_eligible=symbol != "INDIA VIX",
        )


def _equities() -> Iterator[Instrument]:
    # A fixed source: the list must not change with the seed of the market.
    rng = random.Random("universe")  # noqa: S311
    for position in itertools.count():
        if position < len(_KNOWN):
            isin, symbol, name, price = _KNOWN[position]
        else:
            isin, symbol = _isin(position), f"SIM{position:04d}"
            name, price = f"SIMULATED {position:04d} LIMITED", round(math.exp(rng.gauss(6.2, 1.1)), 2)
        yield Instrument(
            key=f"NSE_EQ|{isin}",
            symbol=symbol,
            name=name,
            kind=Kind.EQUITY,
            exchange_token=str(1_000 + position),
            price=price,
            volatility=0.18 + 0.3 * rng.random() ** 2,
            beta=0.6 + 0.8 * rng.random(),
            tick_paise=_tick_paise(price),
            lot_size=1,
            rank=1.0 + position * 0.9 + 2 * rng.random(),
            isin=isin,
            cas_eligible=position < _MAX_UNDERLYINGS,
        )


def _underlyings(listed: list[Instrument]) -> list[int]:
    """Return positions of what derivatives are written on, the busiest first."""
    spots = [i for i, one in enumerate(listed) if one.symbol in {"NIFTY", "BANKNIFTY"} or one.kind is Kind.EQUITY]
    return spots[: _MAX_UNDERLYINGS + 2]


def _futures(listed: list[Instrument], spots: list[int], today: dt.date, tokens: Iterator[int]) -> Iterator[Instrument]:
    for month, expiry in enumerate(itertools.islice(monthly_expiries(today), 120)):
        for order, position in enumerate(spots):
            yield _derivative(listed, position, Kind.FUTURE, expiry, 0.0, next(tokens), 1.0 + order + 12.0 * month)


def _options(
    listed: list[Instrument], spots: list[int], today: dt.date, tokens: Iterator[int], count: int
) -> Iterator[Instrument]:
    """Yield options from the money outwards, over as many (underlying, expiry) series as the count fills."""
    months = list(itertools.islice(monthly_expiries(today), 12))
    indices = [p for p in spots if listed[p].kind is Kind.INDEX]
    series = [(p, weekly_expiry(today), True) for p in indices[:1]]
    series += [(p, month, False) for month in months for p in (*indices[::-1], *spots[len(indices) :])]
    series = series[: max(1, count // _SERIES_SIZE)]
    for distance in itertools.count():
        for order, (position, expiry, weekly) in enumerate(series):
            step = _strike_step(listed[position])
            middle = round(listed[position].price / step)
            for offset in (distance, -distance) if distance else (0,):
                if middle + offset <= 0:
                    continue
                strike = round((middle + offset) * step, 2)
                rank = 1.0 + 1.5 * order + 2.5 * distance
                for kind in (Kind.CALL, Kind.PUT):
                    yield _derivative(listed, position, kind, expiry, strike, next(tokens), rank, weekly=weekly)


def _derivative(
    listed: list[Instrument],
    position: int,
    kind: Kind,
    expiry: dt.date,
    strike: float,
    token: int,
    rank: float,
    *,
    weekly: bool = False,
) -> Instrument:
    spot = listed[position]
    day = expiry.strftime("%d %b %y").upper()
    stock = spot.kind is Kind.EQUITY
    return Instrument(
        key=f"NSE_FO|{token}",
        symbol=f"{spot.symbol} FUT {day}" if kind is Kind.FUTURE else f"{spot.symbol} {strike:g} {kind} {day}",
        name=spot.name if stock else spot.symbol,
        kind=kind,
        exchange_token=str(token),
        price=spot.price,
        volatility=spot.volatility,
        beta=spot.beta,
        tick_paise=5 if kind is not Kind.FUTURE else (spot.tick_paise if stock else 10),
        # A stock's contract is worth about ₹7 lakh.
        lot_size=max(1, 25 * round(28_000 / spot.price)) if stock else spot.lot_size,
        rank=rank,
        underlying=position,
        expiry=expiry,
        weekly=weekly,
        strike=strike,
    )


def _tick_paise(price: float) -> int:
    """Return the price step of an equity, by the exchange's bands of April 2025."""
    for below, paise in ((250, 1), (1_000, 5), (5_000, 10), (10_000, 50), (20_000, 100)):
        if price < below:
            return paise
    return 500


def _strike_step(spot: Instrument) -> float:
    if spot.kind is Kind.INDEX:
        return 50.0 if spot.symbol == "NIFTY" else 100.0
    wanted = spot.price * 0.015
    return next((step for step in (0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 50.0, 100.0) if step >= wanted), 200.0)


def _isin(position: int) -> str:
    """Return a well-formed ISIN that no company has: issuers below 100 with a late letter."""
    body = f"INE{position // 18 % 1000:03d}{'IJKLMNPQRSTUVWXYZO'[position % 18]}01{position // 18_000 + 1:02d}"
    return body + _check_digit(body)


def _check_digit(body: str) -> str:
    """Return the last digit of an ISIN (ISO 6166: letters as two digits, then Luhn)."""
    digits = [int(d) for d in "".join(str(int(c, 36)) for c in body)]
    total = sum(sum(divmod(d * 2, 10)) if i % 2 == 0 else d for i, d in enumerate(reversed(digits)))
    return str(-total % 10)
