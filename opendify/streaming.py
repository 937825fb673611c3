"""Resumable response bodies, which a thread or an event loop can drive.

A body is a generator. It yields data, and a ``WaitFor`` before each operation that may block. A
thread that iterates over it as usual blocks at these points. An event loop sends ``READY`` to a
WaitFor once its descriptor is readable, and gets the next item without blocking. Nothing but what
follows a WaitFor may block. No I/O.
"""

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

READY = True

# A deadline that has passed: read only what is available without waiting.
NO_WAIT = 0.0


@dataclass(slots=True, eq=False)
class WaitFor:
    """Wait until the descriptor is readable or the deadline ``until`` (``time.monotonic``) has
    passed. A negative descriptor means that the next step may block in other ways and needs a
    thread. A body yields the same object each time, as long as no thread has driven it in
    between."""

    descriptor: int
    deadline: float = NO_WAIT

    @property
    def needs_thread(self) -> bool:
        """Whether only a thread may resume the body."""
        return self.descriptor < 0


BLOCKING = WaitFor(-1)

# Yields items and waits; READY may be sent to each wait.
ResumableBody = Generator[T | WaitFor, bool | None, None]

# The same; its return value is the last item to send.
ResumableBodyWithTail = Generator[T | WaitFor, bool | None, T]


def run_blocking(steps: Iterable[T | WaitFor]) -> Iterator[T]:
    """The items of a body, blocking at its waits."""
    for step in steps:
        if not isinstance(step, WaitFor):
            yield step
