"""What is asked in a turn: its messages, files and instructions, through the whole application."""

from typing import Any

import pytest
from flask.testing import FlaskClient

from opendify.config.models import Model
from tests.support.fake_dify import FakeDify
from tests.support.remembering_dify import RememberingDify
from tests.support.talking_dify import TalkingDify

PNG = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGA"
    "WjR9awAAAABJRU5ErkJggg=="
)
IMAGE = {"type": "image_url", "image_url": {"url": PNG}}
CONTINUE = "Please continue your last answer exactly where it stopped."


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def system(content: str, role: str = "system") -> dict[str, Any]:
    return {"role": role, "content": content}


def assistant(content: Any, **fields: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": content, **fields}


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value}


OK = assistant("ok")


@pytest.fixture
def memory(dify: FakeDify) -> RememberingDify:
    memory = RememberingDify(lambda query: ["ok"])
    dify.answer = memory
    dify.tells_of_its_app = True
    return memory


class Caller:
    """Sends requests, and knows what Dify was asked for the last one."""

    def __init__(self, api: FlaskClient, dify: FakeDify) -> None:
        self.api, self.dify = api, dify

    def ask(self, *messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
        """The body of the request that Dify got."""
        body = {"model": "tiny", "messages": messages, **fields}
        with self.api.post("/v1/chat/completions", json=body, buffered=True) as response:
            assert response.status_code == 200, response.text
        return self.dify.asked()[-1].json

    def refusal(self, *messages: dict[str, Any]) -> Any:
        body = {"model": "tiny", "messages": messages}
        with self.api.post("/v1/chat/completions", json=body) as response:
            assert response.status_code == 400, response.text
            return response.json["error"]


@pytest.fixture
def caller(api: FlaskClient, dify: FakeDify, memory: RememberingDify) -> Caller:
    return Caller(api, dify)


def ways(memory: RememberingDify) -> list[str]:
    """The number of the conversation of each question, in the order of their beginnings."""
    ids = [arrival.conversation_id for arrival in memory.arrivals]
    return [str(list(dict.fromkeys(ids)).index(id_)) for id_ in ids]


CHATS = [
    pytest.param({}, id="found by its history"),
    pytest.param({"metadata": {"chat_id": "c"}}, id="named"),
]


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("role", ["system", "developer"])
def test_an_instruction_after_the_answer_is_asked_beside_the_chat(
    caller: Caller, memory: RememberingDify, role: str, chat: dict[str, Any]
) -> None:
    question, summarize = user("How do I reset my password?"), "Summarize the discussion."
    caller.ask(question, **chat)
    body = caller.ask(question, OK, system(summarize, role), stream=True, **chat)
    assert body["query"] == (
        "The conversation so far:\n\nUser: How do I reset my password?\n\nAssistant: ok\n\n"
        "The user now says:\n\nSummarize the discussion."
    )
    assert caller.ask(question, OK, user("And by mail?"), **chat)["query"] == "And by mail?"
    assert ways(memory) == ["0", "1", "0"]


def test_instructions_before_the_answer_stay_instructions(caller: Caller) -> None:
    query = caller.ask(system("Be brief."), user("Hi"), OK, system("Make a title."))["query"]
    assert query.startswith("Be brief.\n\nThe conversation so far:")
    assert query.endswith("The user now says:\n\nMake a title.")


def test_an_instruction_after_the_question_stands_before_it(
    caller: Caller, memory: RememberingDify
) -> None:
    caller.ask(user("Hi"))
    said = [user("Hi"), OK, user("Bye")]
    assert caller.ask(*said, system("Be kind."))["query"] == "Be kind.\n\nBye"
    assert caller.ask(*said, OK, user("Ciao"), system("Be kind."))["query"] == "Ciao"
    assert ways(memory) == ["0", "0", "0"]


@pytest.mark.parametrize("chat", CHATS)
def test_a_picture_in_a_message_of_its_own_is_sent(caller: Caller, chat: dict[str, Any]) -> None:
    for messages in ([user([IMAGE]), user("what is it?")], [user("what is it?"), user([IMAGE])]):
        body = caller.ask(*messages, **chat)
        assert body["query"] == "what is it?"
        assert [file["type"] for file in body["files"]] == ["image"]


@pytest.mark.parametrize("chat", CHATS)
def test_a_picture_after_a_text_stays_in_the_conversation(
    caller: Caller, memory: RememberingDify, chat: dict[str, Any]
) -> None:
    caller.ask(user("hello"), **chat)
    messages = [user("hello"), OK, user("what is in this picture?"), user([IMAGE])]
    body = caller.ask(*messages, **chat)
    assert (body["query"], len(body["files"])) == ("what is in this picture?", 1)
    body = caller.ask(*messages, OK, user("thanks"), **chat)
    assert body["query"] == "thanks"
    assert "files" not in body
    assert ways(memory) == ["0", "0", "0"]


def test_texts_and_pictures_of_several_messages_are_sent_together(caller: Caller) -> None:
    body = caller.ask(user([IMAGE]), user([text("look"), IMAGE]), user("at this"), user([IMAGE]))
    assert body["query"] == "look\n\nat this"
    assert len(body["files"]) == 3


@pytest.mark.parametrize("chat", CHATS)
def test_messages_in_a_row_are_one_turn_of_the_conversation(
    caller: Caller, memory: RememberingDify, chat: dict[str, Any]
) -> None:
    messages = [user("say hello")]
    assert caller.ask(*messages, **chat)["query"] == "say hello"
    messages += [OK, user("very nice"), user("who are you?")]
    assert caller.ask(*messages, **chat)["query"] == "very nice\n\nwho are you?"
    messages += [OK, user("fine"), user(""), user("thanks")]
    assert caller.ask(*messages, **chat)["query"] == "fine\n\nthanks"
    messages += [OK, user("bye")]
    assert caller.ask(*messages, **chat)["query"] == "bye"
    assert ways(memory) == ["0"] * 4


def test_results_of_tools_are_one_turn_of_the_conversation(
    caller: Caller, memory: RememberingDify
) -> None:
    caller.ask(user("2+2, 3+3"))
    called = assistant(None, tool_calls=[{"id": "1"}, {"id": "2"}])
    results = [
        {"role": "tool", "name": "add", "tool_call_id": "1", "content": "4"},
        {"role": "tool", "name": "add", "tool_call_id": "2", "content": "6"},
    ]
    body = caller.ask(user("2+2, 3+3"), called, *results)
    assert body["query"].endswith("\n\nTool result (add): 4\n\nTool result (add): 6")


@pytest.mark.parametrize("role", ["system", "developer"])
def test_the_last_instruction_asks_where_nobody_else_does(caller: Caller, role: str) -> None:
    greet = system("Please introduce yourself to the user.", role)
    body = caller.ask(system("You are a voice bot."), greet)
    assert body["query"] == "You are a voice bot.\n\nPlease introduce yourself to the user."
    assert caller.ask(greet)["query"] == "Please introduce yourself to the user."


def test_a_chat_that_an_instruction_has_begun_goes_on_in_its_conversation(
    caller: Caller, memory: RememberingDify
) -> None:
    greet, chat = system("Greet the user."), {"metadata": {"chat_id": "c"}}
    caller.ask(greet, **chat)
    assert caller.ask(greet, OK, user("Hi"), **chat)["query"] == "Hi"
    assert ways(memory) == ["0", "0"]


@pytest.mark.parametrize("chat", CHATS)
@pytest.mark.parametrize("content", ["", None, "   ", [], [text("")]], ids=repr)
def test_an_empty_answer_at_the_end_is_left_out(
    caller: Caller, memory: RememberingDify, content: Any, chat: dict[str, Any]
) -> None:
    empty = assistant(content)
    assert caller.ask(user("hello"), empty, **chat)["query"] == "hello"
    assert caller.ask(user("hello"), OK, user("bye"), empty, empty, **chat)["query"] == "bye"
    body = caller.ask(user("hello"), OK, user("bye"), OK, empty, **chat)
    assert body["query"] == CONTINUE
    assert ways(memory) == ["0", "0", "0"]


OLD = [
    pytest.param(
        [
            user("draw"),
            assistant(
                [text("here"), {"type": "image_url", "image_url": {"url": "/api/v1/files/x"}}]
            ),
        ],
        "User: draw\n\nAssistant: [image] here",
        id="a relative address in an answer",
    ),
    pytest.param(
        [user([text("see"), {"type": "image_url", "image_url": {"url": "blob:http://x/y"}}]), OK],
        "User: [image] see\n\nAssistant: ok",
        id="a blob",
    ),
    pytest.param(
        [user([text("see"), {"type": "document", "source": {}}]), OK],
        "User: [file] see\n\nAssistant: ok",
        id="an unknown part",
    ),
    pytest.param(
        [user([{"type": "image_url", "image_url": {"url": "data:image/png;base64,*"}}]), OK],
        "User: [image]\n\nAssistant: ok",
        id="broken data",
    ),
    pytest.param(
        [user([text("see"), IMAGE, IMAGE]), OK],
        "User: [image] [image] see\n\nAssistant: ok",
        id="pictures that could be sent",
    ),
]


@pytest.mark.parametrize(("history", "told"), OLD)
def test_files_of_earlier_messages_are_named_and_never_refused(
    caller: Caller, memory: RememberingDify, history: list[dict[str, Any]], told: str
) -> None:
    body = caller.ask(*history, user("next"))
    assert body["query"] == (f"The conversation so far:\n\n{told}\n\nThe user now says:\n\nnext")
    assert "files" not in body
    assert caller.ask(*history, user("next"), OK, user("and on"))["query"] == "and on"
    assert ways(memory) == ["0", "0"]


def test_a_picture_that_later_has_an_address_of_the_client_is_the_same_message(
    caller: Caller, memory: RememberingDify
) -> None:
    caller.ask(user([text("see"), IMAGE]))
    blob = {"type": "image_url", "image_url": {"url": "blob:http://x/y"}}
    assert caller.ask(user([text("see"), blob]), OK, user("next"))["query"] == "next"
    assert ways(memory) == ["0", "0"]


def test_the_result_of_a_tool_in_an_unknown_part_is_named(caller: Caller) -> None:
    result = {"role": "tool", "tool_call_id": "1", "content": [{"type": "resource", "x": 1}]}
    body = caller.ask(user("x"), assistant(None), result, user("next"))
    assert body["query"].endswith("Tool result (tool): [file]\n\nnext")


def test_a_file_of_the_turn_that_cannot_be_used_is_refused_by_its_name(caller: Caller) -> None:
    blob = {"type": "image_url", "image_url": {"url": "blob:http://x/y"}}
    broken = {"type": "image_url", "image_url": {"url": "data:image/png;base64,*"}}
    for part in (blob, broken):
        error = caller.refusal(user("hello"), OK, user([part]), user("look"))
        assert error["param"] == "messages[2].content[0].image_url"


@pytest.mark.parametrize(
    "messages", [[user("")], [system(" ")], [user("a"), OK, user(" ")], [assistant("")]], ids=repr
)
def test_a_request_that_asks_nothing_is_refused(
    caller: Caller, messages: list[dict[str, Any]]
) -> None:
    assert caller.refusal(*messages)["param"] == "messages"


def test_a_chat_in_chinese_is_told_in_chinese(caller: Caller) -> None:
    body = caller.ask(user("什么是鱼？"), assistant("一种动物。"), user("那鸟呢？"))
    assert body["query"] == (
        "此前的对话：\n\n用户：什么是鱼？\n\n助手：一种动物。\n\n用户现在说：\n\n那鸟呢？"
    )


@pytest.mark.parametrize("mode", ["workflow", "completion"])
@pytest.mark.parametrize("history", ["", "query"])
def test_an_app_without_memory_gets_the_turn_alone_unless_the_operator_wants_more(
    dify: FakeDify, models: dict[str, Model], api: FlaskClient, mode: str, history: str
) -> None:
    models["tiny"] = Model("tiny", "app-x", dify.base, history=history)
    dify.answer = talking = TalkingDify(mode=mode)
    dify.tells_of_its_app = True
    messages = [user("Good morning"), assistant("Guten Morgen"), user("Good"), user("night")]
    body = {"model": "tiny", "messages": messages}
    with api.post("/v1/chat/completions", json=body) as response:
        assert response.status_code == 200, response.text
    told = talking.runs[-1]["inputs"]["query"]
    if history:
        assert told.startswith("The conversation so far:\n\nUser: Good morning")
    assert told.endswith("Good\n\nnight")
    assert (told == "Good\n\nnight") is not bool(history)
