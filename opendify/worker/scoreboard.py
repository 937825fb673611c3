"""Shared memory in which the workers of one master publish whether they have capacity."""

import mmap
import time

# A worker publishes at each iteration of its main loop, at least once a second. An older entry
# belongs to a worker that is stuck or gone.
_VALID_SECONDS = 2.5
_MIN_SLOTS = 64
_SLOT_BYTES = 8


class Scoreboard:
    """Memory shared by all processes that are forked after it is made.

    A slot holds one float, which the CPU writes atomically, a time of ``time.monotonic``: until
    when its worker counts as one with capacity; or, negated, when a worker without capacity
    published that.
    """

    def __init__(self, workers: int) -> None:
        slots = max(_MIN_SLOTS, 4 * workers)
        self._times = memoryview(mmap.mmap(-1, slots * _SLOT_BYTES)).cast("d")

    def claim_slot(self) -> int:
        """The slot that was unused for longest, for a new worker. Call it in the master only."""
        slot = min(range(len(self._times)), key=lambda slot: abs(self._times[slot]))
        self.publish(slot, has_capacity=False)
        return slot

    def publish(self, slot: int, *, has_capacity: bool) -> None:
        now = time.monotonic()
        self._times[slot] = now + _VALID_SECONDS if has_capacity else -now

    def any_has_capacity(self) -> bool:
        """Whether any worker has."""
        now = time.monotonic()
        return any(until > now for until in self._times)
