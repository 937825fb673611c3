"""What a thread that waits looks at besides: whether its caller is there, and the server's end."""

import select
from dataclasses import dataclass

from opendify.errors import ClientDisconnected, ServerStopping

# Linux tells of a caller that has closed its side; elsewhere only a full hang-up is seen.
_HANGUP = select.POLLHUP | select.POLLERR | getattr(select, "POLLRDHUP", 0)


@dataclass(frozen=True, slots=True)
class Cancellation:
    """Descriptors, each None where there is none: ``caller`` is the caller's socket, and
    ``ending`` is readable from the moment on when running answers have to end."""

    caller: int | None = None
    ending: int | None = None

    def register(self, poll: select.poll) -> None:
        """Lets a ``poll`` also end for what is watched."""
        if self.caller is not None:
            poll.register(self.caller, _HANGUP)
        if self.ending is not None:
            poll.register(self.ending, select.POLLIN)

    def check(self, ready: list[tuple[int, int]]) -> None:
        """Takes what ``poll`` told. Raises CallerGone and ServerStopping."""
        for descriptor, _ in ready:
            if descriptor == self.caller:
                raise ClientDisconnected
            if descriptor == self.ending:
                raise ServerStopping(
                    "OpenDify is being stopped and could not finish this answer; ask again."
                )

    def raise_if_cancelled(self) -> None:
        """Raises CallerGone and ServerStopping where that is so by now."""
        self.wait(0)

    def wait(self, seconds: float) -> None:
        """Waits so long, less where CallerGone or ServerStopping is raised."""
        poll = select.poll()
        self.register(poll)
        self.check(poll.poll(seconds * 1000))


NEVER = Cancellation()
