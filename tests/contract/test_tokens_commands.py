"""`tickvault token …` as typed: what it stores, what it prints, and what it never prints."""

from __future__ import annotations

import asyncio
import base64
import json
import stat
import time
from functools import partial
from typing import TYPE_CHECKING, Any

import aiohttp
import pytest
import typer
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port
from typer.testing import CliRunner
from yarl import URL

from tickvault.brokers.upstox.login import Client
from tickvault.brokers.upstox.probe import Pace
from tickvault.brokers.upstox.token_files import stored_token
from tickvault.cli import program
from tickvault.commands import token as token_commands
from tickvault.commands.token import app, log_in
from tickvault.datafolder import DataFolder
from tickvault.errors import ConfigurationError, Refused
from tickvault.settings.table import KNOWN
from tickvault.simulator import Simulator, SimulatorSettings

if TYPE_CHECKING:
    from pathlib import Path

    from click.testing import Result

TestServer.__test__ = False  # type: ignore[attr-defined]

DAY_S = 86_400


@pytest.fixture(autouse=True)
def _alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep what a developer has set out of the test."""
    monkeypatch.chdir(tmp_path)
    for name in KNOWN:
        monkeypatch.delenv(name, raising=False)


def jwt(**claims: Any) -> str:
    body = base64.urlsafe_b64encode(json.dumps({"sub": "VERYSECRET1", **claims}).encode()).rstrip(b"=").decode()
    return f"very-secret-header.{body}.very-secret"


def analytics() -> str:
    return jwt(iat=int(time.time()) - 5, exp=int(time.time()) + 365 * DAY_S, isPlusPlan=False)


def daily() -> str:
    return jwt(iat=int(time.time()) - 5, exp=int(time.time()) + DAY_S // 2)


def typed(*words: str, given: str = "", environ: dict[str, str] | None = None) -> Result:
    result = CliRunner().invoke(app, list(words), input=given, env=environ)
    said = (result.output + str(result.exception)).lower()
    assert "very-secret" not in said
    assert "verysecret" not in said
    return result


def test_set_reads_stdin_and_stores(tmp_path: Path) -> None:
    """0600, and the answer says what it is without showing it."""
    token = analytics()
    result = typed("set", "--data-dir", "data", given=f"  Bearer {token}\n")
    assert result.exit_code == 0
    assert stored_token(tmp_path / "data") == token
    assert stat.S_IMODE((tmp_path / "data" / "token").stat().st_mode) == 0o600
    assert "an Analytics token, no Plus plan, valid until" in result.output
    assert "place orders" not in result.output


def test_set_warns_of_a_token_that_can_trade() -> None:
    """A daily token in a file is worth a sentence."""
    assert "can probably place orders" in typed("set", "--data-dir", "data", given=daily()).output


def test_set_refuses_what_is_no_token_or_has_expired(tmp_path: Path) -> None:
    """The token that is there stays."""
    typed("set", "--data-dir", "data", given="opaque-token")
    expired = jwt(iat=int(time.time()) - 2 * DAY_S, exp=int(time.time()) - DAY_S)
    for given, words in (("", "expected an access token"), ("two words", "in one piece"), (expired, "expired at")):
        result = typed("set", "--data-dir", "data", given=given)
        assert isinstance(result.exception, Refused)
        assert words in str(result.exception)
    assert stored_token(tmp_path / "data") == "opaque-token"


def test_set_takes_no_token_as_an_argument() -> None:
    """An argument would be seen by every user of the machine."""
    assert typed("set", "abc", "--data-dir", "data").exit_code == 2


def test_set_works_while_a_recorder_runs(tmp_path: Path) -> None:
    """It names the recorder, and does not need its lock."""
    with DataFolder(tmp_path / "data"):
        result = typed("set", "--data-dir", "data", given="opaque-token")
    assert result.exit_code == 0
    assert "the recorder (pid" in result.output


def test_show_names_places_and_ends() -> None:
    """The one that is tried first on top."""
    typed("set", "--data-dir", "data", given=daily())
    result = typed("show", "--data-dir", "data", environ={"UPSTOX_ACCESS_TOKEN": jwt(iat=5, exp=6)})
    lines = result.output.splitlines()
    assert [line.split("\t")[0] for line in lines] == [
        "where",
        "the data folder, by `tickvault token set` or `login`",
        "the settings",
    ]
    assert "a daily token, valid until" in lines[1]
    assert lines[1].endswith("probably")
    assert "expired at 1970" in lines[2]


def test_show_for_programs() -> None:
    """The same as JSON; a guess is called one."""
    typed("set", "--data-dir", "data", given="opaque-token")
    (one,) = json.loads(typed("show", "--data-dir", "data", "--json").output)
    assert one.pop("expires_at").endswith("T03:30:00+05:30")
    assert one == {
        "where": "stored",
        "kind": "unknown",
        "plus": None,
        "expiry_known": False,
        "can_probably_trade": None,
    }


def test_show_mentions_the_url_without_its_query() -> None:
    """It may hold a key."""
    environ = {"UPSTOX_TOKEN_URL": "https://tokens.example.com/path?key=very-secret"}
    result = typed("show", "--data-dir", "data", environ=environ)
    assert "https://tokens.example.com, asked when there is no other" in result.output


def test_show_tells_of_a_file_that_others_can_read(tmp_path: Path) -> None:
    """And how to mend it."""
    typed("set", "--data-dir", "data", given="opaque-token")
    (tmp_path / "data" / "token").chmod(0o644)
    assert "chmod 600" in typed("show", "--data-dir", "data").output


def test_show_without_any_token() -> None:
    """The next step is said."""
    result = typed("show", "--data-dir", "data")
    assert isinstance(result.exception, Refused)
    assert "tickvault token set" in str(result.exception)


def test_login_without_an_app() -> None:
    """Every missing setting is named at once, and the way that needs none."""
    result = CliRunner().invoke(program(), ["login", "--data-dir", "data"])
    assert isinstance(result.exception, ConfigurationError)
    for name in ("UPSTOX_CLIENT_ID", "UPSTOX_CLIENT_SECRET", "UPSTOX_REDIRECT_URI", "tickvault token set"):
        assert name in str(result.exception)


class Broker:
    """Exchanges one code."""

    async def token(self, request: web.Request) -> web.Response:
        form = await request.post()
        if form["code"] != "the-code" or form["client_secret"] != "very-secret":
            return web.json_response({"errors": [{"errorCode": "UDAPI100057"}]}, status=401)
        return web.json_response({"access_token": "fresh"})

    def server(self) -> TestServer:
        web_app = web.Application()
        web_app.router.add_post("/v2/login/authorization/token", self.token)
        return TestServer(web_app)


async def test_login_by_pasting() -> None:
    """The address is printed, the redirected one is pasted, the token comes back; no secret is said."""
    said: list[str] = []

    def paste() -> str:
        url = URL(said[0].split("\n")[2])
        return f"{url.query['redirect_uri']}?code=the-code&state={url.query['state']}"

    async with Broker().server() as server:
        client = Client(
            client_id="app",
            client_secret="very-secret",
            redirect_uri="https://example.com/callback",
            api_url=str(server.make_url("")).rstrip("/"),
        )
        assert await log_in(client, ask=paste, port=None, timeout_s=5, say=said.append) == "fresh"
    assert "very-secret" not in "".join(said)


async def test_login_by_listening() -> None:
    """The browser of this machine is sent to the loopback port."""
    asked: asyncio.Queue[URL] = asyncio.Queue()

    async def browse() -> int:
        url = await asked.get()
        target = URL(url.query["redirect_uri"]).with_query(code="the-code", state=url.query["state"])
        async with aiohttp.ClientSession() as session, session.get(target) as answer:
            return answer.status

    async with Broker().server() as server:
        client = Client(
            client_id="app",
            client_secret="very-secret",
            redirect_uri=f"http://127.0.0.1:{unused_port()}/callback",
            api_url=str(server.make_url("")).rstrip("/"),
        )
        async with asyncio.TaskGroup() as group:
            browser = group.create_task(browse(), name="browser")

            def say(text: str) -> None:
                asked.put_nowait(URL(text.split("\n")[2]))

            assert await log_in(client, ask=None, port=None, timeout_s=5, say=say) == "fresh"
    assert browser.result() == 200


def test_probe_asks_before_it_starts(tmp_path: Path) -> None:
    """Without a terminal and without --yes nothing is done; what would be done is said."""
    probe_app = typer.Typer()
    probe_app.command()(token_commands.probe)
    result = CliRunner().invoke(probe_app, ["--sockets"])
    assert isinstance(result.exception, Refused)
    assert "opens three connections at once" in result.output
    assert list(tmp_path.iterdir()) == []


async def test_probe_writes_both_sheets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside what it says while it goes, a Markdown and a JSON file."""
    monkeypatch.setattr(token_commands.probing, "Pace", partial(Pace, answer_s=0.3))
    probe_app = typer.Typer()
    probe_app.command()(token_commands.probe)
    async with Simulator(SimulatorSettings(instruments=20, ping_after_s=0.2)) as simulator:
        environ = {"UPSTOX_API_URL": simulator.url, "UPSTOX_ACCESS_TOKEN": "very-secret"}
        words = ["--yes", "--keys", simulator.instrument_keys[3], "--observe", "1", "--idle", "1", "--age", "0"]
        result = await asyncio.to_thread(CliRunner().invoke, probe_app, [*words, "--out", "sheets"], env=environ)
    assert result.exit_code == 0, result.output
    written = sorted((tmp_path / "sheets").iterdir())
    assert [path.suffix for path in written] == [".json", ".md"]
    assert json.loads(written[0].read_text())["findings"]
    assert "very-secret" not in result.output + "".join(path.read_text() for path in written)


@pytest.mark.parametrize("keys", ["", " , ", ",".join(f"NSE_EQ|{n}" for n in range(101))])
def test_probe_bounds_its_keys(keys: str) -> None:
    """None at all, or a load, is refused."""
    probe_app = typer.Typer()
    probe_app.command()(token_commands.probe)
    result = CliRunner().invoke(probe_app, ["--yes", "--keys", keys])
    assert isinstance(result.exception, ConfigurationError)
