"""Which turn follows which: what a Dify conversation has heard, kept as digests. No I/O.

The history that a client sends is the truth. A conversation is fit to continue it when it has
heard exactly that, or when the history is the end of what it has heard, for clients that send
only their last messages: who may send such a window, and how many exchanges it has to hold, is
the caller's of this module to say. Kept are a chained digest of everything and one short digest
for each of the last messages; the texts themselves are not kept.

What the digests must stand, measured with Open WebUI 0.12: answers come back without their
reasoning and trimmed; a turn with a file was wrapped in a retrieval prompt or an
``<attached_files>`` block when it was asked. Not measured is what such a turn looks like in later
histories, so the wrapping never counts, and a file counts only where the history has one.

Two chats can have the same words in them. Where the words alone leave it open whether a history is
the end of what was heard or an earlier state of it (somebody said the same twice and takes the
second back), it is no continuation: a new conversation that is given the history is never wrong.
Clients that name their answers settle it.
"""

import hashlib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from opendify.protocols.base import Attachment, Message

# How many of the last messages are known one by one; a longer history must match as a whole.
KEPT_MESSAGES = 64

_WRAPPER_START = "### Task:"
_CONTEXT_END = "</context>"
# How retrieval prompts before Open WebUI 0.7 held the text of the person.
_QUERY_START, _QUERY_END = "<user_query>", "</user_query>"
_ATTACHED = re.compile(r"<(?P<end>/?)(?P<name>attached_files)>")
# Reasoning may stand before each part of an answer.
_REASONING = re.compile(r"<(?P<end>/?)(?P<name>think|thinking|details)\b[^<>]*>", re.IGNORECASE)
_CUT_REASONING = re.compile(r"\s*<think\b", re.IGNORECASE)
_FOOTNOTE = re.compile(r"\[\^?\d+\]")
_SOURCES = "**Sources**"
_SOURCE = re.compile(r"\d+\. .*|\s*")

_CHAIN_DIGITS = 16
_ITEM_DIGITS = 8
_ANSWER_DIGITS = 8
_MESSAGE_DIGITS = 8
QUESTION_DIGITS = 16
_WORD = re.compile(
    rf"[0-9a-f]{{{_CHAIN_DIGITS}}}"
    rf"(?::[0-9a-f]{{{_ITEM_DIGITS}}}(?:\+[0-9a-f]{{{_ITEM_DIGITS}}})?)*"
    rf"(?:@[0-9a-f]{{{_ANSWER_DIGITS}}})?"
    rf"(?:#[0-9a-f]{{{_MESSAGE_DIGITS}}})?"
)


@dataclass(frozen=True, slots=True)
class HistoryFingerprint:
    """What a conversation has heard. ``items`` are of its last messages: the digest of the text,
    and behind a plus sign that of the files. ``answer`` is the digest of the client's own name
    for the last answer, ``message`` that of Dify's id of it; "" where they were not given."""

    chain: str = ""
    items: tuple[str, ...] = ()
    answer: str = ""
    message: str = ""

    def encode(self) -> str:
        """As one word, for the store."""
        answer = f"@{self.answer}" if self.answer else ""
        message = f"#{self.message}" if self.message else ""
        return ":".join((self.chain, *self.items)) + answer + message


def decode(word: str) -> HistoryFingerprint | None:
    """What ``encode`` has written; None where it is no such word."""
    if not _WORD.fullmatch(word):
        return None
    rest, _, message = word.partition("#")
    rest, _, answer = rest.partition("@")
    chain, *items = rest.split(":")
    return HistoryFingerprint(chain, tuple(items), answer, message)


def unknown(conversation_id: str) -> HistoryFingerprint:
    """A beginning that no history can be: of a conversation of which is not known what it has
    heard."""
    return HistoryFingerprint(_digest(f"unknown|{conversation_id}")[:_CHAIN_DIGITS])


def text_digests(messages: Sequence[Message]) -> list[str]:
    """The digests of their texts, for those who need them twice."""
    return [_text_digest(message) for message in messages]


def extend(
    heard: HistoryFingerprint,
    messages: Sequence[Message],
    answer_id: str = "",
    texts: Sequence[str] | None = None,
    message_id: str = "",
) -> HistoryFingerprint:
    """What has been heard after these messages as well; ``answer_id`` is the client's name for
    the last of them and ``message_id`` Dify's, ``texts`` are their text digests, where these were
    made already."""
    chain, items = heard.chain, list(heard.items)
    for message, text in zip(messages, texts or text_digests(messages), strict=True):
        chain = _digest(f"{chain}|{text}")[:_CHAIN_DIGITS]
        files = f"+{_files_digest(message.attachments)}" if message.attachments else ""
        items.append(text[:_ITEM_DIGITS] + files)
    kept = tuple(items[-KEPT_MESSAGES:])
    return HistoryFingerprint(chain, kept, _answer_digest(answer_id), message_digest(message_id))


def matches(
    heard: HistoryFingerprint,
    told: HistoryFingerprint,
    history: Sequence[Message],
    follows: str | None = None,
    min_exchanges: int = 1,
) -> bool:
    """Whether a conversation that has heard this is the one that the history tells of; ``told`` is
    what has been heard after that history.

    ``follows`` is the client's name for the answer that the turn comes after: "" for the first
    turn of a chat, None where the client does not tell. ``min_exchanges`` is how many exchanges
    of a question and its answer a history must hold that is only the end of what was heard; 0
    where only the whole history continues a conversation.
    """
    named = bool(heard.answer) and follows is not None
    is_named = named and heard.answer == _answer_digest(follows or "")
    if not history:
        return is_named
    if not _match(told.items, heard.items[-len(told.items) :]):
        return False
    if told.chain == heard.chain:
        return True
    if len(history) > len(heard.items) or not holds_an_exchange(history):
        return False
    if not min_exchanges or _exchanges(history) < min_exchanges:
        return False
    return is_named if named else not _begins(heard, told)


def last_exchange_id(history: Sequence[Message], texts: Sequence[str] | None = None) -> str:
    """A name for the last exchange of a history, under which the conversations of clients
    without chat ids are kept; "" where the history does not end with an answer to somebody.
    ``texts`` are the text digests of the history, where these were made already."""
    if not holds_an_exchange(history):
        return ""
    asked = max(i for i, message in enumerate(history) if message.role == "user")
    return _digest("|".join(texts[asked:] if texts else text_digests(history[asked:])))[:32]


def holds_an_exchange(history: Sequence[Message]) -> bool:
    """Whether somebody asked and the last message is an answer."""
    roles = [message.role for message in history]
    return "user" in roles and roles[-1] == "assistant"


def _exchanges(history: Sequence[Message]) -> int:
    """How many questions with their answers it holds."""
    return sum((one.role, other.role) == ("user", "assistant") for one, other in pairwise(history))


def _begins(heard: HistoryFingerprint, told: HistoryFingerprint) -> bool:
    """Whether these are also the first messages, as far as they are known."""
    length = len(told.items)
    return length < len(heard.items) and _match(told.items, heard.items[:length])


def _match(told: Sequence[str], heard: Sequence[str]) -> bool:
    """Whether these are the same messages, compared from the last one back."""
    return told == heard or all(map(_alike, reversed(told), reversed(heard)))


def _alike(one: str, other: str) -> bool:
    text, _, files = one.partition("+")
    other_text, _, other_files = other.partition("+")
    return text == other_text and (not files or not other_files or files == other_files)


def own_text(text: str) -> str:
    """What the person wrote, without what Open WebUI wraps around it."""
    if text.startswith(_WRAPPER_START) and _CONTEXT_END in text:
        text = text.rpartition(_CONTEXT_END)[2].strip()
        if text.startswith(_QUERY_START) and text.endswith(_QUERY_END):
            text = text[len(_QUERY_START) : -len(_QUERY_END)]
    return (_without(_ATTACHED, text) if "<" in text else text).strip()


def _answer_text(text: str) -> str:
    """What an answer says, without its reasoning and what it rests on."""
    if "<" in text:
        text = _without(_REASONING, text)
        if _CUT_REASONING.match(text):  # it has no end where an answer was cut
            return ""
    said, _, listed = text.rpartition(_SOURCES)
    if said and all(map(_SOURCE.fullmatch, listed.splitlines())):
        text = said
    return _FOOTNOTE.sub("", text) if "[" in text else text


def _without(tag: re.Pattern[str], text: str) -> str:
    """The text without the elements of these tags, each up to the first end tag of its name. In
    time that grows with the text alone, whatever callers send."""
    # Found twice rather than kept: a list of a million of them blocks all threads for seconds.
    last_ends = {
        found["name"].lower(): found.start() for found in tag.finditer(text) if found["end"]
    }
    kept, place, inside = [], 0, ""
    for found in tag.finditer(text):
        name = found["name"].lower()
        if inside and found["end"] and name == inside:
            place, inside = found.end(), ""
        elif not inside and not found["end"] and last_ends.get(name, 0) > found.start():
            kept.append(text[place : found.start()])
            inside = name
    return "".join([*kept, text[place:]])


def _text_digest(message: Message) -> str:
    text = _answer_text(message.text) if message.role == "assistant" else own_text(message.text)
    if not text.isascii():
        text = unicodedata.normalize("NFC", text)
    return _digest(f"{message.role}|{''.join(text.split())}")


def _answer_digest(answer_id: str) -> str:
    return _digest(answer_id)[:_ANSWER_DIGITS] if answer_id else ""


def question_digest(query: str) -> str:
    """A digest of a query to Dify, which may come back without some of its blanks."""
    return _digest("".join(query.replace("\0", "").split()))[:QUESTION_DIGITS]


def message_digest(message_id: str) -> str:
    """A digest of Dify's id of a message; "" for no id."""
    return _digest(message_id)[:_MESSAGE_DIGITS] if message_id else ""


def _files_digest(attachments: Sequence[Attachment]) -> str:
    return _digest("|".join(a.url or a.data or a.file_id for a in attachments))[:_ITEM_DIGITS]


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
