"""Opens the WebSocket at an authorized address."""

from __future__ import annotations

import asyncio
from typing import Final

import aiohttp
from aiohttp import ClientWSTimeout
from yarl import URL

from tickvault.brokers.upstox.api import USER_AGENT, BrokerUnavailable, Failure, describe

__all__ = ["CLOSE_S", "connect"]

# The largest seen has 160 kB; 2,000 keys in one would have 0.7 MB. Of nothing but empty entries it takes 0.35 GB to decode.
MAX_MESSAGE_BYTES: Final = 8 * 1024 * 1024
DEFLATE_WINDOW_BITS: Final = 15
CLOSE_S: Final = 0.5  # for a connection that is given up; a polite end has taken place before

# The broker has published no cause. What users have reported:
_FORBIDDEN: Final = (
    " although the token is authorized; it may pass by itself, and we go on trying. If not: close other connections of "
    "the account (two are allowed), or try a daily token (`tickvault login`) in place of an Analytics token"
)


async def connect(session: aiohttp.ClientSession, uri: str, timeout_s: float) -> aiohttp.ClientWebSocketResponse:
    """Return the WebSocket at an authorized address, which opens once.

    Raises:
        BrokerUnavailable: it does not open; no message has the address.
    """
    try:
        async with asyncio.timeout(timeout_s):
            return await session.ws_connect(
                URL(uri, encoded=True),
                headers={"User-Agent": USER_AGENT},
                timeout=ClientWSTimeout(ws_close=CLOSE_S),
                compress=DEFLATE_WINDOW_BITS,
                max_msg_size=MAX_MESSAGE_BYTES,
                # Pings are our own (session.py): aiohttp's heartbeat counts the time that we do not read as silence,
                # and then throws away what it holds. A slow disk would cost frames.
                heartbeat=None,
                autoping=False,
            )
    except aiohttp.WSServerHandshakeError as exc:
        reason = Failure.RATE_LIMITED if exc.status == 429 else Failure.REFUSED
        # Without its cause, whose text has the authorized address.
        known = _FORBIDDEN if exc.status in (401, 403) else ""
        raise BrokerUnavailable(f"the feed refuses the connection: HTTP {exc.status}{known}", reason=reason) from None
    except (aiohttp.ClientError, OSError, TimeoutError) as exc:
        raise BrokerUnavailable(f"the feed cannot be reached: {describe(exc)}", reason=Failure.UNREACHABLE) from exc
