"""SIGKILL at random instants, of the recorder again and again, and of InfluxDB now and then; a reader asks meanwhile.

The feed goes on all the time. In the end both stores are held against what the simulator logged as sent: what may be
missing is the end of a connection that was cut, what was still on the wire, and nothing else.
"""

from __future__ import annotations

import itertools
import time
from typing import TYPE_CHECKING, Any, Final

import oracle
import programs
from servers import influx_query, influxd, wait_until

from proof.power import journalled
from proof.rig import RETAIN, Answer, Reader, recording, seeded
from tickvault import archive

if TYPE_CHECKING:
    from pathlib import Path

    from servers import Server

QUESTION: Final = "kill -9"
MARKET: Final = ("--instruments", "20", "--updates-per-second", "120")
STARTING: Final = 0.2  # of all kills, so many while it starts
STORE_EVERY: Final = 5  # rounds
TAGS: Final = frozenset({"instrument_key", "symbol", "segment", "underlying", "expiry", "strike", "option_type"})


def ask(place: Path, *, rounds: int = 200, longest_s: float = 6.0, seed: int | None = None) -> Answer:
    """Kill so often, most of them within so many seconds of recording; then let everything arrive, and count."""
    rng, seed = seeded(seed)
    answer = Answer(ran=f"{rounds} kills, seed {seed}")
    data, log = place / "data", place / "sent.log"
    store_kills = 0
    with influxd(place / "influx") as influx, programs.simulator(place, *MARKET, "--log", str(log)) as (url, simulated):
        environ = programs.environ_for(url, data, INFLUX_URL=influx.url, INFLUX_BUCKET="market", **RETAIN)
        with Reader(place, data) as reader:
            for number in range(1, rounds + 1):
                reached = journalled(data)
                with recording(place, environ) as recorder:
                    if rng.random() < STARTING:
                        time.sleep(rng.uniform(0.2, 2.0))
                    else:
                        wait_until(lambda reached=reached: journalled(data) > reached, "it records", 60)
                    if number % STORE_EVERY == 0:
                        influx.kill()
                        store_kills += 1
                    # Not a wait for anything: a kill at a random instant is what is asked for.
                    time.sleep(rng.uniform(0.0, longest_s))
                    recorder.kill()
                if number % STORE_EVERY == 0:
                    influx.start()
                answer.wrong += _verified(place, environ, f"after kill {number}")
        reached = journalled(data)
        with recording(place, environ) as recorder:
            wait_until(lambda: journalled(data) > reached + 10, "it goes on behind", 60)
            simulated.stop()
            if recorder.stop():
                answer.wrong.append(f"the last run: {recorder.said()[-500:]}")
        answer.wrong += _verified(place, environ, "at the end")
        compare(answer, data, log, influx)
    answer.twice += reader.twice
    answer.lost += reader.vanished
    answer.wrong += reader.wrong
    if reader.holes or not reader.answers:
        answer.wrong.append(
            f"the reader had {reader.answers} answers, with {reader.holes} seqs missing before the last"
        )
    pruned = len(archive.pruned(data / "journal"))
    answer.figures |= {
        "kills of InfluxDB": store_kills,
        "answers to the reader": reader.answers,
        "segments pruned": pruned,
    }
    return answer


def _verified(place: Path, environ: dict[str, str], when: str) -> list[str]:
    if not (place / "data" / "journal").is_dir():
        return []
    done = programs.call("journal", "verify", environ=environ, folder=place)
    return [f"journal verify {when}: {done.stdout[-300:]}{done.stderr[-300:]}"] if done.returncode else []


def compare(answer: Answer, data: Path, log: Path, influx: Server) -> None:
    """Hold Parquet against the log, and InfluxDB against Parquet; write into the answer what came of it."""
    ticks, statuses = (programs.globbed(data, table) for table in ("ticks", "market_status"))
    held = oracle.held(log, ticks, statuses)
    answer.lost += held.holes
    answer.twice += held.twice + held.strange
    seqs = {row["seq"] for row in itertools.chain(ticks, statuses)}
    if missing := journalled(data) - len(seqs):
        answer.wrong.append(f"{missing} seqs of the journal are not in Parquet")
    rows = {(row["seq"], row["instrument_key"]): oracle.as_point(row, 5) for row in ticks}
    answer.twice += len(ticks) - len(rows)
    points = dict(_points(influx, max(seqs)))
    answer.lost += sum(points.get(name) != fields for name, fields in rows.items())
    answer.twice += len(points.keys() - rows.keys())
    answer.figures |= {"frames": held.frames, "updates": len(rows), "frames on the wire at a kill": held.on_the_wire}


def _points(influx: Server, last: int) -> Any:
    """Yield ((seq, key), fields) of every tick in InfluxDB, some hundred seqs at a time."""
    for first in range(0, last + 1, 500):
        asked = f"SELECT * FROM tick WHERE seq >= {first} AND seq < {first + 500}"
        for point in influx_query(influx, asked, db="market"):
            fields = {
                name: value
                for name, value in point.items()
                if value is not None and name not in TAGS | {"time", "seq", "received_at"}
            }
            yield (point["seq"], point["instrument_key"]), tuple(sorted(fields.items()))
