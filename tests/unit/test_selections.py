"""The grammar of selections: what each text means, and what is said of those that mean nothing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tickvault.errors import ConfigurationError
from tickvault.model import Mode
from tickvault.selections import (
    Chain,
    Future,
    Indices,
    Key,
    ListFile,
    Near,
    Symbol,
    lines_of,
    parse_selection,
    parse_selections,
)


@pytest.mark.parametrize(
    ("text", "what", "mode"),
    [
        ("NSE_EQ|INE002A01018", Key("NSE_EQ|INE002A01018"), Mode.FULL),
        ("NSE_INDEX|Nifty 50@ltpc", Key("NSE_INDEX|Nifty 50"), Mode.LTPC),
        ("NSE_EQ:RELIANCE", Symbol("NSE_EQ", "RELIANCE"), Mode.FULL),
        ("nse_eq: m&m @ LTPC", Symbol("NSE_EQ", "M&M"), Mode.LTPC),
        ("NSE_FO:NIFTY FUT 29 SEP 26", Symbol("NSE_FO", "NIFTY FUT 29 SEP 26"), Mode.FULL),
        ("future:NIFTY:1", Future("NIFTY", 1), Mode.FULL),
        ("future:MCX_FO:GOLD:2@option_greeks", Future("GOLD", 2, "MCX_FO"), Mode.OPTION_GREEKS),
        ("chain:NIFTY:2", Chain("NIFTY", 2), Mode.FULL),
        ("chain:NIFTY:weekly:atm+-20", Chain("NIFTY", Near.WEEKLY, 20), Mode.FULL),
        ("Chain : bse_fo : sensex : Monthly : ATM+-0 @ full", Chain("SENSEX", Near.MONTHLY, 0, "BSE_FO"), Mode.FULL),
        ("index:*", Indices("*"), Mode.FULL),
        ("index:nifty*@ltpc", Indices("NIFTY*"), Mode.LTPC),
        ("@keys.txt", ListFile(Path("keys.txt")), Mode.FULL),
        ("@lists/a@b.txt", ListFile(Path("lists/a@b.txt")), Mode.FULL),
        ("@keys.txt@ltpc", ListFile(Path("keys.txt")), Mode.LTPC),
    ],
)
def test_what_texts_mean(text: str, what: object, mode: Mode) -> None:
    """Blanks and capitals of the words do not matter; a mode stands behind the last part."""
    one = parse_selection(text, Mode.FULL)
    assert (one.what, one.mode) == (what, mode)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("RELIANCE", "instrument key 'RELIANCE' is malformed: expected SEGMENT|name"),
        ("futur:NIFTY:1", "got 'futur'; did you mean future?"),
        ("NSE_EG:RELIANCE", "got 'NSE_EG'; did you mean NSE_"),
        ("NSE_EQ:", "names no symbol: expected SEGMENT:SYMBOL"),
        ("future:NIFTY", "expected future:UNDERLYING:EXPIRIES"),
        ("future:NIFTY:0", "from 1 to 99"),
        ("future::1", "expected future:UNDERLYING:EXPIRIES"),
        ("chain:NIFTY", "expected chain:UNDERLYING:EXPIRIES"),
        ("chain:NIFTY:weakly", "weekly or monthly, got 'weakly'; did you mean weekly?"),
        ("chain:NIFTY:2:20", "expected strikes on either side of the price as atm+-20, got '20'"),
        ("chain:NIFTY:2:atm+-20:x", "expected chain:UNDERLYING:EXPIRIES"),
        ("index:", "expected index:PATTERN"),
        ("NSE_EQ:RELIANCE@fast", "mode 'fast' of 'NSE_EQ:RELIANCE' is unknown: expected one of ltpc"),
        ("NSE_EQ:RELIANCE@ful", "did you mean full?"),
        ("@", "expected @ and a path"),
        ("NSE_EQ:A\x01B", "unprintable"),
    ],
)
def test_what_is_said_of_others(text: str, said: str) -> None:
    """What was expected, what came, and the nearest that is known."""
    with pytest.raises(ValueError, match=re.escape(said)):
        parse_selection(text, Mode.FULL)


def test_a_setting_names_each_once() -> None:
    """A repeat is one selection; the same in two modes is refused; problems are cut after five."""
    assert len(parse_selections(["index:*", "INDEX:*", "A|b", "A|b@full"], Mode.FULL)) == 2
    with pytest.raises(ConfigurationError, match=r"selection 'index:\*' is there in modes full and ltpc"):
        parse_selections(["index:*", "index:*@ltpc"], Mode.FULL)
    with pytest.raises(ConfigurationError, match=r"and 2 more$"):
        parse_selections([f"chain:{i}" for i in range(7)], Mode.FULL)


def test_a_list_names_no_file() -> None:
    """A file that names a file could go round in circles."""
    with pytest.raises(ValueError, match="cannot name another file"):
        parse_selection("@more.txt", Mode.FULL, typed=False)


def test_lines_of_a_file() -> None:
    """A line has one item or several; comments and repeats go."""
    assert lines_of('"NSE_INDEX|Nifty 50"\n"A|b", \'C|d\'\n"E|f, G|h"') == (
        "NSE_INDEX|Nifty 50",
        "A|b",
        "C|d",
        "E|f",
        "G|h",
    )
    assert lines_of("# mine\nA|b, C|d # both\r\n\n  index:* \nA|b\n") == ("A|b", "C|d", "index:*")


@given(st.text(alphabet=st.sampled_from("futre:chaindxNSE_Q|@*+-0129 ltpcRELIANCE\x00é"), max_size=30))
def test_any_text_means_something_or_is_explained(text: str) -> None:
    """Nothing else than a ValueError in words; what is understood is understood again from its own text."""
    try:
        one = parse_selection(text, Mode.FULL)
    except ValueError:
        return
    assert parse_selection(one.text, one.mode).what == one.what
