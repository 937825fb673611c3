"""Admits or rejects the requests of a caller."""

from collections.abc import Callable

from opendify import errors
from opendify.config.accounts import Limits
from opendify.limits.concurrency import ConcurrencyLimiter
from opendify.limits.rate import RateLimiter

# When a response of the caller will end cannot be known.
RETRY_SECONDS = 2


class CallerLimiter:
    """Applies both limits of a caller: concurrent responses, and requests per minute."""

    def __init__(self, rate: RateLimiter, concurrency: ConcurrencyLimiter) -> None:
        self._rate = rate
        self._concurrency = concurrency

    def acquire(self, caller: str, limits: Limits) -> Callable[[], None]:
        """Admit a request. Returns a function to call when its response has ended; raises
        CallerRateLimited."""
        release = self._acquire_slot(caller, limits.max_streams)
        try:
            self._check_rate(caller, limits.requests_per_minute)
        except BaseException:
            release()
            raise
        return release

    def _acquire_slot(self, caller: str, limit: int) -> Callable[[], None]:
        if not limit:
            return _no_op
        slot = self._concurrency.acquire(caller, limit)
        if slot is None:
            raise errors.CallerRateLimited(
                f"You have reached your limit of concurrent responses ({limit}). "
                "Try again when one has finished.",
                retry_after=RETRY_SECONDS,
            )
        return slot.release

    def _check_rate(self, caller: str, per_minute: int) -> None:
        wait = self._rate.hit(caller, per_minute) if per_minute else 0
        if wait:
            raise errors.CallerRateLimited(
                f"You have reached your limit of requests per minute ({per_minute}). "
                f"Try again in {wait} s.",
                retry_after=wait,
            )


def _no_op() -> None:
    """The release function where there is no limit."""
