from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opendify.chat import history_frame
from opendify.config.history_words import CHINESE, ENGLISH, WordsByLanguage
from opendify.protocols.base import Attachment, Message


@pytest.mark.parametrize(
    "text",
    [
        "那鸟呢？",
        "那鳥呢？",
        "如何在 Kubernetes 里配置 Ingress？",
        "把“の”写进中文的店名里是什么意思",
        "𠀀" * 3,
        "那鸟呢？" + "x" * 5,
        "那鸟呢？" + " " * 10_000 + "bird" * 10_000,
    ],
    ids=lambda text: text[:20],
)
def test_a_text_mostly_in_ideographs_is_chinese(text: str) -> None:
    assert history_frame.is_chinese(text[:1000])
    assert history_frame.choose_words(WordsByLanguage(), [text]) is CHINESE


@pytest.mark.parametrize(
    "text",
    [
        "",
        "。？",
        "And a bird?",
        "What does 你好 mean?",
        "東京都の鳥は？",
        "東京都庁所在地は？",
        "バード",
        "새는 뭐예요?",
        "韓國語는 漢字가 많다",
        "А птица?",
    ],
)
def test_any_other_text_is_not(text: str) -> None:
    assert not history_frame.is_chinese(text)
    assert history_frame.choose_words(WordsByLanguage(), [text]) is ENGLISH


def test_the_language_is_that_of_the_first_text_with_letters() -> None:
    words = WordsByLanguage()
    assert history_frame.choose_words(words, ["?", "", "12", "鸟", "bird"]) is CHINESE
    assert history_frame.choose_words(words, ["👍", "bird", "鸟"]) is ENGLISH
    assert history_frame.choose_words(words, []) is ENGLISH


def test_a_chat_without_letters_is_not_read_to_its_beginning() -> None:
    read = []

    def texts() -> Iterator[str]:
        for number in range(10_000):
            read.append(number)
            yield "?"

    assert history_frame.choose_words(WordsByLanguage(), texts()) is ENGLISH
    assert len(read) < 100


SPOKEN = [
    pytest.param(Message("user", "Hi"), "User: Hi", "用户：Hi", id="the user"),
    pytest.param(Message("assistant", "Hi"), "Assistant: Hi", "助手：Hi", id="the assistant"),
    pytest.param(
        Message("tool", "4", name="add"), "Tool result (add): 4", "工具返回（add）：4", id="a tool"
    ),
    pytest.param(
        Message("function", "4"), "Tool result (tool): 4", "工具返回（tool）：4", id="a function"
    ),
    pytest.param(
        Message("user", "Look", unusable=("image", "file")),
        "User: [image] [file] Look",
        "用户：[图片] [文件] Look",
        id="files",
    ),
    pytest.param(
        Message("user", "", unusable=("audio",)), "User: [audio]", "用户：[音频]", id="audio"
    ),
]


@pytest.mark.parametrize(("message", "english", "chinese"), SPOKEN)
def test_a_message_stands_behind_its_speaker(message: Message, english: str, chinese: str) -> None:
    assert history_frame.spoken(message, ENGLISH) == english
    assert history_frame.spoken(message, CHINESE) == chinese


FILES = st.sampled_from([(), (Attachment("video", url="https://x/y"),)])
MESSAGES = st.builds(
    Message, st.sampled_from(["user", "assistant", "tool"]), st.text(max_size=9), FILES
)


@given(st.lists(MESSAGES, max_size=6), st.integers(0, 120))
def test_the_end_of_the_messages_is_told_within_the_limit(
    history: list[Message], max_chars: int
) -> None:
    whole = history_frame.transcript(history, ENGLISH, 10_000)
    told = history_frame.transcript(history, ENGLISH, max_chars)
    assert len(told) <= max_chars
    assert whole.endswith(told)
    assert told == whole or len(whole) > max_chars
    if max_chars and not told:
        assert not whole
