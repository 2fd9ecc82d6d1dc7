"""`tickvault instruments`: looks into the master list and says what selections come to; works from the last copy."""

from __future__ import annotations

import asyncio
import datetime as dt
import heapq
import time
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final, TypeVar

import aiohttp
import structlog

from tickvault import render, resolving
from tickvault.addresses import Endpoint, check_endpoints
from tickvault.brokers.upstox.instruments import COPY, InstrumentList, read_copy
from tickvault.brokers.upstox.planner import arithmetic, plan
from tickvault.brokers.upstox.resolve import Listing, Resolution, needs_list, resolve
from tickvault.brokers.upstox.selector import read_files
from tickvault.datafolder import holder
from tickvault.errors import ConfigurationError, FeedUnavailable, Refused
from tickvault.model import IST
from tickvault.selections import parse_selections
from tickvault.settings import plain_hosts

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from pathlib import Path

    from tickvault.brokers.upstox.planner import Plan
    from tickvault.model import Definition
    from tickvault.settings import Settings

__all__ = ["print_found", "print_resolved"]

_OLD_S: Final = 12 * 3600.0  # the list changes once a day; a copy older than this is compared with the broker's
_COLUMNS: Final = ("instrument_key", "symbol", "instrument_type", "expiry", "strike", "lot_size", "name")

_T = TypeVar("_T")

_log: Final = structlog.get_logger(__name__)


def print_found(
    settings: Settings, text: str, *, segment: str | None, kind: str | None, limit: int, as_json: bool
) -> bool:
    """Print the instruments that have every word of a text in their key, symbol, name or ISIN; whether there are any.

    Raises:
        Refused: there is no list to look into.
    """
    words = text.upper().split()
    counted = 0

    def matching(rows: Iterable[Definition]) -> Iterator[Definition]:
        nonlocal counted
        for row in rows:
            named = " ".join(filter(None, (row.instrument_key, row.symbol, row.name, row.isin))).upper()
            of_segment = segment is None or (row.segment or "").upper() == segment.upper()
            if of_segment and (kind is None or row.instrument_type == kind.upper()) and all(w in named for w in words):
                counted += 1
                yield row

    found = _read(settings, lambda rows: heapq.nsmallest(limit, matching(rows), key=lambda row: _rank(row, words)))
    if as_json:
        render.dump_json({"found": counted, "instruments": [_json(row) for row in found]})
        return counted > 0
    render.table(_COLUMNS, [tuple(_shown(getattr(row, name)) for name in _COLUMNS) for row in found])
    if counted > len(found):
        render.console().print(
            f"{len(found):,} of {counted:,}; --limit, --segment and --type show others", markup=False
        )
    return counted > 0


def print_resolved(settings: Settings, texts: Sequence[str], prices: Sequence[str], *, as_json: bool) -> bool:
    """Print the keys of selections and the sockets they take; whether all come to something and fit.

    Args:
        settings: mode, plan, and where the list is.
        texts: selections; those of the settings when empty.
        prices: `NIFTY=24500` or `KEY=24500`, for strikes round a price.
        as_json: as one JSON document.

    Raises:
        ConfigurationError: a text is no selection, or there is none at all.
        Refused: it takes a list, and there is none.
    """
    selections, wrong = read_files(parse_selections(texts, settings.mode) if texts else settings.selections)
    if not selections and not wrong:
        raise ConfigurationError(
            "nothing to resolve: name a selection, e.g. chain:NIFTY:2, or set TICKVAULT_INSTRUMENTS"
        )
    given = dict(map(_price, prices))
    listing, symbols = Listing((), ()), dict[str, str]()
    if needs_list(selections):
        listing = _read(settings, lambda rows: Listing(selections, rows))
    date = dt.datetime.now(IST).date()
    for underlying, rows in listing.derivatives.items():
        if underlying in given:
            given |= {row.underlying_key or "": given[underlying] for row in rows}
    resolution = resolve(selections, listing, date, given)
    outcome = plan(resolution.subscriptions, plus=settings.upstox.plus)
    keys = {one.instrument_key for one in resolution.subscriptions}
    if needs_list(selections):
        symbols = _read(
            settings, lambda rows: {row.instrument_key: row.symbol or "" for row in rows if row.instrument_key in keys}
        )
    problems = [*wrong, *map(str, resolution.problems)]
    if as_json:
        render.dump_json(_resolved_json(date, outcome, resolution, problems, symbols, plus=settings.upstox.plus))
    else:
        _print_plan(outcome, resolution, problems, symbols, plus=settings.upstox.plus)
    return not problems and not outcome.refused


def _print_plan(
    outcome: Plan, resolution: Resolution, problems: Sequence[str], symbols: Mapping[str, str], *, plus: bool
) -> None:
    render.table(
        ("instrument_key", "symbol", "mode", "socket"),
        [
            (one.instrument_key, symbols.get(one.instrument_key, ""), one.mode.value, number)
            for number, socket in enumerate(outcome.sockets, 1)
            for one in socket
        ],
    )
    lines = [arithmetic(outcome, plus=plus), *problems, *resolution.fewer]
    lines += [
        f"strikes round the price of {key} are not counted; give it, e.g. --price '{key}=100'"
        for key in resolution.unpriced
    ]
    for line in lines:
        render.console().print(line, markup=False, soft_wrap=True)


def _resolved_json(
    date: dt.date,
    outcome: Plan,
    resolution: Resolution,
    problems: Sequence[str],
    symbols: Mapping[str, str],
    *,
    plus: bool,
) -> dict[str, Any]:
    return {
        "date": date.isoformat(),
        "keys": [
            {
                "instrument_key": one.instrument_key,
                "symbol": symbols.get(one.instrument_key),
                "mode": one.mode.value,
                "socket": number,
            }
            for number, socket in enumerate(outcome.sockets, 1)
            for one in socket
        ],
        "sockets": len(outcome.sockets),
        "messages": outcome.messages,
        "plan": arithmetic(outcome, plus=plus),
        "refused": [one.instrument_key for one in outcome.refused],
        "problems": list(problems),
        "fewer": list(resolution.fewer),
        "unpriced": list(resolution.unpriced),
    }


def _read(settings: Settings, use: Callable[[Iterator[Definition]], _T]) -> _T:
    """Return what `use` makes of the list: of the copy on disk, brought up to date when it is old and can be."""
    url, folder = settings.upstox.instruments_url, settings.data_dir
    if url is None:
        raise Refused("UPSTOX_INSTRUMENTS_URL is off, so there is no list to look into; remove it")
    error = None
    if holder(folder) is None and _is_old(folder):  # a recorder keeps its copy fresh by itself
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            check_endpoints(
                [Endpoint(name="UPSTOX_INSTRUMENTS_URL", url=url, broker=True)], allowed=(), resolve=resolving.resolve
            )
            asyncio.run(_refresh(settings, url, folder))
        except FeedUnavailable as exc:
            error = str(exc)
        except OSError as exc:
            raise Refused(f"cannot keep the list in {folder}: {exc.strerror}; set TICKVAULT_DATA_DIR") from exc
    found = read_copy(folder, use)
    if found is None:
        raise Refused(
            f"{error or 'there is no copy of the instrument list'}; see whether UPSTOX_INSTRUMENTS_URL is right"
        )
    if error is not None:
        _log.warning("instruments.from_copy", error=error)
    return found


def _is_old(folder: Path) -> bool:
    try:
        return time.time() - (folder / COPY).stat().st_mtime > _OLD_S
    except OSError:
        return True


async def _refresh(settings: Settings, url: str, folder: Path) -> None:
    async with aiohttp.ClientSession(connector=resolving.guarded(plain_hosts(settings))) as session:
        await InstrumentList(url=url, cache_dir=folder, session=session).refresh()


def _rank(row: Definition, words: Sequence[str]) -> tuple[object, ...]:
    """Order: the very symbol, then those that begin so, then the rest; spots before contracts, near ones before far."""
    symbol, text = (row.symbol or "").upper(), " ".join(words)
    return (
        symbol != text,
        not symbol.startswith(text),
        row.expiry or dt.date.min,
        row.underlying_symbol or symbol,
        row.option_type or "",
        row.strike or 0.0,
        row.instrument_key,
    )


def _json(row: Definition) -> dict[str, Any]:
    return {name: value.isoformat() if isinstance(value, dt.date) else value for name, value in asdict(row).items()}


def _shown(value: object) -> str:
    return "" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _price(text: str) -> tuple[str, float]:
    name, _, value = text.rpartition("=")
    try:
        price = float(value)
    except ValueError:
        price = 0.0
    if not name.strip() or not price > 0:
        raise ConfigurationError(f"--price: expected UNDERLYING=PRICE, e.g. NIFTY=24500, got {text!r}")
    name = name.strip()
    return (name if "|" in name else name.upper()), price
