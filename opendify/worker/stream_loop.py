"""The answers of a worker that have no thread, because they only wait for what to give next.

All of it is called from the main loop, and nothing here waits but ``turn``, which the loop waits
in. A thread for each would be woken for each token of an answer: that costs more than the token.
"""

import math
import select
import selectors
import time
from collections.abc import Callable
from contextlib import suppress

from opendify.worker.response_driver import ResponseDriver


def new_stream_loop(
    go_on: Callable[[ResponseDriver], None], others: selectors.BaseSelector
) -> "StreamLoop | None":
    """None where the system does not tell of a caller that hangs up without being read from, as
    only Linux does: there each answer keeps its thread."""
    if not hasattr(select, "epoll"):
        return None
    return StreamLoop(go_on, others.fileno())  # type: ignore[attr-defined]


class StreamLoop:
    """``go_on`` gets each answer that needs a thread: at its end, when its caller has left, when
    the time it may wait has come, or when the caller takes nothing for now. ``others`` is the
    descriptor of all else that the loop waits for."""

    def __init__(self, go_on: Callable[[ResponseDriver], None], others: int) -> None:
        self._go_on = go_on
        self._others = others
        self._poll = select.epoll()
        self._poll.register(others, select.EPOLLIN)
        self._answers: dict[ResponseDriver, tuple[int, int]] = {}
        self._sources: dict[int, ResponseDriver] = {}
        self._callers: dict[int, ResponseDriver] = {}
        self._first_until = math.inf

    def __len__(self) -> int:
        return len(self._answers)

    def add(self, answer: ResponseDriver) -> None:
        """Takes an answer from its thread; gives it another where the system can watch no more."""
        source, caller = answer.wait.descriptor, answer.conn.sock.fileno()
        self._answers[answer] = source, caller
        self._sources[source] = self._callers[caller] = answer
        try:
            self._poll.register(source, select.EPOLLIN)
            self._poll.register(caller, select.EPOLLRDHUP)  # and what is always told: HUP, ERR
        except OSError:
            self._release(answer)
            return
        self._first_until = min(self._first_until, answer.wait.until)

    def turn(self, until: float) -> bool:
        """Gives on what comes until then, a time of ``time.monotonic``, or until something else
        is to be done by the loop; returns whether there is."""
        while self._answers:
            now = time.monotonic()
            if now >= self._first_until:
                self._release_expired(now)
            if now >= until:
                return False
            ready = self._poll.poll(max(0.0, min(until, self._first_until) - now))
            if self._move(ready):
                return True
        return False

    def release_all(self) -> None:
        """Gives all of them to threads."""
        for answer in list(self._answers):
            self._release(answer)

    def close(self) -> None:
        self._poll.close()

    def _move(self, ready: list[tuple[int, int]]) -> bool:
        """Whether something else is ready."""
        is_other_ready = False
        for descriptor, _ in ready:
            answer = self._sources.get(descriptor)
            if answer is not None:
                if not answer.step():
                    self._release(answer)
                elif answer.wait.until < self._first_until:
                    self._first_until = answer.wait.until
            elif descriptor == self._others:
                is_other_ready = True
            elif descriptor in self._callers:
                self._release(self._callers[descriptor])
        return is_other_ready

    def _release_expired(self, now: float) -> None:
        for answer in [answer for answer in self._answers if answer.wait.until <= now]:
            self._release(answer)
        waits = (answer.wait.until for answer in self._answers)
        self._first_until = min(waits, default=math.inf)

    def _release(self, answer: ResponseDriver) -> None:
        source, caller = self._answers.pop(answer)
        del self._sources[source], self._callers[caller]
        for descriptor in (source, caller):
            with suppress(OSError):
                self._poll.unregister(descriptor)
        self._go_on(answer)
