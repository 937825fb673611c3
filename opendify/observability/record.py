"""What is known of a finished request, for its log line and the metrics. No I/O.

Contains nothing of the question or the answer.
"""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from opendify import errors

OK = "ok"
CLIENT_DISCONNECTED = "caller_gone"
SLOW_READER = "slow_reader"
UNKNOWN_MODEL = "unknown"

MAX_PATH = 200

# Also in Unicode's other widths, and percent-encoded once or more.
_AT_SIGN = re.compile("[@\uff20\ufe6b]|%(?:25)*40")

# Path segments that may be a misplaced key or a person's name.
_PRIVATE_SEGMENT = re.compile(
    rf"[^/]*(?:{_AT_SIGN.pattern}|\b(?:app|sk)-)[^/]*|[^/]{{32,}}", re.IGNORECASE
)

_SERVER_FAULTS = ("internal_error", "server_stopping", "aborted")


@dataclass(slots=True)
class Record:
    """One request. ``ip`` is the client address. ``caller`` is the account, or an identifier of the
    key (never the key). ``user`` is the end user; ``conversation`` is the Dify conversation, and
    ``continuity`` why the request went there.
    ``route`` is the URL rule that ``path`` matched, so it contains no names or tokens. ``model`` is
    the requested model; at the end it is UNKNOWN_MODEL if there is no such model. ``streamed`` is
    what was requested, ``is_streaming`` what was sent. Times are from ``time.monotonic``.
    ``tokens`` are Dify's counts by kind. ``ended`` is empty while the request runs, then OK,
    CALLER_GONE, SLOW_READER or an error code. ``error`` is its message, if it may be logged;
    ``dify_code`` is Dify's error code; ``details`` are further log fields. ``is_complete`` is
    whether the whole answer was sent."""

    id: str
    method: str
    started_at: float
    route: str = ""
    model: str = ""
    streamed: bool = False
    is_streaming: bool = False
    status: int = 0
    first_byte_at: float | None = None
    ip: str = ""
    path: str = ""
    caller: str = ""
    user: str = ""
    conversation: str = ""
    continuity: str = ""
    ended_at: float = 0.0
    ended: str = ""
    error: str = ""
    dify_code: str = ""
    details: Mapping[str, str] = field(default_factory=dict)
    is_upstream_error: bool = False
    is_complete: bool = False
    tokens: Mapping[str, int] = field(default_factory=dict)

    @property
    def seconds_to_first_byte(self) -> float | None:
        """Keep-alive comments do not count."""
        return None if self.first_byte_at is None else self.first_byte_at - self.started_at

    @property
    def seconds(self) -> float:
        return self.ended_at - self.started_at

    @property
    def was_answered(self) -> bool:
        """Whether a model answered completely."""
        return bool(self.model) and self.ended == OK

    def set_error(self, error: errors.OpenDifyError) -> None:
        """Records the error that the client receives."""
        self.ended = error.code or "error"
        self.error = error.log_message
        self.dify_code = error.dify_code
        self.details = error.details
        self.is_upstream_error = isinstance(error, errors.DifyError)

    @property
    def is_failure(self) -> bool:
        """Whether the operator should know: the caller did nothing wrong."""
        return self.status >= 500 or self.is_upstream_error or self.ended in _SERVER_FAULTS

    def fields(self) -> dict[str, Any]:
        """The fields of the log line, in this order."""
        first = self.seconds_to_first_byte
        where = {"route": self.route} if self.route else {"route": "-", "path": self._shown_path()}
        why = {"dify_code": self.dify_code, "error": self.error, **self.details}
        return {
            "id": self.id,
            "ip": self.ip or "-",
            "caller": self.caller or "-",
            "user": shown_user(self.user),
            "method": self.method,
            **where,
            "status": self.status,
            "model": self.model or "-",
            "conversation": self.conversation or "-",
            "continuity": self.continuity or "-",
            "streamed": self.streamed,
            "first_byte": None if first is None else round(first, 4),
            "total": round(self.seconds, 4),
            "prompt_tokens": self.tokens.get("prompt"),
            "completion_tokens": self.tokens.get("completion"),
            **{name: text for name, text in why.items() if text},
            "ended": self.ended,
        }

    def _shown_path(self) -> str:
        path = _PRIVATE_SEGMENT.sub("...", self.path)
        return path if len(path) <= MAX_PATH else f"{path[:MAX_PATH]}..."


def shown_user(user: str) -> str:
    """A user as shown in the log: "-" for none; an e-mail address only as a hash."""
    if _AT_SIGN.search(user):
        return f"sha256:{hashlib.sha256(user.encode('utf-8', 'replace')).hexdigest()[:12]}"
    return user or "-"
