"""Logs requests that never reached the application."""

import logging
from collections.abc import Mapping
from typing import Any

from opendify.worker import error_responses

# The application's logger, which logs all other requests and sets the log format.
_log = logging.getLogger("opendify.requests")


def log_rejected(
    status: int,
    request_id: str,
    client: object,
    environ: Mapping[str, Any] | None = None,
    reason: str = "",
) -> None:
    """``client`` is the peer address of the socket; ``environ`` is given where the head of the
    request could be parsed; ``reason`` is the name of the parser's exception."""
    known = environ or {}
    code, message = error_responses.code_and_message(status)
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
