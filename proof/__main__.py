"""`python -m proof [NAME …]` asks the questions, all of them or those named, and prints what came out; exit 1 if any fails.

`--write` puts the figures into docs/reliability.md, each beside the command that made it; the others stay.
"""

from __future__ import annotations

import argparse
import datetime as dt
import inspect
import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

ROOT: Final = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))  # the real servers, the programs and the oracle are those of the tests

from proof import collapse, damage, faults, fuzz, kills, poison, power, rebuild, soak  # noqa: E402
from proof.rig import Answer, folder  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

QUESTIONS: Final = {
    "kills": kills,
    "power": power,
    "damage": damage,
    "collapse": collapse,
    "faults": faults,
    "poison": poison,
    "fuzz": fuzz,
    "rebuild": rebuild,
    "soak": soak,
}
PAGE: Final = ROOT / "docs" / "reliability.md"
HEAD: Final = ("question", "what was run", "lost", "twice", "also", "command", "on")
SIZES: Final = {"rounds": int, "frames": int, "seed": int, "minutes": float}


def main() -> int:
    """Ask, print, and, if asked to, write down."""
    parser = argparse.ArgumentParser(prog="python -m proof", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(QUESTIONS))
    parser.add_argument("--write", action="store_true", help="put the figures into docs/reliability.md")
    parser.add_argument("--place", type=Path, help="folder on the disk to use; a temporary one by default")
    for size, kind in SIZES.items():
        parser.add_argument(f"--{size}", type=kind, help="another size than the full one, for those that have it")
    asked = parser.parse_args()
    if unknown := set(asked.names) - set(QUESTIONS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known are {', '.join(QUESTIONS)}")
    failed = False
    for name in asked.names or QUESTIONS:
        given = {size: value for size in SIZES if (value := getattr(asked, size)) is not None}
        words, answer, took_s = _asked(name, QUESTIONS[name], given, asked.place)
        failed |= not answer.holds
        cells = _cells(QUESTIONS[name], answer, words, took_s)
        for title, cell in zip(HEAD, cells, strict=True):
            print(f"{title:>13}  {cell}")
        for one in answer.wrong:
            print(f"        WRONG  {one}", file=sys.stderr)
        print(flush=True)
        if asked.write and answer.holds:
            _write(cells)
    return int(failed)


def _asked(name: str, question: ModuleType, given: dict[str, object], place: Path | None) -> tuple[str, Answer, float]:
    """Ask one question at the sizes given, as far as it knows them; return the command, the answer and the time."""
    takes = inspect.signature(question.ask).parameters
    sizes = {size: value for size, value in given.items() if size in takes}
    words = " ".join(["python -m proof", name, *(f"--{size} {value:g}" for size, value in sizes.items())])
    started_s = time.monotonic()
    with folder(name, place) as path:
        answer: Answer = question.ask(path, **sizes)
        if not answer.holds:
            (path / "wrong").write_text("\n".join(answer.wrong), encoding="utf-8")
            print(f"what was found amiss stays in {path}", file=sys.stderr)
    return words, answer, time.monotonic() - started_s


def _cells(question: ModuleType, answer: Answer, words: str, took_s: float) -> list[str]:
    also = "; ".join(f"{name} {_number(value)}" for name, value in answer.figures.items())
    when = f"{dt.datetime.now(dt.UTC):%Y-%m-%d}, {took_s / 60:.0f} min, {os.cpu_count()} cores"
    return [question.QUESTION, answer.ran, f"{answer.lost}", f"{answer.twice}", also, f"`{words}`", when]


def _number(value: object) -> str:
    return f"{value:,}" if isinstance(value, int) else str(value)


def _write(cells: Sequence[str]) -> None:
    """Put a row into the page's table of figures, in place of the one of that name or at its end."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    head = lines.index(_row(HEAD))
    end = next((n for n in range(head, len(lines)) if not lines[n].startswith("|")), len(lines))
    at = next((n for n in range(head + 2, end) if lines[n].startswith(f"| {cells[0]} |")), end)
    lines[at : at + (at < end)] = [_row(cells)]
    PAGE.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    raise SystemExit(main())
