"""The master list in the broker's format (pure)."""

from __future__ import annotations

import datetime as dt
import gzip
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from tickvault.model import IST
from tickvault.simulator.universe import Kind

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tickvault.simulator.universe import Instrument

__all__ = ["master_list", "master_row"]

_FREEZE_LOTS: Final = 24.0  # an order of more lots than this has to be split; the true figure differs by instrument


def master_list(universe: Sequence[Instrument], *, drop: int = 0, reuse: int = 0) -> bytes:
    """Return the gzipped JSON array; the same bytes for the same universe.

    Args:
        universe: what is listed.
        drop: leave out this many derivatives, the last ones.
        reuse: let this many of the others, the last ones, name contracts that expire four weeks later.
    """
    derivatives = [number for number, one in enumerate(universe) if one.expiry is not None]
    gone = set(derivatives[len(derivatives) - drop :]) if drop else set()
    left = [number for number in derivatives if number not in gone]
    again = set(left[len(left) - reuse :]) if reuse else set()
    rows = [
        master_row(_later(one) if number in again else one, universe)
        for number, one in enumerate(universe)
        if number not in gone
    ]
    return gzip.compress(json.dumps(rows, separators=(",", ":")).encode(), compresslevel=6, mtime=0)


def _later(one: Instrument) -> Instrument:
    """Return another contract under the same key: exchanges use their tokens again after expiry."""
    assert one.expiry is not None
    expiry = one.expiry + dt.timedelta(days=28)
    symbol = f"{one.symbol.rsplit(' ', 3)[0]} {expiry.strftime('%d %b %y').upper()}"
    return replace(one, expiry=expiry, symbol=symbol)


def master_row(one: Instrument, universe: Sequence[Instrument]) -> dict[str, object]:
    """Describe one instrument with the broker's field names, types and units (tick_size in paise, expiry in ms)."""
    row: dict[str, object] = {
        "segment": one.segment,
        "name": one.name,
        "exchange": "NSE",
        "instrument_type": str(one.kind),
        "instrument_key": one.key,
        "exchange_token": one.exchange_token,
        "trading_symbol": one.symbol,
    }
    if one.cas_eligible:
        row["cas_eligible"] = True  # never present as false
    if one.kind is Kind.INDEX:
        return row
    row |= {
        "lot_size": one.lot_size,
        "freeze_quantity": 100_000.0 if one.underlying is None else one.lot_size * _FREEZE_LOTS,
        "tick_size": float(one.tick_paise),
        "qty_multiplier": 1.0,
    }
    if one.underlying is None or one.expiry is None:
        return row | {"isin": one.isin, "short_name": one.symbol, "security_type": "NORMAL"}
    spot = universe[one.underlying]
    kind = "EQUITY" if spot.kind is Kind.EQUITY else "INDEX"
    last = dt.datetime.combine(one.expiry, dt.time(23, 59, 59), IST)
    return row | {
        "weekly": one.weekly,
        "expiry": int(last.timestamp()) * 1000,
        "minimum_lot": one.lot_size,
        "strike_price": one.strike,
        "underlying_key": spot.key,
        "underlying_symbol": spot.symbol,
        "underlying_type": kind,
        "asset_key": spot.key,
        "asset_symbol": spot.symbol,
        "asset_type": kind,
    }
