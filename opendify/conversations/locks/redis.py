"""Locks in a Redis server, for instances that share no folder.

A lock is a key `opendify:lock:<hash of the name>` with a random value that only its holder knows
and a short lifetime that the holder renews, so the lock of a machine that died is free soon.
"""

import secrets
from contextlib import suppress

from opendify.conversations.locks.files import Lock, digest
from opendify.storage.lease_renewal import LeaseRenewer
from opendify.storage.redis_connection import RedisConnection, RedisUnavailable

LEASE_SECONDS = 10.0

_RENEW_SCRIPT = """
if redis.call("GET", KEYS[1]) == ARGV[1] then
  return redis.call("PEXPIRE", KEYS[1], ARGV[2])
end
return 0
"""
_RELEASE_SCRIPT = """
if redis.call("GET", KEYS[1]) == ARGV[1] then
  return redis.call("DEL", KEYS[1])
end
return 0
"""


class RedisLocks:
    """Locks for processes that share a Redis server; see `Locks`. While it is unreachable,
    which the connection logs, every lock counts as acquired."""

    def __init__(self, redis: RedisConnection, lease: float = LEASE_SECONDS) -> None:
        """`lease` is the lifetime of a lock in seconds, if it is not renewed."""
        self._redis = redis
        self._lease = lease
        self._leases: LeaseRenewer[RedisLock] = LeaseRenewer(lease, self._renew)

    def try_acquire(self, name: str) -> Lock | None:
        lock = RedisLock(self, f"opendify:lock:{digest(name)}", secrets.token_hex(16))
        if not self._acquire(lock):
            return None
        self._leases.add(lock)
        return lock

    def release(self, lock: "RedisLock") -> None:
        """Free a lock, unless somebody else holds it by now."""
        if not self._leases.discard(lock):
            return
        with suppress(RedisUnavailable):  # it expires with its lease
            self._redis.execute(
                lambda client: client.eval(_RELEASE_SCRIPT, 1, lock.name, lock.token)
            )

    def _acquire(self, lock: "RedisLock") -> bool:
        milliseconds = int(self._lease * 1000)
        try:
            return bool(
                self._redis.execute_write(
                    lambda client: client.set(lock.name, lock.token, nx=True, px=milliseconds)
                )
            )
        except RedisUnavailable:
            return True

    def _renew(self, lock: "RedisLock") -> None:
        milliseconds = int(self._lease * 1000)
        with suppress(RedisUnavailable):
            self._redis.execute(
                lambda client: client.eval(_RENEW_SCRIPT, 1, lock.name, lock.token, milliseconds)
            )


class RedisLock:
    """A lock, held until it is released."""

    def __init__(self, locks: RedisLocks, name: str, token: str) -> None:
        self.name = name
        self.token = token
        self._locks = locks

    def release(self) -> None:
        self._locks.release(self)
