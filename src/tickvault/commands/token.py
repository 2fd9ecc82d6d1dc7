"""`tickvault token …`, `tickvault login` and `tickvault probe`: put an access token in place, look at it, and measure the broker with it.

Laws. A token comes by stdin, by a hidden prompt or by a login, never by an argument: arguments are seen by every user
of the machine and kept by the shell. No output has a token, a code or a client secret.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import random
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import aiohttp
import typer

from tickvault import render
from tickvault.addresses import bare_url
from tickvault.brokers.upstox import probe as probing
from tickvault.brokers.upstox.api import UpstoxApi
from tickvault.brokers.upstox.callsfile import RememberedLimit
from tickvault.brokers.upstox.jwt import can_probably_trade, described, expiry, read_claims
from tickvault.brokers.upstox.login import Callback, Client, code_of, dialog_url, exchange, new_state
from tickvault.brokers.upstox.token_files import STORED_NAME, Origin, cleaned, store_token
from tickvault.brokers.upstox.tokens import Tokens
from tickvault.commands.options import AsJson, Config, DataDir, EnvFile, settings_of, show_help
from tickvault.datafolder import holder
from tickvault.errors import ConfigurationError, Refused
from tickvault.model import IST
from tickvault.resolving import guarded, resolve
from tickvault.settings import check_plaintext, plain_hosts

if TYPE_CHECKING:
    from collections.abc import Callable

    from tickvault.brokers.upstox.token_files import Found
    from tickvault.settings import Settings

__all__ = ["app", "log_in", "login", "probe", "set_command", "show"]

_MAX_INPUT: Final = 64 * 1024  # characters of stdin; a token has some 500
_PUBLIC_KEYS: Final = "NSE_INDEX|Nifty 50,NSE_INDEX|Nifty Bank,NSE_EQ|INE002A01018,NSE_EQ|INE040A01034"

app = typer.Typer(help="Put the broker's access token in place, and see it.")
app.callback(invoke_without_command=True)(show_help)


@app.command("set")
def set_command(data_dir: DataDir = None, config: Config = None, env_file: EnvFile = Path(".env")) -> None:
    """Store a token, read from stdin or a hidden prompt.

    A running recorder takes it within seconds.
    """
    settings = settings_of(data_dir, config, env_file)
    _put(settings, cleaned(_asked("Access token (not shown)", hidden=True)))


@app.command()
def show(
    as_json: AsJson = False, data_dir: DataDir = None, config: Config = None, env_file: EnvFile = Path(".env")
) -> None:
    """Show kind, expiry and place of each token, never the token.

    The one that is tried first is on top.
    """
    settings = settings_of(data_dir, config, env_file)
    found = asyncio.run(_look(settings))
    url = settings.upstox.token_url
    if not found and url is None:
        raise Refused("there is no token; `tickvault login` or `tickvault token set` puts one in place")
    if as_json:
        render.dump_json([_plain(one) for one in found])
        return
    rows = [(str(one.origin), _line(one), _trading(one.token)) for one in found]
    if url is not None:
        rows.append((str(Origin.URL), f"{bare_url(url)}, asked when there is no other; not asked now", "unknown"))
    render.table(("where", "what", "can trade"), rows)
    for one in found:
        path = settings.data_dir / STORED_NAME
        if one.origin is Origin.STORED and path.stat().st_mode & 0o077:
            typer.echo(f"others on this machine can read {path}; `chmod 600 {path}` keeps them out", err=True)


def login(
    paste: Annotated[
        bool, typer.Option("--paste", help="No listening: paste the address that the browser was sent to.")
    ] = False,
    port: Annotated[
        int | None,
        typer.Option("--port", min=0, max=65_535, help="Listen here, not at the redirect URI's port; 0: any free one."),
    ] = None,
    timeout_s: Annotated[float, typer.Option("--timeout", min=1, help="Wait so many seconds for the browser.")] = 300.0,
    data_dir: DataDir = None,
    config: Config = None,
    env_file: EnvFile = Path(".env"),
) -> None:
    """Log in with a browser (OAuth), and store the daily token.

    A running recorder takes it within seconds.
    """
    settings = settings_of(data_dir, config, env_file)
    client = _client(settings)
    ask = partial(_asked, "The address that the browser was sent to", hidden=False) if paste else None
    _put(settings, asyncio.run(log_in(client, ask=ask, port=port, timeout_s=timeout_s, say=_say)))


async def log_in(
    client: Client,
    *,
    ask: Callable[[], str] | None,
    port: int | None,
    timeout_s: float,
    say: Callable[[str], None],
) -> str:
    """Return the token of a login by the account's owner.

    Args:
        client: the owner's app.
        ask: returns what was pasted, blocking; None: listen for the browser.
        port: to listen on; None for the redirect URI's.
        timeout_s: how long to wait for the browser.
        say: shows a line.

    Raises:
        ConfigurationError, Refused, FeedUnavailable: no token; the message says what to do.
    """
    state = new_state()
    url = dialog_url(client, state)
    if ask is not None:
        say(
            f"Open this in a browser, log in, and copy the address it is sent to (its page may fail to load):\n\n{url}\n"
        )
        code = code_of(ask(), state)
    else:
        async with Callback(client, state, port=port) as callback:
            say(f"Open this in a browser of this machine and log in; listening on port {callback.port}:\n\n{url}\n")
            code = await callback.code(timeout_s)
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
        return await exchange(session, client, code)


def probe(
    sockets: Annotated[
        bool,
        typer.Option("--sockets", help="Also open three connections at once; may end one of another program."),
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask before starting.")] = False,
    keys: Annotated[str, typer.Option("--keys", help="Comma-separated instrument keys to watch.")] = _PUBLIC_KEYS,
    expired_key: Annotated[
        str | None, typer.Option("--expired-key", help="A key of a contract that has expired.", show_default=False)
    ] = None,
    observe_s: Annotated[float, typer.Option("--observe", min=1, help="Watch live frames for so many seconds.")] = 150,
    idle_s: Annotated[float, typer.Option("--idle", min=1, help="Wait for server pings for so many seconds.")] = 90,
    age_s: Annotated[float, typer.Option("--age", min=0, help="Open an address when it is so old.")] = 120,
    out: Annotated[Path, typer.Option("--out", help="Folder that gets the fact sheet.")] = Path(),
    data_dir: DataDir = None,
    config: Config = None,
    env_file: EnvFile = Path(".env"),
) -> None:
    """Measure what the broker's documentation leaves open.

    Writes a fact sheet without secrets, prices or account.
    """
    settings = settings_of(data_dir, config, env_file)
    watched = tuple(dict.fromkeys(key.strip() for key in keys.split(",") if key.strip()))
    if not 1 <= len(watched) <= probing.MAX_KEYS:
        raise ConfigurationError(f"--keys: expected 1 to {probing.MAX_KEYS} keys, got {len(watched)}")
    pace = probing.Pace(observe_s=observe_s, idle_s=idle_s, age_s=age_s)
    _say(f"This takes about {pace.total_s / 60:.0f} minutes, and does this with your account:\n")
    for step in probing.steps(sockets=sockets):
        _say(f"  {step.name}: {step.does}")
    _say("\nIt reads only, and opens one connection at a time; an account may have two, all programs together.")
    if sockets:
        _say("--sockets opens three at once: stop every other program that uses the feed first.")
    if not yes and not _confirmed():
        raise Refused("not started; answer y, or give --yes")
    sheet = asyncio.run(_probe(settings, watched, pace, sockets=sockets, expired_key=expired_key))
    name = f"tickvault-probe-{dt.datetime.now(IST):%Y%m%d-%H%M%S}"
    try:
        out.mkdir(parents=True, exist_ok=True)
        for path, text in ((out / f"{name}.md", sheet.markdown()), (out / f"{name}.json", sheet.json())):
            path.write_text(text, encoding="utf-8")
            _say(f"wrote {path}")
    except OSError as exc:
        raise Refused(f"cannot write to {out}: {exc.strerror}; name a folder you own with --out") from exc


async def _probe(
    settings: Settings, keys: tuple[str, ...], pace: probing.Pace, *, sockets: bool, expired_key: str | None
) -> probing.Sheet:
    for warning in await asyncio.to_thread(check_plaintext, settings, resolve):
        _say(f"warning: {warning}")
    connector = guarded(plain_hosts(settings))
    async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.DummyCookieJar()) as session:
        token = await Tokens.of(settings, session).token()
        rate = None
        if settings.data_dir.is_dir():
            rate = RememberedLimit(settings.data_dir / "authorize.json", wall_ns=time.time_ns)
        return await probing.run_probe(
            UpstoxApi(settings.upstox.api_url, session),
            session,
            token,
            keys=keys,
            pace=pace,
            sockets=sockets,
            expired_key=expired_key,
            say=_say,
            rng=random.Random(),  # noqa: S311 - request ids
            rate=rate,
        )


def _put(settings: Settings, token: str) -> None:
    """Store a token and say what it is."""
    now_ns = time.time_ns()
    claims = read_claims(token)
    if claims is not None and claims.expires_ns is not None and claims.expires_ns <= now_ns:
        raise Refused(f"not stored: {described(token, now_ns)}; make a new one")
    path = store_token(settings.data_dir, token)
    _say(f"stored in {path}: {described(token, now_ns, obtained_ns=now_ns)}")
    if can_probably_trade(claims):
        _say("whoever finds it can probably place orders until then; an Analytics token could not")
    if (who := holder(settings.data_dir)) is not None:
        _say(f"the recorder (pid {who.pid}) takes it at its next attempt, within seconds if it waits for one")


async def _look(settings: Settings) -> tuple[Found, ...]:
    async with aiohttp.ClientSession() as session:
        return await Tokens.of(settings, session).look()


def _client(settings: Settings) -> Client:
    upstox = settings.upstox
    return Client(
        client_id=upstox.client_id or "",
        client_secret=upstox.client_secret.get_secret_value() if upstox.client_secret is not None else "",
        redirect_uri=upstox.redirect_uri or "",
        api_url=upstox.api_url,
    )


def _line(one: Found) -> str:
    obtained_ns = one.placed_ns if one.origin is Origin.STORED else None
    return described(one.token, time.time_ns(), obtained_ns=obtained_ns)


def _trading(token: str) -> str:
    return {True: "probably", False: "no", None: "unknown"}[can_probably_trade(read_claims(token))]


def _plain(one: Found) -> dict[str, object]:
    claims = read_claims(one.token)
    end = expiry(claims, obtained_ns=one.placed_ns if one.origin is Origin.STORED else None)
    at = None if end is None else dt.datetime.fromtimestamp(end.at_ns / 1e9, IST).isoformat(timespec="seconds")
    return {
        "where": one.origin.name.lower(),
        "kind": "unknown" if claims is None else str(claims.kind),
        "plus": None if claims is None else claims.plus,
        "expires_at": at,
        "expiry_known": end is not None and end.known,
        "can_probably_trade": can_probably_trade(claims),
    }


def _asked(prompt: str, *, hidden: bool) -> str:
    """Return what is typed or pasted, or what stdin has when it is no terminal."""
    if sys.stdin.isatty():
        return str(typer.prompt(prompt, hide_input=hidden, type=str))
    return sys.stdin.read(_MAX_INPUT)


def _confirmed() -> bool:
    return sys.stdin.isatty() and typer.confirm("Go on?")


def _say(text: str) -> None:
    typer.echo(text)
