"""Scripted faults as data."""

from __future__ import annotations

import itertools
import json
import math
from typing import TYPE_CHECKING

import pytest

from tickvault.errors import ConfigurationError
from tickvault.simulator.script import (
    ACTIONS,
    Close,
    Garbage,
    MarketStatus,
    Mute,
    Reset,
    Slow,
    load_script,
    parse_steps,
    timeline,
)

if TYPE_CHECKING:
    from pathlib import Path


def test_toml_and_json_say_the_same(tmp_path: Path) -> None:
    """The same steps in either format, as a list or under `steps`."""
    expected = (Close(at_s=5.0, code=1011), Mute(at_s=7.0, seconds=math.inf, every_s=60.0))
    toml, plain, wrapped = (tmp_path / name for name in ("a.toml", "a.json", "b.json"))
    toml.write_text(
        '[[steps]]\nat_s = 5\ndo = "close"\ncode = 1011\n[[steps]]\nat_s = 7.0\ndo="mute"\nseconds = inf\nevery_s = 60'
    )
    steps = [{"at_s": 5, "do": "close", "code": 1011}, {"at_s": 7, "do": "mute", "seconds": math.inf, "every_s": 60}]
    plain.write_text(json.dumps(steps))
    wrapped.write_text(json.dumps({"steps": steps}))
    assert load_script(toml) == load_script(plain) == load_script(wrapped) == expected


def test_every_action_parses() -> None:
    """Each name in ACTIONS makes its class."""
    fields = {"seconds": 1, "factor": 2, "payload": "AA==", "segment": "NSE_EQ", "status": "NORMAL_CLOSE"}
    for do, kind in ACTIONS.items():
        wanted = {name: fields[name] for name in kind.__dataclass_fields__ if name in fields}
        if do == "refuse":
            wanted["status"] = 429
        (step,) = parse_steps([{"at_s": 0, "do": do, **wanted}])
        assert type(step) is kind


@pytest.mark.parametrize(
    ("step", "message"),
    [
        ("close", r"step 1: expected an object .* got 'close'"),
        ({"at_s": 1}, r"do: expected one of close, reset, .* got None"),
        ({"at_s": 1, "do": "mut"}, r"did you mean 'mute'"),
        ({"do": "reset"}, r"step 1 \(reset\): at_s is missing; add at_s = <float>"),
        ({"at_s": 1, "do": "close", "cod": 1}, r"unknown field 'cod'; expected at_s, .* did you mean 'code'"),
        ({"at_s": "1", "do": "reset"}, r"at_s: expected float, got '1'"),
        ({"at_s": 1, "do": "close", "code": True}, r"code: expected int, got True"),
        ({"at_s": 1, "do": "close", "code": 1006}, r"code 1006 cannot be sent"),
        ({"at_s": 1, "do": "close", "code": 99}, r"code: expected 1000 to 4999, got 99"),
        ({"at_s": -1, "do": "reset"}, r"at_s: expected 0 to"),
        ({"at_s": 1, "do": "reset", "every_s": 0.001}, r"every_s: expected 0.05"),
        ({"at_s": 1, "do": "raw", "payload": "*"}, r"payload: expected base64"),
        ({"at_s": 1, "do": "slow", "seconds": 1, "factor": 0}, r"factor: expected 1 to"),
        ({"at_s": 1, "do": "market_status", "segment": "NSE", "status": "x"}, r"segment: expected one of"),
        (
            {"at_s": 1, "do": "market_status", "segment": "NSE_EQ", "status": "NORML_OPEN"},
            r"did you mean 'NORMAL_OPEN'",
        ),
    ],
)
def test_mistakes_are_named(step: object, message: str) -> None:
    """With the step, what was expected and what was got."""
    with pytest.raises(ConfigurationError, match=message):
        parse_steps([step])


def test_files_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    """Missing, malformed, or with other content than steps."""
    broken, other = tmp_path / "broken.toml", tmp_path / "other.toml"
    broken.write_text("steps = [")
    other.write_text("faults = []")
    with pytest.raises(ConfigurationError, match="cannot be read"):
        load_script(tmp_path / "none.toml")
    with pytest.raises(ConfigurationError, match="not valid TOML"):
        load_script(broken)
    with pytest.raises(ConfigurationError, match="faults"):
        load_script(other)
    with pytest.raises(ConfigurationError, match="expected a list"):
        parse_steps({"at_s": 1})


def test_the_timeline_is_in_order_and_repeats() -> None:
    """Steps sort by time, ties by their order; `every_s` repeats without end."""
    steps = (Reset(at_s=3.0), Garbage(at_s=1.0, every_s=1.0), Slow(at_s=3.0, seconds=1, factor=2))
    assert [(at, type(step)) for at, step in timeline(steps, until_s=3.0)] == [
        (1.0, Garbage),
        (2.0, Garbage),
        (3.0, Reset),
        (3.0, Garbage),
        (3.0, Slow),
    ]
    assert len(list(itertools.islice(timeline(steps), 100))) == 100


def test_auction_statuses_are_free_text() -> None:
    """Only the segments' statuses are an enum."""
    assert MarketStatus(at_s=0, segment="NSE_EQ", status="PRE_OPEN_M_END", scope="pre_open")
    with pytest.raises(ConfigurationError, match="scope"):
        MarketStatus(at_s=0, segment="NSE_EQ", status="NORMAL_OPEN", scope="all")
