"""A short answer of Dify to a request that was handed over (``wire``)."""

import time
from collections.abc import Generator

import httpcore
import httpx

from opendify.steps import Wait
from opendify.upstream.http1 import Answer, BadAnswer
from opendify.upstream.kept import Loan
from opendify.upstream.watch import UNWATCHED, Watch


class Reply:
    """Read by one who waits and watches (``read``), or by the watcher where nobody waits
    (``steps``). ``until`` is a time of ``time.monotonic``."""

    def __init__(self, loan: Loan) -> None:
        self._loan = loan
        self._wire = loan.wire
        self._answer = Answer()
        self._body = b""
        self._may_be_stale = loan.wire.has_answered

    @property
    def is_stale(self) -> bool:
        """Whether nothing came, on a connection that had carried an answer before."""
        return self._may_be_stale and not self._answer.complete

    def read(self, until: float, watch: Watch) -> httpx.Response:
        """The whole answer. Raises CallerGone, ServerStopping, and the errors of httpx."""
        try:
            while not self._answer.complete:
                if time.monotonic() >= until:
                    raise httpx.ReadTimeout("no answer in time")
                self._take(self._wire.receive(until, watch))
        except (BadAnswer, httpcore.ReadError, OSError) as exc:
            raise httpx.ReadError(str(exc)) from exc
        finally:
            self._end()
        answer = self._answer
        return httpx.Response(answer.status, headers=dict(answer.headers), content=self._body)

    def steps(self, until: float) -> Generator[Wait, None, int]:
        """Reads it, till then at most; gives its status, 0 where none came or it broke."""
        try:
            while not self._answer.complete and time.monotonic() < until:
                yield Wait(self._wire.fileno(), until)
                self._take(self._wire.receive(time.monotonic(), UNWATCHED))
        except (BadAnswer, httpcore.ReadError, OSError):
            return 0
        finally:
            self._end()
        return self._answer.status

    def _take(self, data: bytes | None) -> None:
        if data == b"":
            self._answer.end()
        elif data is not None:
            self._may_be_stale = False
            self._body += self._answer.feed(data)

    def _end(self) -> None:
        if self._answer.complete and self._answer.reusable:
            self._loan.give_back()
        else:
            self._loan.drop()
