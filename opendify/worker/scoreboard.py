"""On which the workers of one master tell each other whether they have room."""

import mmap
import time

# A worker tells it at every turn of its main loop, once a second at least: one that has told
# nothing for longer is stuck or gone.
_KEPT_SECONDS = 2.5
_LEAST_ROWS = 64
_SIZE = 8


class Scoreboard:
    """Memory that all processes share which are forked after it is made.

    A row holds one number, which the machine writes at once: the time of ``time.monotonic`` until
    which its worker counts as one with room, or, below zero, when a worker without room told so.
    """

    def __init__(self, workers: int) -> None:
        rows = max(_LEAST_ROWS, 4 * workers)
        self._times = memoryview(mmap.mmap(-1, rows * _SIZE)).cast("d")

    def claim(self) -> int:
        """A row for a new worker: that which was not used for longest. Only in the master."""
        row = min(range(len(self._times)), key=lambda row: abs(self._times[row]))
        self.tell(row, has_room=False)
        return row

    def tell(self, row: int, *, has_room: bool) -> None:
        now = time.monotonic()
        self._times[row] = now + _KEPT_SECONDS if has_room else -now

    def has_room(self) -> bool:
        """Whether any worker has."""
        now = time.monotonic()
        return any(until > now for until in self._times)
