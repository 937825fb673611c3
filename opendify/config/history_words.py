"""The texts around the earlier messages that a new Dify conversation is given. No I/O."""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from opendify.config.parsing import InvalidValue

MAX_WORD_CHARS = 500


@dataclass(frozen=True, slots=True)
class HistoryWords:
    """The texts in one language.

    Two stand above the earlier messages and above the question. ``user``, ``assistant`` and
    ``tool`` stand before a message of theirs; ``{name}`` in ``tool`` is the name of the tool.
    ``image``, ``audio``, ``video`` and ``file`` stand for a file of an earlier message, and
    ``continue_answer`` is what is asked where the client wants more of the last answer.
    """

    history_heading: str
    question_heading: str
    user: str
    assistant: str
    tool: str
    continue_answer: str
    image: str
    audio: str
    video: str
    file: str


ENGLISH = HistoryWords(
    history_heading="The conversation so far:",
    question_heading="The user now says:",
    user="User:",
    assistant="Assistant:",
    tool="Tool result ({name}):",
    continue_answer="Please continue your last answer exactly where it stopped.",
    image="[image]",
    audio="[audio]",
    video="[video]",
    file="[file]",
)

CHINESE = HistoryWords(
    history_heading="此前的对话：",
    question_heading="用户现在说：",
    user="用户：",
    assistant="助手：",
    tool="工具返回（{name}）：",
    continue_answer="请从上一个回答中断的地方继续。",
    image="[图片]",
    audio="[音频]",
    video="[视频]",
    file="[文件]",
)


@dataclass(frozen=True, slots=True)
class WordsByLanguage:
    """The texts for questions in Chinese, and for all others."""

    chinese: HistoryWords = CHINESE
    other: HistoryWords = ENGLISH


_BY_NAME = {
    "auto": WordsByLanguage(),
    "en": WordsByLanguage(ENGLISH, ENGLISH),
    "zh": WordsByLanguage(CHINESE, CHINESE),
}
_NAMES = tuple(word.name for word in fields(HistoryWords))


def parse_history_words(value: Any, where: str) -> WordsByLanguage:
    """``auto``, ``en`` or ``zh``, or an object with texts of one's own; a text that it lacks is in
    the language of the question. Raises InvalidValue, naming ``where``."""
    if isinstance(value, str) and value in _BY_NAME:
        return _BY_NAME[value]
    if not isinstance(value, Mapping):
        raise InvalidValue(
            f"{where} must be auto, en, zh, or an object with texts of your own, like "
            '{"user":"Usuário:","assistant":"Assistente:"}'
        )
    unknown = sorted(set(value) - set(_NAMES))
    if unknown:
        raise InvalidValue(
            f"{where} has an unknown text '{unknown[0]}'; known are {', '.join(_NAMES)}"
        )
    for name, text in value.items():
        if not isinstance(text, str) or not text.strip() or len(text) > MAX_WORD_CHARS:
            raise InvalidValue(
                f"{where}: '{name}' must be a text of 1 to {MAX_WORD_CHARS} characters"
            )
    texts = {name: text.strip() for name, text in value.items()}
    return WordsByLanguage(replace(CHINESE, **texts), replace(ENGLISH, **texts))
