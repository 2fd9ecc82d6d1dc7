"""What the simulator does, and how well it is known that the broker does the same."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

__all__ = ["BEHAVIOURS", "Behaviour", "Evidence", "behaviours_table"]


class Evidence(StrEnum):
    """Where the knowledge comes from, best first."""

    DOCUMENTED = "documented"
    MEASURED = "measured"
    INFERRED = "inferred"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """One thing the simulator does.

    Attributes:
        name: short and stable.
        does: one line.
        evidence: that the broker does it too.
        source: who says so; for INFERRED and UNKNOWN, what is missing.
        where: module and name, within this package, of the code that does it.
    """

    name: str
    does: str
    evidence: Evidence
    source: str
    where: str


_DOCS: Final = "Upstox documentation, market data feed V3"
_LIMITS: Final = "Upstox documentation, market data feed V3, limits"
_PROTO: Final = "Upstox documentation, MarketDataFeed.proto of September 2026"
_LISTS: Final = "Upstox documentation, instruments"
_MARKET: Final = "Upstox documentation, market information"
_LOGIN: Final = "Upstox documentation, authorize and get token"
_CAPTURE: Final = "published capture of one equity, March 2025"
_LIVE: Final = "published measurements with 3,500 keys, September 2026"
_CLIENTS: Final = "open-source clients' bug reports"


def _all(evidence: Evidence, *rows: tuple[str, str, str, str]) -> tuple[Behaviour, ...]:
    return tuple(
        Behaviour(name=name, does=does, evidence=evidence, source=source, where=where)
        for name, does, source, where in rows
    )


BEHAVIOURS: Final = (
    *_all(
        Evidence.DOCUMENTED,
        ("authorize", "a bearer token is exchanged for a WebSocket address", _DOCS, "rest.Rest.authorize"),
        ("direct-302", "the direct handshake is redirected to such an address", _DOCS, "rest.Rest.redirect"),
        ("single-use", "an address is good for one handshake", _DOCS, "gate.Gate.redeem"),
        ("binary-requests", "requests are JSON in binary messages", _DOCS, "subscriptions.parse_request"),
        ("default-mode", "`sub` without a mode means ltpc", _DOCS, "subscriptions.parse_request"),
        ("market-info-first", "market_info, with 11 segments, is the first message", _DOCS, "server.Simulator.feed"),
        ("market-info-again", "market_info comes again when a status changes", _DOCS, "board.Board.run"),
        ("modes", "ltpc, option_greeks, full (5 levels), full_d30 (30 levels)", _DOCS, "frames.data_frame"),
        ("index-entry", "an index has ltpc and candles only", _PROTO, "frames.data_frame"),
        ("auction-fields", "iep, rp, ieq, iiqTotal, iiqM and ltpc.iep in auctions", _PROTO, "script.Auction"),
        ("auction-statuses", "closing-auction and pre-open statuses are text", _PROTO, "script.MarketStatus"),
        ("ping", "pings when there is nothing to send", _DOCS, "connection.Connection.run"),
        ("limits-other", "keys over the limits of ltpc, option_greeks, full_d30, combined", _LIMITS,
         "subscriptions.COMBINED"),
        ("error-envelope", "errors are a list, every field in both casings, no data", _DOCS, "envelope.error"),
        ("master-list", "fields, types and units of complete.json.gz", _LISTS, "master.master_row"),
        ("login-dialog", "a login sends the browser back with a code and the caller's state", _LOGIN, "login.Login.dialog"),
        ("login-code", "a code is good for one exchange, even one that fails", _LOGIN, "login.Login.exchange"),
        ("login-flat", "the token comes flat, not in the envelope of other answers", _LOGIN, "login.Login.exchange"),
        ("token-401", "a missing or refused token: 401 UDAPI100050", _DOCS, "rest.Rest.authorize"),
        ("holidays", "the year's holidays, or a date's: closed exchanges, and open ones with their hours", _MARKET,
         "bulletin.Bulletin.holidays"),
        ("timings", "hours of seven exchanges on a date, none when all are closed", _MARKET,
         "bulletin.Bulletin.timings"),
        ("exchange-status", "an exchange's status, with that of its closing auction", _MARKET,
         "bulletin.Bulletin.status"),
    ),
    *_all(
        Evidence.MEASURED,
        ("text-ignored", "a text message is ignored without a word", _CLIENTS, "connection.Connection.run"),
        ("limit-full", "the 2,001st key in full is ignored without a word", _LIVE, "subscriptions.INDIVIDUAL"),
        ("d30-needs-plus", "full_d30 without Plus is ignored without a word", _LIVE,
         "subscriptions.Subscriptions.apply"),
        ("wrong-key", "a derivative key without a numeric token gets an empty entry", _CLIENTS, "frames.empty_entry"),
        ("snapshot-per-sub", "one initial_feed frame for each sub message", _LIVE, "exchange.Exchange.render"),
        ("type-absent", "initial_feed is enum 0 and not on the wire", _CAPTURE, "frames.data_frame"),
        ("no-book-no-greeks", "frames without marketLevel and optionGreeks", _CAPTURE, "market.TRADE"),
        ("book-only", "frames with marketLevel and without ltpc", _CLIENTS, "market.BOOK"),
        ("empty-greeks", "optionGreeks is there, and empty, for equities", _CAPTURE, "frames.data_frame"),
        ("frames-a-second", "about 4 live frames a second and connection", _LIVE, "exchange.pace"),
        ("running-1d", "1d is the running candle of today, from 00:00 IST", _CAPTURE, "quote.Quote"),
        ("completed-i1", "I1 is the last completed minute", _CAPTURE, "quote.Quote"),
        ("volume-lags", "the volume of 1d may lag behind vtt", _CAPTURE, "quote.Quote"),
        ("never-traded", "a contract that never traded has no ltp, ltt and candles", _CLIENTS, "quote.Quote"),
        ("zero-rungs", "levels that nobody quotes are rungs of zeros", _CAPTURE, "quote.Quote.level"),
        ("crossed-auction", "before an auction books cross; a rung may have no price", _LIVE, "script.Auction"),
        ("browser-check", "no User-Agent, or a bare library's: 403 of the CDN, error 1010", _CLIENTS, "front.Front"),
        ("quiet-when-closed", "nothing changes before 09:00, between auction and trading, and after the close", _LIVE,
         "board.Board.activity"),
        ("phases", "pre-open statuses at 09:00, 09:05 and a random second after 09:08", _LIVE,
         "timetable.timetable"),
        ("closed-statuses", "closed is CLOSING_END in the cash market, NORMAL_CLOSE elsewhere", _LIVE,
         "timetable.timetable"),
        ("handshake-403", "the handshake is refused although authorize said yes", _CLIENTS, "script.Forbid"),
    ),
    *_all(
        Evidence.INFERRED,
        ("grid", "frames lie on a grid of 150 ms", "one instrument's intervals fit it", "exchange.pace"),
        ("quiet-keys", "few instruments make most updates (Zipf)", "the law is ours; that many are quiet is measured",
         "market.Market"),
        ("last-mode-wins", "a key subscribed again takes the new mode", "nobody reports two modes at once",
         "subscriptions.Subscriptions.apply"),
        ("conflation", "a slow client gets fewer frames, changes merged", "conflation is measured, under load it is not",
         "exchange.Exchange"),
        ("etag", "the master list has an ETag and answers If-None-Match", "usual for such hosts", "rest.Rest.master"),
        ("new-day", "volume restarts and cp becomes the last price at a new date", "vtt is of today",
         "quote.Quote.change"),
        ("sizes", "bytes per entry: full 341 (equity), 397 (option), 160 (index), ltpc 55", "computed from the .proto",
         "frames.data_frame"),
        ("greek-units", "theta a day, vega a volatility point, iv a fraction", "from published magnitudes",
         "pricing.black_scholes"),
    ),
    *_all(
        Evidence.UNKNOWN,
        ("reused-401", "an address used again: 401", "401 or 403; nobody published which", "server.Simulator.feed"),
        ("no-expiry", "an unused address stays good", "60 s is claimed once", "gate.Gate.issue"),
        ("change-mode-answer", "change_mode is answered with a snapshot, like sub", "not published",
         "exchange.Exchange.render"),
        ("unsub-silent", "unsub has no answer", "not published", "subscriptions.Subscriptions.apply"),
        ("unknown-keys", "a key that is not listed is ignored", "not published for expired contracts",
         "subscriptions.Subscriptions.apply"),
        ("many-connections", "any number of connections is served, unless a rule says", "2 (Plus: 5) are allowed; the next one's fate is not",
         "server.Simulator.feed"),
        ("no-deflate", "permessage-deflate is not negotiated, unless a rule says", "V2 did; V3 is not published", "server.Simulator.feed"),
        ("ping-interval", "the ping comes after 10 s without data", "not published", "settings.SimulatorSettings"),
        ("parts-shares", "72 % whole, 18 % without book and greeks, 10 % without ltpc", "from a handful of frames",
         "market.Market"),
        ("greeks-mode-whole", "entries of option_greeks, ltpc and indices are always whole", "not published",
         "frames.data_frame"),
        ("futures-pre-open", "derivatives have no pre-open of their own", "they have since December 2025; their statuses "
         "are not published", "timetable.timetable"),
        ("post-close", "nothing trades between CLOSING_START and CLOSING_END", "not published",
         "board.Board.activity"),
        ("i1-at-once", "I1 changes as soon as its minute is over", "seconds late are likely", "quote.Quote.change"),
        ("market-without-token", "`/v2/market/…` does not ask for a token", "one client does without; not documented",
         "bulletin.Bulletin"),
        ("close-codes", "a stop closes with 1001", "not published", "server.Simulator"),
    ),
)  # fmt: skip


def behaviours_table() -> str:
    """Return the behaviours as a Markdown table, as in docs/simulator.md."""
    head = ["| behaviour | what the simulator does | evidence | source, or what is missing |", "|---|---|---|---|"]
    return "\n".join(head + [f"| `{b.name}` | {b.does} | {b.evidence} | {b.source} |" for b in BEHAVIOURS]) + "\n"
