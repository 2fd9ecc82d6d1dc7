"""The broker's way of saying no over HTTP."""

from __future__ import annotations

from typing import Final

from aiohttp import web

__all__ = ["error"]

_CODES: Final = {400: "UDAPI10000", 401: "UDAPI100050", 403: "UDAPI100067", 404: "UDAPI100060", 429: "UDAPI10005"}
_MESSAGES: Final = {401: "Invalid token used to access API", 429: "Too Many Request Sent"}


def error(
    status: int, code: str = "", message: str = "", *, invalid: tuple[str, str] | None = None, casing: str = "both"
) -> web.Response:
    """Return the broker's error envelope: a list of errors, every field in both casings, no `data`.

    Args:
        status: of HTTP.
        code: the broker's; the usual one of the status when empty.
        message: for people; the usual one of the status when empty.
        invalid: name and value of the parameter that is wrong.
        casing: leave out the others: snake, camel.
    """
    code = code or _CODES.get(status, "UDAPI100500")
    path, value = invalid or (None, None)
    fault = {
        "errorCode": code,
        "message": message or _MESSAGES.get(status, "Something went wrong"),
        "propertyPath": path,
        "invalidValue": value,
        "error_code": code,
        "property_path": path,
        "invalid_value": value,
    }
    if casing != "both":
        snake = casing == "snake"
        fault = {name: value for name, value in fault.items() if name == "message" or ("_" in name) == snake}
    return web.json_response({"status": "error", "errors": [fault]}, status=status)
