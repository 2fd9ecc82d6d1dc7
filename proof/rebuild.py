"""The stores are emptied and everything is delivered again: the same rows, tags included, although the master list changed.

Two keys of the master list come to name other contracts while connections are closed again and again, and the recorder is
started anew, so that ticks before and behind the change have different symbols, and there are gaps.
"""

from __future__ import annotations

import csv
import datetime as dt
import io
import time
import urllib.request
from typing import TYPE_CHECKING, Any, Final

import programs
from servers import influx_query, influxd, wait_until

from proof.power import journalled
from proof.rig import Answer

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from servers import Server

QUESTION: Final = "rebuild"
MARKET: Final = ("--instruments", "60", "--updates-per-second", "200")
NOWHERE: Final = "http://127.0.0.1:9"
SCRIPT: Final = """
about = "Two keys come to name other contracts, and connections are closed again and again"
evidence = "documented"
source = "Upstox documentation, instruments"
[[steps]]
at_s = {relist_s}
do = "relist"
reuse = 2
[[steps]]
at_s = 3.0
every_s = 4.0
do = "close"
code = 1000
"""
RELIST_S: Final = 20.0  # by then the first recorder has read the list
NAMES: Final = {
    "ticks": ("seq", "instrument_key"),
    "market_status": ("seq", "scope", "segment"),
    "instruments": ("valid_from_seq", "instrument_key"),
    "candles": ("instrument_key", "interval", "time"),
    "tick": ("seq", "instrument_key"),
    "candle": ("instrument_key", "interval", "time"),
    "gap": ("scope", "subject", "reason", "time"),
    "gaps": ("scope", "subject", "reason", "opened_at"),
}

_Rows = dict[tuple[Any, ...], dict[str, Any]]


def ask(place: Path, *, frames: int = 400) -> Answer:
    """Record so many frames, rebuild, compare."""
    data = place / "data"
    answer = Answer()
    script = place / "relisted.toml"
    script.write_text(SCRIPT.format(relist_s=RELIST_S), encoding="utf-8")
    with influxd(place / "influx") as influx:
        stores = {"INFLUX_URL": influx.url, "INFLUX_BUCKET": "market"}
        with programs.simulator(place, *MARKET, "--script", str(script)) as (url, simulated):
            environ = programs.environ_for(url, data, **stores)
            first = _listed(environ)
            for part in (1, 2):
                if part == 2:
                    wait_until(lambda: _listed(environ) != first, "the list is another one", 60)
                with programs.recorder(place, environ) as recorder:
                    upto = frames * part // 2
                    wait_until(lambda upto=upto: journalled(data) >= upto, f"{upto} frames are journalled", 600)
                    if part == 2:
                        simulated.stop()
                        ended_s = time.time()
                    if recorder.stop():
                        answer.wrong.append(recorder.said()[-500:])
        before = _all(place, data, influx)
        influx_query(influx, "DROP DATABASE market")
        environ = programs.environ_for(NOWHERE, data, UPSTOX_INSTRUMENTS_URL="off", **stores)
        for sink in ("influx", "parquet"):
            done = programs.call("rewind", "--sink", sink, "--to-seq", "0", environ=environ, folder=place)
            answer.wrong += [done.stderr[-500:]] if done.returncode else []
        if left := list(data.glob("parquet/*/*/*.parquet")):
            answer.wrong.append(f"{len(left)} files are there after the rewind")
        done = programs.call("run", "--duration", "2", environ=environ, folder=place)
        answer.wrong += [done.stderr[-500:]] if done.returncode else []
        after = _all(place, data, influx)
    _compare(answer, before, after, ended_s)
    symbols: dict[str, set[str]] = {}
    for row in before["ticks"].values():
        symbols.setdefault(row["instrument_key"], set()).add(row["symbol"])
    answer.figures["keys with two symbols"] = renamed = sum(len(of) > 1 for of in symbols.values())
    if not renamed or not before["gaps"]:
        answer.wrong.append("no key changed its symbol, or there is no gap: this shows nothing")
    answer.ran = f"{sum(len(rows) for rows in before.values())} rows and points compared"
    return answer


def _compare(answer: Answer, before: dict[str, _Rows], after: dict[str, _Rows], ended_s: float) -> None:
    """Hold what is there after the rebuild against what was there before."""
    for name, rows in before.items():
        differing = [one for one in rows if rows[one] != after[name].get(one)]
        more = after[name].keys() - rows.keys()
        if name in {"gap", "gaps"}:  # the time since is a gap of its own
            more = {one for one in more if _opened_s(after[name][one]) < ended_s}
        answer.lost += len(differing)
        answer.twice += len(more)
        if differing:
            first = differing[0]
            answer.wrong.append(
                f"{name}: {len(differing)} of {len(rows)} differ: {rows[first]} is {after[name].get(first)}"
            )
        if more:
            answer.wrong.append(f"{name}: {len(more)} were not there before: {sorted(more)[:3]}")
        answer.figures[name] = len(rows)


def _all(place: Path, data: Path, influx: Server) -> dict[str, _Rows]:
    """Return every row of both stores by its name; of candles in files the last version."""
    found = {table: _named(table, programs.globbed(data, table)) for table in ("ticks", "market_status", "candles")}
    found["instruments"] = _named("instruments", _queried(place, data, "SELECT * FROM instruments"))
    found["gaps"] = _named("gaps", _queried(place, data, "SELECT * FROM gaps"))
    for name in ("tick", "candle", "gap"):
        points = influx_query(influx, f"SELECT * FROM {name}", db="market")
        found[name] = _named(name, points)
    return found


def _listed(environ: Mapping[str, str]) -> bytes:
    """Return the master list as it is now."""
    asked = urllib.request.Request(environ["UPSTOX_INSTRUMENTS_URL"], headers={"User-Agent": "tickvault"})
    with urllib.request.urlopen(asked, timeout=10) as answer:
        body: bytes = answer.read()
        return body


def _opened_s(gap: dict[str, Any]) -> float:
    """Return when a gap was opened: a point's time in ns, a row's as text."""
    return gap["time"] / 1e9 if "time" in gap else dt.datetime.fromisoformat(gap["opened_at"]).timestamp()


def _queried(place: Path, data: Path, sql: str) -> list[dict[str, str]]:
    words = ("query", sql, "--format", "csv", "--data-dir", str(data))
    done = programs.call(*words, environ={}, folder=place)
    assert done.returncode == 0, done.stderr
    return list(csv.DictReader(io.StringIO(done.stdout)))


def _named(name: str, rows: list[Any]) -> _Rows:
    """Return rows by what names one; a row that is there twice gets a name of its own. Of candles the last counts."""
    found: _Rows = {}
    for row in sorted(rows, key=lambda row: row.get("seq") or 0) if name == "candles" else rows:
        key = tuple(row[column] for column in NAMES[name])
        while key in found and name != "candles":
            key = (*key, "again")
        found[key] = row
    return found
