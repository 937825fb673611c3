"""Caps the concurrent responses of each caller.

In Redis, each response is a member of the sorted set `opendify:streams:<caller>`. Its score is the
time, in milliseconds of Redis's own clock, at which its lease expires: a machine that died does
not occupy slots for long.
"""

import math
import secrets
import threading
from contextlib import suppress

from opendify.storage.lease_renewal import LeaseRenewer
from opendify.storage.redis_connection import RedisConnection, RedisUnavailable

LEASE_SECONDS = 15.0

_NOW = """
local time = redis.call("TIME")
local now = time[1] * 1000 + math.floor(time[2] / 1000)
"""
_ACQUIRE_SCRIPT = (
    _NOW
    + """
redis.call("ZREMRANGEBYSCORE", KEYS[1], "-inf", now)
if redis.call("ZCARD", KEYS[1]) >= tonumber(ARGV[3]) then return 0 end
redis.call("ZADD", KEYS[1], now + ARGV[2], ARGV[1])
redis.call("PEXPIRE", KEYS[1], ARGV[2])
return 1
"""
)
_RENEW_SCRIPT = (
    _NOW
    + """
redis.call("ZADD", KEYS[1], "XX", now + ARGV[2], ARGV[1])
return redis.call("PEXPIRE", KEYS[1], ARGV[2])
"""
)


class ConcurrencyLimiter:
    """``redis`` is the Redis in which all workers share one count, or None; ``workers`` is how many
    divide a limit between them without it. ``lease`` is in seconds."""

    def __init__(
        self, redis: RedisConnection | None, workers: int, lease: float = LEASE_SECONDS
    ) -> None:
        self._redis = redis
        self._workers = workers
        self._lease_ms = int(lease * 1000)
        self._leases: LeaseRenewer[Slot] = LeaseRenewer(lease, self._renew)
        self._lock = threading.Lock()
        self._slots: dict[str, set[Slot]] = {}

    def acquire(self, caller: str, limit: int) -> "Slot | None":
        """One of the caller's ``limit`` slots, to be released by the caller of this method; None
        where all are in use."""
        slot = Slot(self, caller, secrets.token_hex(8))
        share: float = max(1, limit // self._workers)
        if self._redis is not None:
            with suppress(RedisUnavailable):  # already logged by the connection
                if not self._acquire_shared(self._redis, slot, limit):
                    return None
                share = math.inf
        with self._lock:
            active = self._slots.setdefault(caller, set())
            if len(active) >= share:
                return None
            active.add(slot)
        return slot

    def release(self, slot: "Slot") -> None:
        """Free a slot."""
        with self._lock:
            active = self._slots.get(slot.caller, set())
            active.discard(slot)
            if not active:
                self._slots.pop(slot.caller, None)
        if self._redis is not None and self._leases.discard(slot):
            with suppress(RedisUnavailable):  # its lease expires by itself
                self._redis.execute(lambda client: client.zrem(_redis_key(slot), slot.token))

    def _acquire_shared(self, redis: RedisConnection, slot: "Slot", limit: int) -> bool:
        arguments = (slot.token, self._lease_ms, limit)
        acquired = redis.execute_write(
            lambda client: client.eval(_ACQUIRE_SCRIPT, 1, _redis_key(slot), *arguments)
        )
        if acquired:
            self._leases.add(slot)
        return bool(acquired)

    def _renew(self, slot: "Slot") -> None:
        redis, arguments = self._redis, (slot.token, self._lease_ms)
        if redis is not None:
            with suppress(RedisUnavailable):
                redis.execute(
                    lambda client: client.eval(_RENEW_SCRIPT, 1, _redis_key(slot), *arguments)
                )


class Slot:
    """A slot for one response, active until it is released."""

    def __init__(self, limiter: ConcurrencyLimiter, caller: str, token: str) -> None:
        self.caller = caller
        self.token = token
        self._limiter = limiter

    def release(self) -> None:
        self._limiter.release(self)


def _redis_key(slot: Slot) -> str:
    return f"opendify:streams:{slot.caller}"
