"""The server: its life, its WebSockets, and the faults it is told to commit.

Structure: one task for the market's clock, one for the script; every connection has, inside the task that the HTTP
server runs it in, a task that sends.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import errno
from dataclasses import replace
from typing import TYPE_CHECKING, Final, Self, assert_never

import structlog
from aiohttp import web

from tickvault.errors import Refused
from tickvault.simulator import script as do
from tickvault.simulator.board import Board
from tickvault.simulator.bulletin import Bulletin
from tickvault.simulator.calendar import ist_date
from tickvault.simulator.clock import Clock
from tickvault.simulator.connection import Connection, reset
from tickvault.simulator.exchange import Exchange
from tickvault.simulator.framelog import FrameLog
from tickvault.simulator.frames import garbage
from tickvault.simulator.front import Front
from tickvault.simulator.gate import Conditions, Gate
from tickvault.simulator.login import Login
from tickvault.simulator.reading import Script, load_script, timeline
from tickvault.simulator.rest import FEED_PATH, Rest
from tickvault.simulator.subscriptions import Subscriptions
from tickvault.simulator.universe import build_universe

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from types import TracebackType

    from tickvault.simulator.settings import SimulatorSettings

__all__ = ["Simulator", "serve"]

_SHUTDOWN_S: Final = 1.0
_MAX_REQUEST: Final = 4 * 1024 * 1024

log = structlog.get_logger(__name__)


class Simulator:
    """An Upstox V3 server on this machine; serves while entered.

    Attributes:
        port: the TCP port; known once entered, like all that follows.
        url: `http://host:port`, what `UPSTOX_API_URL` is set to.
        instrument_keys: what is listed, in the order of the universe.
    """

    def __init__(self, settings: SimulatorSettings) -> None:
        """Take settings; nothing is opened yet."""
        self._settings = settings
        self.port = 0
        self.url = ""
        self.instrument_keys: tuple[str, ...] = ()
        self._accepted = self._serving = 0
        self._running: list[asyncio.Task[None]] = []
        self._ending = False

    async def __aenter__(self) -> Self:
        """Listen, and start the market.

        Raises:
            ConfigurationError: the script or the log file cannot be used.
            Refused: the address cannot be listened on.
        """
        settings = self._settings
        script = await self._script()
        self._build(script)
        async with contextlib.AsyncExitStack() as stack:
            if settings.log is not None:
                self._exchange.log = await stack.enter_async_context(FrameLog(settings.log))
            await self._listen(stack)
            self._stack = stack.pop_all()
        self._tasks = await asyncio.TaskGroup().__aenter__()
        self._start(self._exchange.run_clock(), "clock")
        self._start(self._board.run(self._tell_statuses), "calendar")
        if script.steps:
            self._start(self._run_script(script.steps), "script")
        log.info("simulator.started", url=self.url, instruments=settings.instruments, seed=settings.seed)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close every connection with 1001 and stop listening."""
        self._ending = True
        for task in self._running:
            task.cancel()
        try:
            # The body's exception is not the group's: it would come out wrapped.
            await self._tasks.__aexit__(None, None, None)
        finally:
            await self._close_all(1001)
            await self._stack.aclose()
        log.info("simulator.stopped", frames=self.frames_sent, updates=self.updates_sent)

    @property
    def frames_sent(self) -> int:
        """Data frames handed to TCP, over all connections."""
        return self._exchange.frames_sent

    @property
    def updates_sent(self) -> int:
        """Instrument entries in the live frames among them."""
        return self._exchange.updates_sent

    def play(self, *steps: do.Step) -> None:
        """Play steps on top of what goes on; their `at_s` counts from now.

        Args:
            steps: faults; those of a script are `load_script(name).steps`.
        """
        self._start(self._run_script(steps), "played")

    def now_ms(self) -> int:
        """Return the simulation's time, epoch ms."""
        return self._clock.now_ms()

    def push(self, payload: bytes) -> None:
        """Queue one frame, as it is, for every open connection; it is logged like any other.

        Raises:
            Refused: a client takes nothing and 256 frames wait for it already.
        """
        for connection in list(self._exchange.connections.values()):
            if not connection.offer(payload):
                raise Refused(f"connection {connection.number} takes no frames; reset it with drop_connections()")

    async def drop_connections(self, code: int | None = None) -> None:
        """End every connection: by a TCP reset, or with a close frame of `code`. Returns when they are gone."""
        dropped = list(self._exchange.connections.values())
        if code is not None:
            await self._close_all(code)
        for connection in dropped:
            connection.abort()
        for connection in dropped:
            await connection.gone.wait()

    async def feed(self, request: web.Request) -> web.StreamResponse:
        """Serve the WebSocket at a single-use address."""
        rules = self._rules
        await asyncio.sleep(rules.handshake_s)
        now_s = asyncio.get_running_loop().time()
        known = self._gate.redeem(request.query.get("requestId", ""), request.query.get("code", ""), now_s)
        if (forbid := self._exchange.holds(do.Forbid)) is not None:
            if not forbid.status:
                reset(request.transport)
            return web.Response(status=forbid.status or 403)
        if not known:
            return web.Response(status=rules.reused_status)
        if rules.connections and self._serving >= rules.connections:
            if rules.over_connections == "refuse":
                return web.Response(status=rules.refuse_status)
            for number in sorted(self._exchange.connections)[:1]:
                await self._exchange.connections[number].close(rules.evict_code)
        if self._ending:  # who is sent away and comes back at once finds nobody: what it were sent would be lost
            return web.Response(status=503)
        self._serving += 1
        try:
            return await self._serve(request)
        finally:
            self._serving -= 1

    async def _serve(self, request: web.Request) -> web.WebSocketResponse:
        rules = self._rules
        socket = web.WebSocketResponse(compress=rules.deflate, max_msg_size=_MAX_REQUEST, timeout=_SHUTDOWN_S)
        await socket.prepare(request)
        if rules.ping_at_open:
            await socket.ping()
        self._accepted += 1
        number = self._accepted
        subscriptions = Subscriptions(self._positions, rules)
        connection = Connection(number, request, socket, subscriptions, self._exchange, self._settings.ping_after_s)
        connection.offer(self._board.frame())
        self._exchange.connections[number] = connection
        log.info("simulator.connected", conn=number)
        try:
            await connection.run()
        finally:
            del self._exchange.connections[number]
            connection.gone.set()
            self._exchange.watch_again()
            log.info("simulator.disconnected", conn=number, code=socket.close_code)
        return socket

    async def _script(self) -> Script:
        given = self._settings.script
        if isinstance(given, Script):
            return given
        if isinstance(given, tuple):
            return Script(steps=given)
        return Script() if given is None else await asyncio.to_thread(load_script, given)

    def _build(self, script: Script) -> None:
        settings = self._settings
        self._rules = replace(settings.rules, **script.rules)
        clock = self._clock = Clock(start=settings.start or script.start, speed=settings.speed or script.speed or 1.0)
        today = ist_date(clock.now_ms())
        calendar = (script.calendar or settings.calendar).resolved(today)
        universe = build_universe(settings.instruments, today)
        self.instrument_keys = tuple(one.key for one in universe)
        self._positions = {key: position for position, key in enumerate(self.instrument_keys)}
        self._conditions = Conditions()
        self._gate = Gate(settings.tokens, self._rules.address_life_s)
        self._rest = Rest(universe, self._gate, self._conditions, self._rules)
        self._board = Board(calendar, clock, settings.seed)
        self._bulletin = Bulletin(calendar, self._board.statuses, clock.now_ms)
        self._exchange = Exchange(universe, settings, calendar, self._conditions, self._board, clock)

    def _start(self, work: Coroutine[None, None, None], name: str) -> None:
        self._running.append(self._tasks.create_task(work, name=f"simulator-{name}"))

    async def _listen(self, stack: contextlib.AsyncExitStack) -> None:
        settings = self._settings
        front = Front(self._gate, self._conditions, self._rules)
        app = web.Application(middlewares=[front.middleware()])
        app.add_routes(
            [*self._rest.routes(), *Login(self._gate).routes(), *self._bulletin.routes(), web.get(FEED_PATH, self.feed)]
        )
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=_SHUTDOWN_S)
        await runner.setup()
        stack.push_async_callback(runner.cleanup)
        try:
            await web.TCPSite(runner, settings.host, settings.port).start()
        except OSError as exc:
            place = f"{settings.host}:{settings.port}"
            if exc.errno == errno.EADDRINUSE:
                raise Refused(f"{place} is in use; stop what listens there, or choose another --port") from exc
            raise Refused(f"cannot listen on {place}: {exc.strerror}; choose another --host or --port") from exc
        self.port = runner.addresses[0][1]
        host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.host, settings.host)  # noqa: S104
        self.url = f"http://{f'[{host}]' if ':' in host and host[0] != '[' else host}:{self.port}"

    async def _run_script(self, steps: tuple[do.Step, ...]) -> None:
        loop = asyncio.get_running_loop()
        start_s = loop.time()
        async with asyncio.TaskGroup() as tasks:
            for number, (at_s, step) in enumerate(timeline(steps)):
                await asyncio.sleep(start_s + at_s / self._clock.speed - loop.time())
                log.info("simulator.fault", at_s=at_s, do=type(step).__name__)
                tasks.create_task(self._apply(step), name=f"simulator-fault-{number}")

    async def _apply(self, step: do.Step) -> None:
        if isinstance(step, do.Timed):
            self._conditions.impose(step, asyncio.get_running_loop().time(), self._clock.speed)
        match step:
            case do.Stall():
                await self._stall(step)
            case do.RotateToken():
                await self._publish(self._gate.rotate(old_lives=step.old == "lives"), step.after_s)
            case do.ExpireToken():
                token = self._gate.expire()
                if step.sockets == "close":
                    await self._close_all(step.code)
                await self._publish(token, step.after_s)
            case do.Relist():
                self._rest.relist(step)
            case do.Garbage():
                self._push_all(garbage(step.size))
            case do.Raw():
                self._push_all(base64.b64decode(step.payload))
            case do.MarketStatus():
                self._board.show(step.segment, step.scope, step.status)
                self._tell_statuses()
            case do.Aimed():
                await self._aim(step)
            case do.Timed():
                pass  # imposed above; whoever it concerns asks
            case _:
                assert_never(step)

    async def _aim(self, step: do.Aimed) -> None:
        async with asyncio.TaskGroup() as tasks:
            for connection in self._aimed(step.conn):
                match step:
                    case do.Close():
                        tasks.create_task(connection.close(step.code), name=f"simulator-close-{connection.number}")
                    case do.Text():
                        tasks.create_task(connection.say(step.body), name=f"simulator-text-{connection.number}")
                    case do.HangUp():
                        connection.hang_up()
                    case _:
                        connection.abort()

    async def _stall(self, step: do.Stall) -> None:
        held = self._aimed(step.conn)
        for connection in held:
            connection.hold_reading(hold=True)
        await asyncio.sleep(step.seconds / self._clock.speed)
        for connection in held:
            connection.hold_reading(hold=False)

    async def _publish(self, token: str, after_s: float) -> None:
        await asyncio.sleep(after_s / self._clock.speed)
        self._gate.token = token

    def _aimed(self, conn: int) -> list[Connection]:
        return [one for one in self._exchange.connections.values() if conn in {0, one.number}]

    def _tell_statuses(self) -> None:
        self._push_all(self._board.frame())

    def _push_all(self, payload: bytes) -> None:
        for connection in self._exchange.connections.values():
            connection.offer(payload)

    async def _close_all(self, code: int) -> None:
        async with asyncio.TaskGroup() as tasks:
            for connection in list(self._exchange.connections.values()):
                tasks.create_task(connection.close(code), name=f"simulator-close-{connection.number}")


async def serve(
    settings: SimulatorSettings, stopping: asyncio.Event, on_ready: Callable[[Simulator], None] | None = None
) -> None:
    """Run a simulator until `stopping` is set.

    Args:
        settings: what to simulate.
        stopping: set by whoever wants it to end.
        on_ready: called once, when it listens; for printing its address.

    Raises:
        ConfigurationError: the script or the log file cannot be used.
        Refused: the address cannot be listened on.
    """
    async with Simulator(settings) as simulator:
        if on_ready is not None:
            on_ready(simulator)
        await stopping.wait()
