"""Whether Dify still has a conversation, asked where a wrong guess would be dear."""

from collections.abc import Callable

from opendify import errors
from opendify.config.models import Model
from opendify.upstream.client import DifyClient

# A conversation that was used so lately is taken to be there still.
STALE_SECONDS = 300

CALL_SECONDS = 10.0

# These answer a question to a chatflow in an unknown conversation with minutes of silence.
_VERSIONS_THAT_HANG = ((1, 13), (1, 14), (1, 15))


class DifyPresence:
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

    def _ask(self, conversation_id: str, otherwise: bool) -> bool:
        params = {"conversation_id": conversation_id, "user": self._user, "limit": 1}
        try:
            self._client.call(self._model, "GET", "/messages", CALL_SECONDS, params=params)
        except errors.ConversationUnknown:
            return False
        except errors.OpenDifyError:
            return otherwise
        return True
