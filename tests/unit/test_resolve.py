"""Selections on a date, at a price: which keys they come to."""

from __future__ import annotations

import datetime as dt

import pytest

from tickvault.brokers.upstox.resolve import Listing, hoped_for, needs_list, resolve
from tickvault.model import Definition, Mode, Subscription
from tickvault.selections import Selection, parse_selection

TODAY = dt.date(2026, 9, 1)
WEEKS = [dt.date(2026, 9, day) for day in (1, 8, 15, 22, 29)]
MONTHS = [dt.date(2026, 10, 27), dt.date(2026, 11, 24)]
STRIKES = [float(strike) for strike in range(24000, 25050, 50)]
SPOT, VIX = "NSE_INDEX|Nifty 50", "NSE_INDEX|India VIX"


def option(underlying: str, expiry: dt.date, strike: float, kind: str, segment: str = "NSE_FO", spot: str = SPOT):
    return Definition(
        instrument_key=f"{segment}|{underlying}{expiry:%m%d}{strike:g}{kind}",
        symbol=f"{underlying} {strike:g} {kind} {expiry:%d %b %y}".upper(),
        segment=segment,
        instrument_type=kind,
        underlying_symbol=underlying,
        underlying_key=spot,
        expiry=expiry,
        strike=strike,
        option_type=kind,
    )


def future(underlying: str, expiry: dt.date, segment: str = "NSE_FO", spot: str = SPOT) -> Definition:
    return Definition(
        instrument_key=f"{segment}|{underlying}{expiry:%m%d}FUT",
        symbol=f"{underlying} FUT {expiry:%d %b %y}".upper(),
        segment=segment,
        instrument_type="FUT",
        underlying_symbol=underlying,
        underlying_key=spot,
        expiry=expiry,
    )


def plain(key: str, symbol: str, kind: str, name: str | None = None) -> Definition:
    return Definition(
        instrument_key=key, symbol=symbol, segment=key.partition("|")[0], instrument_type=kind, name=name or symbol
    )


ROWS = [
    plain(SPOT, "NIFTY", "INDEX", "Nifty 50"),
    plain("NSE_INDEX|Nifty Bank", "BANKNIFTY", "INDEX", "Nifty Bank"),
    plain(VIX, "INDIA VIX", "INDEX", "India VIX"),
    plain("BSE_INDEX|SENSEX", "SENSEX", "INDEX"),
    plain("NSE_EQ|INE002A01018", "RELIANCE", "EQ", "RELIANCE INDUSTRIES LTD"),
    plain("NSE_EQ|INE002A01019", "RELIANCE", "BL"),
    plain("BSE_EQ|INE002A01018", "RELIANCE", "A"),
    *(future("NIFTY", expiry) for expiry in (WEEKS[-1], *MONTHS)),
    *(option("NIFTY", one, strike, kind) for one in (*WEEKS, *MONTHS) for strike in STRIKES for kind in ("CE", "PE")),
    *(option("RELIANCE", WEEKS[-1], 1400.0, "CE", segment, "NSE_EQ|INE002A01018") for segment in ("BSE_FO", "NSE_FO")),
    future("CRUDEOIL", WEEKS[2], "MCX_FO", "MCX_COM|1"),
    option("CRUDEOIL", WEEKS[2], 6000.0, "PE", "MCX_FO", "MCX_FO|CRUDEOIL0915FUT"),
]


def selections(*texts: str, default: Mode = Mode.FULL) -> list[Selection]:
    return [parse_selection(text, default) for text in texts]


def keys(*texts: str, date: dt.date = TODAY, **options) -> list[str]:
    asked = selections(*texts)
    outcome = resolve(asked, Listing(asked, ROWS), date, options.pop("prices", {}), **options)
    assert not outcome.problems
    return [one.instrument_key for one in outcome.subscriptions]


def test_symbols() -> None:
    """A symbol is looked up in its segment; of several series the plain equity counts; an index by its name too."""
    assert keys("NSE_EQ:RELIANCE") == ["NSE_EQ|INE002A01018"]
    assert keys("BSE_EQ:reliance") == ["BSE_EQ|INE002A01018"]
    assert keys("NSE_INDEX:NIFTY", "NSE_INDEX:Nifty Bank") == [SPOT, "NSE_INDEX|Nifty Bank"]
    assert keys("NSE_FO:NIFTY 24500 CE 29 SEP 26") == ["NSE_FO|NIFTY092924500CE"]


def test_futures() -> None:
    """The nearest expiries that have not passed; the day of expiry still counts."""
    assert keys("future:NIFTY:1") == ["NSE_FO|NIFTY0929FUT"]
    assert keys("future:NIFTY:2") == ["NSE_FO|NIFTY0929FUT", "NSE_FO|NIFTY1027FUT"]
    assert keys("future:NIFTY:9") == [f"NSE_FO|NIFTY{day}FUT" for day in ("0929", "1027", "1124")]
    assert keys("future:NIFTY:1", date=WEEKS[-1]) == ["NSE_FO|NIFTY0929FUT"]
    assert keys("future:NIFTY:1", date=WEEKS[-1] + dt.timedelta(1)) == ["NSE_FO|NIFTY1027FUT"]
    assert keys("future:CRUDEOIL:1") == keys("future:MCX_FO:CRUDEOIL:1") == ["MCX_FO|CRUDEOIL0915FUT"]


def test_chain() -> None:
    """Every strike of the nearest expiries, the spot, the current future and India VIX."""
    found = keys("chain:NIFTY:2")
    assert found[:3] == [SPOT, "NSE_FO|NIFTY0929FUT", VIX]
    assert len(found) == 3 + 2 * 2 * len(STRIKES)
    assert {key[:16] for key in found[3:]} == {"NSE_FO|NIFTY0901", "NSE_FO|NIFTY0908"}
    assert "NSE_FO|NIFTY091524000CE" in keys("chain:NIFTY:2", date=WEEKS[0] + dt.timedelta(1))


def test_chains_of_other_underlyings() -> None:
    """A stock's chain is that of the NSE unless told; a commodity's spot is its future, and it has no India VIX."""
    assert keys("chain:RELIANCE:1") == ["NSE_EQ|INE002A01018", VIX, "NSE_FO|RELIANCE09291400CE"]
    assert keys("chain:BSE_FO:RELIANCE:1")[-1] == "BSE_FO|RELIANCE09291400CE"
    assert keys("chain:CRUDEOIL:1") == ["MCX_FO|CRUDEOIL0915FUT", "MCX_FO|CRUDEOIL09156000PE"]


def test_expiries_by_name() -> None:
    """The nearest one, and the nearest that is the last of its month."""
    assert {key[12:16] for key in keys("chain:NIFTY:weekly")[3:]} == {"0901"}
    assert {key[12:16] for key in keys("chain:NIFTY:monthly")[3:]} == {"0929"}
    assert {key[12:16] for key in keys("chain:NIFTY:monthly", date=MONTHS[0])[3:]} == {"1027"}


def test_a_window_follows_the_price_and_keeps_what_it_held() -> None:
    """Strikes round the one at the money; without a price none yet; one that leaves stays subscribed."""
    asked = selections("chain:NIFTY:weekly:atm+-1")
    listing = Listing(asked, ROWS)
    unpriced = resolve(asked, listing, TODAY, {})
    assert (unpriced.priced, unpriced.unpriced) == ((SPOT,), (SPOT,))
    assert len(unpriced.subscriptions) == 3
    near = resolve(asked, listing, TODAY, {SPOT: 24_510.0})
    assert near.unpriced == ()
    strikes = [one.instrument_key[16:] for one in near.subscriptions[3:]]
    assert strikes == ["24450CE", "24450PE", "24500CE", "24500PE", "24550CE", "24550PE"]
    held = [one.instrument_key for one in near.subscriptions]
    moved = resolve(asked, listing, TODAY, {SPOT: 24_560.0}, held)
    assert [one.instrument_key[16:] for one in moved.subscriptions[3:]] == [*strikes, "24600CE", "24600PE"]
    assert not {*held[3:]} & {one.instrument_key for one in resolve(asked, listing, WEEKS[1], {}, held).subscriptions}
    assert len(keys("chain:NIFTY:weekly:atm+-2", prices={SPOT: 1.0})) == 3 + 2 * 3


def test_indices() -> None:
    """All of them, or those that match."""
    assert len(keys("index:*")) == 4
    assert keys("index:nifty*") == [SPOT, "NSE_INDEX|Nifty Bank"]


def test_each_key_once_and_its_mode() -> None:
    """A key named by itself has its own mode; otherwise the first selection decides."""
    asked = selections("chain:NIFTY:weekly@option_greeks", f"{SPOT}@ltpc", "index:*")
    modes = {one.instrument_key: one.mode for one in resolve(asked, Listing(asked, ROWS), TODAY, {}).subscriptions}
    assert (modes[SPOT], modes[VIX], modes["BSE_INDEX|SENSEX"]) == (Mode.LTPC, Mode.OPTION_GREEKS, Mode.FULL)
    assert len(modes) == 3 + 2 * len(STRIKES) + 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("NSE_EQ:RELIANSE", "NSE_EQ lists no 'RELIANSE'; did you mean RELIANCE?"),
        ("NSE_EQ:ZZZZ", "NSE_EQ lists no 'ZZZZ'"),
        ("chain:NIFTI:1", "no options of 'NIFTI' are listed; did you mean NIFTY?"),
        ("chain:BSE_FO:NIFTY:1", "no options of 'NIFTY' are listed in BSE_FO"),
        ("future:RELIANCE:1", "no futures of 'RELIANCE' are listed"),
        ("index:SENSEKS", "no index has such a symbol or name; did you mean SENSEX?"),
        ("@keys.txt", "keys.txt has not been read"),
    ],
)
def test_what_comes_to_nothing(text: str, said: str) -> None:
    """Such a selection is a problem of its own; the others are resolved."""
    asked = selections(text, "NSE_EQ|X")
    outcome = resolve(asked, Listing(asked, ROWS), TODAY, {})
    assert outcome.subscriptions == (Subscription(instrument_key="NSE_EQ|X", mode=Mode.FULL),)
    [problem] = outcome.problems
    assert str(problem) == f"{asked[0].text}: {said}"


def test_which_need_the_list() -> None:
    """Keys mean something without it."""
    assert not needs_list(selections("NSE_EQ|A", "@keys.txt"))
    assert needs_list(selections("NSE_EQ|A", "index:*"))


@pytest.mark.parametrize(
    ("text", "segments"),
    [
        ("NSE_EQ|A", ""),
        ("BSE_EQ:RELIANCE", "BSE_EQ"),
        ("index:NIFTY*", "BSE_INDEX NSE_INDEX"),
        ("future:NIFTY:1", "NSE_FO"),
        ("future:GOLDM:1", "MCX_FO"),
        ("future:NSE_COM:GOLD:1", "NSE_COM"),
        ("chain:NIFTY:1", "NSE_FO NSE_INDEX"),
        ("chain:SENSEX:1", "BSE_FO BSE_INDEX NSE_INDEX"),
        ("chain:RELIANCE:1", "NSE_EQ NSE_FO NSE_INDEX"),
        ("chain:USDINR:1", "NCD_FO"),
        ("chain:CRUDEOIL:1", "MCX_FO"),
    ],
)
def test_what_they_would_bring_shows_without_the_list(text: str, segments: str) -> None:
    """By the segment they name, or else by the underlying's name."""
    assert sorted(hoped_for(selections(text))) == segments.split()


def test_more_expiries_than_are_listed_are_told() -> None:
    """Those that there are come; by name, or as many as there are, nothing is said."""
    asked = selections("future:NIFTY:99", "chain:NIFTY:99", "chain:NIFTY:weekly", "future:NIFTY:1")
    outcome = resolve(asked, Listing(asked, ROWS), TODAY, {})
    assert outcome.problems == ()
    assert [words.partition(":")[0] for words in outcome.fewer] == ["future", "chain"]
    assert all(words.endswith("listed, fewer than 99") for words in outcome.fewer)
