"""Time that passes only while everybody waits."""

from __future__ import annotations

import asyncio
import socket
import threading
import time

import pytest

pytestmark = pytest.mark.virtual
LONG_S = 600.0


async def test_clocks_agree_and_never_stand() -> None:
    """Minutes pass at once, on every clock."""
    clocks = (
        time.time,
        time.monotonic,
        asyncio.get_running_loop().time,
        lambda: time.time_ns() / 1e9,
        lambda: time.monotonic_ns() / 1e9,
        lambda: time.clock_gettime_ns(time.CLOCK_BOOTTIME) / 1e9,
    )
    before = [clock() for clock in clocks]
    await asyncio.sleep(LONG_S)
    assert [clock() - at for clock, at in zip(clocks, before, strict=True)] == pytest.approx([LONG_S] * 6, abs=0.1)
    assert time.monotonic_ns() < time.monotonic_ns()


async def test_timers_are_due_in_order() -> None:
    """However far apart they are."""
    done = []

    async def note(after_s: float) -> None:
        await asyncio.sleep(after_s)
        done.append(after_s)

    async with asyncio.TaskGroup() as tasks:
        for after_s in (LONG_S, 0.001, 60.0, 0.1):
            tasks.create_task(note(after_s))
    assert done == [0.001, 0.1, 60.0, LONG_S]


async def test_a_thread_at_work_takes_no_time() -> None:
    """Its result is there before any timer, even one whose wait was given up."""
    begun, done = threading.Event(), threading.Event()
    at_s = time.monotonic()
    async with asyncio.timeout(0.001):
        assert await asyncio.to_thread(lambda: threading.Event().wait(0.05)) is False

    def work() -> None:
        begun.set()
        threading.Event().wait(0.05)
        done.set()

    task = asyncio.create_task(asyncio.to_thread(work))
    await asyncio.sleep(0)
    assert begun.wait(20)
    task.cancel()
    await asyncio.sleep(0.001)
    assert done.is_set()
    assert time.monotonic() - at_s < 0.01


async def test_a_full_pipe_moves_on_in_no_time() -> None:
    """More than the buffers take, through a socket that is read from: no timer is due before all of it has come."""
    listening = socket.create_server(("127.0.0.1", 0))
    size = 64 * 1024 * 1024

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(bytes(size))
        await writer.drain()
        writer.close()
        await writer.wait_closed()

    async with await asyncio.start_server(serve, sock=listening):
        reader, writer = await asyncio.open_connection(*listening.getsockname())
        async with asyncio.timeout(0.25):
            assert len(await reader.read()) == size
        writer.close()
        await writer.wait_closed()
