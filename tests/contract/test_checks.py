"""`run_checks` against the simulator and small servers: every row says what was found, and what to do about it."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import sqlite3
import time
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port
from doubles import Vault

from tickvault import checks
from tickvault.checks import Row, run_checks
from tickvault.datafolder import DataFolder
from tickvault.settings import load_settings
from tickvault.simulator.script import Relist
from tickvault.simulator.server import Simulator
from tickvault.simulator.settings import SimulatorSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from pathlib import Path

TestServer.__test__ = False  # type: ignore[attr-defined]

SECRET = "canary-token"


def resolve(host: str) -> list[str]:
    """A resolver that knows one public host."""
    return ["203.0.113.7"] if host == "public.example" else []


async def rows_of(environ: Mapping[str, str], **options: Any) -> list[Row]:
    return await run_checks(load_settings(environ=environ, env_file=None), resolve, **options)


def found(rows: list[Row], what: str) -> Row:
    [row] = [row for row in rows if row.what == what and not row.found.startswith("warning")]
    return row


@pytest.fixture
async def simulator() -> AsyncIterator[Simulator]:
    async with Simulator(SimulatorSettings(instruments=5, updates_per_second=0.0)) as one:
        yield one


def environ(simulator: Simulator, folder: Path, **more: str) -> dict[str, str]:
    return {
        "UPSTOX_API_URL": simulator.url,
        "UPSTOX_ACCESS_TOKEN": SECRET,
        "UPSTOX_INSTRUMENTS_URL": f"{simulator.url}/market-quote/instruments/exchange/complete.json.gz",
        "TICKVAULT_INSTRUMENTS": ",".join(simulator.instrument_keys),
        "TICKVAULT_DATA_DIR": str(folder),
        "TICKVAULT_DISK_RESERVE": "1MB",
        **{name: text for name, text in more.items() if text},
    }


@contextlib.asynccontextmanager
async def serving(handler: Callable[[web.Request], Any]) -> AsyncIterator[str]:
    """Serve one handler under every path; yield the base address."""
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", handler)
    async with TestServer(app) as server:
        yield str(server.make_url("")).rstrip("/")


def jwt(**claims: object) -> str:
    parts = [
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode() for part in ({"alg": "HS256"}, claims)
    ]
    return ".".join([*parts, SECRET])


async def test_everything_well(simulator: Simulator, tmp_path: Path) -> None:
    """With a broker that answers every row is ✔, and nothing is left in the place of the data folder."""
    folder = tmp_path / "data"
    rows = await rows_of(environ(simulator, folder))

    assert [row for row in rows if not row.ok] == []
    assert [row.what for row in rows] == [
        *("settings", "token", "broker", "instruments", "master list", "sink parquet", "clock", "disk", "data folder")
    ]
    assert found(rows, "instruments").found == "5 keys from TICKVAULT_INSTRUMENTS (5 full) on 1 socket, 1 message"
    assert "5 of 5 keys have a definition" in found(rows, "master list").found
    assert "will be created" in found(rows, "data folder").found
    assert list(tmp_path.iterdir()) == []


async def test_urls_for_token_and_instruments(simulator: Simulator, tmp_path: Path) -> None:
    """Token and keys are taken from their URLs, whose paths and queries are not shown."""
    settings = environ(simulator, tmp_path)
    del settings["UPSTOX_ACCESS_TOKEN"], settings["TICKVAULT_INSTRUMENTS"]
    settings |= {
        "UPSTOX_TOKEN_URL": f"{simulator.url}/token?key={SECRET}",
        "TICKVAULT_INSTRUMENTS_URL": f"{simulator.url}/instruments?key={SECRET}",
    }
    rows = await rows_of(settings)

    assert all(row.ok for row in rows)
    assert found(rows, "token").found.startswith(f"from {simulator.url};")
    assert found(rows, "instruments").found.startswith(f"5 keys from {simulator.url} (")
    assert SECRET not in str(rows)


async def test_nothing_set(tmp_path: Path) -> None:
    """Without token and instruments the settings row names what to set, and the broker is not asked."""

    async def fail(_request: web.Request) -> web.Response:
        raise AssertionError

    async with serving(fail) as url:
        rows = await rows_of(
            {"TICKVAULT_DATA_DIR": str(tmp_path), "UPSTOX_API_URL": url, "UPSTOX_INSTRUMENTS_URL": "off"}
        )

    assert "UPSTOX_ACCESS_TOKEN" in found(rows, "settings").found
    assert "TICKVAULT_INSTRUMENTS" in found(rows, "settings").found
    assert not {"token", "broker", "instruments"} & {row.what for row in rows}
    assert "neither" in found(rows, "clock").found
    assert found(rows, "clock").ok is None


async def test_warnings_are_rows(simulator: Simulator, tmp_path: Path) -> None:
    """Doubtful settings are told and fail nothing."""
    more = {
        "REPLACE_INSTRUMENT_KEY_WITH_TRADE_SYMBOL": "true",
        "TICKVAULT_NOTIFY_URL": f"http://u:{SECRET}@10.0.0.7/{SECRET}",
    }
    rows = await rows_of(environ(simulator, tmp_path, **more))

    warnings = [row for row in rows if row.found.startswith("warning: ")]
    assert len(warnings) == 2
    assert {row.ok for row in warnings} == {None}
    assert all(row.ok for row in rows if row not in warnings)
    assert found(rows, "webhook").found.startswith("http://10.0.0.7: all events, unsigned")
    assert "nothing was posted" in found(rows, "webhook").found
    assert SECRET not in str(rows)


async def test_nothing_is_sent_in_plain_text_to_a_public_host(simulator: Simulator, tmp_path: Path) -> None:
    """While an address breaks the plain-text rule no server is spoken to."""
    rows = await rows_of(environ(simulator, tmp_path, TICKVAULT_NOTIFY_URL="http://public.example/hook"))

    [refused, untried] = [row for row in rows if not row.ok]
    assert "public.example" in refused.found
    assert (untried.what, untried.found[:9]) == ("network", "not tried")
    assert not (tmp_path / "instruments.json.gz").exists()


async def test_the_broker_is_asked_once(tmp_path: Path) -> None:
    """A refusal is shown in the broker's words, without the token it echoes, after one call."""
    calls = []

    async def refuse(request: web.Request) -> web.Response:
        calls.append(request.path)
        message = f"Invalid token {request.headers['Authorization']}"
        return web.json_response({"errors": [{"errorCode": "UDAPI100050", "message": message}]}, status=401)

    async with serving(refuse) as url:
        keys = {"TICKVAULT_INSTRUMENTS": "NSE_EQ|INE002A01018", "UPSTOX_INSTRUMENTS_URL": "off"}
        rows = await rows_of(
            {"UPSTOX_API_URL": url, "UPSTOX_ACCESS_TOKEN": SECRET, "TICKVAULT_DATA_DIR": str(tmp_path), **keys}
        )

    assert calls == ["/v3/feed/market-data-feed/authorize"]
    [refused] = [row for row in rows if not row.ok]
    assert refused.what == "broker"
    assert "UDAPI100050 Invalid token" in refused.found
    assert "make a new token" in refused.found
    assert SECRET not in str(rows)


@pytest.mark.parametrize(
    ("claims", "ok", "words"),
    [
        ({"exp": 2_000_000_000, "isPlusPlan": True}, True, "Plus plan, valid until 2033-05-18 09:03 IST"),
        ({"exp": 1_000_000_000, "isPlusPlan": True}, False, "expired at 2001-09-09 07:16 IST"),
        ({"isPlusPlan": False}, False, "no Plus plan, no expiry in it; the broker ignores 1 keys in full_d30"),
        ({"exp": 1e300}, True, "no expiry in it"),
        ({"iat": time.time(), "exp": time.time() + 40_000}, True, "can probably place orders"),
        ({"iat": time.time(), "exp": time.time() + 365 * 86_400}, True, "an Analytics token, valid until"),
        ({"iat": 1_000_000_000, "exp": time.time() + 6 * 86_400}, True, "less than 7 days left"),
        ({"exp": True}, True, "no expiry in it"),
    ],
)
async def test_what_a_token_says(
    simulator: Simulator, tmp_path: Path, claims: dict[str, object], ok: bool, words: str
) -> None:
    """Expiry and plan are read off a JWT; the token is not shown."""
    key = f"{simulator.instrument_keys[0]}@full_d30"
    settings = environ(simulator, tmp_path, UPSTOX_ACCESS_TOKEN=jwt(**claims), TICKVAULT_INSTRUMENTS=key)
    row = found(await rows_of(settings), "token")

    assert row.ok == ok
    assert words in row.found
    assert SECRET not in row.found


async def test_token_that_only_looks_like_a_jwt(simulator: Simulator, tmp_path: Path) -> None:
    """Three parts do not make a JWT; nothing is claimed about such a token."""
    rows = await rows_of(environ(simulator, tmp_path, UPSTOX_ACCESS_TOKEN="a.b!.c"))
    assert "not a JWT" in found(rows, "token").found


async def test_servers_that_are_down(tmp_path: Path) -> None:
    """Every server that cannot be reached is a row with its setting's name."""
    url = f"http://127.0.0.1:{unused_port()}"
    rows = await rows_of(
        {
            "UPSTOX_API_URL": url,
            "UPSTOX_TOKEN_URL": f"{url}/token",
            "TICKVAULT_INSTRUMENTS_URL": f"{url}/keys",
            "UPSTOX_INSTRUMENTS_URL": f"{url}/list",
            "INFLUX_URL": url,
            "INFLUX_BUCKET": "b",
            "TICKVAULT_DATA_DIR": str(tmp_path),
        }
    )
    failed = {row.what: row.found for row in rows if not row.ok}
    steps = {
        "token": "UPSTOX_TOKEN_URL",
        "instruments": "TICKVAULT_INSTRUMENTS_URL",
        "master list": "UPSTOX_INSTRUMENTS_URL",
        "sink influx": "INFLUX_URL",
        "clock": "check again",
    }
    assert failed.keys() == steps.keys()
    for what, step in steps.items():
        assert step in failed[what]


async def test_the_copy_of_the_master_list_serves(simulator: Simulator, tmp_path: Path) -> None:
    """A list that cannot be had is replaced by its copy; a key that it lacks is named."""
    settings = environ(simulator, tmp_path)
    assert all(row.ok for row in await rows_of(settings))

    settings["UPSTOX_INSTRUMENTS_URL"] = f"{simulator.url}/nowhere"
    row = found(await rows_of(settings), "master list")
    assert row.ok
    assert "HTTP 404; the copy on disk is used, 5 of 5 keys" in row.found

    settings["TICKVAULT_INSTRUMENTS"] += ",NSE_EQ|INE000000000"
    row = found(await rows_of(settings), "master list")
    assert not row.ok
    assert row.found.endswith("correct NSE_EQ|INE000000000")


async def test_a_master_list_that_has_lost_many_rows(tmp_path: Path) -> None:
    """A warning with the segment; the rows of the list before serve."""
    async with Simulator(SimulatorSettings(instruments=40, updates_per_second=0.0)) as simulator:
        folder = tmp_path / "data"
        folder.mkdir()
        settings = environ(simulator, tmp_path, TICKVAULT_DATA_DIR=str(folder))
        assert found(await rows_of(settings), "master list").ok
        simulator.play(Relist(at_s=0.0, drop=8))

        async def row() -> Row:
            return found(await rows_of(settings), "master list")

        async with asyncio.timeout(30):
            while (lost := await row()).ok:
                pass
    assert lost.ok is None
    assert "rows that have not expired: 8 of NSE_FO; the list before has them" in lost.found


async def test_too_many_keys(simulator: Simulator, tmp_path: Path) -> None:
    """Keys beyond the broker's limits are counted."""
    keys = ",".join(f"NSE_FO|{number}" for number in range(4_010))
    row = found(await rows_of(environ(simulator, tmp_path, TICKVAULT_INSTRUMENTS=keys)), "instruments")
    assert not row.ok
    assert "10 of 4,010 keys do not fit on the 2 sockets" in row.found
    assert row.found.endswith("take some out, or use another mode")


async def test_selections(simulator: Simulator, tmp_path: Path) -> None:
    """What comes to nothing is named with the nearest known name; what waits for a price is said and is no fault."""
    wrong = environ(simulator, tmp_path, TICKVAULT_INSTRUMENTS="NSE_EQ:HINDCOPER,index:*")
    row = found(await rows_of(wrong), "instruments")
    assert not row.ok
    assert row.found.startswith("3 keys from")
    assert "did you mean HINDCOPPER?" in row.found
    missing = environ(simulator, tmp_path, TICKVAULT_INSTRUMENTS=f"@{tmp_path}/none.txt")
    assert "cannot be read" in found(await rows_of(missing), "instruments").found
    async with Simulator(SimulatorSettings(instruments=300, updates_per_second=0.0)) as larger:
        chain = environ(larger, tmp_path, TICKVAULT_INSTRUMENTS="chain:NIFTY:1:atm+-2")
        row = found(await rows_of(chain), "instruments")
    assert row.ok
    assert row.found == (
        "3 keys from TICKVAULT_INSTRUMENTS (3 full) on 1 socket, 1 message, "
        "and strikes round the price of NSE_INDEX|Nifty 50, which the feed brings"
    )


@pytest.mark.parametrize(("status", "step"), [(204, ""), (401, "INFLUX_TOKEN"), (404, "INFLUX_BUCKET")])
async def test_influx(simulator: Simulator, tmp_path: Path, status: int, step: str) -> None:
    """InfluxDB's row says what answers, or what to mend; no credential is in it, nor in its URL."""

    async def answer(request: web.Request) -> web.Response:
        if request.method == "GET":
            return web.Response(status=204, headers={"X-Influxdb-Version": "v2.7.1"})
        return web.json_response({"message": f"no {request.headers['Authorization']}"}, status=status)

    async with serving(answer) as url:
        more = {"INFLUX_URL": url.replace("//", f"//user:{SECRET}@"), "INFLUX_TOKEN": SECRET, "INFLUX_BUCKET": "b"}
        rows = await rows_of(environ(simulator, tmp_path, **more))
    row = found(rows, "sink influx")
    assert row.ok == (status == 204)
    assert step in row.found
    assert SECRET not in str(rows)


async def test_a_sink_that_this_version_lacks(simulator: Simulator, tmp_path: Path) -> None:
    """A sink that `run` would refuse is refused here."""
    more = {"TICKVAULT_SINKS": "parquet,nats", "NATS_URL": "nats://127.0.0.1:4222"}
    row = found(await rows_of(environ(simulator, tmp_path, **more)), "sink nats")
    assert not row.ok
    assert "TICKVAULT_SINKS" in row.found


@pytest.mark.parametrize(
    ("shift_s", "words"), [(-30.0, "behind the broker"), (30.0, "ahead of the broker"), (0.0, "agrees")]
)
async def test_clock(simulator: Simulator, tmp_path: Path, shift_s: float, words: str) -> None:
    """A clock that is off by more than 2 s fails, and the row says which way; the header's second is allowed for."""
    row = found(await rows_of(environ(simulator, tmp_path), wall_s=lambda: time.time() + shift_s), "clock")
    assert row.ok == (shift_s == 0.0)
    assert words in row.found


async def test_disk_reserve(simulator: Simulator, tmp_path: Path) -> None:
    """Less free space than the reserve fails."""
    row = found(await rows_of(environ(simulator, tmp_path, TICKVAULT_DISK_RESERVE="900000TB")), "disk")
    assert not row.ok
    assert "TICKVAULT_DISK_RESERVE" in row.found
    assert found(await rows_of(environ(simulator, tmp_path, TICKVAULT_DISK_RESERVE="0.001%")), "disk").ok


async def test_data_folder_in_use(simulator: Simulator, tmp_path: Path) -> None:
    """A running recorder is named by its pid, and left alone."""
    with DataFolder(tmp_path):
        row = found(await rows_of(environ(simulator, tmp_path)), "data folder")
    assert row.ok
    assert "in use by pid " in row.found
    assert not list(tmp_path.glob(".tickvault-check-*"))


async def test_data_folder_that_others_can_see(simulator: Simulator, tmp_path: Path) -> None:
    """The user's own folder is left as it is, and told of with the command that mends it."""
    tmp_path.chmod(0o755)
    row = found(await rows_of(environ(simulator, tmp_path)), "data folder")
    assert row.ok
    assert f"`chmod 700 {tmp_path}`" in row.found
    tmp_path.chmod(0o700)
    assert "chmod" not in found(await rows_of(environ(simulator, tmp_path)), "data folder").found


async def test_data_folder_that_cannot_be(simulator: Simulator, tmp_path: Path) -> None:
    """A file in the folder's place fails, with the setting to change."""
    (tmp_path / "file").touch()
    rows = await rows_of(environ(simulator, tmp_path / "file" / "data"))
    for what in ("sink parquet", "data folder"):
        row = found(rows, what)
        assert not row.ok
        assert "TICKVAULT_DATA_DIR" in row.found


async def test_a_folder_that_run_would_refuse(simulator: Simulator, tmp_path: Path) -> None:
    """State and journal are looked at as a start does; each refusal is its words, and nothing is changed."""
    vault = Vault(tmp_path / "data")
    vault.open()
    vault.append(3)
    vault.journal.close()
    vault.drop()
    settings = environ(simulator, vault.path)
    assert found(await rows_of(settings), "journal").found.startswith("3 frames in 1 segment can be opened")
    segment, state = vault.path / "journal" / "0000000000000001.db", vault.path / "state.db"
    whole = {path: path.read_bytes() for path in (segment, state)}
    for path, sql, words in (
        (segment, "PRAGMA user_version = 7", "upgrade this installation"),
        (state, "PRAGMA user_version = 7", "upgrade this installation"),
        (
            state,
            "UPDATE journal SET recorder = 'another'; DELETE FROM checks",
            "restore the state.db that belongs here",
        ),
        (segment, None, "sets it aside and keeps what is whole"),
        (state, None, "the next `tickvault run` sets it aside"),
    ):
        if sql is None:
            path.write_bytes(b"garbage" * 3000)
        else:
            with contextlib.closing(sqlite3.connect(path)) as db, db:
                db.executescript(sql)
        row = found(await rows_of(settings), "journal")
        assert row.ok is False
        assert words in row.found
        path.write_bytes(whole[path])


async def test_each_check_is_bounded(simulator: Simulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that never answers costs its check's time, and the others go on."""
    monkeypatch.setattr(checks, "TIMEOUT_S", 0.2)
    never = asyncio.Event()

    async def hang(_request: web.Request) -> web.Response:
        await never.wait()
        return web.Response()

    async with serving(hang) as url:
        rows = await rows_of(environ(simulator, tmp_path, INFLUX_URL=url, INFLUX_BUCKET="b"))
        never.set()
    row = found(rows, "sink influx")
    assert not row.ok
    assert "0.2 s" in row.found or "in time" in row.found
    assert found(rows, "clock").ok


async def test_the_broker_is_not_asked_more_often_than_a_recorder_may(simulator: Simulator, tmp_path: Path) -> None:
    """The limit is the data folder's; a check says so, and waits for nothing."""
    for _ in range(6):
        assert found(await rows_of(environ(simulator, tmp_path)), "broker").ok
    row = found(await rows_of(environ(simulator, tmp_path)), "broker")
    assert row.ok is None
    assert row.found.startswith("not asked: 6 authorize calls in the last minute; check again in ")
