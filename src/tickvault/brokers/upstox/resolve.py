"""From selections to keys: what they mean by the master list, on a date, at a price. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Final

from tickvault.model import Subscription
from tickvault.selections import Chain, Future, Indices, Key, ListFile, Near, Selection, Symbol, nearest

if TYPE_CHECKING:
    import datetime as dt
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from tickvault.model import Definition, Mode

__all__ = ["Listing", "Problem", "Resolution", "hoped_for", "needs_list", "resolve"]

# Of an underlying that has derivatives in several segments, the first of these counts.
_ORDER: Final = ("NSE_FO", "BSE_FO", "MCX_FO", "NCD_FO", "BCD_FO", "NSE_COM")
_INDIA_VIX: Final = "NSE_INDEX|India VIX"
_WITH_VIX: Final = ("NSE_FO", "BSE_FO")
# Where a name trades that nothing says it of yet; a name that is not here is one of a stock.
_NSE_INDICES: Final = ("NIFTY", "BANKNIFTY", "FINNIFTY", "MIDCPNIFTY", "NIFTYNXT50")
_BSE_INDICES: Final = ("SENSEX", "BANKEX", "SENSEX50")
_COMMODITIES: Final = (
    *("ALUMIN", "CARDAMOM", "COPPER", "COTTON", "CRUDEOIL", "ELECDMBL", "GOLD", "KAPAS", "LEAD", "MCX", "MENTHAOIL"),
    *("NATGASMINI", "NATURALGAS", "NICKEL", "SILVER", "STEELREBAR", "ZINC"),
)
_CURRENCIES: Final = ("USDINR", "EURINR", "GBPINR", "JPYINR", "EURUSD", "GBPUSD", "USDJPY")


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """A selection that selects nothing, and why, with the nearest known name."""

    selection: Selection
    why: str

    def __str__(self) -> str:
        return f"{self.selection.text}: {self.why}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Resolution:
    """What selections come to.

    Attributes:
        subscriptions: each key once, in the order of the selections.
        problems: of the selections that come to nothing.
        fewer: selections that ask for more expiries than are listed, in words; those that there are they bring.
        priced: keys whose price decides on strikes; `unpriced` those of them without one, whose strikes are missing.
    """

    subscriptions: tuple[Subscription, ...] = ()
    problems: tuple[Problem, ...] = ()
    fewer: tuple[str, ...] = ()
    priced: tuple[str, ...] = ()
    unpriced: tuple[str, ...] = ()


class Listing:
    """The part of the master list that some selections may ask for; the rest is forgotten row by row.

    Args:
        selections: what `resolve` will be called with.
        rows: the whole list.
    """

    def __init__(self, selections: Iterable[Selection], rows: Iterable[Definition]) -> None:
        asked = [one.what for one in selections]
        self.symbols: dict[tuple[str, str], Definition] = {}
        self.derivatives: dict[str, list[Definition]] = {
            what.underlying: [] for what in asked if isinstance(what, Chain | Future)
        }
        self.indices: list[Definition] = []
        self.has_vix = False
        self._wanted = {(what.segment, what.symbol) for what in asked if isinstance(what, Symbol)}
        self._with_indices = any(isinstance(what, Indices) for what in asked)
        # Names to propose.
        self.names: dict[str, set[str]] = {segment: set() for segment, _ in self._wanted}
        self.underlyings: set[str] = set()
        for row in rows:
            self._take(row)

    def _take(self, row: Definition) -> None:
        segment, symbol = row.segment or "", (row.symbol or "").upper()
        if segment in self.names:
            self.names[segment].add(symbol)
            for name in (symbol, *([(row.name or "").upper()] if segment.endswith("_INDEX") else [])):
                if (segment, name) in self._wanted:
                    known = self.symbols.setdefault((segment, name), row)
                    if row.instrument_type == "EQ" != known.instrument_type:
                        self.symbols[segment, name] = row
        if segment.endswith("_INDEX"):
            self.has_vix |= row.instrument_key == _INDIA_VIX
            if self._with_indices:
                self.indices.append(row)
        if row.underlying_symbol and row.expiry is not None:
            underlying = row.underlying_symbol.upper()
            self.underlyings.add(underlying)
            if underlying in self.derivatives:
                self.derivatives[underlying].append(row)


@dataclass(slots=True)
class _Found:
    """What one selection comes to."""

    keys: list[str] = field(default_factory=list)
    priced: list[str] = field(default_factory=list)
    unpriced: list[str] = field(default_factory=list)
    listed: int | None = None  # expiries


class _NothingError(ValueError):
    """The selection comes to nothing."""


def needs_list(selections: Iterable[Selection]) -> bool:
    """Return whether any of them means nothing without the master list."""
    return any(not isinstance(one.what, Key | ListFile) for one in selections)


def hoped_for(selections: Iterable[Selection]) -> frozenset[str]:
    """Return the segments that selections would bring keys of, as far as it shows without the master list."""
    return frozenset().union(*(_segments(one.what) for one in selections))


def _segments(what: object) -> frozenset[str]:
    match what:
        case Symbol(segment, _):
            return frozenset({segment})
        case Indices():
            return frozenset({"NSE_INDEX", "BSE_INDEX"})
        case Future(underlying, _, segment):
            return frozenset({segment or _segment_of_name(underlying)})
        case Chain(underlying, _, _, segment):
            segment = segment or _segment_of_name(underlying)
            if segment not in _WITH_VIX:
                return frozenset({segment})
            index = underlying in (*_NSE_INDICES, *_BSE_INDICES)
            spot = f"{segment.partition('_')[0]}_{'INDEX' if index else 'EQ'}"
            return frozenset({segment, spot, "NSE_INDEX"})
        case _:
            return frozenset()


def _segment_of_name(underlying: str) -> str:
    if underlying in _BSE_INDICES:
        return "BSE_FO"
    if underlying in _CURRENCIES:
        return "NCD_FO"
    return "MCX_FO" if underlying.startswith(_COMMODITIES) else "NSE_FO"


def resolve(
    selections: Sequence[Selection],
    listing: Listing,
    date: dt.date,
    prices: Mapping[str, float],
    held: Collection[str] = (),
) -> Resolution:
    """Return the keys of selections.

    Args:
        selections: files replaced by what they hold.
        listing: made for these selections.
        date: a contract is listed up to its expiry, the day itself included.
        prices: key → last price, in the unit of strikes.
        held: keys that were subscribed to earlier in this session; a strike among them stays though the price moves.

    Guarantees:
        A key that is named by itself has the mode it is named with; otherwise the first selection that brings it decides.
    """
    found: list[tuple[Selection, _Found]] = []
    problems = []
    for one in selections:
        try:
            found.append((one, _find(one, listing, date, prices, held)))
        except _NothingError as exc:
            problems.append(Problem(selection=one, why=str(exc)))
    modes: dict[str, Mode] = {}
    for named in (True, False):
        for one, what in found:
            if isinstance(one.what, Key | Symbol) is named:
                for key in what.keys:
                    modes.setdefault(key, one.mode)
    keys = dict.fromkeys(key for _, what in found for key in what.keys)
    return Resolution(
        subscriptions=tuple(Subscription(instrument_key=key, mode=modes[key]) for key in keys),
        problems=tuple(problems),
        fewer=tuple(words for one, what in found if (words := _fewer(one, what.listed))),
        priced=tuple(dict.fromkeys(key for _, what in found for key in what.priced)),
        unpriced=tuple(dict.fromkeys(key for _, what in found for key in what.unpriced)),
    )


def _find(
    one: Selection, listing: Listing, date: dt.date, prices: Mapping[str, float], held: Collection[str]
) -> _Found:
    match one.what:
        case Key(key):
            return _Found([key])
        case Symbol() as symbol:
            return _Found([_symbol(symbol, listing)])
        case Future() as future:
            contracts = _contracts(future, listing, date, options=False)
            expiries = sorted({row.expiry for row in contracts if row.expiry})[: future.expiries]
            return _Found([row.instrument_key for row in contracts if row.expiry in expiries], listed=len(expiries))
        case Chain() as chain:
            return _chain(chain, listing, date, prices, held)
        case Indices(pattern):
            return _Found(_indices(pattern, listing))
        case ListFile(path):
            raise _NothingError(f"{path} has not been read")


def _fewer(one: Selection, listed: int | None) -> str:
    """Say that a selection asks for more expiries than are listed; empty when it does not."""
    asked = one.what.expiries if isinstance(one.what, Chain | Future) else None
    if listed is None or not isinstance(asked, int) or listed >= asked:
        return ""
    return f"{one.text}: {listed} {'expiry is' if listed == 1 else 'expiries are'} listed, fewer than {asked}"


def _symbol(symbol: Symbol, listing: Listing) -> str:
    row = listing.symbols.get((symbol.segment, symbol.symbol))
    if row is None:
        near = nearest(symbol.symbol, listing.names.get(symbol.segment, ()))
        raise _NothingError(f"{symbol.segment} lists no {symbol.symbol!r}{near}")
    return row.instrument_key


def _indices(pattern: str, listing: Listing) -> list[str]:
    def names(row: Definition) -> list[str]:
        return [name.upper() for name in (row.symbol, row.name) if name]

    keys = [row.instrument_key for row in listing.indices if any(fnmatchcase(name, pattern) for name in names(row))]
    if not keys:
        near = nearest(pattern.strip("*"), (name for row in listing.indices for name in names(row)))
        raise _NothingError(f"no index has such a symbol or name{near}")
    return keys


def _contracts(what: Chain | Future, listing: Listing, date: dt.date, *, options: bool) -> list[Definition]:
    """Return an underlying's contracts in one segment, the nearest expiries first."""
    rows = [
        row
        for row in listing.derivatives.get(what.underlying, ())
        if row.expiry is not None and row.expiry >= date and (row.option_type is not None) is options
    ]
    segments = {row.segment for row in rows}
    segment = what.segment or next((one for one in _ORDER if one in segments), None)
    rows = [row for row in rows if row.segment == segment]
    if not rows:
        kind = "options" if options else "futures"
        where = f" in {what.segment}" if what.segment else ""
        near = "" if what.underlying in listing.underlyings else nearest(what.underlying, listing.underlyings)
        raise _NothingError(f"no {kind} of {what.underlying!r} are listed{where}{near}")
    return sorted(rows, key=lambda row: (row.expiry, row.strike or 0.0, row.option_type or ""))


def _chain(chain: Chain, listing: Listing, date: dt.date, prices: Mapping[str, float], held: Collection[str]) -> _Found:
    rows = _contracts(chain, listing, date, options=True)
    expiries = _expiries(sorted({row.expiry for row in rows if row.expiry}), chain.expiries)
    rows = [row for row in rows if row.expiry in expiries]
    segment = rows[0].segment
    spots = list(dict.fromkeys(row.underlying_key for row in rows if row.underlying_key))
    found = _Found(list(spots), listed=len(expiries))
    try:
        futures = _contracts(Future(chain.underlying, 1, segment), listing, date, options=False)
        found.keys += [row.instrument_key for row in futures if row.expiry == futures[0].expiry]
    except _NothingError:
        pass  # not every underlying with options has a future
    if listing.has_vix and segment in _WITH_VIX:
        found.keys.append(_INDIA_VIX)
    if chain.window is None:
        found.keys += [row.instrument_key for row in rows]
        return found
    found.priced = spots
    for expiry in expiries:
        series = [row for row in rows if row.expiry == expiry]
        price = prices.get(series[0].underlying_key or "")
        strikes = set[float]() if price is None else _window(series, price, chain.window)
        found.keys += [row.instrument_key for row in series if row.strike in strikes or row.instrument_key in held]
    found.unpriced = [key for key in spots if key not in prices]
    return found


def _expiries(listed: Sequence[dt.date], wanted: int | Near) -> Sequence[dt.date]:
    match wanted:
        case Near.WEEKLY:
            return listed[:1]
        case Near.MONTHLY:
            last = {(one.year, one.month): one for one in listed}
            return [min(last.values())]
        case count:
            return listed[:count]


def _window(series: Sequence[Definition], price: float, strikes: int) -> set[float]:
    """Return the strike nearest to the price, and so many on either side."""
    listed = sorted({row.strike for row in series if row.strike is not None})
    middle = min(range(len(listed)), key=lambda i: abs(listed[i] - price), default=0)
    return set(listed[max(0, middle - strikes) : middle + strikes + 1])
