"""A broker that sends ready frames as fast as the recorder takes them; the recorder is a process of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
from aiohttp import web

from benchmarks.frames import definitions
from tickvault.brokers.upstox.api import AUTHORIZE_PATH

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["recorded_s"]


async def recorded_s(payloads: Sequence[bytes], folder: Path, settings: Mapping[str, str]) -> float:
    """Have a recorder take frames into an empty folder; return the seconds from the first frame until it has stored all and is gone."""
    began_s: list[float] = []
    taken = asyncio.Event()

    async def authorize(request: web.Request) -> web.Response:
        url = f"ws://{request.host}/feed"
        return web.json_response({"status": "success", "data": {"authorized_redirect_uri": url}})

    async def feed(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(compress=False, autoping=False)
        await socket.prepare(request)
        await socket.receive()  # its subscription
        began_s.append(time.perf_counter())
        for payload in payloads:
            await socket.send_bytes(payload)
        await socket.ping(b"all")
        async for message in socket:
            if message.type is aiohttp.WSMsgType.PONG:
                break
        taken.set()
        async for _ in socket:
            pass
        return socket

    app = web.Application()
    app.router.add_get(f"/{AUTHORIZE_PATH}", authorize)
    app.router.add_get("/feed", feed)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    environment = {
        "PATH": os.environ["PATH"],
        "UPSTOX_ACCESS_TOKEN": "eyJhbGciOiJub25lIn0.e30.x",
        "UPSTOX_API_URL": f"http://127.0.0.1:{runner.addresses[0][1]}",
        "UPSTOX_INSTRUMENTS_URL": "off",
        "TICKVAULT_INSTRUMENTS": ",".join(list(definitions())[:1_000]),
        "TICKVAULT_DATA_DIR": str(folder / "data"),
        "TICKVAULT_HTTP": "off",
        **settings,
    }
    command = [str(Path(sys.executable).with_name("tickvault")), "run"]
    with (folder / "said").open("wb") as said:
        child = await asyncio.create_subprocess_exec(*command, env=environment, stdout=said, stderr=said, cwd=folder)
    try:
        async with asyncio.timeout(120):
            await taken.wait()
            child.send_signal(signal.SIGTERM)
            await child.wait()
    finally:
        if child.returncode is None:
            child.kill()
        await runner.cleanup()
    ended_s = time.perf_counter()
    told = (folder / "said").read_text(encoding="utf-8")
    stored = told.partition("frames stored in ")[2].split()
    if child.returncode or stored[1:2] != [f"{len(payloads):,}"]:
        raise SystemExit(told)
    return ended_s - began_s[0]
