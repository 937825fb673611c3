"""The line in the log of a request that never reached the application."""

import logging
from collections.abc import Mapping
from typing import Any

from opendify.worker import error_responses

# The application's, which has the line of each other request and knows the form of the log.
_log = logging.getLogger("opendify.requests")


def log_refusal(
    status: int,
    request_id: str,
    client: object,
    environ: Mapping[str, Any] | None = None,
    reason: str = "",
) -> None:
    """``client`` is the address of the caller's socket; there is an ``environ`` where the head of
    the request could be read; ``reason`` is the parser's word for what is wrong with it."""
    known = environ or {}
    code, message = error_responses.words(status)
    fields = {
        "id": request_id,
        "ip": client[0] if isinstance(client, tuple) else "-",
        "caller": "-",
        "method": known.get("REQUEST_METHOD", "-"),
        "route": "-",
        "path": str(known.get("RAW_URI", "-")).partition("?")[0][:200],
        "status": status,
        "error": message,
        **({"reason": reason} if reason else {}),
        "ended": code,
    }
    level = logging.WARNING if status >= 500 else logging.INFO
    _log.log(level, "request", extra={"fields": fields})
