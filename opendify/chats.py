"""The chat that a request belongs to: which Dify conversation continues it, and what is
remembered of it afterwards.

A mapping belongs to the caller's key, the model, the user and the chat. A client that names no
chat has its chats told apart by what was said in them. While a turn runs, nothing is known of
what its conversation will have heard, so no other turn continues it.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from opendify import continuity, errors
from opendify.continuity import Heard
from opendify.conversations.contract import Conversations
from opendify.conversations.mapping import Mapping
from opendify.conversations.turn_locks import Lock, TurnLocks
from opendify.openai.messages import Message

# What is kept in the place of digests while a turn runs, and where it ended in the middle.
UNSETTLED = "-"


@dataclass(frozen=True, slots=True)
class Owner:
    """Whom a conversation belongs to. ``caller`` stands for a key and never is one."""

    caller: str
    model: str
    user: str

    def key(self, chat: str) -> str:
        """The name in the store of a chat of theirs."""
        parts = [self.caller, self.model, self.user, chat]
        return json.dumps(parts, ensure_ascii=False, separators=(",", ":"))

    def owns(self, key: str) -> bool:
        """Whether a chat of that name is of the same caller and user. A bare chat id, as an
        earlier system wrote them, is nobody's."""
        try:
            parts = json.loads(key)
        except ValueError:
            return True
        if not isinstance(parts, list) or len(parts) != 4:
            return True
        return bool(parts[0] == self.caller and parts[2] == self.user)


class Chat:
    """One turn's view of its chat.

    ``find`` comes first; then ``opened`` when Dify has named the conversation, ``settled`` when
    the answer is complete, ``lost`` when Dify does not know the conversation, and ``leave`` at the
    end in every case.
    """

    def __init__(
        self,
        store: Conversations,
        locks: TurnLocks,
        owner: Owner,
        chat_id: str,
        history: Sequence[Message],
        finds_by_history: bool,
    ) -> None:
        self._store = store
        self._locks = locks
        self._owner = owner
        self._chat_id = chat_id
        self._history = history
        self._finds_by_history = finds_by_history
        self._key = ""
        self._lock: Lock | None = None
        self._conversation_id = ""
        self._before = ""
        self._heard = continuity.hear(Heard(), history)
        self._is_settled = False

    def find(
        self, until: float, caller_gone: Callable[[], bool], confirm: Callable[[str, int], bool]
    ) -> str:
        """The conversation that continues the chat, or "" where a new one is to be opened.

        Waits, at most until then (``time.monotonic``), for another turn of the same chat to open
        its conversation. ``confirm`` asks Dify for a conversation, where that is to be feared
        lost; it is given the epoch seconds of its last use, 0 where that is of an earlier system.
        """
        self._key = self._name()
        if not self._key:
            return ""
        self._lock = self._locks.acquire(self._key, until, caller_gone)
        mapping = self._store.get(self._key)
        if mapping is None and self._chat_id:
            mapping = self._adopt(confirm)
        if mapping is None or not self._is_continued(mapping.heard):
            return ""
        if mapping.last_used and not confirm(mapping.conversation_id, mapping.last_used):
            self._store.forget(self._key, mapping.conversation_id)
            return ""
        self._conversation_id, self._before = mapping.conversation_id, mapping.heard
        self._store.move(self._key, self._key, mapping.conversation_id, UNSETTLED)
        self._release()
        return self._conversation_id

    def claim(self, conversation_id: str) -> None:
        """The caller names the conversation. Raises ConversationUnknown where it is known to be
        another's."""
        owner = self._store.owner(conversation_id)
        if owner is not None and not self._owner.owns(owner):
            raise errors.ConversationUnknown("Dify does not know this conversation.")
        self._key = self._owner.key(self._chat_id) if self._chat_id else ""

    def opened(self, conversation_id: str) -> None:
        """Dify has named the conversation of the turn."""
        if conversation_id and conversation_id != self._conversation_id:
            self._conversation_id = conversation_id
            if self._chat_id:
                self._store.put(self._key, conversation_id, UNSETTLED)
        self._release()

    def settled(self, turn: Sequence[Message]) -> None:
        """The turn is complete: ``turn`` is the question and the answer, or, where an answer was
        continued, nothing but the whole of that answer in the place of its first part."""
        self._is_settled = True
        if not self._conversation_id:
            return
        is_continued_answer = bool(turn) and turn[0].role == "assistant"
        if is_continued_answer:
            self._heard = continuity.hear(Heard(), self._history[:-1])
        heard = continuity.hear(self._heard, turn).encode()
        if self._chat_id:
            self._store.move(self._key, self._key, self._conversation_id, heard)
            return
        name = continuity.exchange_name(
            [*self._history[:-1], *turn] if is_continued_answer else turn
        )
        if not self._finds_by_history or not name:
            return
        key = self._owner.key(f"~{name}")
        moved = self._key and self._store.move(self._key, key, self._conversation_id, heard)
        if not moved:
            self._store.put(key, self._conversation_id, heard)

    def lost(self) -> None:
        """Dify does not know the conversation."""
        self._store.forget(self._key, self._conversation_id)
        self._conversation_id = self._before = ""
        self._heard = continuity.hear(Heard(), self._history)

    def leave(self, has_run: bool) -> None:
        """The turn is over. Where nothing has run (``has_run``), all is as it was before."""
        if self._before and not self._is_settled and not has_run:
            self._store.move(self._key, self._key, self._conversation_id, self._before)
        self._release()

    def _adopt(self, confirm: Callable[[str, int], bool]) -> Mapping | None:
        """The entry of an earlier system, which knew chats by their bare ids, once Dify has said
        that the conversation is this user's."""
        if self._chat_id.startswith("["):  # the form of our own keys: somebody else's entry
            return None
        mapping = self._store.get(self._chat_id)
        if mapping is None or not confirm(mapping.conversation_id, 0):
            return None
        self._store.move(self._chat_id, self._key, mapping.conversation_id, "")
        return replace(mapping, last_used=0)

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _name(self) -> str:
        if self._chat_id:
            return self._owner.key(self._chat_id)
        name = continuity.exchange_name(self._history) if self._finds_by_history else ""
        return self._owner.key(f"~{name}") if name else ""

    def _is_continued(self, heard: str) -> bool:
        if not self._history or heard == UNSETTLED:
            return False
        if not heard:  # of an earlier system, which kept no digests
            return True
        known = continuity.decode(heard)
        if known is None or not continuity.continues(known, self._history):
            return False
        self._heard = known
        return True
