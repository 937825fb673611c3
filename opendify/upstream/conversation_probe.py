"""Whether Dify still has a conversation, and what it has last been asked there: looked up where a
wrong guess would be dear."""

import time
from collections.abc import Callable, Sequence
from typing import Any

from opendify import errors
from opendify.config.models import Model
from opendify.dify.conversation_api import RecordedMessage, parse_messages
from opendify.upstream.client import DifyClient

# A conversation that was used so lately is taken to be there still.
STALE_SECONDS = 300

CALL_SECONDS = 10.0

# Within this time after it was sent, Dify has noted a question, or does not have it (it notes
# questions before it runs them). Longer than Dify takes on a busy machine: 0.5 s were measured.
SECONDS_TO_ARRIVE = 3.0
_SECONDS_BETWEEN_LOOKS = 0.3

# How many of the newest messages are looked at: those of one second come in any order.
_NEWEST_MESSAGES = 5

# These answer a question to a chatflow in an unknown conversation with minutes of silence.
_VERSIONS_THAT_HANG = ((1, 13), (1, 14), (1, 15))


class DifyConversationProbe:
    """Looks for conversations of one user of one app. ``now`` gives epoch seconds."""

    def __init__(
        self, client: DifyClient, model: Model, mode: str, user: str, now: Callable[[], float]
    ) -> None:
        self._client = client
        self._model = model
        self._mode = mode
        self._user = user
        self._now = now

    def of_earlier(self, conversation_id: str) -> bool:
        """Whether it is the user's, of which nothing but Dify's own word is proof."""
        return self._ask(conversation_id, otherwise=False)

    def of_used(self, conversation_id: str, last_used: float) -> bool:
        """Whether a question can be asked in it; looked for only where Dify would not simply
        refuse. ``last_used`` is in epoch seconds, 0 where it is not known."""
        hangs = (
            self._mode == "advanced-chat"
            and self._client.version(self._model.base) in _VERSIONS_THAT_HANG
        )
        if not hangs or self._now() - last_used <= STALE_SECONDS:
            return True
        return self._ask(conversation_id, otherwise=True)

    def newest_messages(
        self,
        conversation_id: str,
        sent_at: float,
        decide: Callable[[Sequence[RecordedMessage]], bool],
        caller_gone: Callable[[], bool],
    ) -> Sequence[RecordedMessage] | None:
        """The newest messages of a conversation, oldest first; None where Dify does not tell.

        A question that was sent at ``sent_at`` (epoch seconds, 0 for long ago) may still be on its
        way: until it must have arrived, Dify is asked again, unless ``decide`` is true of what it
        tells. Raises ConversationUnknown, and what ``caller_gone`` raises.
        """
        left = SECONDS_TO_ARRIVE - (self._now() - sent_at)
        until = time.monotonic() + min(max(left, 0.0), SECONDS_TO_ARRIVE)
        while True:
            try:
                messages = parse_messages(self._page(conversation_id, _NEWEST_MESSAGES))
            except errors.ConversationNotFound:
                raise
            except errors.OpenDifyError:
                return None
            if not messages or decide(messages) or time.monotonic() >= until:
                return messages or None
            caller_gone()
            time.sleep(_SECONDS_BETWEEN_LOOKS)

    def _ask(self, conversation_id: str, otherwise: bool) -> bool:
        try:
            self._page(conversation_id, 1)
        except errors.ConversationNotFound:
            return False
        except errors.OpenDifyError:
            return otherwise
        return True

    def _page(self, conversation_id: str, limit: int) -> Any:
        params = {"conversation_id": conversation_id, "user": self._user, "limit": limit}
        return self._client.call(self._model, "GET", "/messages", CALL_SECONDS, params=params)
