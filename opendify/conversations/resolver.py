"""Finds the Dify conversation that continues the chat of a request, and stores it afterwards.

A mapping belongs to the caller's key, the model, the user and the chat. Where a client sends no
chat id, its chats are distinguished by their content: a conversation is stored under a key derived
from its last exchange, which clients that send only their last messages know as well. When another
chat ends in the same exchange, the previous one moves to a key derived from its whole history.

A conversation that no chat uses (its first answer was incomplete, its chat has moved to another
conversation, the model remembers nothing) is stored under its own id: its owner must be known for
as long as the caller may pass its id.

While a turn runs, the resulting history of its conversation is unknown, so no other turn continues
it. Where a turn ended early, Dify is asked before the next one whether it ran (``unsettled``).
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
from opendify.conversations.processes import ProcessRegistry
from opendify.conversations.store.base import ConversationStore
from opendify.conversations.store.records import ConversationRecord
from opendify.conversations.unsettled import Outcome, PendingTurn
from opendify.dify.conversation_api import RecordedMessage
from opendify.protocols.base import Message

# Stored instead of a digest where no chat can continue a conversation: its first turn is running or
# ended early, or its history is not fully known. Earlier releases stored it for every incomplete
# turn.
NOT_CONTINUABLE = "-"

_HISTORY_PREFIX = "~"

# The prefixes of internal ids, and the escape for client ids that start with one: anybody who knows
# the last exchange of a chat can compute its internal id.
_RESERVED_PREFIXES = (NO_CHAT, _HISTORY_PREFIX, "\\")

_STORE_RETRY_SECONDS = 5

_quote = json.JSONEncoder(ensure_ascii=False).encode


@dataclass(frozen=True, slots=True)
class ChatPosition:
    """Where a turn stands in the client's chats, as far as the client says.

    ``chat_id`` is "" where it sends none. ``history`` is the messages before the turn.
    ``answer_id`` is its id of the answer to come, and ``follows`` its id of the answer that the
    turn comes after: "" for the first turn, None where it sends none. ``min_exchanges`` is how many
    exchanges a history must contain that is only the end of the chat; 0 where the client always
    sends all of it, or where nothing vouches for who owns the chat.
    """

    chat_id: str
    history: Sequence[Message]
    answer_id: str = ""
    previous_answer_id: str | None = None
    min_exchanges: int = 0


@dataclass(frozen=True, slots=True)
class ChatOwner:
    """The owner of a conversation. ``caller`` stands for an API key and never is one."""

    caller: str
    model: str
    user: str

    def chat_key(self, chat_id: str) -> str:
        """The store key of the owner's chat with this client id."""
        return self.key(f"\\{chat_id}" if chat_id.startswith(_RESERVED_PREFIXES) else chat_id)

    def key(self, chat_id: str) -> str:
        """The store key of the owner's chat with this id, which may be an internal one."""
        return f"[{','.join(map(_quote, (self.caller, self.model, self.user, chat_id)))}]"

    def owns(self, key: str) -> bool:
        """Whether the key is one of the owner's. A bare chat id, as an earlier system wrote them,
        belongs to no owner."""
        chat_key = parse_chat_key(key)
        return (chat_key.caller, chat_key.model, chat_key.user) == (
            self.caller,
            self.model,
            self.user,
        )


class ConversationProbe(Protocol):
    """Asks Dify about conversations of the user."""

    def belongs_to_user(self, conversation_id: str) -> bool:
        """Whether it is the user's conversation, when only Dify can prove that."""
        ...

    def is_usable(self, conversation_id: str, last_used: float) -> bool:
        """Whether the conversation, last used at that time (epoch seconds), accepts questions."""
        ...

    def newest_messages(
        self,
        conversation_id: str,
        sent_at: float,
        decide: Callable[[Sequence[RecordedMessage]], bool],
        caller_gone: Callable[[], bool],
    ) -> Sequence[RecordedMessage] | None:
        """The newest messages, oldest first; None where Dify does not list them. Waits for a
        question sent at ``sent_at`` (epoch seconds), unless ``decide`` is true of them already.
        Raises ConversationNotFound and what ``caller_gone`` raises."""
        ...


class ConversationResolver:
    """The chat of one turn.

    Call ``resolve`` or ``use_explicit`` first; then ``on_created`` when Dify has named the
    conversation, ``commit`` when the answer is complete, ``on_missing`` when Dify does not know the
    conversation, and ``release`` at the end in every case.
    """

    def __init__(
        self,
        store: ConversationStore,
        locks: TurnLocks,
        processes: ProcessRegistry,
        owner: ChatOwner,
        position: ChatPosition,
        finds_by_history: bool,
        is_recorded: bool,
    ) -> None:
        """``is_recorded``: whether to store the owner of a conversation that no chat uses."""
        self._store = store
        self._locks = locks
        self._processes = processes
        self._records_ownership = is_recorded
        self._owner = owner
        self._position = position
        self._finds_by_history = finds_by_history
        self._key = ""
        self._lock: TurnLock | None = None
        self._conversation_id = ""
        self._previous_digest: str | None = None
        self._pending_turn: PendingTurn | None = None
        self._claimed_key = ""
        self._is_tracked = bool(position.chat_id) or finds_by_history
        history = position.history if self._is_tracked else ()
        self._texts = fingerprint.text_digests(history)
        self._requested = fingerprint.extend(HistoryFingerprint(), history, texts=self._texts)
        self._known = self._requested
        self._is_committed = False

    def resolve(
        self, deadline: float, caller_gone: Callable[[], bool], probe: ConversationProbe, query: str
    ) -> str:
        """The conversation that continues the chat, or "" where a new one is needed.

        ``query`` is what Dify will be asked. Waits for another turn of the same chat to create its
        conversation, until ``deadline`` (``time.monotonic``). Raises what ``caller_gone`` raises.
        """
        self._key = self._primary_key()
        if not self._key:
            return ""
        self._lock = self._locks.acquire(self._key, deadline, caller_gone)
        for key in self._candidate_keys():
            record = self._load(key, probe, caller_gone)
            # Where the chat is known, no similar one may continue it.
            if record and (
                record.history_digest == NOT_CONTINUABLE or self._claim(key, record, probe, query)
            ):
                break
        # Where the client sends no chat id, turns do not wait for each other.
        if self._conversation_id or not self._position.chat_id:
            self._release_lock()
        return self._conversation_id

    def _load(
        self, key: str, probe: ConversationProbe, caller_gone: Callable[[], bool]
    ) -> ConversationRecord | None:
        """The record of the key, with the current history of its conversation."""
        record = self._store.get(key)
        if record is None:
            return self._import_legacy(probe) if self._position.chat_id else None
        turn = unsettled.decode(record.history_digest)
        if turn is None:
            return record
        known = self._resolve_pending(key, record, turn, probe, caller_gone)
        return replace(record, history_digest=known.encode() if known else NOT_CONTINUABLE)

    def _claim(
        self, key: str, record: ConversationRecord, probe: ConversationProbe, query: str
    ) -> bool:
        """Claim the conversation of the key, if it continues the chat."""
        if not self._continues_chat(record.history_digest):
            return False
        if not probe.is_usable(record.conversation_id, record.last_used):
            self._store.forget(key, record.conversation_id)
            return False
        known = fingerprint.decode(record.history_digest)
        if known is not None:
            question = fingerprint.question_digest(query)
            self._pending_turn = PendingTurn(known, question, self._processes.own_id())
        digest = self._pending_turn.encode() if self._pending_turn else NOT_CONTINUABLE
        # Without the lock (waiting for it has a deadline), the chat may have moved meanwhile.
        if not self._store.move(key, key, record.conversation_id, digest):
            return False
        self._key, self._conversation_id = key, record.conversation_id
        self._previous_digest = record.history_digest
        return True

    def _resolve_pending(
        self,
        key: str,
        record: ConversationRecord,
        turn: PendingTurn,
        probe: ConversationProbe,
        caller_gone: Callable[[], bool],
    ) -> HistoryFingerprint | None:
        """The fingerprint of the conversation after a turn whose end was not seen, according to
        Dify; None where that is unknown, or cannot match the history of the request."""
        history = self._position.history
        after = fingerprint.extend(turn.before, history[-2:])
        if not ((turn.question and self._matches(turn.before)) or self._matches(after)):
            return None
        if turn.process_id and self._processes.is_alive(turn.process_id):
            return None
        try:
            messages = probe.newest_messages(
                record.conversation_id,
                record.last_used if turn.may_still_arrive else 0,
                lambda messages: unsettled.has_run(turn, messages),
                caller_gone,
            )
        except errors.ConversationNotFound:
            self._store.forget(key, record.conversation_id)
            return None
        if messages is None:
            return None
        if unsettled.has_run(turn, messages):
            return unsettled.fingerprint_after(turn.before, history, messages)
        return turn.before

    def use_explicit(self, conversation_id: str, accepts_unknown: bool) -> None:
        """Use the conversation that the caller passed. Raises ConversationNotFound where it is not
        known to be the caller's, and StoreUnavailable where that cannot be looked up now. With
        ``accepts_unknown``, Dify decides about a conversation that has no mapping."""
        keys = self._store.owners(conversation_id)
        own = [key for key in keys if self._owner.owns(key)]
        if not own:
            if not self._store.available:
                raise errors.StoreUnavailable(
                    "The owner of this conversation cannot be looked up; try again in a moment.",
                    param="conversation_id",
                    retry_after=_STORE_RETRY_SECONDS,
                )
            if not accepts_unknown or any(parse_chat_key(key).caller is not None for key in keys):
                raise errors.ConversationNotFound(
                    "There is no such conversation of this caller, model and user. Send a "
                    "conversation_id from a response to the same caller, model and user.",
                    param="conversation_id",
                )
        key = self._owner.chat_key(self._position.chat_id) if self._position.chat_id else ""
        self._claimed_key = key if key in own else next(iter(own), "")
        self._key = key
        if not key and parse_chat_key(self._claimed_key).chat_id.startswith(
            (NO_CHAT, _HISTORY_PREFIX)
        ):
            self._key = self._claimed_key
        self._known = self._load_fingerprint(conversation_id)

    def _load_fingerprint(self, conversation_id: str) -> HistoryFingerprint:
        """The fingerprint of the conversation that the caller passed. Where it is unknown, the
        history counts as complete only for a chat with an id: a caller who knows the rest of the
        history must not be able to continue another one."""
        records = [self._store.get(key) for key in (self._key, self._claimed_key) if key]
        digests = [
            record.history_digest
            for record in records
            if record and record.conversation_id == conversation_id
        ]
        known = [decoded for digest in digests if (decoded := fingerprint.decode(digest))]
        if known:
            return known[0]
        return self._requested if self._position.chat_id else fingerprint.unknown(conversation_id)

    def on_created(self, conversation_id: str) -> None:
        """Dify has named the conversation of the turn."""
        if conversation_id and conversation_id != self._conversation_id:
            self._conversation_id = conversation_id
            if self._claimed_key and not (
                self._position.chat_id and self._claimed_key == self._key
            ):
                self._invalidate(self._claimed_key)
            if self._position.chat_id:
                self._preserve_owner(self._key, conversation_id)
                self._store.put(self._key, conversation_id, NOT_CONTINUABLE)
            elif self._records_ownership and not self._claimed_key:
                self._key = self._owner.key(f"{NO_CHAT}{conversation_id}")
                self._store.put(self._key, conversation_id, NOT_CONTINUABLE)
        self._release_lock()

    def commit(self, turn: Sequence[Message], message_id: str) -> None:
        """The turn is complete. ``turn`` is the question and the answer or, where an answer was
        continued, only the whole answer, which replaces its first part. ``message_id`` is Dify's id
        of it."""
        self._is_committed = True
        if not self._conversation_id or not self._is_tracked:
            return
        before, texts = self._known, fingerprint.text_digests(turn)
        if turn[0].role == "assistant":  # continues the last answer of the history
            history, known = self._position.history[:-1], self._texts[:-1]
            before = fingerprint.extend(self._fingerprint_before_history(), history, texts=known)
            exchange, exchange_texts = [*history, *turn], [*known, *texts]
        else:
            exchange, exchange_texts = [*turn], texts
        after = fingerprint.extend(before, turn, self._position.answer_id, texts, message_id)
        if self._position.chat_id:
            self._store.move(self._key, self._key, self._conversation_id, after.encode())
        elif name := fingerprint.last_exchange_id(exchange, exchange_texts):
            self._save_by_history(self._owner.key(f"{_HISTORY_PREFIX}{name}"), after.encode())

    def _fingerprint_before_history(self) -> HistoryFingerprint:
        """The fingerprint of the conversation before the history of the request."""
        is_whole = self._requested.chain == self._known.chain or self._position.chat_id
        return HistoryFingerprint() if is_whole else fingerprint.unknown(self._conversation_id)

    def _save_by_history(self, key: str, history_digest: str) -> None:
        """Store the conversation of a chat without an id. The conversation of another chat that is
        stored under the key moves to the key of its whole history."""
        other = self._store.get(key)
        known = fingerprint.decode(other.history_digest) if other else None
        if other and known and other.conversation_id != self._conversation_id:
            chain = self._owner.key(f"{_HISTORY_PREFIX}{known.chain}")
            self._preserve_owner(chain, other.conversation_id)
            self._store.move(key, chain, other.conversation_id, other.history_digest)
        self._preserve_owner(key, self._conversation_id)
        moved = self._key and self._store.move(
            self._key, key, self._conversation_id, history_digest
        )
        if not moved:
            self._store.put(key, self._conversation_id, history_digest)

    def _preserve_owner(self, key: str, new_conversation_id: str) -> None:
        """Keep the owner of a conversation on record when another one replaces it."""
        other = self._store.get(key)
        if other is not None and other.conversation_id != new_conversation_id:
            own_key = self._owner.key(f"{NO_CHAT}{other.conversation_id}")
            self._store.move(key, own_key, other.conversation_id, NOT_CONTINUABLE)

    def on_missing(self) -> None:
        """Dify does not know the conversation."""
        self._store.forget(self._key, self._conversation_id)
        self._conversation_id, self._previous_digest, self._pending_turn = "", None, None
        self._known = self._requested

    def release(self, outcome: Outcome) -> None:
        """The turn is over; ``outcome`` counts where its answer is incomplete."""
        if self._previous_digest is not None and not self._is_committed:
            if outcome is Outcome.NOT_RUN:
                digest = self._previous_digest
            else:
                digest = (
                    self._pending_turn.with_outcome(outcome).encode()
                    if self._pending_turn
                    else NOT_CONTINUABLE
                )
            self._store.move(self._key, self._key, self._conversation_id, digest)
        self._release_lock()

    def _invalidate(self, key: str) -> None:
        """The conversation continues under another key, so its history under this one is out of
        date."""
        self._store.move(key, key, self._conversation_id, NOT_CONTINUABLE)

    def _import_legacy(self, probe: ConversationProbe) -> ConversationRecord | None:
        """The entry of an earlier system, which stored bare chat ids, once Dify has confirmed that
        the conversation is this user's."""
        chat_id = self._position.chat_id
        if chat_id.startswith("["):  # an internal key: the entry of some owner
            return None
        record = self._store.get(chat_id)
        if record is None or not probe.belongs_to_user(record.conversation_id):
            return None
        self._store.move(chat_id, self._key, record.conversation_id, "")
        return self._store.get(self._key)

    def _release_lock(self) -> None:
        if self._lock is not None:
            self._lock.release()
            self._lock = None

    def _primary_key(self) -> str:
        """The key of the chat; "" where it cannot be stored."""
        if self._position.chat_id:
            return self._owner.chat_key(self._position.chat_id)
        if not self._finds_by_history:
            return ""
        name = fingerprint.last_exchange_id(self._position.history, self._texts)
        return self._owner.key(f"{_HISTORY_PREFIX}{name}") if name else ""

    def _candidate_keys(self) -> list[str]:
        """The keys that may hold the conversation, best match first."""
        if self._position.chat_id:
            return [self._key]
        whole_key = self._owner.key(f"{_HISTORY_PREFIX}{self._requested.chain}")
        record = self._store.get(self._key)
        known = fingerprint.decode(record.history_digest) if record else None
        is_whole = known is not None and known.chain == self._requested.chain
        return [self._key, whole_key] if is_whole else [whole_key, self._key]

    def _continues_chat(self, history_digest: str) -> bool:
        if not history_digest:  # from an earlier system, which stored no digests
            return bool(self._position.history)
        known = fingerprint.decode(history_digest)
        if known is None or not self._matches(known):
            return False
        self._known = known
        return True

    def _matches(self, known: HistoryFingerprint) -> bool:
        """Whether a conversation with this fingerprint continues the chat."""
        position = self._position
        return fingerprint.matches(
            known,
            self._requested,
            position.history,
            position.previous_answer_id,
            position.min_exchanges,
        )
