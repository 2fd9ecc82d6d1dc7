"""Which version of a candle a server holds: questions in InfluxQL or to VictoriaMetrics' export, and their answers. Pure."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from tickvault.model import TABLES, Batch

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from tickvault.sinks.influx_answers import Answer

__all__ = ["Candle", "candles", "exported_seq", "question", "selector", "stored_seqs"]

_NEWEST: Final = 2**63 - 1
_MISSING: Final = re.compile(r"database not found")


@dataclass(frozen=True, slots=True, kw_only=True)
class Candle:
    """A row of `candles` in a batch, and what makes it the same candle."""

    row: int
    instrument_key: str
    interval: str
    time_us: int
    seq: int


def candles(batch: Batch) -> Iterator[Candle]:
    """Yield the candles of a batch with their row indices."""
    offset = sum(batch.tables[name].num_rows for name in TABLES[: TABLES.index("candles")])
    table = batch.tables["candles"].select(["instrument_key", "interval", "seq"])
    times = batch.tables["candles"]["time"].cast("int64").to_pylist()
    for row, (one, time_us) in enumerate(zip(table.to_pylist(), times, strict=True), offset):
        yield Candle(row=row, time_us=time_us, **one)


def question(wanted: Sequence[Candle], layouts: Sequence[str]) -> str:
    """Return InfluxQL with a statement a candle, asking for what `stored_seqs` reads."""
    return "; ".join(_statement(one, layouts) for one in wanted)


def _statement(one: Candle, layouts: Sequence[str]) -> str:
    time_ns = one.time_us * 1000
    if "tickvault" in layouts:
        tags = f"instrument_key = {_string(one.instrument_key)} AND interval = {_string(one.interval)}"
        return f"SELECT max(seq) FROM candle WHERE {tags} AND time = {time_ns}"  # noqa: S608 - escaped
    interval = one.interval.replace("\\", "\\\\").replace('"', '\\"')
    # This layout has no `seq`: what is there was stored from a later frame, but for the few that were refused.
    feed = _string(one.instrument_key.replace(" ", "_"))
    return f'SELECT Close FROM "{interval}" WHERE feed_name = {feed} AND time = {time_ns}'  # noqa: S608 - escaped


def stored_seqs(answer: Answer, count: int) -> list[int | None] | None:
    """Read an answer to `count` statements: the highest seq stored of each candle, None for none; None if it is none.

    A point of the layout without `seq` counts as the newest.
    """
    try:
        told = json.loads(answer.text)
        if _MISSING.search(str(told["results"][0].get("error", ""))):
            return [None] * count
        results = {one.get("statement_id", 0): one for one in told["results"]}
        if answer.status != 200 or len(results) != count or any("error" in one for one in results.values()):
            return None
        return [_seq(results[number]) for number in range(count)]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError):
        return None


def _seq(result: Mapping[str, Any]) -> int | None:
    found = [
        int(value[1]) if series["columns"][1] == "max" else _NEWEST
        for series in result.get("series", [])
        for value in series["values"]
    ]
    return max(found, default=None)


def selector(one: Candle) -> dict[str, str]:
    """Return the parameters of VictoriaMetrics' export that select the stored `seq` of a candle."""
    labels = {"instrument_key": one.instrument_key, "interval": one.interval}
    inner = ",".join(f"{name}={json.dumps(value, ensure_ascii=False)}" for name, value in labels.items())
    # Milliseconds are what it keeps; without an end it leaves out the current second.
    at_s = f"{one.time_us // 1000 / 1000:.3f}"
    return {"match[]": f"candle_seq{{{inner}}}", "start": at_s, "end": at_s}


def exported_seq(answer: Answer) -> int | None:
    """Read the highest seq out of an export; None for none.

    Raises:
        ValueError: it is no export.
    """
    found = [int(value) for line in answer.text.splitlines() for value in json.loads(line)["values"]]
    return max(found, default=None)


def _string(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
