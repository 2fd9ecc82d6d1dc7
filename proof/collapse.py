"""Many updates of one instrument in one millisecond, delivered twice: as many points, each with its own price."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import programs
from doubles import AT_MS, payload
from servers import influx_query, influxd

from proof.rig import Answer
from tickvault.journal import Journal, Received
from tickvault.state import State

if TYPE_CHECKING:
    from pathlib import Path

QUESTION: Final = "one millisecond"
KEY: Final = "NSE_EQ|A"
NOWHERE: Final = "http://127.0.0.1:9"


def ask(place: Path, *, updates: int = 1000) -> Answer:
    """Journal so many updates, deliver them to InfluxDB, rewind, deliver again."""
    data = place / "data"
    data.mkdir()
    state, _ = State.open(data / "state.db")
    journal = Journal.open(data / "journal", state)
    journal.append([Received((AT_MS + 5) * 10**6, 1, payload(n, keys=(KEY,))) for n in range(1, updates + 1)])
    journal.close()
    state.close()
    answer = Answer(ran=f"{updates} updates, delivered twice")
    with influxd(place / "influx") as influx:
        stores = {"INFLUX_URL": influx.url, "INFLUX_BUCKET": "market", "UPSTOX_INSTRUMENTS_URL": "off"}
        environ = programs.environ_for(NOWHERE, data, **stores)
        for _ in range(2):
            done = programs.call("run", "--duration", "1", environ=environ, folder=place)
            if done.returncode:
                answer.wrong.append(done.stderr[-500:])
            prices = [one["ltp"] for one in influx_query(influx, "SELECT ltp FROM tick", db="market")]
            answer.lost += len(set(range(1, updates + 1)) - {int(one) for one in prices})
            answer.twice += len(prices) - len(set(prices))
            programs.call("rewind", "--sink", "influx", "--to-seq", "0", environ=environ, folder=place)
        times = {one["time"] // 10**6 for one in influx_query(influx, "SELECT ltp FROM tick", db="market")}
    answer.figures = {"points": len(prices), "milliseconds": len(times)}
    if len(times) != 1:
        answer.wrong.append(f"they are of {len(times)} milliseconds")
    return answer
