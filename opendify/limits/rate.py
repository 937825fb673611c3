"""Requests a minute of each caller, by the library `limits`: in any 60 seconds, not more."""

import math
import threading
import time
from typing import Any

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage, RedisStorage
from limits.strategies import MovingWindowRateLimiter

from opendify.storage.redis_connection import RedisConnection, RedisUnavailable

_WINDOW_SECONDS = 60


class RateLimiter:
    """``link`` leads to the Redis in which all workers count together, where there is one;
    ``workers`` is how many share a limit where there is none."""

    def __init__(self, link: RedisConnection | None, workers: int) -> None:
        self._link = link
        self._workers = workers
        self._lock = threading.Lock()
        self._local: MovingWindowRateLimiter | None = None
        self._shared: tuple[Any, MovingWindowRateLimiter] | None = None

    def hit(self, caller: str, per_minute: int) -> int:
        """Counts a request. Returns 0, or where there were too many the seconds to wait, and then
        the request does not count."""
        if self._link is not None:
            try:
                return self._hit_shared(self._link, caller, per_minute)
            except RedisUnavailable:  # the link has told the log
                pass
        share = max(1, per_minute // self._workers)
        with self._lock:  # the library's own locks let two through at the same moment
            if self._local is None:  # it starts a thread, which no fork inherits
                self._local = MovingWindowRateLimiter(MemoryStorage())
            return _hit(self._local, caller, share)

    def _hit_shared(self, link: RedisConnection, caller: str, per_minute: int) -> int:
        waits: list[int] = []

        def hit(client: Any) -> bool:
            waits.append(_hit(self._limiter(client), caller, per_minute))
            return not waits[-1]

        link.store(hit)
        return waits[-1]

    def _limiter(self, client: Any) -> MovingWindowRateLimiter:
        shared = self._shared
        if shared is None or shared[0] is not client:
            storage = RedisStorage(
                "redis://", connection_pool=client.connection_pool, key_prefix="opendify:rate"
            )
            self._shared = shared = (client, MovingWindowRateLimiter(storage))
        return shared[1]


def _hit(limiter: MovingWindowRateLimiter, caller: str, per_minute: int) -> int:
    item = RateLimitItemPerMinute(per_minute)
    if limiter.hit(item, caller):
        return 0
    free_at = limiter.get_window_stats(item, caller).reset_time
    return min(max(math.ceil(free_at - time.time()), 1), _WINDOW_SECONDS)
