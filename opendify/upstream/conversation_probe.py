"""Asks Dify whether a conversation exists and what its newest messages are, where a wrong
assumption would be expensive."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from opendify import errors
from opendify.config.models import Model
from opendify.dify.conversation_api import RecordedMessage, parse_messages
from opendify.upstream.client import DifyClient

# A conversation that was used within this time is assumed to exist.
STALE_SECONDS = 300

CALL_TIMEOUT = 10.0

# Within this time after it was sent, Dify has stored a query, or never received it (Dify stores
# queries before it runs them). Longer than Dify takes on a busy machine: 0.5 s were measured.
ARRIVAL_TIMEOUT = 3.0
_POLL_INTERVAL_SECONDS = 0.3

# How many of the newest messages are fetched: those of the same second come in any order.
_NEWEST_MESSAGES = 5

# These versions hang for minutes when a chatflow is run in an unknown conversation.
_VERSIONS_THAT_HANG = ((1, 13), (1, 14), (1, 15))


class DifyConversationProbe:
    """Looks up conversations of one user of one app. ``now`` returns epoch seconds."""

    def __init__(
        self, client: DifyClient, model: Model, mode: str, user: str, now: Callable[[], float]
    ) -> None:
        self._client = client
        self._model = model
        self._mode = mode
        self._user = user
        self._now = now

    def belongs_to_user(self, conversation_id: str) -> bool:
        """Whether it is a conversation of the user's; false where Dify does not confirm it."""
        return self._exists(conversation_id, default=False)

    def is_usable(self, conversation_id: str, last_used: float) -> bool:
        """Whether the conversation can be continued. Looked up only where Dify would hang instead
        of returning an error. ``last_used`` is in epoch seconds, 0 where unknown."""
        hangs = (
            self._mode == "advanced-chat"
            and self._client.version(self._model.base) in _VERSIONS_THAT_HANG
        )
        if not hangs or self._now() - last_used <= STALE_SECONDS:
            return True
        return self._exists(conversation_id, default=True)

    def newest_messages(
        self,
        conversation_id: str,
        sent_at: float,
        decide: Callable[[Sequence[RecordedMessage]], bool],
        caller_gone: Callable[[], bool],
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
