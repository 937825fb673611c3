"""Waiting for something that another thread or process does."""

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

# Only a bound for what would hang: what is waited for comes long before, but a busy machine can
# stop every process for some seconds.
PATIENCE_SECONDS = 30.0


def wait_for(
    condition: Callable[[], T], seconds: float = PATIENCE_SECONDS, what: str = "the condition"
) -> T:
    """The first true value of ``condition``, which is tried every 20 ms.

    Raises:
        AssertionError: it has not become true within ``seconds``.
    """
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"waited {seconds:g} s in vain for {what}"
        time.sleep(0.02)
    return found


def wait_for_value(
    look: Callable[[], T], wanted: object, seconds: float = PATIENCE_SECONDS
) -> None:
    """Waits until ``look`` returns ``wanted``; a failure shows the last value."""
    deadline = time.monotonic() + seconds
    while (found := look()) != wanted:
        assert time.monotonic() < deadline, f"{found!r} did not become {wanted!r}"
        time.sleep(0.02)
