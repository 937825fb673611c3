"""The way to a Redis server that may be away."""

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
"""A redis.Redis, whose own types say of every answer all that any option could make of it."""

log = logging.getLogger(__name__)

CONNECT_TIMEOUT = 1.0
ANSWER_TIMEOUT = 1.5
_AWAY_SECONDS = 2.0
# More than there can be threads: one too many would look as if Redis were away.
_MOST_CONNECTIONS = 10_000


class RedisUnavailable(Exception):
    """Redis did not do what it was asked for; the log says why."""


class RedisConnection:
    """One process's connections to a Redis server, made when they are first needed.

    A forked child makes its own. Once Redis has failed to answer, everybody who asks is told so
    at once for two seconds, and then one finds out whether it is back: no request waits for it
    more than once. That it is away, and that it is back, is logged once each.
    """

    def __init__(self, url: str, shown: str) -> None:
        """``url`` may hold a password, ``shown`` is what the log says instead."""
        self._url = url
        self._shown = shown
        self._next_try = 0.0
        self._is_away = False
        self._refuses = False
        self._returns = 0
        self._lock = threading.Lock()
        self._client: Client = None
        after_fork_in_child(self._begin_in_child)

    @property
    def available(self) -> bool:
        return not (self._is_away or self._refuses)

    @property
    def refuses(self) -> bool:
        """Whether Redis answered last, but took nothing."""
        return self._refuses

    def ask(self, action: Callable[[Client], T]) -> T:
        """What the action gives. Raises Away."""
        return self._do(action)

    def store(self, action: Callable[[Client], T]) -> T:
        """The same, for an action that stores something, or nothing if what it gives is false.

        Redis may refuse that though it answers and removes: it may be full, for example. So only
        here is it found out that it does no longer.
        """
        result = self._do(action)
        if result and self._refuses:
            self._note_return(refuses=False)
        return result

    def close(self) -> None:
        """Close the connections; the next use makes new ones."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def _begin_in_child(self) -> None:
        """After a fork: the parent's lock and connections are of no use here."""
        self._lock = threading.Lock()
        self._client = None

    def _do(self, action: Callable[[Client], T]) -> T:
        is_trial, returns = self._is_away, self._returns
        if is_trial and not self._may_try():
            raise RedisUnavailable
        try:
            result = action(self._connected())
        except ResponseError as error:
            self._note_refusal(error, is_trial)
            raise RedisUnavailable from error
        except (RedisError, OSError, UnicodeError) as error:  # the last: no name of a host
            self._note_absence(error, returns)
            raise RedisUnavailable from error
        finally:
            if is_trial:
                self._next_try = time.monotonic() + _AWAY_SECONDS
        # Not by an answer that was on its way before somebody else was left without one.
        if is_trial:
            self._note_return(refuses=self._refuses)
        return result

    def _may_try(self) -> bool:
        """True for the first who asks after the pause, and until that has failed for no other."""
        with self._lock:
            if time.monotonic() < self._next_try:
                return False
            self._next_try = float("inf")
            return True

    def _connected(self) -> Client:
        with self._lock:
            if self._client is None:
                self._client = redis.Redis.from_url(
                    self._url,
                    socket_connect_timeout=CONNECT_TIMEOUT,
                    socket_timeout=ANSWER_TIMEOUT,
                    max_connections=_MOST_CONNECTIONS,
                    retry=Retry(NoBackoff(), 0),
                    maint_notifications_config=MaintNotificationsConfig(enabled=False),
                )
            return self._client

    def _note_absence(self, error: Exception, returns: int) -> None:
        """``returns`` is how often Redis had come back when it was asked: what was asked before
        it came back the last time says nothing of now."""
        with self._lock:
            if returns != self._returns:
                return
            self._next_try = time.monotonic() + _AWAY_SECONDS
            is_news, self._is_away = not self._is_away, True
        if is_news:
            log.error(
                "%s cannot be used (%s). Until it can, each worker knows only the chats that it "
                "has seen, chats may begin new conversations, turns of one chat that come at once "
                "are not kept apart, and each worker counts the requests of callers for itself.",
                self._shown,
                _reason(error),
            )

    def _note_refusal(self, error: Exception, is_trial: bool) -> None:
        with self._lock:
            is_news, self._refuses = not self._refuses, True
            if is_trial:
                self._end_absence()
        if is_news:
            log.error(
                "%s refuses to keep conversations (%s). Until it takes them, new ones are in the "
                "memory of their worker only and are lost at a restart, and turns of one chat "
                "that come at once are not kept apart.",
                self._shown,
                _reason(error),
            )

    def _note_return(self, refuses: bool) -> None:
        with self._lock:
            was_available = self.available
            self._end_absence()
            self._refuses = refuses
            is_news = self.available and not was_available
        if is_news:
            log.warning("Conversations are kept in %s again.", self._shown)

    def _end_absence(self) -> None:
        self._returns += self._is_away
        self._is_away = False


def _reason(error: Exception) -> str:
    """What Redis or the system said, without the command: that names chats and people."""
    said = str(error).rpartition("caused error: ")[2]
    return f"{type(error).__name__}: {said[:200]}"
