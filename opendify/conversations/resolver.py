"""The chat that a request belongs to: which Dify conversation continues it, and what is
remembered of it afterwards.

A mapping belongs to the caller's key, the model, the user and the chat. A client that names no
chat has its chats told apart by what was said in them: a conversation is kept under a name for its
last exchange, which clients that send only their last messages know as well. Where another chat
ends in the same exchange, the one before is kept on under a name for all that was said in it.

A conversation that no chat is in (its first answer was not complete, its chat has moved to
another one, the model remembers nothing) is kept under its own id: whose it is must be known for
as long as the caller may name it.

While a turn runs, nothing is known of what its conversation will have heard, so no other turn
continues it. Where a turn ends in the middle, Dify is asked before the next one whether it has run
(``unsettled``).
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from opendify import errors
from opendify.conversations import fingerprint, unsettled
from opendify.conversations.fingerprint import HistoryFingerprint
from opendify.conversations.keys import NO_CHAT, parse_chat_key
from opendify.conversations.locks.files import TurnLock, TurnLocks
from opendify.conversations.processes import Processes
from opendify.conversations.store.base import ConversationStore
from opendify.conversations.store.records import ConversationRecord
from opendify.conversations.unsettled import Outcome, Unsettled
from opendify.dify.conversation_api import RecordedMessage
from opendify.protocols.base import Message

# What is kept in the place of digests where a conversation can be continued by none: its first
# turn runs or ended in the middle, or it has heard more than is known. Earlier
# releases kept it for every turn that was not complete.
UNSETTLED = "-"

_BY_HISTORY = "~"

# How our own names begin, and what stands before a client's id that begins like one: who knows the
# last exchange of a chat can compute its name.
_RESERVED = (NO_CHAT, _BY_HISTORY, "\\")

_STORE_RETRY_SECONDS = 5

_quoted = json.JSONEncoder(ensure_ascii=False).encode


@dataclass(frozen=True, slots=True)
class ChatPosition:
    """Where in its client's chats a turn stands, as far as the client tells.

    ``chat_id`` is "" where it names no chat. ``history`` is what was said before. ``answer_id`` is
    its name for the answer that is to come, and ``follows`` for the answer that the turn comes
    after: "" for the first turn, None where it does not tell. ``min_exchanges`` is how many
    exchanges a history must hold that is only the end of the chat, 0 where the client always
    sends all of it, or nobody vouches for whose chat it is.
    """

    chat_id: str
    history: Sequence[Message]
    answer_id: str = ""
    follows: str | None = None
    min_exchanges: int = 0


@dataclass(frozen=True, slots=True)
class ChatOwner:
    """Whom a conversation belongs to. ``caller`` stands for a key and never is one."""

    caller: str
    model: str
    user: str

    def chat_key(self, chat_id: str) -> str:
        """The name in the store of a chat of theirs that the client calls so."""
        return self.key(f"\\{chat_id}" if chat_id.startswith(_RESERVED) else chat_id)

    def key(self, chat: str) -> str:
        """The name in the store of a chat of theirs, which may be one of our own names."""
        return f"[{','.join(map(_quoted, (self.caller, self.model, self.user, chat)))}]"

    def owns(self, key: str) -> bool:
        """Whether a chat of that name is theirs. A bare chat id, as an earlier system wrote them,
        is nobody's."""
        whose = parse_chat_key(key)
        return (whose.caller, whose.model, whose.user) == (self.caller, self.model, self.user)


class ConversationProbe(Protocol):
    """What Dify can be asked of a conversation of the user's."""

    def of_earlier(self, conversation_id: str) -> bool:
        """Whether it is the user's, of which nothing but Dify's own word is proof."""
        ...

    def of_used(self, conversation_id: str, last_used: float) -> bool:
        """Whether a question can be asked in it, which was last used then (epoch seconds)."""
        ...

    def newest_messages(
        self,
        conversation_id: str,
        sent_at: float,
        decide: Callable[[Sequence[RecordedMessage]], bool],
        caller_gone: Callable[[], bool],
    ) -> Sequence[RecordedMessage] | None:
        """Its newest messages, oldest first; None where Dify does not tell. Waits for a question
        that was sent at ``sent_at`` (epoch seconds), unless ``decide`` is true of them before.
        Raises ConversationUnknown and what ``caller_gone`` raises."""
        ...


class ConversationResolver:
    """One turn's view of its chat.

    ``find`` comes first; then ``opened`` when Dify has named the conversation, ``settled`` when
    the answer is complete, ``lost`` when Dify does not know the conversation, and ``leave`` at the
    end in every case.
    """

    def __init__(
        self,
        store: ConversationStore,
        locks: TurnLocks,
        processes: Processes,
        owner: ChatOwner,
        place: ChatPosition,
        finds_by_history: bool,
        is_recorded: bool,
    ) -> None:
        """``is_recorded`` says whether it is kept whose a conversation is that no chat is in."""
        self._store = store
        self._locks = locks
        self._processes = processes
        self._is_recorded = is_recorded
        self._owner = owner
        self._place = place
        self._finds_by_history = finds_by_history
        self._key = ""
        self._lock: TurnLock | None = None
        self._conversation_id = ""
        self._before: str | None = None
        self._turn: Unsettled | None = None
        self._claimed_from = ""
        self._is_remembered = bool(place.chat_id) or finds_by_history
        history = place.history if self._is_remembered else ()
        self._texts = fingerprint.text_digests(history)
        self._told = fingerprint.extend(HistoryFingerprint(), history, texts=self._texts)
        self._heard = self._told
        self._is_settled = False

    def resolve(
        self, until: float, caller_gone: Callable[[], bool], presence: ConversationProbe, query: str
    ) -> str:
        """The conversation that continues the chat, or "" where a new one is to be opened.

        ``query`` is what Dify is going to be asked there. Waits, at most until then
        (``time.monotonic``), for another turn of the same chat to open its conversation. Raises
        what ``caller_gone`` raises.
        """
        self._key = self._name()
        if not self._key:
            return ""
        self._lock = self._locks.acquire(self._key, until, caller_gone)
        for name in self._names():
            mapping = self._look_up(name, presence, caller_gone)
            # Where the chat is known, no other that is like it continues it.
            if mapping and (
                mapping.heard == UNSETTLED or self._take(name, mapping, presence, query)
            ):
                break
        if self._conversation_id or not self._place.chat_id:  # who names no chat waits for no turn
            self._release()
        return self._conversation_id

    def _look_up(
        self, key: str, presence: ConversationProbe, caller_gone: Callable[[], bool]
    ) -> ConversationRecord | None:
        """What is kept under the key, with what the conversation has heard by now."""
        mapping = self._store.get(key)
        if mapping is None:
            return self._import_legacy(presence) if self._place.chat_id else None
        turn = unsettled.decode(mapping.heard)
        if turn is None:
            return mapping
        heard = self._heard_after(key, mapping, turn, presence, caller_gone)
        return replace(mapping, heard=heard.encode() if heard else UNSETTLED)

    def _take(
        self, key: str, mapping: ConversationRecord, presence: ConversationProbe, query: str
    ) -> bool:
        """Takes the conversation that is kept under the key, if it continues the chat."""
        if not self._is_continued(mapping.heard):
            return False
        if not presence.of_used(mapping.conversation_id, mapping.last_used):
            self._store.forget(key, mapping.conversation_id)
            return False
        known = fingerprint.decode(mapping.heard)
        if known is not None:
            question = fingerprint.question_digest(query)
            self._turn = Unsettled(known, question, self._processes.own())
        word = self._turn.encode() if self._turn else UNSETTLED
        # Without the lock, which is not waited for for ever, the chat may have moved meanwhile.
        if not self._store.move(key, key, mapping.conversation_id, word):
            return False
        self._key, self._conversation_id = key, mapping.conversation_id
        self._before = mapping.heard
        return True

    def _heard_after(
        self,
        key: str,
        mapping: ConversationRecord,
        turn: Unsettled,
        presence: ConversationProbe,
        caller_gone: Callable[[], bool],
    ) -> HistoryFingerprint | None:
        """What the conversation has heard after a turn whose end was not seen, as Dify tells; None
        where that is not known, or cannot be the history of the request."""
        history = self._place.history
        ran = fingerprint.extend(turn.before, history[-2:])
        if not ((turn.question and self._fits(turn.before)) or self._fits(ran)):
            return None
        if turn.process and self._processes.is_alive(turn.process):
            return None
        try:
            messages = presence.newest_messages(
                mapping.conversation_id,
                mapping.last_used if turn.may_still_arrive else 0,
                lambda messages: unsettled.has_run(turn, messages),
                caller_gone,
            )
        except errors.ConversationNotFound:
            self._store.forget(key, mapping.conversation_id)
            return None
        if messages is None:
            return None
        if unsettled.has_run(turn, messages):
            return unsettled.with_recorded(turn.before, history, messages)
        return turn.before

    def use_explicit(self, conversation_id: str, accepts_unknown: bool) -> None:
        """The caller names the conversation. Raises ConversationUnknown where it is not known to
        be the caller's, and StoreUnavailable where that cannot be looked up now; one of which
        nothing is known is left to Dify where ``accepts_unknown``."""
        keys = self._store.owners(conversation_id)
        own = [key for key in keys if self._owner.owns(key)]
        if not own:
            if not self._store.available:
                raise errors.StoreUnavailable(
                    "Whose conversation this is cannot be looked up now; try again in a moment.",
                    param="conversation_id",
                    retry_after=_STORE_RETRY_SECONDS,
                )
            if not accepts_unknown or any(parse_chat_key(key).caller is not None for key in keys):
                raise errors.ConversationNotFound(
                    "There is no such conversation of this caller, model and user. A "
                    "conversation_id is one that an answer to the same caller named, for the same "
                    "model and user.",
                    param="conversation_id",
                )
        key = self._owner.chat_key(self._place.chat_id) if self._place.chat_id else ""
        self._claimed_from = key if key in own else next(iter(own), "")
        self._key = key
        if not key and parse_chat_key(self._claimed_from).chat_id.startswith(
            (NO_CHAT, _BY_HISTORY)
        ):
            self._key = self._claimed_from
        self._heard = self._heard_in(conversation_id)

    def _heard_in(self, conversation_id: str) -> HistoryFingerprint:
        """What the conversation has heard that the caller has named. Where that is not known, a
        history is all of it only for a chat that has an id: no other is to be continued by
        somebody who knows the rest."""
        kept = [self._store.get(key) for key in (self._key, self._claimed_from) if key]
        words = [m.heard for m in kept if m and m.conversation_id == conversation_id]
        known = [heard for word in words if (heard := fingerprint.decode(word))]
        if known:
            return known[0]
        return self._told if self._place.chat_id else fingerprint.unknown(conversation_id)

    def on_created(self, conversation_id: str) -> None:
        """Dify has named the conversation of the turn."""
        if conversation_id and conversation_id != self._conversation_id:
            self._conversation_id = conversation_id
            if self._claimed_from and not (self._place.chat_id and self._claimed_from == self._key):
                self._invalidate(self._claimed_from)
            if self._place.chat_id:
                self._displace(self._key, conversation_id)
                self._store.put(self._key, conversation_id, UNSETTLED)
            elif self._is_recorded and not self._claimed_from:
                self._key = self._owner.key(f"{NO_CHAT}{conversation_id}")
                self._store.put(self._key, conversation_id, UNSETTLED)
        self._release()

    def commit(self, turn: Sequence[Message], message_id: str) -> None:
        """The turn is complete: ``turn`` is the question and the answer, or, where an answer was
        continued, nothing but the whole of that answer in the place of its first part.
        ``message_id`` is Dify's name for it."""
        self._is_settled = True
        if not self._conversation_id or not self._is_remembered:
            return
        before, texts = self._heard, fingerprint.text_digests(turn)
        if turn[0].role == "assistant":  # which was the last of the history, in part
            history, known = self._place.history[:-1], self._texts[:-1]
            before = fingerprint.extend(self._beginning(), history, texts=known)
            exchange, named = [*history, *turn], [*known, *texts]
        else:
            exchange, named = [*turn], texts
        heard = fingerprint.extend(before, turn, self._place.answer_id, texts, message_id)
        if self._place.chat_id:
            self._store.move(self._key, self._key, self._conversation_id, heard.encode())
        elif name := fingerprint.last_exchange_id(exchange, named):
            self._keep(self._owner.key(f"{_BY_HISTORY}{name}"), heard.encode())

    def _beginning(self) -> HistoryFingerprint:
        """What the conversation had heard before the history of the request."""
        is_whole = self._told.chain == self._heard.chain or self._place.chat_id
        return HistoryFingerprint() if is_whole else fingerprint.unknown(self._conversation_id)

    def _keep(self, key: str, heard: str) -> None:
        """Keeps the conversation of a chat without an id; the one that is kept there already, of
        another chat, moves on."""
        other = self._store.get(key)
        known = fingerprint.decode(other.heard) if other else None
        if other and known and other.conversation_id != self._conversation_id:
            chain = self._owner.key(f"{_BY_HISTORY}{known.chain}")
            self._displace(chain, other.conversation_id)
            self._store.move(key, chain, other.conversation_id, other.heard)
        self._displace(key, self._conversation_id)
        moved = self._key and self._store.move(self._key, key, self._conversation_id, heard)
        if not moved:
            self._store.put(key, self._conversation_id, heard)

    def _displace(self, key: str, newcomer: str) -> None:
        """Whose a conversation is stays known when another one comes in its place."""
        other = self._store.get(key)
        if other is not None and other.conversation_id != newcomer:
            its_own = self._owner.key(f"{NO_CHAT}{other.conversation_id}")
            self._store.move(key, its_own, other.conversation_id, UNSETTLED)

    def on_missing(self) -> None:
        """Dify does not know the conversation."""
        self._store.forget(self._key, self._conversation_id)
        self._conversation_id, self._before, self._turn = "", None, None
        self._heard = self._told

    def release(self, outcome: Outcome) -> None:
        """The turn is over; where its answer was not complete, it ended like this."""
        if self._before is not None and not self._is_settled:
            if outcome is Outcome.NOT_RUN:
                word = self._before
            else:
                word = self._turn.ended(outcome).encode() if self._turn else UNSETTLED
            self._store.move(self._key, self._key, self._conversation_id, word)
        self._release()

    def _invalidate(self, key: str) -> None:
        """The conversation hears more than what is known under another key."""
        self._store.move(key, key, self._conversation_id, UNSETTLED)

    def _import_legacy(self, presence: ConversationProbe) -> ConversationRecord | None:
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
            return self._owner.chat_key(self._place.chat_id)
        if not self._finds_by_history:
            return ""
        name = fingerprint.last_exchange_id(self._place.history, self._texts)
        return self._owner.key(f"{_BY_HISTORY}{name}") if name else ""

    def _names(self) -> list[str]:
        """The keys under which the conversation may be, that which fits best first."""
        if self._place.chat_id:
            return [self._key]
        whole = self._owner.key(f"{_BY_HISTORY}{self._told.chain}")
        mapping = self._store.get(self._key)
        known = fingerprint.decode(mapping.heard) if mapping else None
        is_whole = known is not None and known.chain == self._told.chain
        return [self._key, whole] if is_whole else [whole, self._key]

    def _is_continued(self, heard: str) -> bool:
        if not heard:  # of an earlier system, which kept no digests
            return bool(self._place.history)
        known = fingerprint.decode(heard)
        if known is None or not self._fits(known):
            return False
        self._heard = known
        return True

    def _fits(self, known: HistoryFingerprint) -> bool:
        """Whether a conversation that has heard this continues the chat."""
        place = self._place
        return fingerprint.matches(
            known, self._told, place.history, place.follows, place.min_exchanges
        )
