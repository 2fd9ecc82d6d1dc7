"""`python -m benchmarks` runs every benchmark, each in a process of its own, and prints one table; `--write` keeps it."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from benchmarks import journal_price
from benchmarks.page import about, machine_of, markdown
from benchmarks.rows import Row

RESULTS = Path(__file__).parent / "results.md"
BENCHMARKS = ("columns", "peers", "delivering", "durable", "stored", "footprint", "readable", "choices")
HEADERS = ["what", "figure", "base in the same run", "ratio", "target", "pass", "CPU s", "peak MB"]


def main() -> None:
    """Run, print and, if asked to, keep the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"which of {', '.join(BENCHMARKS)}, journal_price; all without any")
    parser.add_argument("--write", action="store_true", help="rewrite benchmarks/results.md; needs all of them")
    parser.add_argument("--place", type=Path, default=Path("build"), help="folder on the disk to measure")
    parser.add_argument("--rows", help=argparse.SUPPRESS)  # the child's part
    asked = parser.parse_args()
    asked.place.mkdir(parents=True, exist_ok=True)
    if asked.rows:
        rows = importlib.import_module(f"benchmarks.{asked.rows}").rows(asked.place)
        print("\n".join(json.dumps(asdict(row)) for row in rows))
        return
    machine, names = (
        machine_of(asked.place, "python -m benchmarks --write"),
        asked.names or [*BENCHMARKS, "journal_price"],
    )
    print(machine + "\n")
    sections = [f"# Benchmarks\n\n{machine}\n"]
    table = [HEADERS]
    for name in BENCHMARKS:
        if name in names:
            table += _lines(name, asked.place)
    if len(table) > 1:
        print(markdown(table))
        sections += [f"## Figures\n\n{markdown(table)}", *(_about(name) for name in BENCHMARKS if name in names)]
    if "journal_price" in names:
        text = markdown(journal_price.table(journal_price.measure(asked.place)))
        print(f"{journal_price.TITLE}\n\n{text}")
        sections.append(f"{_about('journal_price')}\nMedians of {journal_price.ROUNDS} rounds.\n\n{text}")
    if asked.write:
        RESULTS.write_text("\n".join(sections), encoding="utf-8")


def _lines(name: str, place: Path) -> list[list[str]]:
    """Run one benchmark in a process of its own; its CPU seconds and its peak memory stand in its first line."""
    command = [sys.executable, "-m", "benchmarks", "--rows", name, "--place", str(place)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        printed = child.stdout.read()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{name} failed: exit {child.returncode}")
    whole = [f"{usage.ru_utime + usage.ru_stime:.1f}", f"{usage.ru_maxrss / 1000:.0f}"]
    lines = []
    for row in (Row(**json.loads(line)) for line in printed.splitlines()):
        target = "" if row.target is None else f"{'≤' if row.at_most else '≥'} {row.target:g}"
        verdict = {None: "", True: "yes", False: "**no**"}[row.passes]
        lines.append([row.what, row.figure, row.base, f"{row.ratio:.3g}", target, verdict, *whole])
        whole = ["", ""]
    return lines


def _about(name: str) -> str:
    module = importlib.import_module(f"benchmarks.{name}")
    return f"## {module.TITLE}\n\n{about(module)}"


if __name__ == "__main__":
    main()
