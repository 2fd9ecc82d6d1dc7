"""The webhook against a receiver that fails: every event arrives, whole, once it is taken, and none waits for another."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import json
import time
from random import Random
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from delivering import Bench, singly
from structlog.testing import capture_logs
from unruly import Gate

from tickvault import notify
from tickvault.errors import JournalFull
from tickvault.notify import Notifier
from tickvault.outbox import Notice
from tickvault.state import State
from tickvault.testing import MemorySink

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from pathlib import Path

TestServer.__test__ = False  # type: ignore[attr-defined]

Answer = int | str  # a status, "never", or "without an end"


class Receiver:
    """Answers as told by event, the last answer for ever; keeps what it was sent."""

    def __init__(self) -> None:
        self.answers: dict[str, list[Answer]] = {}
        self.got: list[dict[str, Any]] = []
        self.taken: list[str] = []
        self.retry_after = ""
        self.headers: list[tuple[Any, bytes]] = []
        self.url = ""

    async def elsewhere(self, _: web.Request) -> web.Response:
        return web.Response()  # a login page, say

    async def handle(self, request: web.Request) -> web.Response:
        raw = await request.read()
        body = json.loads(raw)
        self.got.append(body)
        self.headers.append((request.headers.copy(), raw))
        answers = self.answers.get(body["event"], [200])
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if answer == "never":
            await asyncio.sleep(60)
        if answer == "without an end":
            response = web.StreamResponse(headers={"Content-Length": "10"})
            await response.prepare(request)
            await response.write(b"O")
            await asyncio.sleep(60)
        assert isinstance(answer, int)
        if answer < 300:
            self.taken.append(body["id"])
        headers = {"Location": "/elsewhere"} if 300 <= answer < 400 else {}
        if answer in {429, 503} and self.retry_after:
            headers["Retry-After"] = self.retry_after
        return web.Response(status=answer, headers=headers)


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    app = web.Application()
    app.router.add_post("/hook", receiver.handle)
    app.router.add_route("*", "/elsewhere", receiver.elsewhere)
    async with TestServer(app) as server:
        receiver.url = str(server.make_url("/hook"))
        yield receiver


class Outbox:
    """A state with events in it, and notifiers that run on it by a clock that can be set."""

    def __init__(self, path: Path, url: str) -> None:
        self.path = path / "state.db"
        self.url = url
        self.set_by_ns = 0
        self.stopped_at_ns: int | None = None
        self.interval_s = 0.0
        self.retry_s = 0.01
        self.open()

    def wall_ns(self) -> int:
        return self.set_by_ns + (self.stopped_at_ns or time.time_ns())

    def open(self) -> None:
        self.state, _ = State.open(self.path, notify_interval_ns=int(self.interval_s * 1e9), events=None)
        if self.state.journal() is None:
            self.state.set_journal("r", head_seq=0, first_seq=1)
            self.state.put_cursor("influx", 0)

    def reopen(self, *, interval_s: float = 0.0) -> None:
        self.interval_s = interval_s
        self.state.close()
        self.open()

    def put(self, event: str, *, sink: str = "influx", rows: int = 1) -> None:
        notice = Notice(
            event=event, sink=sink, high_water_seq=7, rows=rows, from_ns=1, to_ns=2, message="Data feed has been stored"
        )
        self.state.put_gaps((), notices=[notice], now_ns=self.wall_ns())

    @contextlib.asynccontextmanager
    async def notifier(self, *, secret: str | None = None) -> AsyncIterator[Notifier]:
        """Run a notifier; on leaving it is told to stop, and looks once more."""
        stopping = asyncio.Event()
        async with aiohttp.ClientSession() as session:
            notifier = Notifier(
                self.state,
                session,
                url=self.url,
                secret=secret,
                interval_s=self.interval_s,
                retry_s=self.retry_s,
                wall_ns=self.wall_ns,
                rng=Random(1),
            )
            async with asyncio.timeout(20), asyncio.TaskGroup() as group:
                task = group.create_task(notifier.run(stopping))
                try:
                    yield notifier
                finally:
                    stopping.set()
                    # What hangs is given up, as the recorder does when its time to stop is over.
                    await asyncio.wait([task], timeout=0.5)
                    task.cancel()


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
        assert notifier.failing == {("sink", "influx")}
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
        await until(lambda: bool(notifier.failing))
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
    outbox.reopen()
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


async def test_an_event_that_hangs_delays_nothing_but_its_own_lane(outbox: Outbox, receiver: Receiver) -> None:
    """Neither another kind nor another sink waits for it; what is behind it in its lane keeps its place."""
    receiver.answers["data.stored"] = ["never", 200]
    outbox.put("data.stored")
    async with outbox.notifier() as notifier:
        await until(lambda: len(receiver.got) == 1)
        for _ in range(3):
            outbox.put("gap.opened", sink="")
            outbox.put("gap.closed", sink="")
        outbox.put("data.stored", rows=50)
        outbox.put("data.stored", sink="parquet")
        outbox.put("sink.parked")
        await until(lambda: notifier.sent == 8)
        [hanging, *others] = receiver.got
        assert hanging["rows"] == 1
        assert [body["event"] for body in others if body["sink"] == ""] == ["gap.opened", "gap.closed"] * 3
        assert [body["sink"] for body in others if body["event"] == "data.stored"] == ["parquet"]
    assert outbox.state.outbox_count() == 2


async def test_a_gap_is_told_of_in_order_although_its_beginning_was_refused(outbox: Outbox, receiver: Receiver) -> None:
    """The end waits for the beginning: the last that was told is how things are."""
    receiver.answers["gap.opened"] = [500, 500, 200]
    outbox.put("gap.opened", sink="")
    outbox.put("gap.closed", sink="")
    async with outbox.notifier() as notifier:
        await until(lambda: notifier.sent == 2)
    assert [body["event"] for body in receiver.got] == ["gap.opened"] * 3 + ["gap.closed"]


@pytest.mark.parametrize("clock", ["goes on", "is set back"])
async def test_after_an_outage_two_data_stored_are_an_interval_apart(
    outbox: Outbox, receiver: Receiver, clock: str
) -> None:
    """The tried one and what was stored meanwhile do not go out together; a clock that is set back ends the wait."""
    outbox.reopen(interval_s=1000)
    receiver.answers["data.stored"] = [500]
    outbox.put("data.stored")
    async with outbox.notifier() as notifier:
        await until(lambda: bool(notifier.failing))
        outbox.put("data.stored", rows=90)
        receiver.answers["data.stored"] = [200]
        await until(lambda: notifier.sent == 1)
        outbox.put("data.stored", rows=9)
    outbox.reopen(interval_s=1000)
    async with outbox.notifier() as notifier:
        outbox.put("gap.opened", sink="")
        await until(lambda: notifier.sent == 1)  # it has looked
        assert len(receiver.taken) == 2
        outbox.set_by_ns = {"goes on": 1000 * 10**9, "is set back": -5000 * 10**9}[clock]
        await until(lambda: notifier.sent == 2)
    assert [body["rows"] for body in receiver.got if body["id"] == receiver.taken[-1]] == [99]


@pytest.mark.parametrize(
    ("status", "wish", "pause_s"),
    [(429, "30", 30), (503, "30", 30), (429, "3600", 50), (429, "Thu, 01 Jan 2026 00:00:20 GMT", 20)],
)
async def test_a_receiver_is_left_alone_as_long_as_it_asks(
    outbox: Outbox, receiver: Receiver, status: int, wish: str, pause_s: int
) -> None:
    """By seconds or by date, but never longer than the longest pause that is set."""
    outbox.stopped_at_ns, outbox.retry_s = 1_767_225_600 * 10**9, 50.0  # 2026-01-01T00:00:00Z
    receiver.answers["data.stored"], receiver.retry_after = [status], wish
    outbox.put("data.stored")
    async with outbox.notifier():
        await until(lambda: outbox.state.heads()[0].not_before_ns == outbox.wall_ns() + pause_s * 10**9)


async def test_the_end_of_an_answer_is_not_waited_for(outbox: Outbox, receiver: Receiver) -> None:
    """The status says that it was taken."""
    receiver.answers["data.stored"] = ["without an end"]
    outbox.put("data.stored")
    async with outbox.notifier() as notifier:
        await until(lambda: notifier.sent == 1)
    assert len(receiver.got) == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nI shall",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 4\r\n\r\nnope",
        b"HTTP/1.0 204\r\n\r\n",
    ],
)
async def test_a_receiver_that_says_yes_and_breaks_off_has_taken_it(outbox: Outbox, answer: bytes) -> None:
    """What follows a 2xx is nobody's business: the event is told once."""
    posts = 0

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal posts
        posts += 1
        await reader.readuntil(b"}")
        writer.write(answer)
        writer.close()

    server = await asyncio.start_server(speak, "127.0.0.1", 0)
    async with server:
        outbox.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook"
        outbox.put("data.stored")
        async with outbox.notifier() as notifier:
            await until(lambda: notifier.sent == 1)
    assert (posts, outbox.state.outbox_count()) == (1, 0)


async def test_an_answer_that_comes_a_byte_at_a_time_is_given_up_on(
    outbox: Outbox, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time for one try counts from its beginning, however busy the line is."""
    monkeypatch.setattr(notify, "_TIMEOUT", aiohttp.ClientTimeout(total=0.2))
    outbox.put("data.stored")
    async with Gate(receiver.url) as gate:
        gate.faults = ["dribble", "reset", "cut", "lost"]
        outbox.url = f"{gate.url}/hook"
        async with outbox.notifier() as notifier:
            await until(lambda: notifier.sent == 1)
    assert len({body["id"] for body in receiver.got}) == 1
    assert len(receiver.got) == 2, "once where the answer was lost, and once where it was not"


async def test_a_receiver_that_never_answers_delays_no_sink_and_piles_nothing_up(
    tmp_path: Path, receiver: Receiver
) -> None:
    """Two hundred deliveries beside it: all made, and two events wait: the one tried, and one with all the others."""
    receiver.answers["data.stored"] = ["never"]
    bench = Bench(tmp_path)
    bench.append(200)
    outbox = Outbox.__new__(Outbox)
    outbox.state, outbox.url = bench.state, receiver.url
    outbox.set_by_ns, outbox.stopped_at_ns, outbox.interval_s, outbox.retry_s = 0, None, 0.0, 60.0
    sink = MemorySink(policy=singly(), tables=("ticks",))
    async with outbox.notifier() as notifier:
        delivery = bench.delivery(sink)
        running = asyncio.create_task(delivery.run())
        await until(lambda: bool(receiver.got) or running.done())
        await asyncio.wait_for(running, 20)
        assert (notifier.sent, bench.state.outbox_count()) == (0, 2 if receiver.got else 1)
    assert sink.seqs() == list(range(1, 201))
    bodies = [json.loads(row[0]) for row in bench.state._db.execute("SELECT body FROM outbox ORDER BY ord")]
    assert sum(body["rows"] for body in bodies) == 200
    assert bodies[-1]["high_water_seq"] == 200
    bench.close()


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"\x00\xff\r\n\r\n",
        b"HTTP/1.1 200",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n",
        b"HTTP/1.1 999999 ?\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nnonsense",
        b"HTTP/1.1 429 Slow\r\nRetry-After: \xff\r\nContent-Length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n\r\n",
    ],
)
async def test_an_answer_that_is_none_is_a_failure(outbox: Outbox, answer: bytes) -> None:
    """Whatever speaks at that address, the event waits and the recorder goes on."""

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(speak, "127.0.0.1", 0)
    async with server:
        outbox.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/hook"
        outbox.put("data.stored")
        async with outbox.notifier() as notifier:
            await until(lambda: outbox.state.heads()[0].attempts >= 2)
            assert notifier.sent == 0
    assert outbox.state.outbox_count() == 1


async def test_a_bug_in_telling_ends_neither_the_recorder_nor_the_telling(
    outbox: Outbox, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever is raised while events are looked up or marked: said, and tried again later."""
    monkeypatch.setattr(notify, "_AFTER_BUG_S", 0.01)
    heads, mark = outbox.state.heads, outbox.state.mark_attempt
    bugs = iter([ZeroDivisionError("looked up"), ZeroDivisionError("marked")])

    def oops(change: Any) -> Any:
        def planted(*args: Any) -> Any:
            if (bug := next(bugs, None)) is not None:
                raise bug
            return change(*args)

        return planted

    monkeypatch.setattr(outbox.state, "heads", oops(heads))
    monkeypatch.setattr(outbox.state, "mark_attempt", oops(mark))
    outbox.put("data.stored")
    with capture_logs() as logs:
        async with outbox.notifier() as notifier:
            await until(lambda: notifier.sent == 1)
    assert [one["event"] for one in logs].count("webhook.failed") == 2
    assert len(receiver.got) == 1


@pytest.mark.parametrize("change", ["mark_attempt", "delivered", "postpone"])
async def test_a_full_disk_is_waited_for(
    outbox: Outbox, receiver: Receiver, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """What cannot be written down is neither posted nor posted again, and nothing ends."""
    monkeypatch.setattr(notify, "_FIRST_RETRY_S", 0.01)
    real, left = getattr(outbox.state, change), 3

    def full(*args: Any) -> Any:
        nonlocal left
        left -= 1
        if left >= 0:
            raise JournalFull("no room")
        return real(*args)

    monkeypatch.setattr(outbox.state, change, full)
    receiver.answers["data.stored"] = [500, 200] if change == "postpone" else [200]
    outbox.put("data.stored")
    with capture_logs() as logs:
        async with outbox.notifier() as notifier:
            await until(lambda: notifier.sent == 1)
    assert len(receiver.got) == (2 if change == "postpone" else 1)
    assert [line["event"] for line in logs].count("webhook.waits_for_disk") == 1


async def test_failing_is_said_once_however_many_lanes_fail(outbox: Outbox, receiver: Receiver) -> None:
    """One line when the first event is refused, one when the last that was refused is taken; others do not count."""
    receiver.answers |= {"gap.opened": [400], "sink.parked": [400]}
    outbox.put("gap.opened", sink="")
    outbox.put("sink.parked")
    with capture_logs() as logs:
        async with outbox.notifier() as notifier:
            await until(lambda: len(notifier.failing) == 2)
            outbox.put("data.stored")
            await until(lambda: notifier.sent == 1)
            receiver.answers["gap.opened"] = [200]
            await until(lambda: notifier.sent == 2)
            assert [line["event"] for line in logs] == ["webhook.failing"]
            receiver.answers["sink.parked"] = [200]
            await until(lambda: notifier.sent == 3)
    assert [line["event"] for line in logs] == ["webhook.failing", "webhook.recovered"]
    assert "400; expected 2xx" in logs[0]["error"]
