"""What is known of a request when it is over: for its line in the log, and for the metrics. No I/O.

Of what was asked and answered there is nothing in it.
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

# Also as Unicode has it in other widths, and percent-encoded once or more.
_AT_SIGN = re.compile("[@\uff20\ufe6b]|%(?:25)*40")

# Parts of a path that may be a key, put there by mistake, or the name of a person.
_PRIVATE_SEGMENT = re.compile(
    rf"[^/]*(?:{_AT_SIGN.pattern}|\b(?:app|sk)-)[^/]*|[^/]{{32,}}", re.IGNORECASE
)

_SERVER_FAULTS = ("internal_error", "server_stopping", "aborted")


@dataclass(slots=True)
class Record:
    """One request. ``ip`` is the address that it came from; ``caller`` is the account, or stands
    for the key and is not it; ``user`` is whom it is asked for, ``conversation`` the one of Dify
    that it is in. ``route`` is the rule that the ``path`` matched, so that no name or token is in
    it;
    ``model`` is what was asked for, and in the end UNKNOWN_MODEL where there is none of that name;
    ``streamed`` is what was asked for, ``is_streaming`` what is done; times are of
    ``time.monotonic``; ``tokens`` are those that Dify has counted, by kind; ``ended`` is OK,
    CALLER_GONE, SLOW_READER or the code of an error, "" until then; ``error`` is its sentence,
    where that is our own, ``dify_code`` what Dify called it, and ``details`` are further fields for
    the log; ``is_complete`` is whether all of the answer was taken."""

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
        """A comment that only keeps the connection open does not count as a byte."""
        return None if self.first_byte_at is None else self.first_byte_at - self.started_at

    @property
    def seconds(self) -> float:
        return self.ended_at - self.started_at

    @property
    def was_answered(self) -> bool:
        """Whether a model has answered, to the end."""
        return bool(self.model) and self.ended == OK

    def set_error(self, error: errors.OpenDifyError) -> None:
        """The caller is told of this error."""
        self.ended = error.code or "error"
        self.error = error.log_message
        self.dify_code = error.dify_code
        self.details = error.details
        self.is_upstream_error = isinstance(error, errors.DifyError)

    @property
    def is_failure(self) -> bool:
        """Whether the operator should know of it: the caller has done nothing wrong."""
        return self.status >= 500 or self.is_upstream_error or self.ended in _SERVER_FAULTS

    def fields(self) -> dict[str, Any]:
        """What its line in the log says, in this order."""
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
    """A user as the log names it: "-" for none, and an e-mail address by its hash alone."""
    if _AT_SIGN.search(user):
        return f"sha256:{hashlib.sha256(user.encode('utf-8', 'replace')).hexdigest()[:12]}"
    return user or "-"
