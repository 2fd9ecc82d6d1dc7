"""The parts of a login that need no network: addresses, and the code in what comes back."""

from __future__ import annotations

import pytest
from yarl import URL

from tickvault.brokers.upstox.login import Client, code_of, dialog_url, new_state
from tickvault.errors import ConfigurationError, Refused

REDIRECT = "http://127.0.0.1:8485/callback"
CLIENT = Client(client_id="app-key", client_secret="very-secret", redirect_uri=REDIRECT)


def test_dialog_is_what_the_broker_documents() -> None:
    """Every parameter, the redirect URI quoted, and no secret."""
    url = URL(dialog_url(CLIENT, "st&te"))
    assert str(url.with_query(None)) == "https://api.upstox.com/v2/login/authorization/dialog"
    assert dict(url.query) == {
        "response_type": "code",
        "client_id": "app-key",
        "redirect_uri": REDIRECT,
        "state": "st&te",
    }
    assert "very-secret" not in str(url) + repr(CLIENT)


def test_no_state_comes_twice() -> None:
    """And none can be guessed."""
    states = {new_state() for _ in range(100)}
    assert len(states) == 100
    assert min(map(len, states)) >= 32


@pytest.mark.parametrize(
    "pasted",
    ["c0-De_1", " 'c0-De_1' \n", f"{REDIRECT}?code=c0-De_1&state=mine", f"{REDIRECT}?state=mine&code=c0-De_1&x=y"],
)
def test_code_is_found(pasted: str) -> None:
    """In the whole address, or alone."""
    assert code_of(pasted, "mine") == "c0-De_1"


@pytest.mark.parametrize(
    ("pasted", "words"),
    [
        ("", "no code"),
        (REDIRECT, "no code"),
        (f"{REDIRECT}?code=very-secret", "another login"),
        (f"{REDIRECT}?code=very-secret&state=theirs", "another login"),
        (f"{REDIRECT}?code=very-secret&state=m%C3%AFne", "another login"),
        (f"{REDIRECT}?state=mine", "no code"),
        (f"{REDIRECT}?code=very%20secret&state=mine", "no code"),
        (f"{REDIRECT}?error=access_denied&state=mine", "without a login"),
        ("http://[very-secret", "no code"),
    ],
)
def test_what_is_no_answer_is_refused(pasted: str, words: str) -> None:
    """Not an answer, an answer to another question, or a no; nothing of it is quoted."""
    with pytest.raises(Refused, match=words) as caught:
        code_of(pasted, "mine")
    assert "very-secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"client_id": ""}, "UPSTOX_CLIENT_ID"),
        ({"client_secret": "", "redirect_uri": ""}, "UPSTOX_CLIENT_SECRET and UPSTOX_REDIRECT_URI"),
        ({"redirect_uri": "localhost"}, "UPSTOX_REDIRECT_URI: expected"),
        ({"redirect_uri": "http://[very-secret"}, "UPSTOX_REDIRECT_URI: expected"),
        ({"api_url": "http://api.upstox.com"}, "UPSTOX_API_URL: expected https"),
    ],
)
def test_settings_that_cannot_work(changed: dict[str, str], words: str) -> None:
    """Each is named, before anything is sent."""
    values = {"client_id": "a", "client_secret": "very-secret", "redirect_uri": REDIRECT, **changed}
    with pytest.raises(ConfigurationError, match=words) as caught:
        Client(**values)
    assert "very-secret" not in str(caught.value)
