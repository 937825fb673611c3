"""Connections to Dify between two questions.

httpx opens every connection, and sends the first question on it. When its answer was read to its
end, the connection is not given back at once: it stays lent, and the next question to the same
address is written to it as it is. Through httpx, httpcore and h11 that way and the way back cost
five times the rest of it. For the pool such a connection is in use, so its limits hold.
"""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import httpcore
import httpx

from opendify.upstream.wire import Wire

log = logging.getLogger(__name__)

# How many are kept at most: the pool's limits have room for so many beside those in use.
MOST = 128

SWEEP_SECONDS = 0.05

Origin = tuple[str, str, int | None]


class Loan:
    """A connection that the pool has lent for an answer of its own. Whoever gets one must end it:
    by ``end`` when it carried a question, by ``give_back`` or ``drop``."""

    def __init__(self, response: httpx.Response, origin: Origin, kept: "Kept") -> None:
        wire = response.extensions["network_stream"]
        assert isinstance(wire, Wire)
        self.wire = wire
        self.origin = origin
        self.expires_at = 0.0
        self._response = response
        self._kept = kept

    def ask(self, question: bytes, timeout: float | None) -> None:
        """Writes a question, head and body. Raises httpx.WriteTimeout, and has ended then."""
        try:
            self.wire.ask(question, timeout)
        except httpcore.WriteTimeout as exc:
            self.drop()
            raise httpx.WriteTimeout(str(exc)) from exc

    def end(self, is_whole: bool) -> None:
        """``is_whole``: the answer was read to its end, and the connection may be used again."""
        if not is_whole:
            self.drop()
        elif not self._kept.keep(self):
            self.give_back()

    def give_back(self) -> None:
        """Lets the pool use the connection for others."""
        self.wire.give_back()
        with _errors_logged():
            for _ in self._response.stream:  # type: ignore[union-attr]  # the stand-in's end
                pass
        with _errors_logged():
            self._response.close()

    def drop(self) -> None:
        """Closes the connection."""
        self.wire.let_go()
        with _errors_logged():
            self._response.close()


@contextmanager
def _errors_logged() -> Iterator[None]:
    try:
        yield
    except (httpx.HTTPError, OSError) as exc:
        log.debug("closing a connection failed: %s", type(exc).__name__)


class Kept:
    """What is kept is closed when it was idle for as long as the pool would have kept it, at most
    ``SWEEP_SECONDS`` later: by a thread that is there while anything is kept, begun when it is
    needed, so that a process forked before has one of its own."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._loans: list[Loan] = []  # what was used last is last
        self._lock = threading.Lock()
        self._sweeper: threading.Thread | None = None

    def __len__(self) -> int:
        return len(self._loans)

    def take(self, origin: Origin) -> Loan | None:
        """One on which a question may be sent, if any: the one used last, so that those which are
        not needed expire."""
        while (loan := self._pop(origin)) is not None:
            if time.monotonic() < loan.expires_at and loan.wire.is_quiet():
                return loan
            loan.drop()
        return None

    def _pop(self, origin: Origin) -> Loan | None:
        with self._lock:
            for index in range(len(self._loans) - 1, -1, -1):
                if self._loans[index].origin == origin:
                    return self._loans.pop(index)
        return None

    def give_one_back(self, origin: Origin) -> None:
        """Lets the pool have one for a request that is no question: a second connection would be
        opened else."""
        if (loan := self.take(origin)) is not None:
            loan.give_back()

    def keep(self, loan: Loan) -> bool:
        """Whether it is kept; else it has to be given back."""
        loan.expires_at = time.monotonic() + loan.wire.idle_seconds
        with self._lock:
            if not loan.wire.idle_seconds or len(self._loans) >= self._most:
                return False
            if self._sweeper is None or not self._sweeper.is_alive():
                self._sweeper = threading.Thread(target=self._sweep, name="kept", daemon=True)
                self._sweeper.start()
            self._loans.append(loan)
        return True

    def _sweep(self) -> None:
        while True:
            now = time.monotonic()
            with self._lock:
                expired = [loan for loan in self._loans if loan.expires_at <= now]
                self._loans = [loan for loan in self._loans if loan.expires_at > now]
                next_at = min((loan.expires_at for loan in self._loans), default=None)
                if next_at is None:
                    self._sweeper = None
            for loan in expired:
                loan.drop()
            if next_at is None:
                return
            time.sleep(max(next_at - now, SWEEP_SECONDS))
