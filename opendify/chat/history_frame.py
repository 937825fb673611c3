"""Writes earlier messages of a chat as text, for a conversation that does not know them. No I/O."""

import re
from collections.abc import Iterable, Sequence
from itertools import islice

from opendify.config.history_words import HistoryWords, WordsByLanguage
from opendify.protocols.base import Message

# The language shows long before the end of a long text, or of many texts.
_MAX_LANGUAGE_CHARS = 1_000
_MAX_LANGUAGE_TEXTS = 20

_LETTER = re.compile(r"[^\W\d_]")
_IDEOGRAPH = re.compile("[\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_KANA_OR_HANGUL = re.compile(
    "[\u1100-\u11ff\u3041-\u3096\u30a1-\u30fa\u3131-\u318e\u31f0-\u31ff\ua960-\ua97c\uac00-\ud7fb"
    "\uff66-\uffdc]"
)
# A Chinese text that names things in Latin script has more letters of that than ideographs: a word
# is one or two ideographs, or about five letters.
_LETTERS_OF_AN_IDEOGRAPH = 3


def choose_words(words: WordsByLanguage, texts: Iterable[str]) -> HistoryWords:
    """The texts in the language of the first of ``texts`` that has any letters."""
    for text in islice(texts, _MAX_LANGUAGE_TEXTS):
        start = text[:_MAX_LANGUAGE_CHARS]
        if _LETTER.search(start):
            return words.chinese if is_chinese(start) else words.other
    return words.other


def is_chinese(text: str) -> bool:
    """Whether a text is mostly in ideographs, and not Japanese or Korean."""
    if text.isascii():
        return False
    ideographs = len(_IDEOGRAPH.findall(text))
    foreign = len(_KANA_OR_HANGUL.findall(text))
    others = len(_LETTER.findall(text)) - ideographs - foreign
    # A few kana also stand in names and headings of Chinese texts.
    return foreign * 10 <= ideographs and ideographs * _LETTERS_OF_AN_IDEOGRAPH > others


def transcript(history: Sequence[Message], words: HistoryWords, max_characters: int) -> str:
    """The messages, one below the other, in at most ``max_characters``: the oldest are left out,
    and of a single message that is longer its end is taken. Files are named by their kind."""
    lines: list[str] = []
    for message in reversed(history):
        if message.is_blank:
            continue
        line = spoken(message, words, [one.kind for one in message.attachments])
        separator = "\n\n" if lines else ""
        max_characters -= len(separator) + len(line)
        if max_characters < 0:
            if not lines:
                lines.append(line[-max_characters:])
            break
        lines.append(line)
    return "\n\n".join(reversed(lines))


def spoken(message: Message, words: HistoryWords, kinds: Iterable[str] = ()) -> str:
    """A message with who says it. ``kinds`` are those of its files to be named, besides the ones
    that cannot be used."""
    files = [getattr(words, kind) for kind in (*kinds, *message.unusable)]
    text = " ".join(filter(None, (*files, message.text)))
    speaker = _speaker(message, words)
    return speaker + ("" if speaker.endswith("：") else " ") + text


def _speaker(message: Message, words: HistoryWords) -> str:
    match message.role:
        case "user":
            return words.user
        case "assistant":
            return words.assistant
    return words.tool.replace("{name}", message.name or "tool")
