"""Asks Dify whether a conversation exists and what its newest messages are, where a wrong
assumption would be expensive."""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from opendify import errors
from opendify.config.models import Model
from opendify.dify.conversation_api import RecordedMessage, parse_messages
from opendify.upstream.client import DifyClient

CALL_TIMEOUT = 10.0

# Within this time after it was sent, Dify has stored a query, or never received it (Dify stores
# queries before it runs them). Longer than Dify takes on a busy machine: 0.5 s were measured.
ARRIVAL_TIMEOUT = 3.0
_POLL_INTERVAL_SECONDS = 0.3

# How many of the newest messages are fetched: those of the same second come in any order.
_NEWEST_MESSAGES = 5

# A chatflow that runs reports its first node within milliseconds. One that was asked in a
# conversation that Dify no longer has sends pings for minutes (recorded with 1.13.2).
SILENCE_SECONDS = 1.0

# How soon the result of a look-up beside a run is noticed.
_LOOK_INTERVAL_SECONDS = 0.05


class DifyConversationProbe:
    """Looks up conversations of one user of one app. ``now`` returns epoch seconds."""

    def __init__(
        self, client: DifyClient, model: Model, user: str, now: Callable[[], float]
    ) -> None:
        self._client = client
        self._model = model
        self._user = user
        self._now = now

    def belongs_to_user(self, conversation_id: str) -> bool:
        """Whether it is a conversation of the user's; false where Dify does not confirm it."""
        return self._exists(conversation_id, default=False)

    def is_missing(self, conversation_id: str) -> bool:
        """Whether Dify says that it is no conversation of the user's."""
        return not self._exists(conversation_id, default=True)

    def newest_messages(
        self,
        conversation_id: str,
        sent_at: float,
        decide: Callable[[Sequence[RecordedMessage]], bool],
        caller_gone: Callable[[], None],
    ) -> Sequence[RecordedMessage] | None:
        """The newest messages of a conversation, oldest first; None where Dify has none or fails.

        A query that was sent at ``sent_at`` (epoch seconds, 0 for long ago) may still be on its
        way: until it must have arrived, the messages are fetched again, unless ``decide`` returns
        true for them. Raises ConversationNotFound, and what ``caller_gone`` raises.
        """
        remaining = ARRIVAL_TIMEOUT - (self._now() - sent_at)
        deadline = time.monotonic() + min(max(remaining, 0.0), ARRIVAL_TIMEOUT)
        while True:
            try:
                messages = parse_messages(self._page(conversation_id, _NEWEST_MESSAGES))
            except errors.ConversationNotFound:
                raise
            except errors.OpenDifyError:
                return None
            if not messages or decide(messages) or time.monotonic() >= deadline:
                return messages or None
            caller_gone()
            time.sleep(_POLL_INTERVAL_SECONDS)

    def _exists(self, conversation_id: str, default: bool) -> bool:
        try:
            self._page(conversation_id, 1)
        except errors.ConversationNotFound:
            return False
        except errors.OpenDifyError:
            return default
        return True

    def _page(self, conversation_id: str, limit: int) -> Any:
        params = {"conversation_id": conversation_id, "user": self._user, "limit": limit}
        return self._client.call(self._model, "GET", "/messages", CALL_TIMEOUT, params=params)


class PresenceCheck:
    """Looks up, beside a run that is silent, whether its conversation still exists: once, on a
    thread of its own, so that a run that is only slow is not delayed."""

    def __init__(self, probe: DifyConversationProbe, conversation_id: str) -> None:
        self._probe = probe
        self._conversation_id = conversation_id
        self._due_at = time.monotonic() + SILENCE_SECONDS
        self._thread: threading.Thread | None = None
        self._is_missing = False

    def next_look(self, deadline: float) -> float:
        """When ``raise_if_missing`` should be called, at the latest at ``deadline`` (both of
        ``time.monotonic``)."""
        if self._thread is None:
            return min(deadline, self._due_at)
        now, is_running = time.monotonic(), self._thread.is_alive()
        if self._is_missing:
            return now
        return min(deadline, now + _LOOK_INTERVAL_SECONDS) if is_running else deadline

    def raise_if_missing(self) -> None:
        """Starts the look-up when it is due; raises ConversationNotFound when Dify has said that
        the conversation does not exist, so that no run has begun in it."""
        if self._is_missing:
            raise errors.ConversationNotFound("Dify does not know this conversation.")
        if self._thread is None and time.monotonic() >= self._due_at:
            self._thread = threading.Thread(
                target=self._look_up, name="presence-check", daemon=True
            )
            with suppress(RuntimeError):  # no thread left: the run's timeout decides
                self._thread.start()

    def _look_up(self) -> None:
        self._is_missing = self._probe.is_missing(self._conversation_id)
