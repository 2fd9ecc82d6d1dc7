"""What a command imports: a start waits for it, and none needs all there is."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
import sys
from tickvault.cli import program
program(sys.argv[1:])
print(*sys.modules)
"""


@pytest.mark.parametrize(
    ("words", "without"),
    [
        (["--version"], {"aiohttp", "duckdb", "pyarrow", "pydantic", "rich", "structlog"}),
        (["query", "SELECT 1"], {"aiohttp", "duckdb", "pyarrow", "pydantic", "structlog"}),
        (["status"], {"aiohttp", "duckdb", "pyarrow", "pydantic", "structlog"}),
        (["journal", "stats"], {"aiohttp", "duckdb", "tickvault.pipeline"}),
        (["simulate"], {"duckdb", "matplotlib", "tickvault.simulator.server"}),
        (
            ["run", "--duration", "1"],
            {
                *("duckdb", "matplotlib", "pandas", "polars", "prometheus_client", "tickvault.checks", "tickvault.day"),
                *("tickvault.offline", "tickvault.query", "tickvault.report", "tickvault.simulator.server"),
                *("tickvault.brokers.upstox.login", "tickvault.brokers.upstox.probe"),
            },
        ),
    ],
)
def test_a_command_imports_what_it_needs(words: list[str], without: set[str]) -> None:
    """Before it does anything: no database, no plots, and nothing of other commands."""
    done = subprocess.run([sys.executable, "-c", SCRIPT, *words], capture_output=True, text=True, check=True)
    assert set(done.stdout.split()) & without == set()


def test_help_has_every_command() -> None:
    """Of all commands, and of one alone."""
    script = "from tickvault.cli import program; from typer.main import get_command; "
    script += "print(*get_command(program()).commands); print(*get_command(program(['token', 'show'])).commands)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    every, one = (line.split() for line in done.stdout.splitlines())
    assert {"run", "status", "query", "check", "rewind", "token", "dead-letters"} <= set(every)
    assert one == ["token"]


def test_nobody_looks_for_garbage_in_what_is_being_imported() -> None:
    """All of it stays, and there is much of it; from then on it is as usual."""
    script = "import gc, sys; from tickvault.cli import main; sys.argv[1:] = ['status', '--help']\n"
    script += "try: main()\nfinally: print(sum(one['collections'] for one in gc.get_stats()[1:]), gc.isenabled())"
    before = "import gc, tickvault.cli; print(sum(one['collections'] for one in gc.get_stats()[1:]))"
    first, then = (
        subprocess.run([sys.executable, "-c", one], capture_output=True, text=True, check=True).stdout.splitlines()[-1]
        for one in (before, script)
    )
    assert then.split()[1] == "True"
    assert int(then.split()[0]) - int(first) <= 5
