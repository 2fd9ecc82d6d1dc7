"""The table of behaviours, and the page that shows it."""

from __future__ import annotations

import importlib
from dataclasses import fields
from pathlib import Path

import pytest

from tickvault.simulator.behaviours import BEHAVIOURS, Behaviour, Evidence, behaviours_table
from tickvault.simulator.cases import CASES, cases_table, scripts_table
from tickvault.simulator.reading import load_script, script_names
from tickvault.simulator.rules import Rules
from tickvault.simulator.script import ACTIONS

PAGE = Path(__file__).parents[2] / "docs" / "simulator.md"


@pytest.mark.parametrize("behaviour", BEHAVIOURS, ids=lambda b: b.name)
def test_each_behaviour_names_code_that_exists(behaviour: Behaviour) -> None:
    """`where` resolves to something in this package."""
    module, *names = behaviour.where.split(".")
    found: object = importlib.import_module(f"tickvault.simulator.{module}")
    for name in names:
        found = getattr(found, name)
    assert behaviour.does
    assert behaviour.source


def test_names_are_unique_and_every_kind_of_evidence_occurs() -> None:
    """One row a behaviour."""
    assert len({b.name for b in BEHAVIOURS}) == len(BEHAVIOURS)
    assert {b.evidence for b in BEHAVIOURS} == set(Evidence)


def test_the_page_has_the_table() -> None:
    """docs/simulator.md ends with the generated table."""
    assert PAGE.read_text().endswith(behaviours_table())


def test_the_page_has_every_action_and_field() -> None:
    """Each `do`, its fields, and its one line."""
    rows = {line.split("|")[1].strip(): line for line in PAGE.read_text().splitlines() if line.startswith("| `")}
    for do, kind in ACTIONS.items():
        row = rows[f"`{do}`"]
        assert (kind.__doc__ or "").splitlines()[0] in row
        assert all(f"`{f.name}`" in row for f in fields(kind) if f.name not in {"at_s", "every_s"})


def test_the_page_has_the_scripts_and_the_cases() -> None:
    """Generated tables, word for word."""
    page = PAGE.read_text()
    assert scripts_table() in page
    assert cases_table() in page


def test_the_page_has_every_rule_and_its_default() -> None:
    """One row each."""
    lines = PAGE.read_text().splitlines()
    for rule in fields(Rules):
        default = str(rule.default).lower() if isinstance(rule.default, bool) else str(rule.default)
        assert any(line.startswith(f"| `{rule.name}` | {default} |") for line in lines)


def test_every_case_has_scripts_that_exist_and_every_script_a_case() -> None:
    """Nothing is known that cannot be played, and nothing is played for no reason."""
    assert all(case.scripts for case in CASES)
    assert {name for case in CASES for name in case.scripts} == set(script_names())


@pytest.mark.parametrize("name", script_names())
def test_each_script_says_what_it_is(name: str) -> None:
    """What it plays, how well it is known, who says so; one that only names the default has rules too."""
    script = load_script(name)
    assert script.about
    assert script.source
    assert script.steps or script.rules or script.calendar or name == "steady"
