"""Caps the requests of each caller in any 60 seconds, with the library `limits`."""

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
    """``redis`` is the Redis in which all workers share one count, or None; ``workers`` is how many
    divide a limit between them without it."""

    def __init__(self, redis: RedisConnection | None, workers: int) -> None:
        self._redis = redis
        self._workers = workers
        self._lock = threading.Lock()
        self._local: MovingWindowRateLimiter | None = None
        self._shared: tuple[Any, MovingWindowRateLimiter] | None = None

    def hit(self, caller: str, per_minute: int) -> int:
        """Count a request. Returns 0, or where the limit is exceeded the seconds to wait; the
        request does not count then."""
        if self._redis is not None:
            try:
                return self._hit_shared(self._redis, caller, per_minute)
            except RedisUnavailable:  # already logged by the connection
                pass
        share = max(1, per_minute // self._workers)
        with self._lock:  # the library's own locks can admit two requests at the same moment
            if self._local is None:  # not earlier: it starts a thread, which no fork inherits
                self._local = MovingWindowRateLimiter(MemoryStorage())
            return _hit(self._local, caller, share)

    def _hit_shared(self, redis: RedisConnection, caller: str, per_minute: int) -> int:
        waits: list[int] = []

        def hit(client: Any) -> bool:
            waits.append(_hit(self._limiter(client), caller, per_minute))
            return not waits[-1]

        redis.execute_write(hit)
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
