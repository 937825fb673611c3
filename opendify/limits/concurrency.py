"""How many answers of each caller are under way at once.

In Redis each is a member of a sorted set `opendify:streams:<caller>` and has the time, in
milliseconds of Redis's own clock, at which it is free by itself: a machine that died holds none
for long.
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
_TAKE = (
    _NOW
    + """
redis.call("ZREMRANGEBYSCORE", KEYS[1], "-inf", now)
if redis.call("ZCARD", KEYS[1]) >= tonumber(ARGV[3]) then return 0 end
redis.call("ZADD", KEYS[1], now + ARGV[2], ARGV[1])
redis.call("PEXPIRE", KEYS[1], ARGV[2])
return 1
"""
)
_PROLONG = (
    _NOW
    + """
redis.call("ZADD", KEYS[1], "XX", now + ARGV[2], ARGV[1])
return redis.call("PEXPIRE", KEYS[1], ARGV[2])
"""
)


class ConcurrencyLimiter:
    """``link`` leads to the Redis in which all workers count together, where there is one;
    ``workers`` is how many share a limit where there is none. ``lease`` is in seconds."""

    def __init__(
        self, link: RedisConnection | None, workers: int, lease: float = LEASE_SECONDS
    ) -> None:
        self._link = link
        self._workers = workers
        self._milliseconds = int(lease * 1000)
        self._leases: LeaseRenewer[Slot] = LeaseRenewer(lease, self._prolong)
        self._lock = threading.Lock()
        self._here: dict[str, set[Slot]] = {}

    def take(self, caller: str, most: int) -> "Slot | None":
        """One of the caller's ``most`` slots, or None where all are taken. Whoever gets one
        releases it."""
        slot = Slot(self, caller, secrets.token_hex(8))
        share: float = max(1, most // self._workers)
        if self._link is not None:
            with suppress(RedisUnavailable):  # the link has told the log
                if not self._take_shared(self._link, slot, most):
                    return None
                share = math.inf
        with self._lock:
            mine = self._here.setdefault(caller, set())
            if len(mine) >= share:
                return None
            mine.add(slot)
        return slot

    def give_back(self, slot: "Slot") -> None:
        """Free a slot."""
        with self._lock:
            mine = self._here.get(slot.caller, set())
            mine.discard(slot)
            if not mine:
                self._here.pop(slot.caller, None)
        if self._link is not None and self._leases.discard(slot):
            with suppress(RedisUnavailable):  # then it is free when its lease ends
                self._link.ask(lambda client: client.zrem(_name(slot), slot.token))

    def _take_shared(self, link: RedisConnection, slot: "Slot", most: int) -> bool:
        arguments = (slot.token, self._milliseconds, most)
        taken = link.store(lambda client: client.eval(_TAKE, 1, _name(slot), *arguments))
        if taken:
            self._leases.add(slot)
        return bool(taken)

    def _prolong(self, slot: "Slot") -> None:
        link, arguments = self._link, (slot.token, self._milliseconds)
        if link is not None:
            with suppress(RedisUnavailable):
                link.ask(lambda client: client.eval(_PROLONG, 1, _name(slot), *arguments))


class Slot:
    """One answer that is under way, or was."""

    def __init__(self, slots: ConcurrencyLimiter, caller: str, token: str) -> None:
        self.caller = caller
        self.token = token
        self._slots = slots

    def release(self) -> None:
        self._slots.give_back(self)


def _name(slot: Slot) -> str:
    return f"opendify:streams:{slot.caller}"
