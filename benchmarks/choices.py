"""What was chosen by measurement, beside what was not, each in CPU seconds of one core.

Frames of 80 KB come from another process through a WebSocket, to three clients on two event loops. Journalled frames are
packed with zstd, one by one. Line protocol of 30 fields is written by Arrow's kernels and by polars. Ticks are written as
Parquet with a dictionary for every column, and for those that recur. What the recorder imports is imported in a process of its
own, and so is each of the libraries by itself: a bare Python is taken off.
"""

from __future__ import annotations

import asyncio
import io
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import aiohttp
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from aiohttp import web

from benchmarks.frames import definitions, frames
from benchmarks.rows import Row, alternate, children_s, ratio
from tickvault.brokers.upstox.wire import decode
from tickvault.sinks.parquet import recurring

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["TITLE", "rows"]

TITLE: Final = "Choices"
_ROUNDS: Final = 5
_FRAMES: Final = 2_000
_FRAME_BYTES: Final = 80_000
_LIBRARIES: Final = (
    "aiohttp",
    "pyarrow.compute",
    "pyarrow.parquet",
    "ptars",
    "pydantic_settings",
    "structlog",
    "duckdb",
)


def rows(_: object) -> list[Row]:
    """Measure what is installed of the alternatives."""
    sys.path.append(str(Path("build/peers").resolve()))
    found = _packed() + _files() + _clients() + _imports()
    os.environ["POLARS_MAX_THREADS"] = "1"
    return found + _lines()


def _compared(spent: dict[str, list[float]], per: int, unit: str) -> list[Row]:
    """Return a row for each piece of work; the first is what the others are compared with."""
    first, *_ = spent
    middle = {name: sorted(of)[len(of) // 2] / per * 1e6 for name, of in spent.items()}
    base = f"{first}: {middle[first]:.2f}"
    return [
        Row(f"choice: {name}", f"{middle[name]:.2f} µs {unit}", base, ratio(spent[first], spent[name]))
        for name in spent
    ]


def _packed() -> list[Row]:
    payloads = frames(200, updates=4_000).payloads
    codecs = {f"zstd {level} for frames": pa.Codec("zstd", level) for level in (1, 3)}
    work: dict[str, Callable[[], object]] = {"frames as received": lambda: [bytes(bytearray(one)) for one in payloads]}
    work |= {name: lambda codec=codec: [codec.compress(one) for one in payloads] for name, codec in codecs.items()}
    found = _compared(alternate(work, _ROUNDS), len(payloads), "a frame of 70 KB")
    whole = sum(map(len, payloads))
    sizes = [sum(codec.compress(one).size for one in payloads) / whole for codec in codecs.values()]
    return found + [
        Row(f"choice: {name}, size", f"{size:.0%}", "", size) for name, size in zip(codecs, sizes, strict=True)
    ]


def _files() -> list[Row]:
    of = frames(200)
    ticks = decode(of.frames, recorder_id="0123456789ab", definitions=definitions()).tables["ticks"]
    options: dict[str, dict[str, Any]] = {
        "Parquet, dictionary for what recurs": {"compression": "zstd", "use_dictionary": recurring(ticks.schema)},
        "Parquet, dictionary for all": {"compression": "zstd"},
        "Parquet, zstd 3": {"compression": "zstd", "compression_level": 3, "use_dictionary": recurring(ticks.schema)},
        "Parquet, lz4": {"compression": "lz4", "use_dictionary": recurring(ticks.schema)},
    }

    def written(how: dict[str, Any]) -> int:
        into = io.BytesIO()
        pq.write_table(ticks, into, **how)
        return into.tell()

    work = {name: lambda how=how: written(how) for name, how in options.items()}
    found = _compared(alternate(work, _ROUNDS), of.updates, "an update")
    sizes = {name: written(how) / of.updates for name, how in options.items()}
    return found + [Row(f"choice: {name}, size", f"{size:.1f} B an update", "", size) for name, size in sizes.items()]


def _lines() -> list[Row]:
    of = frames(200)
    ticks = decode(of.frames, recorder_id="0123456789ab", definitions=definitions()).tables["ticks"].combine_chunks()
    price, quantity = ticks["ltp"].combine_chunks(), ticks["ltq"].combine_chunks()

    def surrounded(values: Any, before: str, behind: str) -> Any:
        text = pc.binary_replace_slice(pc.cast(values, pa.string()), start=0, stop=0, replacement=before)
        return pc.binary_replace_slice(text, start=1_000, stop=1_000, replacement=behind)

    def arrow() -> object:
        fields = [
            f for i in range(15) for f in (surrounded(price, f"p{i}=", ","), surrounded(quantity, f"q{i}=", "i,"))
        ]
        return pc.binary_join_element_wise(*fields, "", null_handling="skip")

    work: dict[str, Callable[[], object]] = {"30 fields of a line, Arrow": arrow}
    try:
        import polars as pl
    except ImportError:
        return [Row("choice: polars", "NOT INSTALLED: polars", "", 0.0)]
    frame = pl.DataFrame({"p": pl.from_arrow(price), "q": pl.from_arrow(quantity)})
    fields = [
        f for i in range(15) for f in (pl.format(f"p{i}={{}},", pl.col("p")), pl.format(f"q{i}={{}}i,", pl.col("q")))
    ]
    work["30 fields of a line, polars"] = lambda: frame.select(pl.concat_str(fields, ignore_nulls=True))
    return _compared(alternate(work, _ROUNDS), of.updates, "a line")


def _imports() -> list[Row]:
    names = {"the recorder": "tickvault.pipeline", **{one: one for one in _LIBRARIES}}
    code = {"bare": "pass"} | {name: f"import {module}" for name, module in names.items()}
    work = {name: lambda of=of: subprocess.run([sys.executable, "-c", of], check=True) for name, of in code.items()}
    spent = {name: statistics.median(of) * 1e3 for name, of in alternate(work, _ROUNDS, children_s).items()}
    asked = (
        "import sys, tickvault.pipeline; print(len(sys.modules), *sys.modules.keys() & {'numpy', 'pandas', 'duckdb'})"
    )
    told = subprocess.run([sys.executable, "-c", asked], check=True, capture_output=True, text=True).stdout
    count, *heavy = told.split()
    base = f"bare Python {spent['bare']:.0f} ms"
    found = [
        Row(f"choice: import of {name}", f"{spent[name] - spent['bare']:.0f} ms CPU", base, spent[name] - spent["bare"])
        for name in names
    ]
    loaded = Row("choice: modules the recorder imports", count, f"of numpy, pandas, duckdb: {len(heavy)}", float(count))
    return [*found, loaded]


# -- WebSocket clients


def _clients() -> list[Row]:
    with subprocess.Popen([sys.executable, "-m", "benchmarks.choices"], stdout=subprocess.PIPE, text=True) as sender:
        try:
            assert sender.stdout is not None
            url = sender.stdout.readline().strip()
            work: dict[str, Callable[[], object]] = {"WebSocket, aiohttp": lambda: asyncio.run(_aiohttp(url))}
            try:
                import picows  # noqa: F401
                import uvloop
                import websockets  # noqa: F401
            except ImportError as exc:
                return [Row("choice: WebSocket clients", f"NOT INSTALLED: {exc.name}", "", 0.0)]
            work["WebSocket, aiohttp on uvloop"] = lambda: uvloop.run(_aiohttp(url))
            work["WebSocket, websockets"] = lambda: asyncio.run(_websockets(url))
            work["WebSocket, picows"] = lambda: asyncio.run(_picows(url))
            work["WebSocket, picows on uvloop"] = lambda: uvloop.run(_picows(url))
            return _compared(alternate(work, _ROUNDS), _FRAMES, "a frame of 80 KB")
        finally:
            sender.kill()


async def _aiohttp(url: str) -> None:
    async with aiohttp.ClientSession() as session, session.ws_connect(url, max_msg_size=0, compress=0) as socket:
        async for _ in socket:
            pass


async def _websockets(url: str) -> None:
    from websockets import ConnectionClosed, connect

    async with connect(url, max_size=None, compression=None) as socket:
        try:
            async for _ in socket:
                pass
        except ConnectionClosed:
            pass


async def _picows(url: str) -> None:
    import picows

    class Listener(picows.WSListener):  # type: ignore[misc]
        def on_ws_frame(self, transport: Any, frame: Any) -> None:
            if frame.msg_type == picows.WSMsgType.BINARY:
                frame.get_payload_as_bytes()
            elif frame.msg_type == picows.WSMsgType.CLOSE:
                transport.disconnect()

    transport, _ = await picows.ws_connect(Listener, url, max_frame_size=10_000_000)
    await transport.wait_disconnected()


async def _send() -> None:
    """Serve frames to whoever connects; print the address."""

    async def feed(request: web.Request) -> web.WebSocketResponse:
        socket = web.WebSocketResponse(compress=False)
        await socket.prepare(request)
        payload = os.urandom(_FRAME_BYTES)
        for _ in range(_FRAMES):
            await socket.send_bytes(payload)
        await socket.close()
        return socket

    app = web.Application()
    app.router.add_get("/", feed)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    print(f"ws://127.0.0.1:{runner.addresses[0][1]}/", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_send())
