"""Lets a caller's questions through, as many as the caller may ask."""

from collections.abc import Callable

from opendify import errors
from opendify.config.accounts import Limits
from opendify.limits.concurrency import ConcurrencyLimiter
from opendify.limits.rate import RateLimiter

# Nobody knows when an answer of the caller ends.
SECONDS_UNTIL_A_SLOT_IS_FREE = 2


class CallerLimiter:
    """Both limits of every caller."""

    def __init__(self, rates: RateLimiter, slots: ConcurrencyLimiter) -> None:
        self._rates = rates
        self._slots = slots

    def enter(self, caller: str, limits: Limits) -> Callable[[], None]:
        """Lets a question of this caller through; what it returns is to be called when the answer
        has ended. Raises LimitReached."""
        leave = self._take_slot(caller, limits.max_streams)
        try:
            self._count(caller, limits.requests_per_minute)
        except BaseException:
            leave()
            raise
        return leave

    def _take_slot(self, caller: str, most: int) -> Callable[[], None]:
        if not most:
            return _nothing_to_leave
        slot = self._slots.take(caller, most)
        if slot is None:
            raise errors.CallerRateLimited(
                f"As many of your answers are under way as may be at once ({most}). "
                "Ask again when one has ended.",
                retry_after=SECONDS_UNTIL_A_SLOT_IS_FREE,
            )
        return slot.release

    def _count(self, caller: str, per_minute: int) -> None:
        wait = self._rates.hit(caller, per_minute) if per_minute else 0
        if wait:
            raise errors.CallerRateLimited(
                f"You have asked as often as you may in a minute ({per_minute}). "
                f"Ask again in {wait} s.",
                retry_after=wait,
            )


def _nothing_to_leave() -> None:
    """Where there is no limit, nothing was counted."""
