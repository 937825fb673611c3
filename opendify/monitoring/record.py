"""What is known of a request when it is over: for its line in the log, and for the metrics. No I/O.

Of what was asked and answered there is nothing in it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from opendify import errors

OK = "ok"
CALLER_GONE = "caller_gone"
SLOW_READER = "slow_reader"
UNKNOWN_MODEL = "unknown"


@dataclass(slots=True)
class Record:
    """One request. ``route`` is the rule that it matched, so that nothing of its path is in it;
    ``model`` is what was asked for, and in the end UNKNOWN_MODEL where there is none of that name;
    ``streamed`` is what was asked for, ``is_streaming`` what is done; times are of
    ``time.monotonic``; ``tokens`` are those that Dify has counted, by kind; ``ended`` is OK,
    CALLER_GONE, SLOW_READER or the code of an error, "" until then; ``is_complete`` is whether all
    of the answer was taken."""

    id: str
    method: str
    began_at: float
    route: str = ""
    model: str = ""
    streamed: bool = False
    is_streaming: bool = False
    status: int = 0
    first_byte_at: float | None = None
    ended_at: float = 0.0
    ended: str = ""
    is_upstream_error: bool = False
    is_complete: bool = False
    tokens: Mapping[str, int] = field(default_factory=dict)

    @property
    def seconds_to_first_byte(self) -> float | None:
        """A comment that only keeps the connection open does not count as a byte."""
        return None if self.first_byte_at is None else self.first_byte_at - self.began_at

    @property
    def seconds(self) -> float:
        return self.ended_at - self.began_at

    @property
    def was_answered(self) -> bool:
        """Whether a model has answered, to the end."""
        return bool(self.model) and self.ended == OK

    def failed(self, error: errors.OpenDifyError) -> None:
        """The caller is told of this error."""
        self.ended = error.code or "error"
        self.is_upstream_error = isinstance(error, errors.DifyError)

    def fields(self) -> dict[str, Any]:
        """What its line in the log says, in this order."""
        first = self.seconds_to_first_byte
        return {
            "id": self.id,
            "method": self.method,
            "route": self.route or "-",
            "status": self.status,
            "model": self.model or "-",
            "streamed": self.streamed,
            "first_byte": None if first is None else round(first, 4),
            "total": round(self.seconds, 4),
            "ended": self.ended,
        }
