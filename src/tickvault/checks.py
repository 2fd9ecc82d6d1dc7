"""What `tickvault check` tries: settings, token, instruments, every sink, webhook, disk, clock, data folder.

Laws. Nothing is recorded, sent to a store or posted: a check leaves no trace but a fresher copy of the master list in a
data folder that exists, and the time of the authorize call. The broker is asked to authorize once, and not at all when it was asked often in the last minute. Nothing is sent anywhere while an address breaks the
plain-text rule. No row holds a secret; every row that fails ends with the next step.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import shutil
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Final

import aiohttp

from tickvault import archive, segments, snapshots, survey
from tickvault.addresses import bare_url
from tickvault.brokers.upstox.api import UpstoxApi
from tickvault.brokers.upstox.callsfile import RememberedLimit
from tickvault.brokers.upstox.instruments import InstrumentList
from tickvault.brokers.upstox.jwt import can_probably_trade, described, expiry, read_claims, warnings_due
from tickvault.brokers.upstox.keylist import InstrumentsUrl
from tickvault.brokers.upstox.selector import Selector, Typed
from tickvault.brokers.upstox.token_files import Origin, stored_token
from tickvault.brokers.upstox.tokens import Tokens
from tickvault.datafolder import DataFolder, holder, nearest, unusable
from tickvault.errors import ConfigurationError, FeedUnavailable, SinkUnavailable, TickvaultError
from tickvault.health import ALARMS, FeedHealth
from tickvault.mending import examine
from tickvault.model import Mode
from tickvault.resolving import guarded
from tickvault.serverclock import Dates
from tickvault.settings import check_plaintext, plain_hosts, require_recordable
from tickvault.sinks.influx import InfluxSink
from tickvault.state import read_view

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    from tickvault.brokers.upstox.token_files import Found
    from tickvault.settings import InfluxSettings, Settings

__all__ = ["Row", "run_checks"]

TIMEOUT_S: Final = 10.0  # of one check
_DOWNLOAD_S: Final = 7.0  # of the master list; the rest of the time is for reading the copy
_CLOCK_OFF_S: Final = 2.0  # more moves candles' minutes, and with them every comparison with other data
_SHOWN_KEYS: Final = 5


@dataclass(frozen=True, slots=True)
class Row:
    """One finding: whether it is well (None: nothing was tried), what was looked at, and what was found, with the next step."""

    ok: bool | None
    what: str
    found: str


async def run_checks(
    settings: Settings, resolve: Callable[[str], Sequence[str]], *, wall_s: Callable[[], float] = time.time
) -> list[Row]:
    """Try everything that `run` will need, one after the other, each for at most 10 s.

    Args:
        settings: what to try.
        resolve: host name → its addresses, as for `settings.check_plaintext`; called in a thread.
        wall_s: UTC wall clock in s.
    """
    dates = Dates(wall_s)
    async with aiohttp.ClientSession(
        connector=guarded(plain_hosts(settings)), trace_configs=[dates.trace()], cookie_jar=aiohttp.DummyCookieJar()
    ) as session:
        one = _Checks(settings, session, dates, wall_s)
        rows = await _bounded("settings", one.settings)
        rows += [_warning(text) for text in settings.warnings]
        plain = await _bounded("settings", partial(one.plaintext, resolve))
        rows += plain
        if all(row.ok is not False for row in plain):
            rows += await _bounded("token", one.token)
            rows += await _bounded("broker", one.authorize)
            rows += await _bounded("instruments", one.instruments)
            for name in settings.sinks:
                rows += await _bounded(f"sink {name}", partial(one.sink, name))
            rows += await _bounded("clock", one.clock)
        else:
            rows.append(Row(False, "network", "not tried: nothing is sent before the addresses above are corrected"))
        for what, check in (
            ("webhook", one.webhook),
            ("disk", one.disk),
            ("data folder", one.data_folder),
            ("journal", one.journal),
            ("recorder", one.recorder),
        ):
            rows += await _bounded(what, check)
    return rows


async def _bounded(what: str, check: Callable[[], Awaitable[list[Row]]]) -> list[Row]:
    """Run one check; what it raises on purpose, or the end of its time, is its row."""
    try:
        async with asyncio.timeout(TIMEOUT_S):
            return await check()
    except TimeoutError:
        return [
            Row(
                False,
                what,
                f"no answer within {TIMEOUT_S:g} s; see whether the network lets it through, then check again",
            )
        ]
    except TickvaultError as exc:
        return [Row(False, what, str(exc))]


@dataclass(slots=True)
class _Checks:
    """The checks; later ones use what earlier ones found."""

    _settings: Settings
    _session: aiohttp.ClientSession
    _dates: Dates
    _wall_s: Callable[[], float]
    _token: str | None = field(default=None, repr=False)

    async def settings(self) -> list[Row]:
        """Say what is missing."""
        require_recordable(self._settings, has_stored_token=stored_token(self._settings.data_dir) is not None)
        return [Row(True, "settings", "complete")]

    async def plaintext(self, resolve: Callable[[str], Sequence[str]]) -> list[Row]:
        """Apply the plain-text rule."""
        return [_warning(text) for text in await asyncio.to_thread(check_plaintext, self._settings, resolve)]

    async def token(self) -> list[Row]:
        """Get the token as a recorder would, and say what can be read off it."""
        tokens, url = Tokens.of(self._settings, self._session), self._settings.upstox.token_url
        try:
            self._token = await tokens.token()
        except FeedUnavailable as exc:
            if url is None:
                return []  # the settings' row says so
            raise _hinted(exc, "see what listens at UPSTOX_TOKEN_URL") from exc
        assert tokens.given is not None
        place = bare_url(url) if url is not None and tokens.given.origin is Origin.URL else tokens.given.origin.value
        source = f"from {place}"
        d30 = sum(one.mode is Mode.FULL_D30 for one in self._settings.subscriptions)
        return [_token_row(tokens.given, source, int(self._wall_s() * 1e9), d30)]

    async def authorize(self) -> list[Row]:
        """Ask the broker, once, for permission to open the feed; within the limit that a recorder on the folder keeps."""
        if self._token is None:
            return []
        if self._settings.data_dir.is_dir():
            path = self._settings.data_dir / "authorize.json"
            rate = RememberedLimit(path, wall_ns=lambda: int(self._wall_s() * 1e9))
            if not rate.take(time.monotonic()):
                wait_s = math.ceil(rate.delay_s(time.monotonic()))
                found = f"not asked: {rate.calls} authorize calls in the last minute; check again in {wait_s} s"
                return [Row(None, "broker", found)]
        shown = bare_url(self._settings.upstox.api_url)
        try:
            await UpstoxApi(self._settings.upstox.api_url, self._session).authorize(self._token)
        except FeedUnavailable as exc:
            raise _hinted(exc, f"see whether {shown} can be reached from here, and check again") from exc
        except ConfigurationError:
            raise
        except TickvaultError as exc:
            raise _hinted(exc, "make a new token (an Analytics token is good for a year) and set it") from exc
        return [Row(True, "broker", f"{shown} authorizes the feed")]

    async def instruments(self) -> list[Row]:
        """Resolve and plan as a recorder would, by the master list: refreshed if it can be had, else its copy."""
        url = self._settings.instruments_list_url
        source = "TICKVAULT_INSTRUMENTS" if url is None else bare_url(url)
        with contextlib.ExitStack() as stack:
            folder = self._settings.data_dir
            if not folder.is_dir():
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            listing, error = await self._listing(folder)
            selector = self._selector(listing)
            try:
                await selector.review(anew=True)
            except FeedUnavailable as exc:
                row = Row(False, "instruments", f"{exc}; see what listens at TICKVAULT_INSTRUMENTS_URL")
            else:
                row = _plan_row(selector, source)
            keys = [one.instrument_key for socket in (*selector.plan.sockets, selector.plan.refused) for one in socket]
            if listing is None:
                master = Row(True, "master list", "off: rows have the instrument key in place of the symbol")
            else:
                copied = await listing.version() is not None
                defined = await listing.lookup(keys)
                shown = bare_url(self._settings.upstox.instruments_url or "")
                master = _master_row(shown, keys, defined, error=error, copied=copied)
                if master.ok and selector.list_lost:
                    master = Row(None, "master list", f"{master.found}; {selector.list_lost}")
        if url is None and not self._settings.selections:
            return [master]  # the settings' row says so
        return [row, master]

    async def _listing(self, folder: Path) -> tuple[InstrumentList | None, str | None]:
        """Return the master list, refreshed, or why it is not."""
        url = self._settings.upstox.instruments_url
        if url is None:
            return None, None
        listing = InstrumentList(url=url, cache_dir=folder, session=self._session)
        try:
            async with asyncio.timeout(_DOWNLOAD_S):
                await listing.refresh()
        except TimeoutError:
            return listing, f"the instrument list takes longer than {_DOWNLOAD_S:g} s"
        except FeedUnavailable as exc:
            return listing, str(exc)
        return listing, None

    def _selector(self, listing: InstrumentList | None) -> Selector:
        settings, url = self._settings, self._settings.instruments_list_url
        return Selector(
            source=InstrumentsUrl(url, self._session, settings.mode) if url else Typed(settings.selections),
            master=listing,
            prices=dict,
            follow=lambda _keys: None,
            plus=settings.upstox.plus,
            wall_ns=lambda: int(self._wall_s() * 1e9),
        )

    async def sink(self, name: str) -> list[Row]:
        """Try one sink without writing rows."""
        if name == "parquet":
            folder = self._settings.data_dir / "parquet"
            free = await asyncio.to_thread(_probe, folder)
            return [Row(True, "sink parquet", f"{folder} can be written to, {_gb(free)} free")]
        if name == "influx" and self._settings.influx is not None:
            return await self._influx(self._settings.influx)
        return [Row(False, f"sink {name}", f"is not part of this version; take {name} out of TICKVAULT_SINKS")]

    async def _influx(self, influx: InfluxSettings) -> list[Row]:
        sink = InfluxSink(
            url=influx.url,
            bucket=influx.bucket or "tickvault",
            org=influx.org,
            token=influx.token.get_secret_value() if influx.token else None,
            username=influx.username,
            password=influx.password.get_secret_value() if influx.password else None,
            api=influx.api,
            layouts=influx.layouts,
            depth=influx.depth,
            timeout_s=TIMEOUT_S,
            session=self._session,
        )
        try:
            return [Row(True, "sink influx", f"{await sink.check()}; layout {', '.join(influx.layouts)}")]
        except SinkUnavailable as exc:
            raise _hinted(exc, "start it or correct INFLUX_URL; while it is down its rows wait in the journal") from exc

    async def webhook(self) -> list[Row]:
        """Show where events would go; posting one would be an event."""
        notify = self._settings.notify
        if notify is None:
            return []
        events = "all events" if notify.events is None else ", ".join(notify.events)
        signed = "signed" if notify.secret else "unsigned"
        return [
            Row(
                True,
                "webhook",
                f"{bare_url(notify.url)}: {events}, {signed}; the URL's form is right, nothing was posted",
            )
        ]

    async def disk(self) -> list[Row]:
        """Compare free space with the reserve."""
        usage = await asyncio.to_thread(shutil.disk_usage, nearest(self._settings.data_dir))
        needed = self._settings.disk_reserve.of(usage.total)
        found = f"{_gb(usage.free)} of {_gb(usage.total)} free, reserve {_gb(needed)}"
        if usage.free > needed:
            return [Row(True, "disk", found)]
        return [Row(False, "disk", f"{found}; free some space, or lower TICKVAULT_DISK_RESERVE")]

    async def clock(self) -> list[Row]:
        """Compare our clock with the broker's, or InfluxDB's."""
        servers = [("the broker", self._settings.upstox.api_url)]
        if self._settings.influx is not None:
            servers.append(("InfluxDB", self._settings.influx.url))
        for who, url in servers:
            if (seen := self._dates.of(url)) is None:
                continue
            off_s = seen.off_s()
            if abs(off_s) <= _CLOCK_OFF_S:
                return [Row(True, "clock", f"agrees with {who} within {_CLOCK_OFF_S:g} s")]
            which = "ahead of" if off_s > 0 else "behind"
            found = f"at least {abs(off_s):,.1f} s {which} {who}"
            return [Row(False, "clock", f"{found}; let NTP set it (`timedatectl set-ntp true`) before recording")]
        return [
            Row(None, "clock", "not compared: neither the broker nor InfluxDB has answered; check again when one does")
        ]

    async def data_folder(self) -> list[Row]:
        """See whether the folder can hold a journal, and who has it."""
        folder = self._settings.data_dir
        await asyncio.to_thread(_probe, folder)
        who = await asyncio.to_thread(holder, folder)
        use = f"in use by pid {who.pid}: a recorder runs on it, a second one would be refused" if who else "not in use"
        new = "" if folder.is_dir() else ", will be created"
        if folder.is_dir() and folder.stat().st_mode & 0o077:  # the user's own folder: what we make in it is private
            new = f"; others on this machine can see what is in it: `chmod 700 {folder}`"
        return [Row(True, "data folder", f"{folder} is on a local file system, {use}{new}")]

    async def journal(self) -> list[Row]:
        """Look at state and journal as a start will; nothing is read of them but whether they can be."""
        folder = self._settings.data_dir
        if not (folder / "journal").is_dir():
            return []
        view = await asyncio.to_thread(read_view, folder / "state.db")
        paths = segments.paths(folder / "journal")
        known_id = None if view is None else view.recorder_id
        await asyncio.to_thread(examine, paths, known_id, walk=holder(folder) is None)
        await asyncio.to_thread(archive.pruned, folder / "journal")
        stats = await asyncio.to_thread(survey.stats, folder / "journal")
        found = f"{stats.frames:,} frames in {stats.segments:,} segment{'s' * (stats.segments != 1)} can be opened; `tickvault journal verify` reads them"
        return [Row(True, "journal", found)]

    async def recorder(self) -> list[Row]:
        """Ask the recorder that has the folder, if one has, how its keys and its data do."""
        http = self._settings.http
        token = http.token.get_secret_value() if http and http.token else None
        told = await snapshots.ask(await asyncio.to_thread(holder, self._settings.data_dir), token)
        if told is None or not isinstance(told.get("feed"), dict):
            return []
        feed = FeedHealth.of(told["feed"])
        steps = feed.keys.next_steps()
        keys = Row(not steps, "keys", "; ".join(filter(None, (feed.keys.shown(), steps))))
        alarm = feed.market.state in ALARMS
        hint = "; the recorder reconnects by itself: see `gaps` and the network" if alarm else ""
        return [keys, Row(not alarm, "market data", feed.market.shown() + hint)]


def _plan_row(selector: Selector, source: str) -> Row:
    """Say what the selections come to, on how many sockets, and what of them does not fit or comes to nothing."""
    subscriptions = [one for socket in (*selector.plan.sockets, selector.plan.refused) for one in socket]
    modes = Counter(str(one.mode) for one in subscriptions)
    counted = ", ".join(f"{n:,} {mode}" for mode, n in modes.items())
    keys = len(subscriptions)
    found = f"{keys:,} key{'s' * (keys != 1)} from {source} ({counted or 'none'})"
    if selector.refused:
        return Row(False, "instruments", f"{found}; {selector.refused}; take some out, or use another mode")
    sockets = len(selector.plan.sockets)
    found += f" on {sockets} socket{'s' * (sockets != 1)}, {selector.plan.messages} message{'s' * (selector.plan.messages != 1)}"
    if selector.unpriced:
        found += f", and strikes round the price of {', '.join(selector.unpriced)}, which the feed brings"
    if selector.skipped:
        more = f", and {len(selector.skipped) - _SHOWN_KEYS} more" if len(selector.skipped) > _SHOWN_KEYS else ""
        return Row(False, "instruments", f"{found}; skipped: {'; '.join(selector.skipped[:_SHOWN_KEYS])}{more}")
    return Row(True, "instruments", found)


def _warning(text: str) -> Row:
    return Row(None, "settings", f"warning: {text}")


def _hinted(exc: TickvaultError, step: str) -> TickvaultError:
    """Return an error with the operator's next step."""
    return TickvaultError(f"{exc}; {step}")


def _token_row(given: Found, source: str, now_ns: int, d30_keys: int) -> Row:
    """Say of a token what its claims tell: they are not verified, that is the broker's."""
    claims = read_claims(given.token)
    obtained_ns = given.placed_ns if given.origin is Origin.STORED else None
    found = f"{source}; {described(given.token, now_ns, obtained_ns=obtained_ns)}"
    end = expiry(claims, obtained_ns=obtained_ns)
    if end is not None and end.known and end.at_ns <= now_ns:
        return Row(False, "token", f"{found}; make a new token and set it")
    if claims is not None and claims.plus is False and d30_keys:
        step = f"the broker ignores {d30_keys:,} keys in full_d30 without Plus: use full"
        return Row(False, "token", f"{found}; {step}")
    made_ns = claims.issued_ns if claims is not None else None
    if end is not None and (due := warnings_due(end.at_ns, now_ns, None, issued_ns=made_ns)):
        found += f"; less than {due[0].value} left: make a new one in time"
    if can_probably_trade(claims):
        found += "; whoever gets hold of it can probably place orders, which an Analytics token does not allow"
    return Row(True, "token", found)


def _master_row(
    shown: str, keys: Sequence[str], defined: Mapping[str, object], *, error: str | None, copied: bool
) -> Row:
    found = f"{shown} answers" if error is None else f"{error}; the copy on disk is used"
    if error is not None and not copied:
        step = (
            "rows have the key in place of the symbol until it can be had; see whether UPSTOX_INSTRUMENTS_URL is right"
        )
        return Row(False, "master list", f"{error}, and there is no copy yet; {step}")
    if not keys:
        return Row(True, "master list", found)
    found = f"{found}, {len(defined):,} of {len(keys):,} keys have a definition"
    missing = [key for key in keys if key not in defined]
    if not missing:
        return Row(True, "master list", found)
    named = ", ".join(missing[:_SHOWN_KEYS]) + (", …" if len(missing) > _SHOWN_KEYS else "")
    return Row(
        False, "master list", f"{found}; the broker sends nothing for a key that does not exist: correct {named}"
    )


def _probe(folder: Path) -> int:
    """Make, lock and remove a data folder inside a folder, or where it will be made; return the bytes free there.

    Raises:
        Refused: it cannot be written to, or a network holds it.
    """
    place = nearest(folder)
    try:
        with tempfile.TemporaryDirectory(prefix=".tickvault-check-", dir=place) as probe, DataFolder(Path(probe)):
            pass
    except OSError as exc:
        raise unusable(folder, exc) from exc
    return shutil.disk_usage(place).free


def _gb(count: float) -> str:
    return f"{count / 1e9:,.1f} GB"
