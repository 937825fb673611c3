"""Ends a wait early: when the caller has disconnected, or when the server shuts down."""

import select
from dataclasses import dataclass

from opendify.errors import ClientDisconnected, ServerStopping

# Linux reports a caller that has shut down its side; other systems only a full hang-up.
_HANGUP = select.POLLHUP | select.POLLERR | getattr(select, "POLLRDHUP", 0)


@dataclass(frozen=True, slots=True)
class Cancellation:
    """Two descriptors, each None where there is none: ``caller`` is the caller's socket, and
    ``ending`` becomes readable when running responses must end."""

    caller: int | None = None
    ending: int | None = None

    def register(self, poll: select.poll) -> None:
        """Adds the descriptors to a ``poll``."""
        if self.caller is not None:
            poll.register(self.caller, _HANGUP)
        if self.ending is not None:
            poll.register(self.ending, select.POLLIN)

    def check(self, ready: list[tuple[int, int]]) -> None:
        """Evaluates the result of ``poll``. Raises ClientDisconnected and ServerStopping."""
        for descriptor, _ in ready:
            if descriptor == self.caller:
                raise ClientDisconnected
            if descriptor == self.ending:
                raise ServerStopping(
                    "OpenDify is being stopped and could not finish this answer; ask again."
                )

    def raise_if_cancelled(self) -> None:
        """Raises ClientDisconnected or ServerStopping if cancelled by now."""
        self.wait(0)

    def wait(self, seconds: float) -> None:
        """Sleeps; raises ClientDisconnected or ServerStopping as soon as cancelled."""
        poll = select.poll()
        self.register(poll)
        self.check(poll.poll(seconds * 1000))


NEVER = Cancellation()
