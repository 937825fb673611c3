"""Answers that are given step by step: by a thread, which may wait, or by a loop, which must not.

Such an answer is a generator. It gives what there is, and a ``Wait`` before everything that may
take a while. Who goes on with it as with any iterator lets it take its time; who sends
``IS_READABLE`` to a Wait has seen that what is waited for is there, and gets the next step without
delay. Nothing but what follows a Wait takes long. No I/O.
"""

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

READY = True

# As the time until which something may be waited for: only what is there is taken.
IMMEDIATELY = 0.0


@dataclass(slots=True, eq=False)
class WaitFor:
    """Until the descriptor is readable, but not beyond a time of ``time.monotonic``. Below 0 it is
    none: what follows may take long in other ways, and only a thread may go on. It is the same in
    all Waits of an answer that a thread has not gone on with in between."""

    descriptor: int
    until: float = IMMEDIATELY

    @property
    def needs_thread(self) -> bool:
        """Whether no loop may go on after it."""
        return self.descriptor < 0


BLOCKING = WaitFor(-1)

# What is given, between its waits; a caller may send IS_READABLE to each of these.
ResumableBody = Generator[T | WaitFor, bool | None, None]

# The same; what it returns is to be given last.
StepsWithEnd = Generator[T | WaitFor, bool | None, T]


def run_blocking(steps: Iterable[T | WaitFor]) -> Iterator[T]:
    """What the steps give to one who may wait."""
    for step in steps:
        if not isinstance(step, WaitFor):
            yield step
