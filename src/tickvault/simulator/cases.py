"""What is known to go wrong between a client and this broker, and the script that plays each."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from tickvault.simulator.reading import load_script, script_names

__all__ = ["CASES", "Case", "cases_table", "scripts_table"]


@dataclass(frozen=True, slots=True)
class Case:
    """One thing that happens.

    Attributes:
        situation: what.
        seen: what a client sees of it.
        scripts: names of those that play it.
    """

    situation: str
    seen: str
    scripts: tuple[str, ...]


CASES: Final = tuple(
    Case(situation, seen, tuple(scripts.split()))
    for situation, seen, scripts in (
        # Silence of the broker's
        ("a request in a text message", "nothing; market_info only", "steady"),
        ("keys beyond 2,000 in full", "nothing for them", "steady"),
        ("full_d30 without Plus", "nothing for any key", "no-plus"),
        ("a plausible key that is wrong", "an entry whose messages are all empty", "steady"),
        ("an index key in the wrong case", "nothing", "steady"),
        ("the key of an expired contract", "nothing, or an empty entry", "expired-keys-silent expired-keys-empty"),
        ("a key twice, in one message or two", "one entry a frame", "steady two-modes-last"),
        ("a key in two modes", "one of them", "two-modes-last two-modes-first"),
        ("change_mode", "a snapshot, or only updates in the new mode", "steady change-mode-silent"),
        ("a text message from the server", "JSON with a status of failed", "text-refusal"),
        ("an instrument that does not change", "no entries", "steady quiet-market"),
        # What the field reports
        ("a quiet or closed market taken for a stall", "minutes without data, with pings",
         "quiet-market morning weekend"),
        ("connected, and mute", "market_info and nothing else; or data that ends", "deaf mute mute-one-socket"),
        ("a chunk of keys without snapshot", "the others' snapshots", "missing-snapshot missing-chunk"),
        ("a token dead after 03:30, and a service that still gives it", "401 until it gives another",
         "token-expiry-survives token-expiry-closes stale-token-service"),
        ("a new token for the same user", "the old one dies, or lives",
         "token-changes-old-dies token-changes-old-lives"),
        ("the handshake is refused although authorize says yes", "401 or 403", "handshake-401 handshake-403"),
        ("an address used again, or too late", "401 or 403",
         "steady reused-address-403 address-lives-5s address-lives-60s"),
        ("more connections than allowed", "403, or the oldest one ends",
         "third-socket-refused third-socket-evicts"),
        ("a count of attempts that is never reset", "an end every two seconds", "close-again-and-again"),
        ("requests before the handshake is done", "a handshake of two seconds", "slow-handshake"),
        ("entries with a book and no price", "no ltpc", "book-only"),
        ("entries with a price and no book", "no marketLevel", "trade-only"),
        ("a snapshot that is stale, and a gap before it", "ltt before the reconnection", "stale-snapshot"),
        ("the same trade again", "ltt, ltq and vtt as before", "quotes-only duplicate-frames"),
        ("ltt of the day before, or none", "in the snapshot", "morning steady"),
        ("zeros that mean nothing", "no cp, no totals", "zero-scalars"),
        ("options without data", "a wrong key's empty entry", "steady"),
        ("the client's own 1011, after late pongs", "TCP is open and nothing comes", "stall"),
        ("the connection closes", "1000, 1006, 1008, 1011, a TCP reset",
         "close-1000 close-1006 close-1008 close-1011 reset"),
        ("the connection closes every minute", "1000", "close-every-minute"),
        ("far fewer updates than usual", "a twentieth of them", "brown-out"),
        ("the master list misses contracts", "five of them, for a time", "master-misses"),
        ("an exchange token used again", "a key that names another contract", "reused-exchange-token"),
        ("a master list without ETag, or with a weak one", "200 each time, or 304", "master-no-etag master-weak-etag"),
        ("a few keys are never seen", "neither snapshot nor updates", "unseen-keys"),
        ("an interception of TLS", "a reset during the handshake", "handshake-reset"),
        ("weekend and holiday", "closed, and a snapshot all the same", "weekend holiday settlement-holiday muhurat"),
        ("phases of the day", "market_info at each, crossed books in auctions", "market-day morning closing-auction"),
        ("the CDN refuses a User-Agent", "403, error 1010, not in the envelope",
         "steady cloudflare-1010 cloudflare-1010-json"),
        ("the CDN or the broker limits the rate", "429 without Retry-After", "authorize-429 rate-limited"),
        ("other errors over HTTP", "the envelope, in both casings or one",
         "authorize-401 authorize-403 authorize-500 authorize-503 error-snake error-camel token-not-for-feed "
         "master-503"),
        ("the official client's callbacks are never called", "an ordinary feed", "steady"),
        # What nobody knows
        ("a later protocol", "numbers and fields that are not in the .proto",
         "unknown-type unknown-mode unknown-status unknown-field"),
        ("frames out of order, twice, or broken", "in currentTs, in bytes", "reordered-frames duplicate-frames garbage"),
        ("compression, a ping at the open, a token for the calendar", "or not",
         "steady deflate ping-at-open market-needs-token"),
    )
)  # fmt: skip


def cases_table() -> str:
    """Return the cases as a Markdown table, as in docs/simulator.md."""
    head = ["| what happens | what a client sees | script |", "|---|---|---|"]
    rows = [f"| {c.situation} | {c.seen} | {', '.join(f'`{name}`' for name in c.scripts)} |" for c in CASES]
    return "\n".join(head + rows) + "\n"


def scripts_table() -> str:
    """Return the built-in scripts as a Markdown table, as in docs/simulator.md."""
    head = ["| script | what it plays | evidence | source, or what is missing |", "|---|---|---|---|"]
    scripts = [load_script(name) for name in script_names()]
    return "\n".join(head + [f"| `{s.name}` | {s.about} | {s.evidence} | {s.source} |" for s in scripts]) + "\n"
