"""What `query` prints: every format of every kind of question, errors with their place, tables that fit the terminal."""

from __future__ import annotations

import json
import os
import subprocess
from typing import TYPE_CHECKING

import pytest
from doubles import Vault
from programs import CLEAN, PROGRAM

from tickvault import answers
from tickvault.errors import ConfigurationError

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Five frames: three stored, two in the journal only."""
    vault = Vault(tmp_path / "data")
    vault.open()
    vault.append(5)
    vault.deliver(3)
    vault.drop()
    return vault.path


def printed(data: Path, sql: str, form: str, capsys: pytest.CaptureFixture[str]) -> str:
    answers.print_answer(data, sql, form)
    return capsys.readouterr().out


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT time FROM ticks LIMIT 1",
        "/* why */ SELECT time FROM ticks LIMIT 1",
        "-- why\nSELECT time FROM ticks LIMIT 1; -- because; of\n/* this; */",
        "WITH one AS (FROM ticks LIMIT 1) SELECT time FROM one ;",
        "(SELECT time, ';é' AS text FROM ticks LIMIT 1);",
        "FROM (SELECT time FROM ticks) LIMIT 1",
    ],
)
def test_times_show_in_the_zone_of_the_exchange_however_the_question_begins(
    data: Path, sql: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Table, CSV and JSON write a time alike."""
    for form in ("table", "csv", "json"):
        assert "2026-09-01 09:15:00+05:30" in printed(data, sql, form, capsys), form


def test_json_has_no_number_that_json_does_not_have(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """NaN and infinities are null, in lists too; text that looks like them stays."""
    sql = """SELECT 'NaN'::DOUBLE AS a, [1.5, 'inf'::DOUBLE] AS b, {'NaN': '-inf'::DOUBLE} AS c,
             '"NaN", Infinity' AS d, 'a' AS "Infinity" """
    expected = {"a": None, "b": [1.5, None], "c": {"NaN": None}, "d": '"NaN", Infinity', "Infinity": "a"}
    text = printed(data, sql, "json", capsys)
    assert json.loads(text, parse_constant=pytest.fail) == expected
    assert "[1.5,null]" in printed(data, sql, "csv", capsys)


def test_csv_keeps_numbers_bare_and_columns_of_one_name_apart(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Numbers are unquoted, text quoted, lists JSON, an absent value empty; two columns may share a name."""
    sql = "SELECT seq, seq, 1.50::DECIMAL(9,2) AS d, sum(seq) OVER () AS s, instrument_key, [1] AS l, oi FROM ticks ORDER BY seq LIMIT 1"
    lines = printed(data, sql, "csv", capsys).splitlines()
    assert lines == ['"seq","seq","d","s","instrument_key","l","oi"', '1,1,1.50,15,"NSE_EQ|A","[1]",']


def test_show_tables_shows_the_five(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What answers are put together from stays out of sight."""
    assert printed(data, "SHOW TABLES", "csv", capsys).split() == [
        *('"name"', '"candles"', '"gaps"', '"instruments"', '"market_status"', '"ticks"')
    ]
    assert '"ticks"' in printed(data, "SHOW TABLES", "json", capsys)
    for sql in ("DESCRIBE ticks", "SUMMARIZE ticks", "EXPLAIN SELECT time FROM ticks"):
        assert printed(data, sql, "table", capsys), sql


@pytest.mark.parametrize(
    ("sql", "words", "place"),
    [
        ("SELECT nope FROM ticks", "nope", ["LINE 1: SELECT nope FROM ticks", "               ^^^^"]),
        ("SELECT 1,\n  nope(2) FROM ticks", "nope", ["LINE 2:   nope(2) FROM ticks", "          ^^^^^^^"]),
        ("SELEC 1", "SELEC", ["LINE 1: SELEC 1", "        ^^^^^"]),
        ("SELECT error('so be it')", "so be it", []),
        ("SELECT $1", "parameters", []),
    ],
)
def test_an_error_is_told_with_its_place(data: Path, sql: str, words: str, place: list[str]) -> None:
    """The first line says it all; the place is in the SQL as it was typed."""
    with pytest.raises(ConfigurationError) as caught:
        answers.print_answer(data, sql, "table")
    first, *rest = str(caught.value).split("\n")
    assert words in first
    assert "the tables are ticks" in first
    assert "answer" not in str(caught.value)
    assert rest == place


def on_a_terminal(*words: str) -> list[str]:
    """Run the program on a terminal of 80 columns and return the lines it shows."""
    terminal, side = os.openpty()
    environ = {**CLEAN, "COLUMNS": "80", "TERM": "dumb"}
    process = subprocess.Popen([str(PROGRAM), *words], env=environ, stdin=side, stdout=side, stderr=side)
    os.close(side)
    shown = b""
    while True:
        try:
            part = os.read(terminal, 65_536)
        except OSError:  # Linux says so when the other side is closed
            break
        if not part:
            break
        shown += part
    os.close(terminal)
    assert process.wait(10) == 0, shown.decode()
    return shown.decode().replace("\r\n", "\n").splitlines()


def test_rows_too_wide_for_the_terminal_become_records(data: Path) -> None:
    """A field a line, no line wider than the terminal; what fits is a table."""
    lines = on_a_terminal("query", "--data-dir", str(data), "SELECT *, repeat('x', 100) AS long FROM ticks LIMIT 2")
    assert lines[0].startswith("row 1 ─")
    assert "instrument_key  NSE_EQ|A" in lines
    assert max(map(len, lines)) <= 80
    assert sum(line.count("x") for line in lines) >= 200
    lines = on_a_terminal("query", "--data-dir", str(data), "SELECT seq, time FROM ticks LIMIT 2")
    assert lines[0].startswith("┏")
