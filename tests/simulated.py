"""A plain client of the simulator: what is on the wire, decoded, and nothing made of it."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import aiohttp

from tickvault.brokers.upstox.proto import market_data_feed_pb2 as pb

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from tickvault.simulator import Simulator

AUTHORIZE = "/v3/feed/market-data-feed/authorize"
DEADLINE_S = 10.0


class Client:
    """One WebSocket, decoded."""

    def __init__(self, ws: aiohttp.ClientWebSocketResponse) -> None:
        self.ws = ws
        self.received: list[bytes] = []

    async def request(self, method: str, keys: object, mode: str | None = None, *, text: bool = False) -> None:
        data = {"instrumentKeys": keys} | ({} if mode is None else {"mode": mode})
        body = json.dumps({"guid": "g", "method": method, "data": data})
        await (self.ws.send_str(body) if text else self.ws.send_bytes(body.encode()))

    async def payload(self) -> bytes:
        message = await self.ws.receive(timeout=DEADLINE_S)
        assert message.type is aiohttp.WSMsgType.BINARY, message
        self.received.append(message.data)
        data: bytes = message.data
        return data

    async def frame(self) -> pb.FeedResponse:
        return pb.FeedResponse.FromString(await self.payload())

    async def until(self, wanted: Callable[[pb.FeedResponse], bool]) -> pb.FeedResponse:
        async with asyncio.timeout(DEADLINE_S):
            while not wanted(frame := await self.frame()):
                pass
        return frame

    async def end(self) -> aiohttp.WSMessage:
        """Read to the end and return what ended it."""
        async with asyncio.timeout(DEADLINE_S):
            while (message := await self.ws.receive()).type is aiohttp.WSMsgType.BINARY:
                self.received.append(message.data)
        return message


def live(frame: pb.FeedResponse) -> bool:
    return frame.type == pb.Type.live_feed


def initial(frame: pb.FeedResponse) -> bool:
    return frame.type == pb.Type.initial_feed


async def address(sim: Simulator, http: aiohttp.ClientSession, token: str = "token") -> str:
    async with http.get(sim.url + AUTHORIZE, headers={"Authorization": f"Bearer {token}"}) as response:
        body: dict[str, Any] = await response.json()
        uri: str = body["data"]["authorized_redirect_uri"]
        return uri


@asynccontextmanager
async def feed(
    sim: Simulator, http: aiohttp.ClientSession, token: str = "token", **options: Any
) -> AsyncIterator[Client]:
    """Authorize, and open what comes back."""
    async with http.ws_connect(await address(sim, http, token), max_msg_size=0, **options) as ws:
        yield Client(ws)
