"""The chat that a request belongs to: which Dify conversation continues it, and what is
remembered of it afterwards.

A mapping belongs to the caller's key, the model, the user and the chat. A client that names no
chat has its chats told apart by what was said in them: a conversation is kept under a name for its
last exchange, which clients that send only their last messages know as well. Where another chat
ends in the same exchange, the one before is kept on under a name for all that was said in it.

While a turn runs, nothing is known of what its conversation will have heard, so no other turn
continues it. That stays so where the turn ends in the middle: nobody can know how much of it is in
Dify's memory.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from opendify import continuity, errors
from opendify.continuity import Heard
from opendify.conversations.contract import Conversations
from opendify.conversations.mapping import Mapping
from opendify.conversations.turn_locks import Lock, TurnLocks
from opendify.conversations.whose import to_whose
from opendify.openai.messages import Message

# What is kept in the place of digests while a turn runs, and where it ended in the middle.
UNSETTLED = "-"

_quoted = json.JSONEncoder(ensure_ascii=False).encode


@dataclass(frozen=True, slots=True)
class Place:
    """Where in its client's chats a turn stands, as far as the client tells.

    ``chat_id`` is "" where it names no chat. ``history`` is what was said before. ``answer_id`` is
    its name for the answer that is to come, and ``follows`` for the answer that the turn comes
    after: "" for the first turn, None where it does not tell.
    """

    chat_id: str
    history: Sequence[Message]
    answer_id: str = ""
    follows: str | None = None


@dataclass(frozen=True, slots=True)
class Owner:
    """Whom a conversation belongs to. ``caller`` stands for a key and never is one."""

    caller: str
    model: str
    user: str

    def key(self, chat: str) -> str:
        """The name in the store of a chat of theirs."""
        return f"[{','.join(map(_quoted, (self.caller, self.model, self.user, chat)))}]"

    def owns(self, key: str) -> bool:
        """Whether a chat of that name is of the same caller and user. A bare chat id, as an
        earlier system wrote them, is nobody's."""
        whose = to_whose(key)
        return whose.caller is None or (whose.caller, whose.user) == (self.caller, self.user)


class Presence(Protocol):
    """What Dify can be asked of a conversation of the user's."""

    def of_earlier(self, conversation_id: str) -> bool:
        """Whether it is the user's, of which nothing but Dify's own word is proof."""
        ...

    def of_used(self, conversation_id: str, last_used: float) -> bool:
        """Whether a question can be asked in it, which was last used then (epoch seconds)."""
        ...


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
        place: Place,
        finds_by_history: bool,
    ) -> None:
        self._store = store
        self._locks = locks
        self._owner = owner
        self._place = place
        self._finds_by_history = finds_by_history
        self._key = ""
        self._lock: Lock | None = None
        self._conversation_id = ""
        self._before: str | None = None
        self._claimed_from = ""
        self._is_remembered = bool(place.chat_id) or finds_by_history
        history = place.history if self._is_remembered else ()
        self._texts = continuity.text_digests(history)
        self._told = continuity.hear(Heard(), history, texts=self._texts)
        self._heard = self._told
        self._is_settled = False

    def find(self, until: float, caller_gone: Callable[[], bool], presence: Presence) -> str:
        """The conversation that continues the chat, or "" where a new one is to be opened.

        Waits, at most until then (``time.monotonic``), for another turn of the same chat to open
        its conversation. Raises what ``caller_gone`` raises.
        """
        self._key = self._name()
        if not self._key:
            return ""
        self._lock = self._locks.acquire(self._key, until, caller_gone)
        for name in self._names():
            mapping = self._store.get(name)
            if mapping is None and self._place.chat_id:
                mapping = self._adopt(presence)
            if mapping is not None and mapping.heard == UNSETTLED:
                break  # the chat is known, and no other that is like it continues it
            if mapping is not None and self._take(name, mapping, presence):
                break
        if self._conversation_id or not self._place.chat_id:  # who names no chat waits for no turn
            self._release()
        return self._conversation_id

    def _take(self, key: str, mapping: Mapping, presence: Presence) -> bool:
        """Takes the conversation that is kept under the key, if it continues the chat."""
        if not self._is_continued(mapping.heard):
            return False
        if not presence.of_used(mapping.conversation_id, mapping.last_used):
            self._store.forget(key, mapping.conversation_id)
            return False
        # Without the lock, which is not waited for for ever, the chat may have moved meanwhile.
        if not self._store.move(key, key, mapping.conversation_id, UNSETTLED):
            return False
        self._key, self._conversation_id = key, mapping.conversation_id
        self._before = mapping.heard
        return True

    def claim(self, conversation_id: str) -> None:
        """The caller names the conversation. Raises ConversationUnknown where it is known to be
        another's."""
        owner = self._store.owner(conversation_id)
        if owner is not None and not self._owner.owns(owner):
            raise errors.ConversationUnknown("Dify does not know this conversation.")
        self._key = self._owner.key(self._place.chat_id) if self._place.chat_id else ""
        self._claimed_from = owner or ""
        kept = [self._store.get(key) for key in (self._key, self._claimed_from) if key]
        words = [m.heard for m in kept if m and m.conversation_id == conversation_id]
        known = [heard for word in words if (heard := continuity.decode(word))]
        self._heard = known[0] if known else self._told

    def opened(self, conversation_id: str) -> None:
        """Dify has named the conversation of the turn."""
        if conversation_id and conversation_id != self._conversation_id:
            self._conversation_id = conversation_id
            if self._claimed_from and self._claimed_from != self._key:
                self._outdate(self._claimed_from)
            if self._place.chat_id:
                self._store.put(self._key, conversation_id, UNSETTLED)
        self._release()

    def settled(self, turn: Sequence[Message]) -> None:
        """The turn is complete: ``turn`` is the question and the answer, or, where an answer was
        continued, nothing but the whole of that answer in the place of its first part."""
        self._is_settled = True
        if not self._conversation_id or not self._is_remembered:
            return
        before, texts = self._heard, continuity.text_digests(turn)
        if turn[0].role == "assistant":  # which was the last of the history, in part
            history, known = self._place.history[:-1], self._texts[:-1]
            before = continuity.hear(Heard(), history, texts=known)
            exchange, named = [*history, *turn], [*known, *texts]
        else:
            exchange, named = [*turn], texts
        heard = continuity.hear(before, turn, self._place.answer_id, texts)
        if self._place.chat_id:
            self._store.move(self._key, self._key, self._conversation_id, heard.encode())
        elif name := continuity.exchange_name(exchange, named):
            self._keep(self._owner.key(f"~{name}"), heard.encode())

    def _keep(self, key: str, heard: str) -> None:
        """Keeps the conversation of a chat without an id; the one that is kept there already, of
        another chat, moves on."""
        other = self._store.get(key)
        known = continuity.decode(other.heard) if other else None
        if other and known and other.conversation_id != self._conversation_id:
            chain = self._owner.key(f"~{known.chain}")
            self._store.move(key, chain, other.conversation_id, other.heard)
        moved = self._key and self._store.move(self._key, key, self._conversation_id, heard)
        if not moved:
            self._store.put(key, self._conversation_id, heard)

    def lost(self) -> None:
        """Dify does not know the conversation."""
        self._store.forget(self._key, self._conversation_id)
        self._conversation_id, self._before = "", None
        self._heard = self._told

    def leave(self, has_run: bool) -> None:
        """The turn is over. Where it is certain that nothing has run, all is as it was before."""
        if self._before is not None and not self._is_settled and not has_run:
            self._store.move(self._key, self._key, self._conversation_id, self._before)
        self._release()

    def _outdate(self, key: str) -> None:
        """The conversation hears more than what is known under another key."""
        self._store.move(key, key, self._conversation_id, UNSETTLED)

    def _adopt(self, presence: Presence) -> Mapping | None:
        """The entry of an earlier system, which knew chats by their bare ids, once Dify has said
        that the conversation is this user's."""
        chat_id = self._place.chat_id
        if chat_id.startswith("["):  # the form of our own keys: somebody else's entry
            return None
        mapping = self._store.get(chat_id)
        if mapping is None or not presence.of_earlier(mapping.conversation_id):
            return None
        self._store.move(chat_id, self._key, mapping.conversation_id, "")
        return self._store.get(self._key)

    def _release(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _name(self) -> str:
        """The key under which the chat is kept; "" where nothing can be kept of it."""
        if self._place.chat_id:
            return self._owner.key(self._place.chat_id)
        if not self._finds_by_history:
            return ""
        name = continuity.exchange_name(self._place.history, self._texts)
        return self._owner.key(f"~{name}") if name else ""

    def _names(self) -> list[str]:
        """The keys under which the conversation may be, that which fits best first."""
        if self._place.chat_id:
            return [self._key]
        whole = self._owner.key(f"~{self._told.chain}")
        mapping = self._store.get(self._key)
        known = continuity.decode(mapping.heard) if mapping else None
        is_whole = known is not None and known.chain == self._told.chain
        return [self._key, whole] if is_whole else [whole, self._key]

    def _is_continued(self, heard: str) -> bool:
        place = self._place
        if not heard:  # of an earlier system, which kept no digests
            return bool(place.history)
        known = continuity.decode(heard)
        if known is None:
            return False
        if not continuity.continues(known, self._told, place.history, place.follows):
            return False
        self._heard = known
        return True
