"""Turn locks in a Redis server, for instances that share no folder.

A lock is a key `opendify:lock:<hash of the chat>` with a random value that only its holder knows
and a short life that the holder prolongs, so that the lock of a machine that died is free soon.
"""

import secrets
from collections.abc import Callable
from contextlib import suppress

from opendify.conversations.locks.files import TurnLock, lock_name, waited_for
from opendify.storage.lease_renewal import LeaseRenewer
from opendify.storage.redis_connection import RedisConnection, RedisUnavailable

LEASE_SECONDS = 10.0

_PROLONG = """
if redis.call("GET", KEYS[1]) == ARGV[1] then
  return redis.call("PEXPIRE", KEYS[1], ARGV[2])
end
return 0
"""
_RELEASE = """
if redis.call("GET", KEYS[1]) == ARGV[1] then
  return redis.call("DEL", KEYS[1])
end
return 0
"""


class RedisTurnLocks:
    """Locks for those who share a Redis server; see `TurnLocks`. While it is away, every turn
    counts as given; the log of the link says so."""

    def __init__(self, link: RedisConnection, lease: float = LEASE_SECONDS) -> None:
        """`lease` is in seconds: so long a lock outlives a holder that was killed."""
        self._link = link
        self._lease = lease
        self._leases: LeaseRenewer[RedisTurnLock] = LeaseRenewer(lease, self._prolong)

    def acquire(self, key: str, until: float, caller_gone: Callable[[], bool]) -> TurnLock | None:
        lock = RedisTurnLock(self, f"opendify:lock:{lock_name(key)}", secrets.token_hex(16))
        if not waited_for(lambda: self._take(lock) or None, until, caller_gone):
            return None
        self._leases.add(lock)
        return lock

    def give_back(self, lock: "RedisTurnLock") -> None:
        """Free a lock; what is no longer its holder's is left alone."""
        if not self._leases.discard(lock):
            return
        with suppress(RedisUnavailable):  # then it ends with its lease
            self._link.ask(lambda client: client.eval(_RELEASE, 1, lock.name, lock.token))

    def _take(self, lock: "RedisTurnLock") -> bool:
        milliseconds = int(self._lease * 1000)
        try:
            return bool(
                self._link.store(
                    lambda client: client.set(lock.name, lock.token, nx=True, px=milliseconds)
                )
            )
        except RedisUnavailable:
            return True

    def _prolong(self, lock: "RedisTurnLock") -> None:
        milliseconds = int(self._lease * 1000)
        with suppress(RedisUnavailable):
            self._link.ask(
                lambda client: client.eval(_PROLONG, 1, lock.name, lock.token, milliseconds)
            )


class RedisTurnLock:
    """One lock that is held, or was."""

    def __init__(self, locks: RedisTurnLocks, name: str, token: str) -> None:
        self.name = name
        self.token = token
        self._locks = locks

    def release(self) -> None:
        self._locks.give_back(self)
