"""The connection to a Redis server that may be unreachable."""

import logging
import threading
import time
from collections.abc import Callable
from typing import Any, TypeAlias, TypeVar

import redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError
from redis.maint_notifications import MaintNotificationsConfig
from redis.retry import Retry

from opendify.storage.fork import after_fork_in_child

T = TypeVar("T")
Client: TypeAlias = Any
"""A redis.Redis; its own annotations are unions over all client options."""

log = logging.getLogger(__name__)

CONNECT_TIMEOUT = 1.0
RESPONSE_TIMEOUT = 1.5
RETRY_SECONDS = 2.0
# More than there can be threads: exceeding it would look as if Redis were unreachable.
_MAX_CONNECTIONS = 10_000


class RedisUnavailable(Exception):
    """Redis did not execute a command; the reason is logged."""


class RedisConnection:
    """The Redis connections of one process, opened when first needed.

    A forked child opens its own. After a failure, every call raises at once for ``retry_seconds``;
    then one call probes whether Redis is back, so no request waits for it more than once. The
    outage and the recovery are logged once each.
    """

    def __init__(self, url: str, display_name: str, retry_seconds: float = RETRY_SECONDS) -> None:
        """``url`` may contain a password; ``display_name`` is what the log shows instead."""
        self._url = url
        self._display_name = display_name
        self._retry_seconds = retry_seconds
        self._retry_at = 0.0
        self._unreachable = False
        self._rejects_writes = False
        self._recoveries = 0
        self._lock = threading.Lock()
        self._client: Client = None
        after_fork_in_child(self._reset_in_child)

    @property
    def available(self) -> bool:
        return not (self._unreachable or self._rejects_writes)

    @property
    def rejects_writes(self) -> bool:
        """Whether Redis responds but rejected the last write."""
        return self._rejects_writes

    def execute(self, action: Callable[[Client], T]) -> T:
        """The result of ``action(client)``. Raises RedisUnavailable."""
        return self._run(action)

    def execute_write(self, action: Callable[[Client], T]) -> T:
        """The same, for an action that stores something, or nothing if its result is false.

        Redis may reject writes while it answers reads and deletes, for example when it is full, so
        only a successful write shows that it accepts them again.
        """
        result = self._run(action)
        if result and self._rejects_writes:
            self._record_success(rejects_writes=False)
        return result

    def close(self) -> None:
        """Close the connections; the next use opens new ones."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def _reset_in_child(self) -> None:
        """After a fork: the lock and the connections of the parent are unusable here."""
        self._lock = threading.Lock()
        self._client = None

    def _run(self, action: Callable[[Client], T]) -> T:
        is_probe, recoveries = self._unreachable, self._recoveries
        if is_probe and not self._claim_probe():
            raise RedisUnavailable
        try:
            result = action(self._get_client())
        except ResponseError as error:
            self._record_rejection(error, is_probe)
            raise RedisUnavailable from error
        except (RedisError, OSError, UnicodeError) as error:  # UnicodeError: not a valid host name
            self._record_failure(error, recoveries)
            raise RedisUnavailable from error
        finally:
            if is_probe:
                self._retry_at = time.monotonic() + self._retry_seconds
        # Only a probe ends the outage: any other response may predate the failure.
        if is_probe:
            self._record_success(rejects_writes=self._rejects_writes)
        return result

    def _claim_probe(self) -> bool:
        """True after the pause, for one caller, and for no other until that call fails."""
        with self._lock:
            if time.monotonic() < self._retry_at:
                return False
            self._retry_at = float("inf")
            return True

    def _get_client(self) -> Client:
        with self._lock:
            if self._client is None:
                self._client = redis.Redis.from_url(
                    self._url,
                    socket_connect_timeout=CONNECT_TIMEOUT,
                    socket_timeout=RESPONSE_TIMEOUT,
                    max_connections=_MAX_CONNECTIONS,
                    retry=Retry(NoBackoff(), 0),
                    maint_notifications_config=MaintNotificationsConfig(enabled=False),
                )
            return self._client

    def _record_failure(self, error: Exception, recoveries: int) -> None:
        """``recoveries`` is the count of recoveries when the command was sent: a command sent
        before the latest recovery says nothing about the present."""
        with self._lock:
            if recoveries != self._recoveries:
                return
            self._retry_at = time.monotonic() + self._retry_seconds
            is_new, self._unreachable = not self._unreachable, True
        if is_new:
            log.error(
                "%s cannot be used (%s). Until it can, each worker knows only the chats that it "
                "has seen, chats may start new conversations, simultaneous turns of one chat may "
                "get into one conversation, and each worker counts the requests of callers by "
                "itself.",
                self._display_name,
                _reason(error),
            )

    def _record_rejection(self, error: Exception, is_probe: bool) -> None:
        with self._lock:
            is_new, self._rejects_writes = not self._rejects_writes, True
            if is_probe:
                self._mark_reachable()
        if is_new:
            log.error(
                "%s refuses to store conversations (%s). Until it accepts them, new ones are only "
                "in the memory of their worker and are lost at a restart, and simultaneous turns "
                "of one chat may get into one conversation.",
                self._display_name,
                _reason(error),
            )

    def _record_success(self, rejects_writes: bool) -> None:
        with self._lock:
            was_available = self.available
            self._mark_reachable()
            self._rejects_writes = rejects_writes
            is_new = self.available and not was_available
        if is_new:
            log.warning("Conversations are stored in %s again.", self._display_name)

    def _mark_reachable(self) -> None:
        self._recoveries += self._unreachable
        self._unreachable = False


def _reason(error: Exception) -> str:
    """Redis's or the system's message, without the command, which names chats and people."""
    message = str(error).rpartition("caused error: ")[2]
    return f"{type(error).__name__}: {message[:200]}"
