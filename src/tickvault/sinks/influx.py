"""Delivers batches to InfluxDB 1, 2 and 3, and to VictoriaMetrics, over their HTTP write APIs.

Laws of this module:

- One request at a time, in order, never repeated here: delivery repeats a batch, and points overwrite themselves.
- `write` returns only when every layout and every chunk of the batch was acknowledged.
- What an answer means is judged in one pure module (`influx_answers`); here questions are put.
- No message carries a credential: `influx_http` blots them out of what a server says.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import hashlib
import math
import re
import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from tickvault.errors import (
    BatchRejected,
    BatchTooLarge,
    ConfigurationError,
    SinkError,
    SinkMisconfigured,
    SinkUnavailable,
)
from tickvault.model import Batch, BatchPolicy
from tickvault.sinks.influx_answers import (
    Answer,
    beyond_retention,
    judge,
    misses_database,
    named_rows,
    version_of,
    words,
)
from tickvault.sinks.influx_http import Body, ConnectionLost, InfluxHttp
from tickvault.sinks.influx_versions import Candle, candles, exported_seq, question, selector, stored_seqs
from tickvault.sinks.lineprotocol import Lines, chunks, encode_tickvault, encode_tradedatafeed
from tickvault.sinks.series import Dialect

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    import aiohttp

__all__ = ["InfluxSink"]

# A server that refuses a body for its size may hang up while we send, and its 413 is lost. It takes this many
# resets of one body, with a server that answers otherwise, to tell that from a restart; small bodies never count.
_RESETS_MEAN_TOO_LARGE: Final = 3
_SUSPICIOUS_BODY_BYTES: Final = 64 * 1024
# What a healthy server that is not InfluxDB says to the questions of InfluxDB; others may be asked again.
_PLAIN_ANSWERS: Final = frozenset({200, 204, 400, 404, 405})
# VictoriaMetrics acknowledges what it holds in memory: after kill -9 about nine seconds were gone. It comes back within
# 0.1 s and no request fails, so it is asked when it started, often enough that what is taken for settled is.
_VICTORIA_SETTLE_S: Final = 20.0
_VICTORIA_ASK_S: Final = 5.0
_CANDLES_A_QUESTION: Final = 20  # a question goes in the address, and servers bound its length


@dataclass(frozen=True, slots=True, kw_only=True)
class _Server:
    """What is known about the server.

    Attributes:
        label: name and version for people.
        stores_the_rest: it quotes or numbers the lines it refuses, and stores all others of the request.
        certain: it was told, not assumed.
    """

    label: str
    api: str
    dialect: Dialect = Dialect.INFLUX
    stores_the_rest: bool = False
    certain: bool = True


class _Ready(NamedTuple):
    """A batch as it is sent: what line protocol refuses of it, and the parts with their precisions."""

    batch: Batch
    dialect: Dialect
    refused: Mapping[int, str]
    parts: Sequence[tuple[Lines, str]]


class InfluxSink:
    """A sink that writes to InfluxDB or VictoriaMetrics.

    Args:
        url: base URL; a user part in it counts as username and password.
        bucket: bucket, or database for the v1 API.
        org: organisation, for the v2 API.
        token: goes with the v2 API; with v1 only when there is no username.
        username: goes with the v1 API; with v2 only when there is no token.
        password: belongs to the username.
        api: `v1`, `v2` or `v3`; `auto` asks the server and falls back to `v2`.
        layouts: `tickvault`, `tradedatafeed`, or both.
        depth: book levels written in the layout `tickvault`, 0 to 30.
        timeout_s: bound of one request, from connecting to the end of the answer.
        session: used instead of a session of its own, and left open.

    Raises:
        ConfigurationError: there is no bucket, or no header can carry the token.

    Attributes:
        beyond_retention: points that the server dropped because its retention is shorter than their age.
    """

    name = "influx"
    tables = ("ticks", "candles", "market_status", "gaps")
    policy = BatchPolicy(max_rows=7000, max_bytes=4_000_000, max_wait_s=1.0, min_wait_s=0.1)

    def __init__(
        self,
        *,
        url: str,
        bucket: str | None,
        org: str | None = None,
        token: str | None = None,
        username: str | None = None,
        password: str | None = None,
        api: str = "auto",
        layouts: Sequence[str] = ("tickvault",),
        depth: int = 5,
        timeout_s: float = 30.0,
        session: aiohttp.ClientSession | None = None,
    ) -> None:
        if not bucket:
            raise ConfigurationError("INFLUX_BUCKET is not set; it names the bucket, or the database for the v1 API")
        self._http = InfluxHttp(
            url=url, token=token, username=username, password=password, api=api, timeout_s=timeout_s, session=session
        )
        self._bucket = bucket
        self._org = org or ""
        self._api = api
        self._layouts = tuple(layouts)
        self._depth = depth
        self._server: _Server | None = None
        self._prepared: _Server | None = None  # of which the database is known to be there
        self._settle_s = 0.0
        self._ready: list[_Ready] = []
        self._lost_body: tuple[bytes, int] = (b"", 0)
        self._started: str | None = None
        self._asked_s = -math.inf
        self.beyond_retention = 0

    @property
    def settle_s(self) -> float:
        """Seconds after which an acknowledged row survives the server's kill -9; as last found out."""
        return self._settle_s

    async def write(self, batch: Batch) -> None:
        """Store every row of the batch in every layout.

        Raises:
            SinkUnavailable: no connection, no answer in time, 429, 5xx.
            SinkMisconfigured: 401, 403, 404, a redirect, a limit of the server, no InfluxDB at this address.
            BatchTooLarge: 413, or the same body broke the connection repeatedly.
            BatchRejected: the server, or line protocol itself, refuses rows.

        Guarantees:
            A repeat, cut anywhere, gives the same points. Without an exception every row is acknowledged.
        """
        if not any(batch.tables[name].num_rows for name in self.tables):
            return
        server = await self._identify()
        if server.dialect is Dialect.VICTORIA:
            await self._notice_restart()
        if server.api == "v1" and server is not self._prepared:
            # To a large body for a database that is not there it may answer with a reset.
            if misses_database(await self._post_lines(server, b"", "ns")):
                await self._create_database()
            self._prepared = server
        ready = next((one for one in self._ready if one.batch is batch and one.dialect is server.dialect), None)
        if ready is None:
            ready = await asyncio.to_thread(self._encoded, batch, server.dialect)
        refused = dict(ready.refused)
        try:
            for part, precision in ready.parts:
                refused.update(await self._deliver(server, part, precision))
        except (BatchRejected, BatchTooLarge):  # what comes next are parts of it
            self._forget(batch)
            raise
        self._forget(batch)
        if refused:
            raise BatchRejected(next(iter(refused.values())), rejected=refused)

    async def prepare(self, batch: Batch) -> None:
        """Encode a batch ahead (model.TakesAhead), once it is known for which server."""
        if self._server is not None and batch.rows:
            ready = await asyncio.to_thread(self._encoded, batch, self._server.dialect)
            self._ready = [*self._ready[-1:], ready]  # of the batch that is written meanwhile, and of this one

    async def outdated(self, batch: Batch) -> Collection[int]:
        """Return the candles of which the server holds a newer version (model.TakesAgain).

        Raises:
            SinkUnavailable, SinkMisconfigured: as write does; also when the credentials may not read.
        """
        wanted = list(candles(batch))
        server = await self._identify()
        if server.dialect is Dialect.INFLUX3:  # each version has a time of its own
            return ()
        newer: set[int] = set()
        for start in range(0, len(wanted), _CANDLES_A_QUESTION):
            some = wanted[start : start + _CANDLES_A_QUESTION]
            found = await (self._exported(some) if server.dialect is Dialect.VICTORIA else self._selected(server, some))
            newer |= {one.row for one, seq in zip(some, found, strict=True) if seq is not None and seq > one.seq}
        return newer

    async def _selected(self, server: _Server, wanted: Sequence[Candle]) -> Sequence[int | None]:
        query = {"db": self._bucket, "epoch": "ns", "q": question(wanted, self._layouts)}
        answer = await self._http.ask("POST", "query", query, b"", self._http.authorization(server.api))
        if (found := stored_seqs(answer, len(wanted))) is not None:
            return found
        if len(wanted) > 1:  # of several statements it says "not executed", of one why
            return [(await self._selected(server, [one]))[0] for one in wanted]
        answer = self._http.blotted(answer)
        if isinstance(error := self._judged(answer), SinkUnavailable):
            raise error
        raise SinkMisconfigured(
            f"{self._http.shown}/query answered {answer.status}: {words(answer)}; a candle is sent again only when it can "
            "be read which version is stored: grant the right to read the bucket"
        )

    async def _exported(self, wanted: Sequence[Candle]) -> Sequence[int | None]:
        found = []
        for one in wanted:
            answer = await self._http.ask("GET", "api/v1/export", selector(one))
            try:
                found.append(exported_seq(answer))
            except (ValueError, KeyError, TypeError, RecursionError):
                raise SinkUnavailable(
                    f"{self._http.shown}/api/v1/export answered {answer.status}: {words(self._http.blotted(answer))}"
                ) from None
        return found

    async def check(self) -> str:
        """Return what answers at the URL, having asked for the right to write without writing.

        Raises:
            SinkUnavailable, SinkMisconfigured: as write does, with the operator's next step.
        """
        server = await self._identify()
        answer = await self._post_lines(server, b"", "ns")
        if server.api == "v1" and misses_database(answer):
            return f"{server.label} at {self._http.shown}, the first write creates database {self._bucket!r}"
        error = self._judged(self._http.blotted(answer))
        # InfluxDB 2 and 3 refuse an empty body, after they have judged the token and the bucket.
        if error and not isinstance(error, BatchRejected):
            raise error
        if server.dialect is Dialect.VICTORIA:
            await self._check_victoria()
        return f"{server.label} at {self._http.shown}, bucket {self._bucket!r}"

    async def aclose(self) -> None:
        """Close the session unless it was given."""
        await self._http.aclose()

    def _forget(self, batch: Batch) -> None:
        self._ready = [one for one in self._ready if one.batch is not batch]

    def _encoded(self, batch: Batch, dialect: Dialect) -> _Ready:
        refused: dict[int, str] = {}
        parts: list[tuple[Lines, str]] = []
        for layout in self._layouts:
            foreign = layout == "tradedatafeed"
            lines = encode_tradedatafeed(batch, dialect) if foreign else encode_tickvault(batch, self._depth, dialect)
            refused |= lines.refused
            parts += [(part, "ms" if foreign else "ns") for part in chunks(lines)]
        return _Ready(batch, dialect, refused, parts)

    async def _deliver(self, server: _Server, part: Lines, precision: str) -> Mapping[int, str]:
        """Send one part; return the rows in it that the server named as refused while it stored the others."""
        body = part.body()
        answer = await self._send(server, body, precision)
        if server.api == "v1" and misses_database(answer):
            await self._create_database()
            answer = await self._send(server, body, precision)
        if (dropped := beyond_retention(answer)) is not None:
            self.beyond_retention += dropped
            return {}
        answer = self._http.blotted(answer)
        error = self._judged(answer)
        if isinstance(error, BatchRejected) and server.stores_the_rest:
            return named_rows(answer, part) or _raise(error)
        return _raise(error) if error else {}

    async def _send(self, server: _Server, body: Body, precision: str) -> Answer:
        try:
            answer = await self._post_lines(server, body, precision)
        except ConnectionLost as exc:
            self._server = None  # it may come back as another one
            if await self._is_body_to_blame(body):
                raise BatchTooLarge(
                    f"{self._http.shown} broke the connection {_RESETS_MEAN_TOO_LARGE} times at the same {len(body)} bytes"
                    " but answers otherwise: taken as too large"
                ) from exc
            raise
        except SinkUnavailable:
            self._server = None
            raise
        self._lost_body = (b"", 0)
        return answer

    async def _is_body_to_blame(self, body: Body) -> bool:
        if len(body) < _SUSPICIOUS_BODY_BYTES:
            return False
        try:
            await self._http.ask("GET", "ping")
        except SinkUnavailable:
            return False
        digest = hashlib.sha256(body).digest()
        known, count = self._lost_body
        self._lost_body = (digest, count + 1 if digest == known else 1)
        return self._lost_body[1] >= _RESETS_MEAN_TOO_LARGE

    async def _post_lines(self, server: _Server, body: Body, precision: str) -> Answer:
        headers = {"Content-Type": "text/plain; charset=utf-8"}
        if self._http.remote and body:
            headers["Content-Encoding"] = "gzip"
            body = await asyncio.to_thread(zlib.compress, body, 1, 31)
        if server.api == "v1":
            # InfluxDB up to 1.7 knows `n` and takes every unknown word for ns; only `ms` is spelt alike everywhere.
            query = {"db": self._bucket, "precision": "n" if precision == "ns" else precision}
            return await self._http.ask("POST", "write", query, body, {**headers, **self._http.authorization("v1")})
        if server.api == "v3":
            unit = "nanosecond" if precision == "ns" else "millisecond"
            query = {"db": self._bucket, "precision": unit, "accept_partial": "true"}
            headers |= self._http.authorization("v3")
            return await self._http.ask("POST", "api/v3/write_lp", query, body, headers)
        query = {"org": self._org, "bucket": self._bucket, "precision": precision}
        return await self._http.ask("POST", "api/v2/write", query, body, {**headers, **self._http.authorization("v2")})

    async def _create_database(self) -> None:
        quoted = self._bucket.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        answer = await self._http.ask(
            "POST", "query", {"q": f'CREATE DATABASE "{quoted}"'}, b"", self._http.authorization("v1")
        )
        if answer.status != 200 or '"error"' in answer.text:
            raise SinkMisconfigured(
                f"{self._http.shown}: database {self._bucket!r} does not exist and may not be created by us "
                f"({answer.status}: {words(self._http.blotted(answer))}); create it and grant the right to write"
            )

    async def _identify(self) -> _Server:
        """Return what is known about the server, having asked if nothing certain is."""
        if self._server is not None:
            return self._server
        found = await self._ask_who_it_is()
        if found.certain:  # what is assumed during an outage must not unsay what is known
            self._settle_s = _VICTORIA_SETTLE_S if found.dialect is Dialect.VICTORIA else 0.0
            self._server = found
        return found

    async def _ask_who_it_is(self) -> _Server:
        answers = [await self._http.ask("GET", path) for path in ("-/healthy", "ping", "health")]
        if any("X-Server-Hostname" in answer.headers for answer in answers) or "VictoriaMetrics" in answers[0].text:
            # Without a database in the address no label `db` splits its series.
            api = "v1" if self._api == "v1" else "v2"
            return _Server(label="VictoriaMetrics", api=api, dialect=Dialect.VICTORIA)
        version = next(filter(None, map(version_of, answers[1:])), "")
        native = {"1": "v1", "2": "v2", "3": "v3"}.get(version.partition(".")[0], "v2")
        api = native if self._api == "auto" else self._api
        return _Server(
            label=f"InfluxDB {version}" if version else "A server that does not say its version",
            api=api,
            dialect=Dialect.INFLUX3 if "v3" in (self._api, native) else Dialect.INFLUX,
            stores_the_rest=version.startswith("1.") or api == "v3",
            certain=bool(version) or all(answer.status in _PLAIN_ANSWERS for answer in answers),
        )

    async def _notice_restart(self) -> None:
        """Make a restart that no request noticed the outage it was.

        Raises:
            SinkUnavailable: it was restarted since it was last asked.
        """
        now_s = asyncio.get_running_loop().time()
        if now_s - self._asked_s < _VICTORIA_ASK_S:
            return
        answer = await self._http.ask("GET", "metrics")
        self._asked_s = now_s
        found = re.search(r"^process_start_time_seconds (\S+)", answer.text, re.MULTILINE)
        before, self._started = self._started, found[1] if found else self._started
        if before not in (None, self._started):
            raise SinkUnavailable(f"{self._http.shown} was restarted: what it had not made durable is sent again")

    async def _check_victoria(self) -> None:
        flags = await self._http.ask("GET", "flags")
        text = flags.text if flags.status == 200 else (await self._http.ask("GET", "metrics")).text
        found = re.search(r'dedup\.minScrapeInterval(?:="|", value=")([^"]*)"', text)
        # Newer versions hide their flags behind a key: what cannot be seen is not held against them.
        visible = flags.status == 200 or "flag{" in text
        if visible and (found is None or found[1] != "1ms"):
            raise SinkMisconfigured(
                f"VictoriaMetrics at {self._http.shown} runs with dedup.minScrapeInterval={found[1] if found else '0s'}: "
                "repeated points would count twice; start it with -dedup.minScrapeInterval=1ms"
            )

    def _judged(self, answer: Answer) -> SinkError | None:
        return judge(answer, self._http.shown, dt.datetime.now(dt.UTC))


def _raise(error: SinkError) -> Mapping[int, str]:
    raise error
