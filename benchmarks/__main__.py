"""`python -m benchmarks` runs every benchmark and prints its table; `--write` also rewrites results.md."""

from __future__ import annotations

import argparse
import datetime as dt
import os
import platform
import sqlite3
import subprocess
from pathlib import Path

from benchmarks import journal_price

RESULTS = Path(__file__).parent / "results.md"
BENCHMARKS = (journal_price,)


def main() -> None:
    """Run, print and, if asked to, keep the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--write", action="store_true", help="rewrite benchmarks/results.md")
    parser.add_argument("--place", type=Path, default=Path("build"), help="folder on the disk to measure")
    asked = parser.parse_args()
    asked.place.mkdir(parents=True, exist_ok=True)
    machine = _machine(asked.place)
    sections = [f"# Benchmarks\n\n{machine}\n"]
    print(machine + "\n")
    for one in BENCHMARKS:
        text = _markdown(one.table(one.measure(asked.place)))
        print(f"{one.TITLE}\n\n{text}")
        about = (one.__doc__ or "").split("\n\n", 1)[1].strip().replace("\n", " ").replace(". ", ".\n")
        sections.append(f"## {one.TITLE}\n\n{about}\nMedians of {one.ROUNDS} rounds.\n\n{text}")
    if asked.write:
        RESULTS.write_text("\n".join(sections), encoding="utf-8")


def _machine(place: Path) -> str:
    """Say what was run where, one sentence a line."""
    info = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    model = next((line.partition(":")[2].strip() for line in info if line.startswith("model name")), platform.machine())
    kind = subprocess.run(["stat", "-f", "-c", "%T", place], capture_output=True, text=True, check=True).stdout.strip()
    memory_gb = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    return (
        f"Measured {dt.datetime.now(dt.UTC):%Y-%m-%d} by `python -m benchmarks --write`.\n"
        f"{os.cpu_count()} cores of {model}, {memory_gb:.0f} GB, Linux {platform.release()}, "
        f"file system {kind}, load average before {os.getloadavg()[0]:.1f}.\n"
        f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}."
    )


def _markdown(rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(row)} |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]) + "\n"


if __name__ == "__main__":
    main()
