"""`python -m benchmarks` runs every benchmark, each in a process of its own, and prints one table; `--write` keeps it."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks import journal_price
from benchmarks.page import about, machine_of, markdown
from benchmarks.rows import Row

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

RESULTS = Path(__file__).parent / "results.md"
BENCHMARKS = ("columns", "peers", "delivering", "durable", "stored", "footprint", "readable", "choices")
ONCE = frozenset(
    {"stored"}
)  # what it finds are sizes, the same in each run, and it takes as long as all others together
HEADERS = ["what", "figure", "base in the same run", "ratio", "target", "pass", "CPU s", "peak MB", "ratio of each run"]


def main() -> None:
    """Run, print and, if asked to, keep the results."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", help=f"which of {', '.join(BENCHMARKS)}, journal_price; all without any")
    parser.add_argument("--write", action="store_true", help="rewrite benchmarks/results.md; needs all of them")
    parser.add_argument(
        "--runs", type=int, default=1, help="how often those with targets are run, one round of all after the other"
    )
    parser.add_argument("--place", type=Path, default=Path("build"), help="folder on the disk to measure")
    parser.add_argument("--rows", help=argparse.SUPPRESS)  # the child's part
    asked = parser.parse_args()
    asked.place.mkdir(parents=True, exist_ok=True)
    if asked.rows:
        rows = importlib.import_module(f"benchmarks.{asked.rows}").rows(asked.place)
        print("\n".join(json.dumps(asdict(row)) for row in rows))
        return
    names = asked.names or [*BENCHMARKS, "journal_price"]
    command = f"python -m benchmarks --write{f' --runs {asked.runs}' if asked.runs > 1 else ''}"
    machine = machine_of(asked.place, command)
    print(machine + "\n")
    sections = [f"# Benchmarks\n\n{machine}\n"]
    if measured := _measured([name for name in BENCHMARKS if name in names], asked.runs, asked.place):
        table = markdown([HEADERS, *(line for runs in measured.values() for line in lines(runs))])
        print(table)
        sections += [f"## Figures\n\n{table}", *(_about(name) for name in measured)]
    if "journal_price" in names:
        text = markdown(journal_price.table(journal_price.measure(asked.place)))
        print(f"{journal_price.TITLE}\n\n{text}")
        sections.append(f"{_about('journal_price')}\nMedians of {journal_price.ROUNDS} rounds.\n\n{text}")
    if asked.write:
        RESULTS.write_text("\n".join(sections), encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Run:
    """What one benchmark found, and the CPU seconds and the peak memory of all its processes."""

    rows: Sequence[Row]
    cpu_s: float
    peak_mb: float


def _measured(names: Sequence[str], runs: int, place: Path) -> dict[str, list[Run]]:
    found: dict[str, list[Run]] = {name: [] for name in names}
    for _ in range(runs):
        for name, before in found.items():
            if not before or (name not in ONCE and any(row.target is not None for row in before[0].rows)):
                before.append(_run(name, place))
                print(
                    f"{name}: {', '.join(f'{row.ratio:.3g}' for row in before[-1].rows)}", file=sys.stderr, flush=True
                )
    return found


def _run(name: str, place: Path) -> Run:
    """Run one benchmark in a process of its own."""
    command = [sys.executable, "-m", "benchmarks", "--rows", name, "--place", str(place)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None
        printed = child.stdout.read()
        _, status, usage = os.wait4(child.pid, 0)
        child.returncode = os.waitstatus_to_exitcode(status)
    if child.returncode:
        raise SystemExit(f"{name} failed: exit {child.returncode}")
    rows = [Row(**json.loads(line)) for line in printed.splitlines()]
    return Run(rows, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1000)


def lines(runs: Sequence[Run]) -> Iterator[list[str]]:
    """Yield a line a row: of several runs the one in the middle, which passes when all do."""
    whole = [f"{runs[0].cpu_s:.1f}", f"{runs[0].peak_mb:.0f}"]
    for of_each in zip(*(run.rows for run in runs), strict=True):
        row = sorted(of_each, key=lambda one: one.ratio)[len(runs) // 2]
        target = "" if row.target is None else f"{'≤' if row.at_most else '≥'} {row.target:g}"
        passes = None if row.target is None else all(one.passes for one in of_each)
        verdict = {None: "", True: "yes", False: "**no**"}[passes]
        each = ", ".join(f"{one.ratio:.3g}" for one in of_each) if len(runs) > 1 else ""
        yield [row.what, row.figure, row.base, f"{row.ratio:.3g}", target, verdict, *whole, each]
        whole = ["", ""]


def _about(name: str) -> str:
    module = importlib.import_module(f"benchmarks.{name}")
    return f"## {module.TITLE}\n\n{about(module)}"


if __name__ == "__main__":
    main()
