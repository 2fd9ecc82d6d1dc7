"""Scripted faults as data."""

from __future__ import annotations

import itertools
import json
import math
from typing import TYPE_CHECKING

import pytest

from tickvault.errors import ConfigurationError
from tickvault.simulator.reading import load_script, parse_script, parse_steps, script_names, timeline
from tickvault.simulator.script import ACTIONS, Close, Garbage, MarketStatus, Mute, Reset, Slow

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
    assert load_script(toml).steps == load_script(plain).steps == load_script(wrapped).steps == expected


def test_every_action_parses() -> None:
    """Each name in ACTIONS makes its class."""
    fields = {"seconds": 1, "factor": 2, "payload": "AA==", "segment": "NSE_EQ", "status": "NORMAL_CLOSE"}
    fields |= {"parts": "book", "what": "field", "sockets": "close", "body": "x"}
    for do, kind in ACTIONS.items():
        wanted = {name: fields[name] for name in kind.__dataclass_fields__ if name in fields}
        if do in {"refuse", "forbid"}:
            wanted["status"] = 429
        if do == "refuse":
            wanted["what"] = "all"
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


def test_a_script_has_rules_a_calendar_and_a_clock() -> None:
    """Beside its steps, which may happen at a time of day after its start, over midnight too."""
    script = parse_script(
        {
            "about": "all of it",
            "evidence": "measured",
            "start": "23:59:30",
            "speed": 10,
            "rules": {"connections": 2, "address_life_s": 5},
            "calendar": {"weekend": []},
            "steps": [{"at": "00:00", "do": "reset"}, {"at_s": 1, "do": "mute", "seconds": 2, "conn": 1}],
        }
    )
    assert script.speed == 10.0
    assert script.rules == {"connections": 2, "address_life_s": 5.0}
    assert script.calendar is not None
    assert [step.at_s for step in script.steps] == [30.0, 1.0]


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ([], r"--script script: expected an object with steps, got list"),
        ({"step": []}, r"unknown field 'step'; expected .* did you mean 'steps'"),
        ({"about": 1}, r"about: expected a text, got 1"),
        ({"evidence": "rumoured"}, r"evidence: expected one of documented, .* got 'rumoured'"),
        ({"start": "noon"}, r"start: expected a time in India .* got 'noon'"),
        ({"speed": "fast"}, r"speed: expected a number, got 'fast'"),
        ({"speed": 0}, r"speed: expected 0.01 to 10000, got 0"),
        ({"rules": []}, r"rules: expected a table of rules"),
        ({"rules": {"sockets": 2}}, r"rules: unknown rule 'sockets'; expected one of plus, connections"),
        ({"rules": {"connections": "2"}}, r"rules.connections: expected int, got '2'"),
        ({"rules": {"plus": 1}}, r"rules.plus: expected bool, got 1"),
        ({"rules": {"two_modes": "both"}}, r"rules: two_modes: expected one of last, first; got 'both'"),
        ({"rules": {"reused_status": 200}}, r"rules: reused_status: expected 400 to 599, got 200"),
        ({"calendar": {"days": []}}, r"calendar: unknown field 'days'"),
        ({"steps": [{"at": "10:00", "do": "reset"}]}, r"step 1: at: a time of day needs the script's start"),
        ({"start": "09:00", "steps": [{"at": "ten", "do": "reset"}]}, r"step 1: at: expected a time of day .* 'ten'"),
        ({"steps": [{"at_s": 0, "do": "strange", "seconds": 1, "what": "x"}]}, r"what: expected one of type, mode"),
        ({"steps": [{"at_s": 0, "do": "expire_token"}]}, r"\(expire_token\): sockets is missing; add sockets = <str>"),
    ],
)
def test_mistakes_in_a_script_are_named(document: object, message: str) -> None:
    """With the field, what was expected and what was got."""
    with pytest.raises(ConfigurationError, match=message):
        parse_script(document)


def test_a_name_that_is_none_is_told_the_nearest() -> None:
    """A file may be meant as well."""
    assert "third-socket-evicts" in script_names()
    with pytest.raises(
        ConfigurationError, match=r"third-socket-evict: cannot be read.*did you mean 'third-socket-evicts'"
    ):
        load_script("third-socket-evict")
