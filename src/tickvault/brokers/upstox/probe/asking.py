"""The probe's session: each step asks the broker one question."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import statistics
import time
from collections import Counter
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import pairwise
from typing import TYPE_CHECKING, Final

import aiohttp
from aiohttp import ClientWSTimeout, WSMsgType
from yarl import URL

from tickvault.brokers.upstox.api import USER_AGENT, describe
from tickvault.brokers.upstox.jwt import Kind, read_claims
from tickvault.brokers.upstox.plan import Method, RateLimit, new_guid, request_bytes
from tickvault.brokers.upstox.probe.frames import grid, minutes, parts, spread
from tickvault.brokers.upstox.probe.line import CLOSE_S, Ended, Line
from tickvault.brokers.upstox.probe.sheet import Finding, Sheet
from tickvault.errors import FeedUnavailable, TokenRefused
from tickvault.model import IST, Mode, segment_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence
    from random import Random

    from tickvault.brokers.upstox.api import UpstoxApi
    from tickvault.brokers.upstox.probe.frames import Frame
    from tickvault.brokers.upstox.probe.sheet import Pace

__all__ = ["MAX_KEYS", "run_probe"]

MAX_KEYS: Final = 100  # enough to see how frames are made up, and no load
_MAX_MESSAGE_BYTES: Final = 16 * 1024 * 1024
_CONNECT_S: Final = 10.0
_SETTLE_S: Final = 1.0  # an update that was on its way when a request was answered
# A key of the right form that no contract has; the broker's numbers have at most six digits.
_UNLISTED: Final = "NSE_FO|999999999"


async def run_probe(
    api: UpstoxApi,
    session: aiohttp.ClientSession,
    token: str,
    *,
    keys: Sequence[str],
    pace: Pace,
    sockets: bool,
    expired_key: str | None,
    say: Callable[[str], None],
    rng: Random,
    rate: RateLimit | None = None,
) -> Sheet:
    """Go through the steps and return what they found; a step that cannot be carried out says so in its finding.

    Args:
        api: authorizes.
        session: the program's HTTP session; not closed here.
        token: never shown.
        keys: 1 to MAX_KEYS instrument keys.
        pace: how long to wait for what.
        sockets: also try three connections at once.
        expired_key: of a contract that has expired; None: that step is left out.
        say: shows a line as a step begins.
        rng: source of request ids.
        rate: bounds the authorize calls; None: those of this probe alone.

    Raises:
        TokenRefused: at the first authorize.
        FeedUnavailable: at the first authorize, or the first connection does not open.
    """
    one = _Probe(
        api=api, session=session, token=token, keys=tuple(keys), pace=pace, say=say, rng=rng, rate=rate or RateLimit()
    )
    first = await one.connect()  # outside the group, which would wrap what it raises
    async with asyncio.TaskGroup() as group:
        group.create_task(first.read(), name="probe:read")
        await one.step("open", lambda: one.open(first))
        try:
            aged = await one.on_first(first, expired_key)
        finally:
            await first.hang_up()
        await one.later(first, aged)
        if sockets:
            await one.step("sockets", lambda: one.sockets(group))
    claims = read_claims(token)
    return Sheet(
        made_at=f"{dt.datetime.now(IST):%Y-%m-%d %H:%M} IST",
        feed_host=first.host,
        token_kind=str(claims.kind if claims is not None else Kind.UNKNOWN),
        plus=claims.plus if claims is not None else None,
        keys=Counter(segment_of(key) for key in keys),
        findings=tuple(one.findings),
    )


@dataclass(slots=True, kw_only=True)
class _Probe:
    """The steps, and what they have found so far."""

    api: UpstoxApi
    session: aiohttp.ClientSession
    token: str = field(repr=False)
    keys: tuple[str, ...]
    pace: Pace
    say: Callable[[str], None]
    rng: Random
    findings: list[Finding] = field(default_factory=list)
    rate: RateLimit
    opening: Mapping[str, int] = field(default_factory=dict)

    async def step(self, name: str, work: Callable[[], Awaitable[Finding]]) -> None:
        """Carry out one step; what keeps it from its end is its finding."""
        self.say(f"{name} …")
        try:
            finding = await work()
        except Ended as exc:
            finding = Finding(step=name, answer=f"not measured: the connection was {exc}")
        except (FeedUnavailable, TokenRefused) as exc:
            finding = Finding(step=name, answer=f"not measured: {exc}")
        self.findings.append(finding)

    async def authorize(self) -> str:
        """Return an address that opens once, within the rate limit."""
        while not self.rate.take(time.monotonic()):  # noqa: ASYNC110 - another program may have taken it meanwhile
            await asyncio.sleep(self.rate.delay_s(time.monotonic()))
        return await self.api.authorize(self.token)

    async def handshake(self, uri: str) -> aiohttp.ClientWebSocketResponse | str:
        """Open an address; return the connection, or why there is none."""
        try:
            async with asyncio.timeout(_CONNECT_S):
                return await self.session.ws_connect(
                    URL(uri, encoded=True),
                    headers={"User-Agent": USER_AGENT},
                    timeout=ClientWSTimeout(ws_close=CLOSE_S),
                    compress=15,
                    max_msg_size=_MAX_MESSAGE_BYTES,
                    heartbeat=None,
                    autoping=False,
                )
        except aiohttp.WSServerHandshakeError as exc:
            return f"HTTP {exc.status}"
        except (aiohttp.ClientError, OSError, TimeoutError) as exc:
            return describe(exc)

    async def connect(self) -> Line:
        """Return the connection that most steps work on.

        Raises:
            TokenRefused: the broker does not accept the token.
            FeedUnavailable: the connection is not to be had.
        """
        start_s = time.monotonic()
        uri = await self.authorize()
        authorized_s = time.monotonic()
        ws = await self.handshake(uri)
        if isinstance(ws, str):
            raise FeedUnavailable(f"the feed does not open: {ws}")
        opened_s = time.monotonic()
        self.opening = {"authorize_ms": _ms(authorized_s - start_s), "handshake_ms": _ms(opened_s - authorized_s)}
        return Line(ws, uri, opened_s)

    async def open(self, line: Line) -> Finding:
        """See what was negotiated, and what comes unasked."""
        await line.until(lambda: bool(line.seen), self.pace.answer_s)
        info = next((one for one in line.seen if one.frame is not None and one.frame.kind == "market_info"), None)
        deflate = bool(line.ws.compress)
        facts = {
            **self.opening,
            "deflate": deflate,
            "first_message": line.seen[0].kind if line.seen else None,
            "market_info_ms": None if info is None else _ms(info.at_s - line.opened_s),
            "market_info_bytes": None if info is None else info.size,
            "statuses": dict(info.frame.statuses) if info is not None and info.frame is not None else {},
        }
        answer = f"compression {'is' if deflate else 'is not'} negotiated; "
        answer += f"market_info {'comes' if info else 'does not come'} unasked"
        return Finding(step="open", answer=answer, facts=facts)

    async def on_first(self, line: Line, expired_key: str | None) -> tuple[str, float] | None:
        """Go through the steps that need the first connection; return an address that gets old, and when it was got."""
        twice = [key for key in self.keys for _ in range(2)]
        asks: list[tuple[str, Method, Mode | None, Sequence[str]]] = [
            ("duplicates", Method.SUB, Mode.FULL, twice),
            ("resubscribe", Method.SUB, Mode.FULL, self.keys),
            ("change_mode", Method.CHANGE_MODE, Mode.LTPC, self.keys),
            ("unsub", Method.UNSUB, None, self.keys),
            ("unlisted key", Method.SUB, Mode.FULL, (_UNLISTED,)),
        ]
        if expired_key is not None:
            asks.append(("expired key", Method.SUB, Mode.FULL, (expired_key,)))
        await self.step("subscribe", lambda: self.ask(line, "subscribe", Method.SUB, Mode.FULL, self.keys))
        await self.step("ping", lambda: self.ping(line))
        await self.step("observe", lambda: self.observe(line))
        for name, method, mode, keys in asks:
            # The loop's variables are bound now: the step runs before they change.
            await self.step(name, lambda: self.ask(line, name, method, mode, keys))  # noqa: B023
        aged = None
        with contextlib.suppress(FeedUnavailable, TokenRefused):
            aged = await self.authorize(), time.monotonic()
        await self.step("idle", lambda: self.idle(line, expired_key))
        await self.step("close", lambda: self.close(line))
        return aged

    async def later(self, first: Line, aged: tuple[str, float] | None) -> None:
        """Open addresses that should not open any more."""
        await self.step("used address", lambda: self.reopened("used address", first.uri, first.opened_s))
        if aged is None:
            self.findings.append(Finding(step="old address", answer="not measured: no second address was to be had"))
            return
        uri, since_s = aged
        await asyncio.sleep(max(0.0, since_s + self.pace.age_s - time.monotonic()))
        await self.step("old address", lambda: self.reopened("old address", uri, since_s))

    async def ask(self, line: Line, name: str, method: Method, mode: Mode | None, keys: Sequence[str]) -> Finding:
        """Send a request and look at what follows it."""
        sent_s = time.monotonic()
        mark = await line.send(request_bytes(new_guid(self.rng), method, mode, keys))
        wanted = set(keys)

        def answered() -> bool:
            return any(one.frame is not None and _snapshots(one.frame, wanted) for one in line.seen[mark:])

        came = await line.until(answered, self.pace.answer_s)
        if came:
            # What else answers comes at once after it.
            await line.until(lambda: False, min(_SETTLE_S, self.pace.answer_s))
        news = line.seen[mark:]
        snapshots = [one for one in news if one.frame is not None and _snapshots(one.frame, wanted)]
        live = [one for one in news if one.frame is not None and one.frame.kind == "live_feed"]
        late = [one for one in live if one.at_s > sent_s + _SETTLE_S and _mentions(one.frame, wanted)]
        entries = [entry for one in snapshots if one.frame is not None for entry in one.frame.entries]
        facts: dict[str, object] = {
            "keys_sent": len(keys),
            "snapshot_frames": len(snapshots),
            "snapshot_ms": _ms(snapshots[0].at_s - sent_s) if snapshots else None,
            "snapshot_bytes": [one.size for one in snapshots],
            "snapshot_entries": len(entries),
            "empty_entries": sum(not entry.parts for entry in entries),
            "modes": dict(Counter(entry.mode for entry in entries)),
            "live_frames_after_1_s": len(late),
            "texts": [one.detail for one in news if one.kind == "text"],
        }
        if snapshots:
            answer = (
                f"answered by {len(snapshots)} initial_feed, {len(entries)} entries for {len(wanted)} different keys"
            )
        elif any(one.kind == "text" for one in news):
            answer = "answered by a text"
        else:
            answer = f"no answer within {self.pace.answer_s:g} s; {len(late)} live frames with its keys came after 1 s"
        return Finding(step=name, answer=answer, facts=facts)

    async def ping(self, line: Line) -> Finding:
        """Ping the server."""
        sent_s = time.monotonic()
        mark = await line.send(b"", WSMsgType.PING)
        came = await line.until(lambda: any(one.kind == "pong" for one in line.seen[mark:]), self.pace.answer_s)
        took_ms = next((_ms(one.at_s - sent_s) for one in line.seen[mark:] if one.kind == "pong"), None)
        answer = f"answered after {took_ms} ms" if came else f"not answered within {self.pace.answer_s:g} s"
        return Finding(step="ping", answer=answer, facts={"pong_ms": took_ms})

    async def observe(self, line: Line) -> Finding:
        """Watch live frames for a while."""
        mark = len(line.seen)
        await line.until(lambda: False, self.pace.observe_s)
        news = line.seen[mark:]
        live = [one for one in news if one.frame is not None and one.frame.kind == "live_feed"]
        frames = [one.frame for one in live if one.frame is not None]
        lags_ms = [one.at_ms - one.frame.at_ms for one in live if one.frame is not None and one.frame.at_ms]
        facts: dict[str, object] = {
            "seconds": self.pace.observe_s,
            "live_frames": len(live),
            "undecodable": sum(one.kind == "frame" and one.frame is None for one in news),
            "max_entries": max((len(frame.entries) for frame in frames), default=0),
            "max_bytes": max((one.size for one in live), default=0),
            "pings": sum(one.kind == "ping" for one in news),
            "our_clock_minus_frame_ms": spread(lags_ms),
            "grid": grid([frame.at_ms for frame in frames]),
            "fields": parts(frames),
            "I1": minutes(frames),
        }
        rate = len(live) / self.pace.observe_s if self.pace.observe_s else 0.0
        answer = f"{len(live)} live frames, {rate:.1f} a second, at most {facts['max_entries']} entries in one"
        return Finding(step="observe", answer=answer, facts=facts)

    async def idle(self, line: Line, expired_key: str | None) -> Finding:
        """Wait, subscribed to nothing, for the server's pings."""
        left = [_UNLISTED, *([expired_key] if expired_key is not None else [])]
        mark = await line.send(request_bytes(new_guid(self.rng), Method.UNSUB, None, left))
        start_s = time.monotonic()
        await line.until(lambda: False, self.pace.idle_s)
        at_s = [one.at_s for one in line.seen[mark:] if one.kind == "ping"]
        between = [round(b - a, 1) for a, b in pairwise(at_s)]
        facts = {
            "seconds": self.pace.idle_s,
            "pings": len(at_s),
            "first_after_s": round(at_s[0] - start_s, 1) if at_s else None,
            "between_s": spread(between),
            "frames": dict(Counter(one.frame.kind for one in line.seen[mark:] if one.frame is not None)),
        }
        answer = f"{len(at_s)} pings in {self.pace.idle_s:g} s"
        if between:
            answer += f", {statistics.median(between):.1f} s apart"
        return Finding(step="idle", answer=answer, facts=facts)

    async def close(self, line: Line) -> Finding:
        """Close, and see how the server does."""
        if line.end is not None:
            raise Ended(line.end)
        took_s = await line.hang_up()
        took_ms = None if took_s is None else _ms(took_s)
        answer = "not answered" if took_s is None else f"the server {line.end} after {took_ms} ms"
        return Finding(step="close", answer=answer, facts={"end": line.end, "answer_ms": took_ms})

    async def reopened(self, name: str, uri: str, since_s: float) -> Finding:
        """Open an address that was used, or is old; close at once if it opens."""
        age_s = round(time.monotonic() - since_s, 1)
        ws = await self.handshake(uri)
        result = ws if isinstance(ws, str) else "opens"
        if not isinstance(ws, str):
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_S):
                    await ws.close()
        return Finding(step=name, answer=f"after {age_s:g} s: {result}", facts={"age_s": age_s, "result": result})

    async def sockets(self, group: asyncio.TaskGroup) -> Finding:
        """Open three connections at once, and see whether one is refused or another ended."""
        lines: list[Line] = []
        results: list[str] = []
        async with AsyncExitStack() as stack:
            for number in range(1, 4):
                ws = await self.handshake(uri := await self.authorize())
                results.append(ws if isinstance(ws, str) else "opens")
                if isinstance(ws, str):
                    continue
                line = Line(ws, uri, time.monotonic())
                lines.append(line)
                stack.push_async_callback(line.hang_up)
                group.create_task(line.read(), name=f"probe:read-{number}")
            await asyncio.sleep(self.pace.answer_s)
            ends = [line.end for line in lines]
            streams = [any(one.kind == "frame" for one in line.seen) for line in lines]
        facts = {"results": results, "ends": ends, "got_market_info": streams}
        ended = sum(end is not None for end in ends)
        return Finding(
            step="sockets",
            answer=f"{', '.join(results)}; {ended or 'none'} of the opened ended within {self.pace.answer_s:g} s",
            facts=facts,
        )


def _snapshots(frame: Frame, keys: set[str]) -> bool:
    return frame.kind == "initial_feed" and _mentions(frame, keys)


def _mentions(frame: Frame | None, keys: set[str]) -> bool:
    return frame is not None and any(entry.key in keys for entry in frame.entries)


def _ms(seconds: float) -> int:
    return round(seconds * 1000)
