"""The background tasks of clients other than Open WebUI, and what only resembles them."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opendify.chat import client_tasks, task_detection
from opendify.chat.tasks import Task
from opendify.protocols.base import ChatPrompt, Message
from tests.support import clients
from tests.support.bodies import to_prompt
from tests.support.clients import CHAT, QUESTION

TITLES = [
    pytest.param(clients.nextchat_title(), QUESTION, id="NextChat"),
    pytest.param(clients.nextchat_title(clients.NEXTCHAT_TITLE_ZH), QUESTION, id="NextChat, cn"),
    pytest.param(clients.librechat_title(), QUESTION, id="LibreChat"),
    pytest.param(
        clients.librechat_structured_title(),
        json.dumps({"title": QUESTION, "language": ""}, separators=(",", ":")),
        id="LibreChat, structured",
    ),
    pytest.param(clients.earlier_librechat_title("user"), QUESTION, id="an earlier LibreChat"),
    pytest.param(clients.lobechat_title(), QUESTION, id="LobeChat"),
    pytest.param(clients.lobechat_title_zh(), QUESTION, id="LobeChat, in Chinese"),
    pytest.param(
        clients.lobechat_json_title(),
        json.dumps({"title": QUESTION}, separators=(",", ":")),
        id="LobeChat, JSON",
    ),
    pytest.param(
        clients.lobechat_json_title(description=True),
        json.dumps({"title": QUESTION, "description": ""}, separators=(",", ":")),
        id="LobeChat, JSON with a description",
    ),
    pytest.param(clients.cherry_studio_title(), QUESTION, id="Cherry Studio"),
    pytest.param(
        clients.cherry_studio_title("Nommez ceci.", " /no_think"), QUESTION, id="Cherry Studio, own"
    ),
    pytest.param(clients.earlier_cherry_studio_title(), QUESTION, id="an earlier Cherry Studio"),
    pytest.param(clients.chatbox_title(), QUESTION, id="Chatbox"),
    pytest.param(clients.chatbox_title(stream=True), QUESTION, id="Chatbox, streamed"),
]


@pytest.mark.parametrize(("body", "answer"), TITLES)
def test_a_title_is_recognised_and_has_an_answer_that_its_client_takes(
    body: dict[str, Any], answer: str
) -> None:
    task = task_detection.detect(to_prompt(body), "")
    assert task is not None
    assert (task.kind, task.answer()) == ("title_generation", answer)
    assert "Descaling" in task.answer("Descaling")


REPHRASE = "Given the following conversation and a follow-up question, rephrase it."
OTHERS = [
    pytest.param(clients.nextchat_summary(), "context_compaction", id="NextChat's memory"),
    pytest.param(
        clients.nextchat_summary(clients.NEXTCHAT_SUMMARY_ZH), "context_compaction", id="NextChat"
    ),
    pytest.param(clients.librechat_summary(), "context_compaction", id="LibreChat's summary"),
    pytest.param(
        clients.system_and_user(
            "You're an assistant who's good at extracting key takeaways from conversations.",
            "<chat_history>user: Hi</chat_history>\n\nSummarize.",
            stream=True,
        ),
        "context_compaction",
        id="LobeChat's history",
    ),
    pytest.param(
        clients.system_and_user("You are a conversation context compressor. Do it.", "user: Hi"),
        "context_compaction",
        id="LobeChat's compression",
    ),
    pytest.param(
        clients.system_and_user(clients.LOBE_TRANSLATION, QUESTION, stream=True),
        "translation",
        id="LobeChat's translation",
    ),
    pytest.param(
        clients.system_and_user(
            f"{REPHRASE}\n<chatHistory>\nHi\n</chatHistory>\n",
            f"Follow Up Input: {QUESTION}, it's standalone query:",
        ),
        "query_generation",
        id="LobeChat's query",
    ),
    pytest.param(
        clients.system_and_user(
            "You are a sidecar that extracts 0-4 quick-reply suggestions from a message.",
            'Last assistant message:\n"""\nTea or coffee?\n"""',
        ),
        "task",
        id="LobeChat's quick replies",
    ),
    pytest.param(
        {
            "model": "tiny",
            "messages": [
                {"role": "system", "content": "你是一名擅长起名的起名大师，输出: {角色名}"},
                {"role": "user", "content": "输入: {一名文案大师} [zh-CN]"},
                {"role": "assistant", "content": "文案大师"},
                {"role": "user", "content": "输入: {茶} [zh-CN]"},
            ],
        },
        "text_generation",
        id="LobeChat's names, with examples",
    ),
    pytest.param(
        {
            "model": "tiny",
            "messages": [
                {"role": "system", "content": "You are an AI question rephraser. <question>"},
                {"role": "assistant", "content": "With vinegar."},
                {"role": "user", "content": "And without?"},
            ],
        },
        "text_generation",
        id="Cherry Studio's search",
    ),
    pytest.param(
        clients.alone(
            "You are a translation expert. Your only task is to translate text enclosed with "
            "<translate_input> and nothing else.\n<translate_input>\nHi\n</translate_input>"
        ),
        "translation",
        id="Cherry Studio's translation",
    ),
]


@pytest.mark.parametrize(("body", "kind"), OTHERS)
def test_another_task_is_recognised(body: dict[str, Any], kind: str) -> None:
    task = task_detection.detect(to_prompt(body), "")
    assert task is not None
    assert task.kind == kind


def test_a_query_is_the_question_and_no_quick_replies_are_an_empty_list() -> None:
    query, replies = (
        task_detection.detect(to_prompt(one.values[0]), "")
        for one in OTHERS
        if one.id in ("LobeChat's query", "LobeChat's quick replies")
    )
    assert query and replies
    assert query.answer() == QUESTION
    assert replies.answer() == '{"chips":[]}'


@pytest.mark.parametrize("words", client_tasks._NEXTCHAT_TITLES, ids=lambda words: words[0][:20])
def test_nextchat_asks_for_a_title_in_each_of_its_languages(words: tuple[str, str]) -> None:
    task = task_detection.detect(to_prompt(clients.nextchat_title(" ... ".join(words))), "")
    assert task is not None
    assert task.answer() == QUESTION


@pytest.mark.parametrize("words", client_tasks._NEXTCHAT_SUMMARIES, ids=lambda words: words[0][:20])
def test_nextchat_asks_for_a_summary_in_each_of_its_languages(words: tuple[str, str]) -> None:
    task = task_detection.detect(to_prompt(clients.nextchat_summary(" ... ".join(words))), "")
    assert task is not None
    assert (task.kind, task.asks_in_system) == ("context_compaction", True)


def test_a_system_message_alone_asks_too() -> None:
    body = clients.earlier_librechat_title()["messages"][0]
    chat = ChatPrompt("tiny", (Message("system", body["content"]),))
    task = client_tasks.find(chat)
    assert task is not None
    assert (task.answer(), task.asks_in_system) == (QUESTION, True)


def turn(*said: str, **more: Any) -> dict[str, Any]:
    roles = ["user", "assistant"] * len(said)
    messages = [{"role": r, "content": s} for r, s in zip(roles, said, strict=False)]
    return {"model": "tiny", "messages": messages, **more}


TITLE, SUMMARY = clients.NEXTCHAT_TITLE, clients.NEXTCHAT_SUMMARY
LIBRE = clients.librechat_title()["messages"][0]["content"]
CHERRY = clients.cherry_studio_title()["messages"][1]["content"]
PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
TURNS = [
    pytest.param(turn("Hi", "Hello", "Please summarize our conversation"), id="a summary"),
    pytest.param(turn("Hi", "Hello", "Please generate a four to five word title"), id="a title"),
    pytest.param(turn("你好", "你好！", "请总结一下我们的对话"), id="a summary in Chinese"),
    pytest.param(
        turn("你好", "你好！", "使用四到五个字直接返回这句话的简要主题"), id="half in Chinese"
    ),
    pytest.param(turn("你好", "你好！", "简要总结一下对话内容"), id="a short summary in Chinese"),
    pytest.param(turn("Translate to French: You are a professional translator."), id="a job"),
    pytest.param(turn("Provide a concise, 5-word-or-less title for the conversation"), id="half"),
    pytest.param(turn("Hi", "Hello", "Name this conversation in 30 characters"), id="a name"),
    pytest.param(turn("Hi", "Hello", TITLE, stream=True), id="NextChat's title, streamed"),
    pytest.param(turn(TITLE), id="NextChat's title without a chat"),
    pytest.param(turn("Hi", "Hello", f"What does this mean? {TITLE}"), id="a quoted title prompt"),
    pytest.param(turn("Hi", "Hello", f"{TITLE} Explain it."), id="a title prompt with more"),
    pytest.param(turn("Hi", "Hello", SUMMARY), id="NextChat's summary, of a user"),
    pytest.param(
        turn("Hi", "Hello", TITLE, tools=[{"type": "function", "function": {"name": "f"}}]),
        id="NextChat's title, with tools",
    ),
    pytest.param(
        {
            "model": "tiny",
            "messages": [
                *CHAT,
                {"role": "user", "content": [{"type": "text", "text": TITLE}, PICTURE]},
            ],
        },
        id="NextChat's title, with a picture",
    ),
    pytest.param(turn("Hi", "Hello", TITLE.replace("our", "x" * 5000)), id="a long text between"),
    pytest.param(turn("Hi", "Hello", LIBRE), id="LibreChat's title in a chat"),
    pytest.param(turn(LIBRE, "Kettles", "Thanks"), id="after LibreChat's title"),
    pytest.param(
        {"model": "tiny", "messages": [{"role": "system", "content": SUMMARY}, *CHAT[:1]]},
        id="NextChat's summary as a system prompt",
    ),
    pytest.param(clients.system_and_user("Be kind.", "Hi"), id="a system prompt"),
    pytest.param(
        clients.system_and_user("You are a professional translator into French.", "Hi"),
        id="a translator",
    ),
    pytest.param(
        clients.system_and_user("You are an assistant skilled in conversation.", "Hi"),
        id="an assistant",
    ),
    pytest.param(
        clients.system_and_user("你是一名擅长会话的助理，你需要将用户的会话总结为诗", "你好"),
        id="an assistant in Chinese",
    ),
    pytest.param(turn(CHERRY, stream=False), id="Cherry Studio's JSON without an instruction"),
    pytest.param(
        clients.system_and_user("Sum up.", CHERRY, stream=True), id="Cherry Studio's, streamed"
    ),
    pytest.param(clients.system_and_user("Sum up.", CHERRY[:-5]), id="a part of that JSON"),
    pytest.param(clients.system_and_user("Sum up.", '[{"role":"user"}]'), id="another JSON"),
    pytest.param(
        clients.system_and_user("Sum up.", '[{"role":"user","mainText":"Hi","price":5}]'),
        id="JSON with more in it",
    ),
    pytest.param(
        clients.system_and_user("Sum up.", '[{"role":"user","mainText":5}]'), id="JSON of numbers"
    ),
    pytest.param(
        clients.system_and_user("Sum up.", '[{"role":"' + "[" * 90_000), id="endless JSON"
    ),
    pytest.param(
        {
            "model": "tiny",
            "messages": [
                {"role": "system", "content": clients.LOBE_TITLE},
                *CHAT,
                {"role": "user", "content": "Another one"},
            ],
        },
        id="a chat under LobeChat's prompt",
    ),
]


@pytest.mark.parametrize("body", TURNS)
def test_what_a_person_says_is_no_task(body: dict[str, Any]) -> None:
    assert task_detection.detect(to_prompt(body), "") is None


WORDS = [
    start for shape in client_tasks._SHAPES for words in shape.words for start in words if start
]


@given(st.lists(st.text(min_size=1) | st.sampled_from(WORDS), min_size=1, max_size=4))
def test_no_words_of_a_client_make_a_streamed_chat_a_task(said: list[str]) -> None:
    """In a chat without an instruction of the system, as people have it."""
    messages = [
        Message("user", "Hi"),
        Message("assistant", "Hello"),
        Message("user", " ".join(said)),
    ]
    assert client_tasks.find(ChatPrompt("tiny", tuple(messages), stream=True)) is None


MESSAGES = st.builds(
    Message,
    st.sampled_from(["system", "user", "assistant", "developer", "tool"]),
    st.text() | st.sampled_from([*WORDS, CHERRY, LIBRE]),
)


@given(st.lists(MESSAGES, min_size=1, max_size=4), st.booleans())
def test_any_request_is_a_task_that_can_be_answered_or_none(
    messages: list[Message], stream: bool
) -> None:
    task = client_tasks.find(ChatPrompt("tiny", tuple(messages), stream=stream))
    assert task is None or isinstance(task.answer(), str)
    asked = client_tasks.as_question(messages)
    assert asked[-1].role not in ("system", "developer")


@pytest.mark.parametrize(
    ("said", "title"),
    [
        ("Hi", "Hi"),
        ("  How\n are   you? ", "How are you?"),
        ("", ""),
        ("x" * 40, "x" * 40),
        ("x" * 41, "x" * 39 + "…"),
        ("word " * 20_000, "word word word word word word word word…"),
        ("水壶怎么除垢？", "水壶怎么除垢？"),
    ],
)
def test_a_title_is_the_beginning_of_what_was_said(said: str, title: str) -> None:
    assert client_tasks.title_of(said) == title


def test_an_instruction_of_the_system_becomes_a_question() -> None:
    user, assistant, system = (Message(role, role) for role in ("user", "assistant", "system"))
    assert client_tasks.as_question([user, assistant, system]) == (
        user,
        assistant,
        Message("user", "system"),
    )
    assert client_tasks.as_question([system, user]) == (Message("user", "system\n\nuser"),)
    assert client_tasks.as_question([system, user, assistant, user]) == (
        user,
        assistant,
        Message("user", "system\n\nuser"),
    )


def test_an_answer_in_json_has_all_its_keys() -> None:
    task = Task("title_generation", "title", "Tea", ("language",))
    assert json.loads(task.answer()) == {"title": "Tea", "language": ""}
    assert json.loads(task.answer("Coffee")) == {"title": "Coffee", "language": ""}
