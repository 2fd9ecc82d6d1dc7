"""Everyone in the program who asks a server over HTTP, ready to ask one of a test's: (its address, a session, a folder).

Whatever they send that is secret has `Canary` in it. One that would be content raises TickvaultError all the same.
"""

from __future__ import annotations

import asyncio
import random
from typing import TYPE_CHECKING

from servers import batch_of, tick

from tickvault.brokers.upstox.api import UpstoxApi
from tickvault.brokers.upstox.calendar import MarketCalendar
from tickvault.brokers.upstox.instruments import InstrumentList
from tickvault.brokers.upstox.keylist import InstrumentsUrl
from tickvault.brokers.upstox.login import Client, exchange
from tickvault.brokers.upstox.tokens import TokenUrl
from tickvault.errors import SinkError, TickvaultError
from tickvault.model import Mode
from tickvault.notify import Notifier
from tickvault.outbox import Notice
from tickvault.sinks.influx import InfluxSink
from tickvault.state import State

if TYPE_CHECKING:
    from pathlib import Path

    import aiohttp


async def token(url: str, session: aiohttp.ClientSession, _: Path) -> object:
    return await TokenUrl(f"{url}/?key=Canary", session).token()


async def keys(url: str, session: aiohttp.ClientSession, _: Path) -> object:
    return await InstrumentsUrl(f"{url}/?key=Canary", session, Mode.FULL)()


async def authorize(url: str, session: aiohttp.ClientSession, _: Path) -> object:
    return await UpstoxApi(url, session).authorize("Canary")


async def master(url: str, session: aiohttp.ClientSession, folder: Path) -> object:
    return await InstrumentList(url=f"{url}/?key=Canary", cache_dir=folder, session=session).refresh()


async def calendar(url: str, session: aiohttp.ClientSession, folder: Path) -> object:
    market = MarketCalendar(url, folder, session)
    await market.refresh("Canary")
    if not market.fresh:
        raise TickvaultError("told in the log")
    return None


async def log_in(url: str, session: aiohttp.ClientSession, _: Path) -> object:
    redirect = "http://127.0.0.1:1/callback"
    client = Client(client_id="app", client_secret="Canary", redirect_uri=redirect, api_url=url)
    return await exchange(session, client, "Canary")


async def write(url: str, session: aiohttp.ClientSession, _: Path) -> object:
    sink = InfluxSink(url=url, bucket="b", token="Canary", session=session)
    await sink.write(batch_of(ticks=[tick()]))
    raise SinkError("taken: a 2xx is one, whatever its body says")


async def check(url: str, session: aiohttp.ClientSession, _: Path) -> object:
    await InfluxSink(url=url, bucket="b", username="u", password="Canary", session=session).check()
    raise SinkError("taken")


async def post(url: str, session: aiohttp.ClientSession, folder: Path) -> object:
    state, _ = await asyncio.to_thread(State.open, folder / "state.db", events=None)
    try:
        state.set_journal("r", head_seq=0, first_seq=1)
        notice = Notice(event="gap.opened", sink="", high_water_seq=0, rows=0, from_ns=1, to_ns=1, message="")
        state.put_gaps((), notices=[notice])
        notifier = Notifier(
            state, session, url=f"{url}/?key=Canary", secret="Canary", interval_s=0, retry_s=1,
            wall_ns=lambda: 0, rng=random.Random(1),
        )  # fmt: skip
        stopping = asyncio.Event()
        stopping.set()
        await notifier.run(stopping)
    finally:
        state.close()
    raise TickvaultError("taken or not: the status line says it, and no body is read")
