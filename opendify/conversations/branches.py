"""Which branch of a chat continues the history of a request, and why. No I/O.

A branch is a Dify conversation, known by the fingerprint of its history. The history that a client
sends is the truth: a branch continues it only if the conversation contains exactly that, or if the
request's history is the end of it, for clients that send only their last messages. Otherwise a new
conversation, which is sent the history, becomes one more branch.

What a client shows of a turn is learnt when it first comes back: a filter may have changed the
question or added to the answer, so of the last exchange only the answer must be recognized, and in
one branch only. Any change after that is an edit.

Two chats can contain the same words. Where the words alone do not show whether a history is the end
of the conversation or an earlier state of it (somebody wrote the same twice and deletes the
second), it does not continue the conversation. Clients that name their answers remove the
ambiguity.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, IntEnum
from itertools import pairwise

from opendify.conversations import fingerprint
from opendify.conversations.fingerprint import HistoryFingerprint, LastTurn, ends_with_answer
from opendify.protocols.base import Message


class Reason(Enum):
    """Why a turn goes to its conversation. The values are stored, logged and listed."""

    # In a conversation that exists; the first is the best match.
    WHOLE_HISTORY = "whole-history"
    """It contains exactly the history of the request."""
    SHOWN_OTHERWISE = "shown-otherwise"
    """The same, but the client shows the last exchange differently than it was sent."""
    END_OF_HISTORY = "end-of-history"
    """The request's history is the end of its history."""
    NAMED_ANSWER = "named-answer"
    """The request has no history, and names the last answer of the conversation."""
    CHAT_ID = "chat-id"
    """The request has no history, and names the chat: its client leaves the memory to Dify."""
    EARLIER_SYSTEM = "earlier-system"
    """Its history is unknown: it comes from the file of an earlier system."""
    CONVERSATION_ID = "conversation-id"
    """The caller has passed its id."""

    # In a new conversation.
    FIRST_TURN = "first-turn"
    """Nothing is known of the chat, and the request has no history."""
    UNKNOWN_CHAT = "unknown-chat"
    """Nothing is known of the chat."""
    ASKED_AGAIN = "asked-again"
    """The first question of the chat is asked once more."""
    OTHER_HISTORY = "other-history"
    """No branch has exactly the history of the request: a message was edited, regenerated or
    deleted."""
    UNSURE = "unsure"
    """Of the last exchange, one branch has only the answer, and the chat has others, which may have
    given it as well."""
    RUNNING = "running"
    """A turn is running in the branch that fits, or it is not known whether Dify has run it."""
    MISSING = "missing"
    """Dify no longer has the conversation that fits, or has closed it."""
    AUXILIARY = "auxiliary"
    """The request asks something about the chat that is not a turn of it."""
    NOT_KEPT = "not-kept"
    """Nothing is remembered of such a request: the settings of the model, a temporary chat, or a
    background task."""


# Reasons that show that a client sends the history with its turns.
_WITH_HISTORY = (Reason.WHOLE_HISTORY, Reason.SHOWN_OTHERWISE, Reason.END_OF_HISTORY)

# Reasons of turns in a conversation that existed before.
_IN_CONVERSATION = (
    *_WITH_HISTORY,
    Reason.NAMED_ANSWER,
    Reason.CHAT_ID,
    Reason.EARLIER_SYSTEM,
    Reason.CONVERSATION_ID,
)

# Reasons that show that a client may show questions otherwise than it sends them.
_WITH_FILTER = (Reason.SHOWN_OTHERWISE, Reason.UNSURE)


@dataclass(frozen=True, slots=True)
class ChatPosition:
    """Where a turn stands in the client's chats, as far as the client says.

    ``chat_id`` is "" where it sends none. ``history`` is the messages before the turn, and ``turn``
    those of it. ``answer_id`` is its id of the answer to come, and ``previous_answer_id`` its id of
    the answer that the turn comes after: "" for the first turn, None where it sends none.
    ``min_exchanges`` is how many exchanges a history must contain that is only the end of the chat;
    0 where the client always sends all of it, or where nothing vouches for who owns the chat.
    ``may_omit_history`` is whether the client may leave the memory of a named chat to Dify.
    ``is_auxiliary`` is whether the turn asks something that is not a turn of the chat.
    """

    chat_id: str
    history: Sequence[Message]
    turn: Sequence[Message] = ()
    answer_id: str = ""
    previous_answer_id: str | None = None
    min_exchanges: int = 0
    may_omit_history: bool = False
    is_auxiliary: bool = False


class History:
    """The history of a request, with its digests. Messages of the user that follow one another are
    one message."""

    def __init__(self, messages: Sequence[Message]) -> None:
        self.messages = messages = fingerprint.join_user_messages(messages)
        self.texts = fingerprint.text_digests(messages)
        self.last_exchange = _last_exchange_start(messages)
        earlier, texts = messages[: self.last_exchange], self.texts[: self.last_exchange]
        self.before_last = fingerprint.extend(HistoryFingerprint(), earlier, texts=texts)
        self.fingerprint = self.extend(self.before_last)

    @property
    def last_question(self) -> str:
        """The digest of the question of the last exchange, as of a query to Dify."""
        return fingerprint.turn_digest(self.messages[self.last_exchange : -1])

    def extend(self, known: HistoryFingerprint) -> HistoryFingerprint:
        """A fingerprint extended by the last exchange of the history."""
        start = self.last_exchange
        return fingerprint.extend(known, self.messages[start:], texts=self.texts[start:])


@dataclass(frozen=True, slots=True)
class Branch:
    """What is known of a branch. ``history`` is None where no turn can continue it at present; then
    ``possible`` are the histories that it may have, first the one without its last turn.
    ``is_settled`` is false where it would fit, but a turn is running in it, or it is not known
    whether Dify has run the last one. ``reason`` is why the last turn went there."""

    history: HistoryFingerprint | None
    possible: tuple[HistoryFingerprint, ...] = ()
    is_settled: bool = True
    reason: Reason | None = None
    is_of_earlier_system: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """``index`` is that of the branch to continue, None for a new conversation. ``history`` is the
    history of the branch, with its last exchange as the client shows it."""

    index: int | None
    reason: Reason
    history: HistoryFingerprint | None = None


def choose(branches: Sequence[Branch], position: ChatPosition, history: History) -> Choice:
    """The branch that continues the chat. ``branches`` are sorted, most recently used first."""
    order = list(Reason)
    sends_history = any(map(_came_with_history, branches))
    found = [
        (order.index(match.reason), match.strength, index, match)
        for index, branch in enumerate(branches)
        if (match := _match(branch, position, history))
        and not (match.reason is Reason.CHAT_ID and sends_history)
    ]
    guesses = [one for one in found if one[3].strength is _Strength.ANSWER]
    if any(_contains(branch, history) for branch in branches):
        found = [one for one in found if not one[3].is_guess]
    elif len(guesses) > 1 or not _may_guess(branches, history):
        found = [one for one in found if one not in guesses]
    if not found:
        is_unsure = len(guesses) == 1
        reason = _why_new(branches, position, history)
        return Choice(None, Reason.UNSURE if is_unsure else reason)
    *_, index, match = min(found, key=lambda one: one[:3])
    return Choice(
        index, match.reason, _history_as_shown(branches[index].history, match.reason, history)
    )


def continues(branch: Branch, position: ChatPosition, history: History) -> bool:
    """Whether a branch continues the chat, if no other does so better."""
    return _match(branch, position, history) is not None


class _Strength(IntEnum):
    """What a branch is recognized by; the first is the best."""

    NAME = 0
    """The client names its last answer."""
    WORDS = 1
    """The words of its history; of its last answer perhaps only the beginning or the end."""
    ANSWER = 2
    """Of the last exchange, only the words of the answer."""


@dataclass(frozen=True, slots=True)
class _Match:
    reason: Reason
    strength: _Strength

    @property
    def is_guess(self) -> bool:
        """Whether another branch may be meant."""
        is_unsure = self.reason in (Reason.SHOWN_OTHERWISE, Reason.END_OF_HISTORY)
        return is_unsure and self.strength is not _Strength.NAME


def _match(branch: Branch, position: ChatPosition, history: History) -> _Match | None:
    if branch.is_of_earlier_system:
        return _Match(Reason.EARLIER_SYSTEM, _Strength.WORDS) if history.messages else None
    if branch.history is None:
        return None
    reason = _reason(branch, branch.history, position, history)
    if reason is None:
        return None
    if _is_named(branch.history, position):
        return _Match(reason, _Strength.NAME)
    if reason is not Reason.SHOWN_OTHERWISE or _has_same_question(branch.history, history):
        return _Match(reason, _Strength.WORDS)
    # Without an id, other chats may have the same answers.
    return _Match(reason, _Strength.ANSWER) if position.chat_id else None


def _reason(
    branch: Branch, stored: HistoryFingerprint, position: ChatPosition, history: History
) -> Reason | None:
    """Why a branch with the history ``stored`` continues the chat; None where it does not."""
    if history.messages:
        if _is_whole(stored, history):
            return Reason.WHOLE_HISTORY
        if stored.last_turn and _is_shown_otherwise(stored, stored.last_turn, position, history):
            return Reason.SHOWN_OTHERWISE
        return Reason.END_OF_HISTORY if _is_end(stored, position, history) else None
    if _is_named(stored, position):
        return Reason.NAMED_ANSWER
    if not position.may_omit_history or not position.turn or branch.reason is Reason.AUXILIARY:
        return None
    return None if _repeats_first_question(branch, stored, position) else Reason.CHAT_ID


def _came_with_history(branch: Branch) -> bool:
    """Whether the client has sent a history with the last turn of the branch."""
    if branch.reason in (Reason.CHAT_ID, Reason.AUXILIARY, Reason.CONVERSATION_ID):
        return False
    turn = branch.history.last_turn if branch.history else None
    return branch.reason in _WITH_HISTORY or (turn is not None and turn.chain_before != "")


def _may_guess(branches: Sequence[Branch], history: History) -> bool:
    """Whether a branch can be recognized by its last answer alone: no other can have given it, or
    the client is known to show questions otherwise than it sends them."""
    if any(_is_whole(known, history) for branch in branches for known in branch.possible[1:]):
        return False
    turns = [branch for branch in branches if branch.reason is not Reason.AUXILIARY]
    return len(turns) == 1 or any(branch.reason in _WITH_FILTER for branch in branches)


def _contains(branch: Branch, history: History) -> bool:
    """Whether the last exchange of the history is, word for word, what was sent to the client in
    this branch, whose history it is or begins with. What a new conversation was given is only what
    the client had shown."""
    is_continued = branch.reason in _IN_CONVERSATION
    if branch.history:
        return _is_whole(branch.history, history) or (
            is_continued and _begins_with(branch.history, history)
        )
    return is_continued and any(_begins_with(known, history) for known in branch.possible[:1])


def _begins_with(stored: HistoryFingerprint, history: History) -> bool:
    requested = history.fingerprint.items
    return _is_whole(stored, history) or (
        len(history.messages) <= len(stored.items) < fingerprint.MAX_ITEMS
        and fingerprint.same_items(requested, stored.items[: len(requested)])
    )


def _has_same_question(stored: HistoryFingerprint, history: History) -> bool:
    """Whether the last exchange shows the question as it was sent."""
    turn = stored.last_turn
    asked = history.fingerprint.items[history.last_exchange - len(history.messages) : -1]
    return turn is not None and (
        len(asked) == turn.length - 1
        and fingerprint.same_items(asked, stored.items[-turn.length : -1])
    )


def _why_new(branches: Sequence[Branch], position: ChatPosition, history: History) -> Reason:
    if not branches:
        return Reason.UNKNOWN_CHAT if history.messages else Reason.FIRST_TURN
    if any(not branch.is_settled for branch in branches):
        return Reason.RUNNING
    known = [(branch, branch.history) for branch in branches if branch.history]
    if not history.messages and any(_repeats_first_question(*one, position) for one in known):
        return Reason.ASKED_AGAIN
    return Reason.OTHER_HISTORY


def _is_named(stored: HistoryFingerprint | None, position: ChatPosition) -> bool:
    """Whether the client says that the turn comes after the last answer of the conversation."""
    if stored is None or not stored.answer or position.previous_answer_id is None:
        return False
    return stored.answer == fingerprint.answer_digest(position.previous_answer_id)


def _is_whole(stored: HistoryFingerprint, history: History) -> bool:
    requested = history.fingerprint
    return requested.chain == stored.chain and fingerprint.same_items(requested.items, stored.items)


def _is_shown_otherwise(
    stored: HistoryFingerprint, last_turn: LastTurn, position: ChatPosition, history: History
) -> bool:
    """Whether the history is that of the conversation, and only the last exchange is shown
    differently when it first comes back."""
    if not ends_with_answer(history.messages):
        return False
    earlier = stored.items[: -last_turn.length]
    requested = history.before_last
    if not fingerprint.same_items(requested.items, earlier):
        return False
    if requested.chain != last_turn.chain_before and not _is_end_of(
        earlier, requested.items, history.messages, position.min_exchanges
    ):
        return False
    if stored.answer and position.previous_answer_id is not None:
        return _is_named(stored, position)
    return fingerprint.answer_begins_or_ends_alike(stored, history.messages[-1])


def _is_end(stored: HistoryFingerprint, position: ChatPosition, history: History) -> bool:
    """Whether the history is the end of that of the conversation."""
    requested = history.fingerprint.items
    if not ends_with_answer(history.messages) or not fingerprint.same_items(
        requested, stored.items
    ):
        return False
    if stored.answer and position.previous_answer_id is not None:
        return _is_named(stored, position) and _is_long_enough(
            stored.items, requested, history.messages, position.min_exchanges
        )
    return _is_end_of(stored.items, requested, history.messages, position.min_exchanges)


def _is_end_of(
    stored: Sequence[str], requested: Sequence[str], messages: Sequence[Message], minimum: int
) -> bool:
    """Whether these items, which are the last of a conversation, are surely not an earlier state of
    it."""
    if not _is_long_enough(stored, requested, messages, minimum):
        return False
    length = len(requested)
    is_prefix = length < len(stored) and fingerprint.same_items(requested, stored[:length])
    return bool(requested) and not is_prefix


def _is_long_enough(
    stored: Sequence[str], requested: Sequence[str], messages: Sequence[Message], minimum: int
) -> bool:
    """Whether the messages contain as many exchanges as the end of a chat must, and all have items
    to be compared with."""
    if not minimum or len(requested) > len(stored) or len(messages) > fingerprint.MAX_ITEMS:
        return False
    exchanges = sum(
        (one.role, other.role) == ("user", "assistant") for one, other in pairwise(messages)
    )
    return exchanges >= minimum


def _repeats_first_question(
    branch: Branch, stored: HistoryFingerprint, position: ChatPosition
) -> bool:
    """Whether the turn is the first question of the conversation, word for word: a client that
    tries again. Once a client has continued the chat without a history, people may repeat
    themselves."""
    turn = stored.last_turn
    is_first = turn is not None and not turn.chain_before
    if not stored.items or (not is_first and branch.reason is Reason.CHAT_ID):
        return False
    first = fingerprint.extend(HistoryFingerprint(), position.turn[:1]).items
    joined = fingerprint.join_user_messages(position.turn)
    whole = fingerprint.extend(HistoryFingerprint(), joined).items[:1]
    return any(fingerprint.same_items(asked, stored.items[:1]) for asked in (first, whole) if asked)


def _history_as_shown(
    stored: HistoryFingerprint | None, reason: Reason, history: History
) -> HistoryFingerprint | None:
    """The history of a conversation with its last exchange as the client shows it."""
    if stored is None or not history.messages:
        return stored
    shown = HistoryFingerprint(stored.chain, stored.items)
    if reason is Reason.SHOWN_OTHERWISE and stored.last_turn:
        turn = stored.last_turn
        shown = history.extend(HistoryFingerprint(turn.chain_before, stored.items[: -turn.length]))
    return HistoryFingerprint(shown.chain, shown.items, stored.answer, stored.message)


def _last_exchange_start(messages: Sequence[Message]) -> int:
    """The position after the last answer before the final message."""
    answers = (i for i in range(len(messages) - 2, -1, -1) if messages[i].role == "assistant")
    return next(answers, -1) + 1
