"""The responses that the event loop drives without a thread, while they wait for their next data.

Everything here runs in the main loop, and nothing blocks but ``run_until``. With a thread per
response, each token of a stream would wake a thread, which costs more than the token itself.
"""

import math
import select
import selectors
import time
from collections.abc import Callable
from contextlib import suppress

from opendify.worker.response_driver import ResponseDriver


def new_stream_loop(
    resume: Callable[[ResponseDriver], None], others: selectors.BaseSelector
) -> "StreamLoop | None":
    """None where the system cannot report that a client hung up without reading from its socket,
    as only Linux can: there each response keeps its thread."""
    if not hasattr(select, "epoll"):
        return None
    return StreamLoop(resume, others.fileno())  # type: ignore[attr-defined]


class StreamLoop:
    """``resume`` gets each response that needs a thread: at its end, when its client has hung up,
    when its wait has timed out, or when the client does not read for now. ``other_descriptor``
    becomes readable for everything else that the main loop waits for."""

    def __init__(self, resume: Callable[[ResponseDriver], None], other_descriptor: int) -> None:
        self._resume = resume
        self._other_descriptor = other_descriptor
        self._poll = select.epoll()
        self._poll.register(other_descriptor, select.EPOLLIN)
        self._responses: dict[ResponseDriver, tuple[int, int]] = {}
        self._by_source: dict[int, ResponseDriver] = {}
        self._by_client: dict[int, ResponseDriver] = {}
        self._next_deadline = math.inf

    def __len__(self) -> int:
        return len(self._responses)

    def add(self, response: ResponseDriver) -> None:
        """Takes over a response from its thread. Hands it back at once where the system can watch
        no more descriptors."""
        source, client = response.wait.descriptor, response.conn.sock.fileno()
        self._responses[response] = source, client
        self._by_source[source] = self._by_client[client] = response
        try:
            self._poll.register(source, select.EPOLLIN)
            self._poll.register(client, select.EPOLLRDHUP)  # HUP and ERR are always reported
        except OSError:
            self._release(response)
            return
        self._next_deadline = min(self._next_deadline, response.wait.deadline)

    def run_until(self, deadline: float) -> bool:
        """Drives the responses until ``deadline``, a time of ``time.monotonic``, or until the other
        descriptor is readable; returns whether it is."""
        while self._responses:
            now = time.monotonic()
            if now >= self._next_deadline:
                self._release_expired(now)
            if now >= deadline:
                return False
            ready = self._poll.poll(max(0.0, min(deadline, self._next_deadline) - now))
            if self._dispatch(ready):
                return True
        return False

    def release_all(self) -> None:
        """Hands all responses back to threads."""
        for response in list(self._responses):
            self._release(response)

    def close(self) -> None:
        self._poll.close()

    def _dispatch(self, ready: list[tuple[int, int]]) -> bool:
        """Whether the other descriptor is ready."""
        is_other_ready = False
        for descriptor, _ in ready:
            response = self._by_source.get(descriptor)
            if response is not None:
                if not response.step():
                    self._release(response)
                elif response.wait.deadline < self._next_deadline:
                    self._next_deadline = response.wait.deadline
            elif descriptor == self._other_descriptor:
                is_other_ready = True
            elif descriptor in self._by_client:
                self._release(self._by_client[descriptor])
        return is_other_ready

    def _release_expired(self, now: float) -> None:
        for response in [one for one in self._responses if one.wait.deadline <= now]:
            self._release(response)
        deadlines = (response.wait.deadline for response in self._responses)
        self._next_deadline = min(deadlines, default=math.inf)

    def _release(self, response: ResponseDriver) -> None:
        source, client = self._responses.pop(response)
        del self._by_source[source], self._by_client[client]
        for descriptor in (source, client):
            with suppress(OSError):
                self._poll.unregister(descriptor)
        self._resume(response)
