"""What commands print: tables for people, JSON for programs, plain lines when piped."""

from __future__ import annotations

import json
import sys
from textwrap import wrap
from typing import TYPE_CHECKING, Any, Final

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tickvault.health import ALARMS

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from tickvault.health import Snapshot
    from tickvault.pipeline import Outcome

__all__ = [
    "columns",
    "console",
    "dump_json",
    "listing",
    "live_line",
    "outcome",
    "paragraph",
    "rows",
    "snapshot",
    "table",
]

_TAB_WIDTH: Final = 1_000_000  # when piped nothing is wrapped


def console(*, stderr: bool = False) -> Console:
    """Return a console that wraps on a terminal and never when piped."""
    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, highlight=False, width=None if stream.isatty() else _TAB_WIDTH)


def dump_json(value: Any) -> None:
    """Print one JSON document."""
    print(json.dumps(value, default=str))  # noqa: T201 - the command's output


def rows(headers: Sequence[str], found: Iterable[Sequence[object]]) -> None:
    """Print rows as a table or, on a terminal that it does not fit on, one after the other with a field a line."""
    cells = [["" if cell is None else str(cell) for cell in row] for row in found]
    widths = [max(map(_width, column)) for column in zip(headers, *cells, strict=True)]
    if not sys.stdout.isatty() or sum(widths) + 3 * len(widths) + 1 <= console().width:
        table(headers, cells)
        return
    name_width = max(map(_width, headers))
    out = console()
    for number, row in enumerate(cells, 1):
        out.rule(Text(f"row {number:,}"), align="left", style="default")
        for name, cell in zip(headers, row, strict=True):
            lines = Text(cell).wrap(out, max(20, out.width - name_width - 2))
            for count, line in enumerate(lines or [Text()]):
                out.print(Text(f"{'' if count else name:<{name_width}}  ") + line, soft_wrap=True)


def _width(text: str) -> int:
    return max(map(cell_len, text.split("\n")))


def table(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table: ruled on a terminal, tab-separated lines when piped."""
    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        for row in ([*headers], *cells):
            print("\t".join(row))  # noqa: T201 - the command's output
        return
    shown = Table(header_style="bold")
    for header in headers:
        shown.add_column(header, overflow="fold")
    for row in cells:
        shown.add_row(*(Text(cell) for cell in row))
    console().print(shown)


def listing(headers: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Print a table of a line a row, whose last column gives way on a terminal that is too narrow; piped, all of it."""
    cells = [[*headers], *(["" if cell is None else str(cell) for cell in row] for row in rows)]
    out = console()
    if not sys.stdout.isatty():
        table(headers, cells[1:])
        return
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    for number, row in enumerate(cells):
        padded = (cell + " " * (width - cell_len(cell)) for cell, width in zip(row, widths, strict=True))
        line = Text("  ".join(padded).rstrip(), "" if number else "bold")
        line.truncate(out.width, overflow="ellipsis")
        out.print(line, soft_wrap=True)


def paragraph(text: str, *, indent: int = 2) -> None:
    """Print a sentence, broken between words on a terminal."""
    out = console()
    pad = " " * indent
    lines = wrap(
        text,
        out.width - 1,
        initial_indent=pad,
        subsequent_indent=pad * 2,
        break_long_words=False,
        break_on_hyphens=False,
    )
    for line in lines:
        out.print(Text(line), soft_wrap=True)


def columns(pairs: Iterable[tuple[str, object]]) -> None:
    """Print names and values in two columns."""
    rows = [(name, "" if value is None else str(value)) for name, value in pairs]
    width = max((len(name) for name, _ in rows), default=0)
    for name, value in rows:
        console().print(Text(f"{name:<{width}}  {value}"), soft_wrap=True)


def live_line(one: Snapshot, *, width: int) -> Text:
    """Return a snapshot as one line of at most `width` cells, for a terminal that is being watched."""
    feed = one.feed
    parts = [feed.state if feed else "starting", f"{feed.frames if feed else 0:,} frames", f"seq {one.last_seq:,}"]
    parts += [
        f"{name} {'✔' if sink.state == 'running' else sink.state} {sink.lag_frames:,} behind"
        for name, sink in one.sinks.items()
    ]
    if feed and feed.market.state in ALARMS:
        parts.append(feed.market.shown())
    if feed and feed.state != "live" and feed.last_error:
        parts.append(feed.last_error)
    line = Text(" · ".join(parts))
    line.truncate(max(1, width), overflow="ellipsis")
    return line


def snapshot(one: Snapshot) -> None:
    """Print a snapshot."""
    feed = one.feed
    pairs: list[tuple[str, object]] = [("data folder", one.data_dir)]
    pairs.append(("recorder", f"running, pid {one.pid}" if one.running else "not running"))
    if feed is not None:
        age = "never" if feed.last_frame_age_s is None else f"{feed.last_frame_age_s:.1f} s ago"
        pairs.append(("feed", f"{feed.state}, connection {feed.conn}, last frame {age}, {feed.frames:,} frames"))
        if feed.last_error:
            pairs.append(("", feed.last_error))
        if feed.planned is not None:
            pairs.append(("plan", f"{feed.planned:,} keys on {feed.sockets} socket{'s' * (feed.sockets != 1)}"))
        pairs += [("", words) for words in (feed.refused, *(feed.skipped or ()), feed.list_lost) if words]
        pairs += [("keys", feed.keys.shown()), ("market", feed.market.shown())]
        if feed.token:
            pairs.append(("token", feed.token))
        if feed.journal_full:
            pairs.append(("disk", "FULL: what is received waits in memory; make room"))
    pairs.append(("journal", f"{one.frames:,} frames, seq {one.first_seq}–{one.last_seq}, {_size(one.bytes)}"))
    pairs.append(("gaps open", ", ".join(one.open_gaps) or "none"))
    pairs.append(("dead letters", f"{one.dead_letters:,}"))
    pairs.append(("disk free", _size(one.disk_free_bytes)))
    columns(pairs)
    if one.sinks:
        table(
            ("sink", "state", "cursor", "behind", "oldest", "detail"),
            [
                (name, sink.state, sink.cursor_seq, f"{sink.lag_frames:,} frames", f"{sink.lag_s:,.1f} s", sink.detail)
                for name, sink in one.sinks.items()
            ],
        )


def outcome(one: Outcome) -> None:
    """Print what a run did."""
    columns(
        [
            ("frames received", f"{one.received:,}"),
            ("frames journalled", f"{one.journalled:,}"),
            *((f"frames stored in {name}", f"{frames:,}") for name, frames in one.stored.items()),
        ]
    )
    rows = [(sink, name, f"{count:,}") for sink, tables in one.rows.items() for name, count in tables.items() if count]
    if rows:
        table(("sink", "table", "rows"), rows)
    for sink, frames in one.remaining.items():
        why = "parked; see `tickvault status`" if sink in one.parked else "delivered at the next run"
        console().print(Text(f"{frames:,} frames wait in the journal for {sink}: {why}"), soft_wrap=True)


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:,.0f} {unit}" if unit == "B" else f"{count:,.1f} {unit}"
        count /= 1000
    return f"{count:,.1f} TB"
