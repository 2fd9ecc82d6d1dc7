"""What a page of results has beside its figures: the machine, tables, and how it was measured."""

from __future__ import annotations

import datetime as dt
import os
import platform
import sqlite3
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType

__all__ = ["about", "machine_of", "markdown"]


def about(module: ModuleType) -> str:
    """Return what a benchmark says of itself below its first line, one sentence a line."""
    assert module.__doc__ is not None
    return module.__doc__.split("\n\n", 1)[1].strip().replace("\n", " ").replace(". ", ".\n")


def machine_of(place: Path, command: str) -> str:
    """Say what was run where, one sentence a line."""
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((line.partition(":")[2].strip() for line in info if line.startswith("model name")), platform.machine())
    kind = subprocess.run(["stat", "-f", "-c", "%T", place], capture_output=True, text=True, check=True).stdout.strip()
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return (
        f"Measured {dt.datetime.now(dt.UTC):%Y-%m-%d} by `{command}`.\n"
        f"{os.cpu_count()} cores of {model}, {memory_gb:.0f} GB, Linux {platform.release()}, "
        f"file system {kind}, load average before {os.getloadavg()[0]:.1f}.\n"
        f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}."
    )


def markdown(rows: list[list[str]]) -> str:
    """Return a table; the first row is its head."""
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]) + "\n"
