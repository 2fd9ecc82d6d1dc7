"""The webhook against a receiver that fails: every event arrives, whole, once it is taken, and none waits for another."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
from random import Random
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from tickvault import notify
from tickvault.notify import Notifier
from tickvault.state import Notice, State

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

TestServer.__test__ = False  # type: ignore[attr-defined]

Answer = int | str  # a status, or "never"


class Receiver:
    """Answers as told by event, the last answer for ever; keeps what it was sent."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Answer]] = {}
        self.got: list[dict[str, Any]] = []
        self.taken: list[str] = []
        self.headers: list[tuple[Any, bytes]] = []
        self.url = ""

    async def handle(self, request: web.Request) -> web.Response:
        raw = await request.read()
        body = json.loads(raw)
        self.got.append(body)
        self.headers.append((request.headers.copy(), raw))
        answers = self.answers.get(body["event"], [200])
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if answer == "never":
            await asyncio.sleep(60)
        assert isinstance(answer, int)
        if answer < 300:
            self.taken.append(body["id"])
        return web.Response(status=answer, headers={"Location": "/elsewhere"} if 300 <= answer < 400 else {})


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    app = web.Application()
    app.router.add_post("/hook", receiver.handle)
    async with TestServer(app) as server:
        receiver.url = str(server.make_url("/hook"))
        yield receiver


class Outbox:
    """A state with events in it, and notifiers that run on it."""

    def __init__(self, path: Path, url: str) -> None:
        self.path = path / "state.db"
        self.url = url
        self.open()

    def open(self) -> None:
        self.state, _ = State.open(self.path, events=None)
        if self.state.journal() is None:
            self.state.set_journal("r", head_seq=0, first_seq=1)
            self.state.put_cursor("influx", 0)

    def put(self, event: str, *, sink: str = "influx", rows: int = 1) -> None:
        notice = Notice(
            event=event, sink=sink, high_water_seq=7, rows=rows, from_ns=1, to_ns=2, message="Data feed has been stored"
        )
        self.state.put_gaps((), notices=[notice], now_ns=0)

    @contextlib.asynccontextmanager
    async def notifier(self, *, secret: str | None = None) -> AsyncIterator[Notifier]:
        """Run a notifier; on leaving it is told to stop, and looks once more."""
        import time

        stopping = asyncio.Event()
        async with aiohttp.ClientSession() as session:
            notifier = Notifier(
                self.state,
                session,
                url=self.url,
                secret=secret,
                retry_s=0.01,
                wall_ns=time.time_ns,
                rng=Random(1),
            )
            async with asyncio.timeout(20), asyncio.TaskGroup() as group:
                group.create_task(notifier.run(stopping))
                try:
                    yield notifier
                finally:
                    stopping.set()


@pytest.fixture
async def outbox(tmp_path: Path, receiver: Receiver, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Outbox]:
    monkeypatch.setattr(notify, "_LOOK_S", 0.01)
    outbox = Outbox(tmp_path, receiver.url)
    yield outbox
    outbox.state.close()


async def until(condition: Callable[[], bool | Awaitable[bool]]) -> None:
    async with asyncio.timeout(10):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("status", [200, 202, 204])
async def test_an_event_that_is_taken_is_sent_once(outbox: Outbox, receiver: Receiver, status: int) -> None:
    """Any 2xx takes it; the body has what is promised."""
    receiver.answers["data.stored"] = [status]
    outbox.put("data.stored")
    async with outbox.notifier() as notifier:
        await until(lambda: notifier.sent == 1)
    [body] = receiver.got
    assert {name: body[name] for name in ("event", "sink", "recorder_id", "high_water_seq", "rows", "from", "to", "message")} == {
        "event": "data.stored", "sink": "influx", "recorder_id": "r", "high_water_seq": 7, "rows": 1, "from": 1, "to": 2,
        "message": "Data feed has been stored",
    }  # fmt: skip
    [(headers, _)] = receiver.headers
    assert headers["X-Tickvault-Event-Id"] == body["id"]
    assert headers["Content-Type"] == "application/json"
    assert "X-Tickvault-Signature" not in headers
    assert outbox.state.outbox_count() == 0


@pytest.mark.parametrize("refusal", [500, 404, 301])
async def test_an_event_that_is_refused_is_sent_again_as_it_was(
    outbox: Outbox, receiver: Receiver, refusal: int
) -> None:
    """Nothing but 2xx takes an event; a redirect is not followed; the repeat has the same id and body."""
    receiver.answers["data.stored"] = [refusal, refusal, 200]
    outbox.put("data.stored")
    async with outbox.notifier() as notifier:
        await until(lambda: len(receiver.got) == 1)
        outbox.put("data.stored", rows=90)  # stored meanwhile: an event of its own
        await until(lambda: outbox.state.outbox_count() == 0)
        assert not notifier.failing
    mine = [body for body in receiver.got if body["rows"] == 1]
    assert len(mine) == 3
    assert mine[0] == mine[1] == mine[2]
    assert len(set(receiver.taken)) == 2


async def test_other_events_do_not_queue_behind_one_that_fails(outbox: Outbox, receiver: Receiver) -> None:
    """Each waits for itself."""
    receiver.answers["sink.parked"] = [500]
    for event in ("sink.parked", "gap.opened", "gap.closed", "data.stored"):
        outbox.put(event)
    async with outbox.notifier() as notifier:
        await until(lambda: notifier.sent == 3)
        assert notifier.failing or outbox.state.outbox_count() == 1
    assert outbox.state.outbox_count() == 1


async def test_a_receiver_that_never_answers_is_given_up_on_and_tried_again(
    outbox: Outbox, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time for one try is bounded."""
    monkeypatch.setattr(notify, "_TIMEOUT", aiohttp.ClientTimeout(total=0.1))
    receiver.answers["data.stored"] = ["never", 200]
    outbox.put("data.stored")
    async with outbox.notifier() as notifier:
        await until(lambda: notifier.sent == 1)
    assert len(receiver.got) == 2
    assert receiver.got[0] == receiver.got[1]


async def test_a_receiver_that_is_not_there_is_waited_for(outbox: Outbox, receiver: Receiver) -> None:
    """A refused connection is a failure like another."""
    good, outbox.url = outbox.url, "http://127.0.0.1:9/hook"
    outbox.put("data.stored")
    async with outbox.notifier() as notifier:
        await until(lambda: notifier.failing)
    assert outbox.state.outbox_count() == 1
    outbox.url = good
    async with outbox.notifier() as notifier:
        await until(lambda: notifier.sent == 1)


async def test_a_secret_signs_the_body(outbox: Outbox, receiver: Receiver) -> None:
    """HMAC-SHA256 over the bytes as they are sent."""
    outbox.put("data.stored")
    async with outbox.notifier(secret="s3cret") as notifier:
        await until(lambda: notifier.sent == 1)
    [(headers, raw)] = receiver.headers
    expected = hmac.new(b"s3cret", raw, hashlib.sha256).hexdigest()
    assert headers["X-Tickvault-Signature"] == f"sha256={expected}"


async def test_a_kill_between_try_and_receipt_sends_the_same_event_again(outbox: Outbox, receiver: Receiver) -> None:
    """The receiver tells a repeat by its id; what was stored meanwhile does not change it."""
    receiver.answers["data.stored"] = ["never", 200]
    outbox.put("data.stored")
    with contextlib.suppress(asyncio.CancelledError, ExceptionGroup):
        async with asyncio.timeout(10), asyncio.TaskGroup() as group:

            async def killed() -> None:
                async with outbox.notifier():
                    await asyncio.sleep(60)

            task = group.create_task(killed())
            await until(lambda: len(receiver.got) == 1)
            task.cancel()
    outbox.state.close()
    outbox.open()
    outbox.put("data.stored", rows=50)
    async with outbox.notifier() as notifier:
        await until(lambda: notifier.sent == 2)
    first, *rest = receiver.got
    assert first in rest
    assert sorted(body["rows"] for body in rest) == [1, 50]


async def test_what_is_due_at_the_end_is_sent_before_the_end(outbox: Outbox, receiver: Receiver) -> None:
    """Told to stop, it looks once more."""
    async with outbox.notifier() as notifier:
        outbox.put("gap.closed")
    assert notifier.sent == 1
    assert [body["event"] for body in receiver.got] == ["gap.closed"]
