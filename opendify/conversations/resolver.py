"""Finds the Dify conversation that continues the chat of a request, and stores it afterwards.

A chat belongs to the caller's key, the model, the user and the client's chat id, and has a branch
for each of its Dify conversations; ``branches`` decides which of them a turn continues. Where a
client sends no chat id, its chats are distinguished by their content: a conversation is stored
under a key derived from its last exchange, which clients that send only their last messages know as
well. Where more chats end in the same exchange than a key has branches, the least recently used one
moves to a key derived from its whole history.

A conversation that no chat uses (its chat has too many branches, the model remembers nothing) is
stored under its own id: its owner must be known for as long as the caller may pass its id.

While a turn runs, the resulting history of its conversation is unknown, so no other turn continues
it. Where a turn ended early, Dify is asked before the next one whether it ran (``unsettled``).
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from opendify import errors
from opendify.conversations import branches, fingerprint, unsettled
from opendify.conversations.branches import Branch, ChatPosition, Choice, History, Reason
from opendify.conversations.fingerprint import HistoryFingerprint
from opendify.conversations.keys import NO_CHAT, parse_chat_key
from opendify.conversations.processes import ProcessRegistry
from opendify.conversations.store.base import ConversationStore
from opendify.conversations.store.mutations import Update
from opendify.conversations.store.records import MAX_BRANCHES, ConversationRecord
from opendify.conversations.unsettled import Outcome, PendingTurn
from opendify.dify.conversation_api import RecordedMessage
from opendify.protocols.base import Message

# Stored instead of a digest where no chat can continue a conversation: no chat uses it, or its
# history is not known. Earlier releases stored it for every incomplete turn.
NOT_CONTINUABLE = "-"

_HISTORY_PREFIX = "~"

# The prefixes of internal ids, and the escape for client ids that start with one: anybody who knows
# the last exchange of a chat can compute its internal id.
_RESERVED_PREFIXES = (NO_CHAT, _HISTORY_PREFIX, "\\")

_STORE_RETRY_SECONDS = 5

# How often a turn looks for its branch again when another turn took that first.
_MAX_ATTEMPTS = MAX_BRANCHES

_quote = json.JSONEncoder(ensure_ascii=False).encode


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

    def newest_messages(
        self,
        conversation_id: str,
        sent_at: float,
        decide: Callable[[Sequence[RecordedMessage]], bool],
        caller_gone: Callable[[], None],
    ) -> Sequence[RecordedMessage] | None:
        """The newest messages, oldest first; None where Dify does not list them. Waits for a
        question sent at ``sent_at`` (epoch seconds), unless ``decide`` is true of them already.
        Raises ConversationNotFound and what ``caller_gone`` raises."""
        ...


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A branch that may continue the chat, and the key under which it is stored. ``pending`` is its
    last turn, where the end of that was not seen."""

    key: str
    record: ConversationRecord
    branch: Branch
    pending: PendingTurn | None


class ConversationResolver:
    """The conversation of one turn.

    Call ``resolve`` or ``use_explicit`` first; then ``on_created`` when Dify has named the
    conversation, ``commit`` when the answer is complete, ``on_missing`` when Dify does not know the
    conversation, and ``release`` at the end in every case. ``reason`` is why the turn goes where it
    goes, and ``sent_system_digest`` the digest of the system prompt that its conversation was given
    last, once that is decided.
    """

    def __init__(
        self,
        store: ConversationStore,
        processes: ProcessRegistry,
        owner: ChatOwner,
        position: ChatPosition,
        finds_by_history: bool,
        is_recorded: bool,
    ) -> None:
        """``is_recorded``: whether to store the owner of a conversation that no chat uses."""
        self._store = store
        self._processes = processes
        self._records_ownership = is_recorded
        self._owner = owner
        self._position = position
        self._finds_by_history = finds_by_history
        self.reason = Reason.NOT_KEPT
        self.sent_system_digest = ""
        self._key = ""
        self._conversation_id = ""
        self._lacks_owner = False
        self._lost: list[Branch] = []
        self._previous: ConversationRecord | None = None
        self._pending_turn: PendingTurn | None = None
        self._claimed_key = ""
        self._is_tracked = bool(position.chat_id) or finds_by_history
        self._history = History(position.history if self._is_tracked else ())
        self._known = self._history.fingerprint
        self._is_committed = False

    def resolve(
        self,
        caller_gone: Callable[[], None],
        probe: ConversationProbe,
        query: Callable[[str], str],
    ) -> str:
        """The conversation that continues the chat, or "" where a new one is needed.

        ``query`` returns what Dify will be asked in a conversation with this
        ``sent_system_digest``. Raises what ``caller_gone`` raises.
        """
        self._key = self._primary_key()
        if self._position.is_auxiliary:
            self.reason = Reason.AUXILIARY
            return ""
        if not self._key:
            self.reason = Reason.FIRST_TURN if self._is_tracked else Reason.NOT_KEPT
            return ""
        for _ in range(_MAX_ATTEMPTS):
            candidates = self._settled(self._candidates(probe), probe, caller_gone)
            choice = self._choose(candidates)
            self.reason = choice.reason
            if choice.index is None:
                self.reason = Reason.MISSING if self._lost else choice.reason
                return ""
            candidate = candidates[choice.index]
            if self._claim(candidate, choice.history, query(candidate.record.system_digest)):
                return self._conversation_id
        self.reason = Reason.RUNNING
        return ""

    def _candidates(self, probe: ConversationProbe) -> list[_Candidate]:
        """The branches that may continue the chat, most recently used first."""
        found: list[_Candidate] = []
        for key in self._candidate_keys():
            chat = self._store.get(key)
            if chat is None and self._position.chat_id and self._import_legacy(probe):
                chat = self._store.get(key)
            for record in chat.branches if chat else ():
                pending = unsettled.decode(record.history_digest)
                found.append(_Candidate(key, record, self._to_branch(record, pending), pending))
        return sorted(found, key=lambda one: one.record.last_used, reverse=True)

    def _settled(
        self,
        candidates: list[_Candidate],
        probe: ConversationProbe,
        caller_gone: Callable[[], None],
    ) -> list[_Candidate]:
        """The candidates, after Dify was asked about those that fit but whose last turn ended
        early. It is not asked where another one has exactly the history of the request."""
        if not any(candidate.pending for candidate in candidates):
            return candidates
        if self._choose(candidates).reason is Reason.WHOLE_HISTORY:
            return candidates
        return [self._settle(candidate, probe, caller_gone) for candidate in candidates]

    def _settle(
        self, candidate: _Candidate, probe: ConversationProbe, caller_gone: Callable[[], None]
    ) -> _Candidate:
        turn = candidate.pending
        if turn is None:
            return candidate
        if not self._history.messages and self._position.may_omit_history:
            return self._leave_to_dify(candidate, turn)
        reason, possible = candidate.branch.reason, candidate.branch.possible
        fits_before = not turn.has_certainly_run and self._fits(Branch(turn.before, reason=reason))
        if not fits_before and not self._fits(Branch(self._history.extend(turn.before))):
            return candidate
        try:
            known = self._ask_dify(candidate.record, turn, probe, caller_gone)
            branch = Branch(known, possible, is_settled=known is not None, reason=reason)
        except errors.ConversationNotFound:
            self._store.forget(candidate.key, candidate.record.conversation_id)
            branch = Branch(None, possible)
            self._lost.append(branch)
        return replace(candidate, branch=branch)

    def _leave_to_dify(self, candidate: _Candidate, turn: PendingTurn) -> _Candidate:
        """Where a client leaves the memory to Dify, it does not matter whether the last turn ran;
        but a first question that is sent again gets a new conversation."""
        is_first = not turn.before.items
        if is_first and turn.question == fingerprint.turn_digest(self._position.turn):
            return candidate
        return replace(candidate, branch=replace(candidate.branch, history=turn.before))

    def _fits(self, branch: Branch) -> bool:
        return branches.continues(branch, self._position, self._history)

    def _choose(self, candidates: Sequence[_Candidate]) -> Choice:
        known = [*(candidate.branch for candidate in candidates), *self._lost]
        return branches.choose(known, self._position, self._history)

    def _to_branch(self, record: ConversationRecord, turn: PendingTurn | None) -> Branch:
        reason = _to_reason(record.reason)
        if not record.history_digest:
            return Branch(None, reason=reason, is_of_earlier_system=True)
        if turn is None:
            return Branch(fingerprint.decode(record.history_digest), reason=reason)
        possible = [turn.before]
        if turn.question in ("", self._history.last_question):
            possible.append(self._history.extend(turn.before))
        return Branch(None, tuple(possible), reason=reason)

    def _ask_dify(
        self,
        record: ConversationRecord,
        turn: PendingTurn,
        probe: ConversationProbe,
        caller_gone: Callable[[], None],
    ) -> HistoryFingerprint | None:
        """The history of the conversation after a turn whose end was not seen, according to Dify;
        None where that is unknown, or cannot match the history of the request. Raises
        ConversationNotFound."""
        if turn.process_id and self._processes.is_alive(turn.process_id):
            return None
        messages = probe.newest_messages(
            record.conversation_id,
            record.last_used if turn.may_still_arrive else 0,
            lambda messages: unsettled.has_run(turn, messages),
            caller_gone,
        )
        if messages is None:
            return None
        if unsettled.has_run(turn, messages):
            return unsettled.fingerprint_after(turn, self._history, messages)
        return turn.before

    def _claim(self, candidate: _Candidate, known: HistoryFingerprint | None, query: str) -> bool:
        """Claim the conversation of a candidate, unless its state has changed meanwhile."""
        record, pending = candidate.record, None
        if known is not None:
            question = fingerprint.question_digest(query)
            pending = PendingTurn(known, question, self._processes.own_id())
        update = Update(pending.encode() if pending else NOT_CONTINUABLE, self.reason.value)
        if not self._store.update_if(
            candidate.key, record.conversation_id, record.history_digest, update
        ):
            return False
        self._key, self._conversation_id = candidate.key, record.conversation_id
        self._previous, self._pending_turn = record, pending
        self._known = known or self._history.fingerprint
        self.sent_system_digest = record.system_digest
        return True

    def use_explicit(self, conversation_id: str, accepts_unknown: bool) -> None:
        """Use the conversation that the caller passed. Raises ConversationNotFound where it is not
        known to be the caller's, and StoreUnavailable where that cannot be looked up now. With
        ``accepts_unknown``, Dify decides about a conversation that has no mapping."""
        self.reason = Reason.CONVERSATION_ID
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
        self._load_explicit(conversation_id)

    def _load_explicit(self, conversation_id: str) -> None:
        """What is known of the conversation that the caller passed. Where its history is unknown,
        that of the request counts as complete only for a chat with an id: a caller who knows the
        rest of the history must not be able to continue another one."""
        for key in filter(None, (self._key, self._claimed_key)):
            chat = self._store.get(key)
            record = chat.branch(conversation_id) if chat else None
            known = fingerprint.decode(record.history_digest) if record else None
            if record and known:
                self._known, self.sent_system_digest = known, record.system_digest
                return
        if not self._position.chat_id:
            self._known = fingerprint.unknown(conversation_id)

    def on_created(self, conversation_id: str, query: str) -> None:
        """Dify has named the conversation of the turn, which was asked this query."""
        if not conversation_id or conversation_id == self._conversation_id:
            return
        self._conversation_id = conversation_id
        if self._claimed_key and not (self._position.chat_id and self._claimed_key == self._key):
            self._invalidate(self._claimed_key)
        if self._position.chat_id:
            self._make_room(self._key)
            self._pending_turn = unsettled.started(self._known, query)
            update = Update(self._pending_turn.encode(), self.reason.value)
            self._store.put(self._key, conversation_id, update)
        else:
            self._lacks_owner = self._records_ownership and not self._claimed_key

    def commit(
        self,
        turn: Sequence[Message],
        message_id: str,
        continues_answer: bool = False,
        system_digest: str | None = None,
    ) -> None:
        """The turn is complete. ``turn`` is the client's messages of it and the answer or, where an
        answer was continued, only the whole answer, which replaces its first part. ``message_id``
        is Dify's id of it; ``system_digest`` is the digest of the system prompt that the
        conversation knows now, None where that has not changed."""
        self._is_committed = True
        if not self._conversation_id or not self._is_tracked:
            self._record_owner()
            return
        before, exchange = self._known, [*turn]
        if continues_answer:
            start = self._history.last_exchange
            before = self._history.before_last if self._is_history_whole() else self._unknown()
            exchange = [*self._history.messages[start:-1], *turn]
        exchange = fingerprint.join_user_messages(exchange)
        texts = fingerprint.text_digests(exchange)
        answer_id = self._position.answer_id
        after = fingerprint.after_turn(before, exchange, texts, answer_id, message_id)
        update = Update(after.encode(), self.reason.value, system_digest)
        if self._position.chat_id:
            self._store.move(self._key, self._key, self._conversation_id, update)
        elif name := fingerprint.last_exchange_id(exchange, texts):
            self._save_by_history(self._owner.key(f"{_HISTORY_PREFIX}{name}"), update)
            self._lacks_owner = False
        self._record_owner()

    def _record_owner(self) -> None:
        """Store whose conversation it is, where no chat will say so."""
        if self._lacks_owner:
            self._lacks_owner = False
            own_key = self._owner.key(f"{NO_CHAT}{self._conversation_id}")
            self._store.put(own_key, self._conversation_id, Update(NOT_CONTINUABLE))

    def _is_history_whole(self) -> bool:
        """Whether the history of the request is all that the conversation contains."""
        is_same = self._history.fingerprint.chain == self._known.chain
        return is_same or bool(self._position.chat_id)

    def _unknown(self) -> HistoryFingerprint:
        return fingerprint.unknown(self._conversation_id)

    def _save_by_history(self, key: str, update: Update) -> None:
        """Store the conversation of a chat without an id."""
        self._make_room(key)
        moved = self._key and self._store.move(self._key, key, self._conversation_id, update)
        if not moved:
            self._store.put(key, self._conversation_id, update)

    def _make_room(self, key: str) -> None:
        """Where another branch would be one too many, move the least recently used one: that of a
        chat without an id to the key of its whole history, any other to where only its owner is on
        record."""
        chat = self._store.get(key)
        if chat is None or len(chat.branches) < MAX_BRANCHES or chat.branch(self._conversation_id):
            return
        beside = [one for one in chat.branches if one.reason == Reason.AUXILIARY.value]
        oldest = (beside or chat.branches)[-1]
        known = fingerprint.decode(oldest.history_digest)
        if known and not self._position.chat_id:
            chain_key = self._owner.key(f"{_HISTORY_PREFIX}{known.chain}")
            if chain_key != key:
                self._make_room(chain_key)
                update = Update(oldest.history_digest)
                self._store.move(key, chain_key, oldest.conversation_id, update)
                return
        own_key = self._owner.key(f"{NO_CHAT}{oldest.conversation_id}")
        self._store.move(key, own_key, oldest.conversation_id, Update(NOT_CONTINUABLE))

    def on_missing(self) -> None:
        """Dify does not know the conversation, or has closed it. ``resolve`` may find another."""
        chat = self._store.get(self._key)
        if chat is not None and len(chat.branches) > 1 and self._position.chat_id:
            # It stays on record that the chat had it: its last answer is no other branch's.
            update = Update(NOT_CONTINUABLE, Reason.MISSING.value)
            self._store.move(self._key, self._key, self._conversation_id, update)
        else:
            self._store.forget(self._key, self._conversation_id)
        self._lost.append(Branch(None, (self._known,), reason=Reason.WHOLE_HISTORY))
        self._conversation_id, self._previous, self._pending_turn = "", None, None
        self._known, self.sent_system_digest = self._history.fingerprint, ""

    def release(self, outcome: Outcome) -> None:
        """The turn is over; ``outcome`` counts where its answer is incomplete."""
        self._record_owner()
        if self._is_committed or (self._previous is None and self._pending_turn is None):
            return
        update = Update(NOT_CONTINUABLE)
        if self._previous and outcome is Outcome.NOT_RUN:
            update = Update(self._previous.history_digest, self._previous.reason)
        elif self._pending_turn:
            update = Update(self._pending_turn.with_outcome(outcome).encode())
        self._store.move(self._key, self._key, self._conversation_id, update)

    def _invalidate(self, key: str) -> None:
        """The conversation continues under another key, so its history under this one is out of
        date."""
        self._store.move(key, key, self._conversation_id, Update(NOT_CONTINUABLE))

    def _import_legacy(self, probe: ConversationProbe) -> bool:
        """Import the entry of an earlier system, which stored bare chat ids, once Dify has
        confirmed that the conversation is this user's; False where there is none."""
        chat_id = self._position.chat_id
        if chat_id.startswith("["):  # an internal key: the entry of some owner
            return False
        chat = self._store.get(chat_id)
        if chat is None or not probe.belongs_to_user(chat.latest.conversation_id):
            return False
        return self._store.move(chat_id, self._key, chat.latest.conversation_id, Update(""))

    def _primary_key(self) -> str:
        """The key of the chat; "" where it cannot be stored."""
        if self._position.chat_id:
            return self._owner.chat_key(self._position.chat_id)
        if not self._finds_by_history:
            return ""
        name = fingerprint.last_exchange_id(self._history.messages, self._history.texts)
        return self._owner.key(f"{_HISTORY_PREFIX}{name}") if name else ""

    def _candidate_keys(self) -> list[str]:
        """The keys that may hold the conversation."""
        if self._position.chat_id:
            return [self._key]
        chain = self._history.fingerprint.chain
        return [self._key, self._owner.key(f"{_HISTORY_PREFIX}{chain}")]


def _to_reason(value: str) -> Reason | None:
    """The stored reason; None for one that this release does not know."""
    try:
        return Reason(value)
    except ValueError:
        return None
