"""Chats stay in their conversations: what single clients do, and what can go wrong with it."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pytest
from flask.testing import FlaskClient

from opendify.config.models import Model
from opendify.conversations import ChatRecord, ConversationRecord, JsonFileStore
from opendify.upstream import conversation_probe
from tests.support.fake_dify import (
    FOREVER,
    STREAM_HEAD,
    FakeDify,
    Request,
    Steps,
    chunk,
    head,
    refused,
)
from tests.support.remembering_dify import RememberingDify, Said

Messages = list[dict[str, Any]]

UUID = "99999999-9999-4999-8999-999999999999"


@pytest.fixture
def memory(dify: FakeDify) -> RememberingDify:
    memory = RememberingDify(lambda query: [f"re {query}"])
    dify.answer = memory
    dify.tells_of_its_app = True
    return memory


class Client:
    """One that sends the whole history with each turn, as ``messages`` has it."""

    def __init__(self, api: FlaskClient, **headers: str) -> None:
        self.api = api
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}
        self.messages: Messages = []

    def say(self, text: str, **fields: Any) -> str:
        """Asks, keeps the answer, and tells the conversation."""
        self.messages.append({"role": "user", "content": text})
        return self.send(**fields)

    def send(self, keeps: bool = True, **fields: Any) -> str:
        body = {"model": "tiny", "messages": self.messages, **fields}
        answer = self.ask(200, **body)
        if keeps:
            self.messages.append({"role": "assistant", "content": content_of(answer)})
        return str(answer["dify"]["conversation_id"])

    def ask(self, status: int, **body: Any) -> Any:
        """What is answered to the body of a request, with that status."""
        with self.api.post(
            "/v1/chat/completions",
            data=json.dumps(body),
            headers={**self.headers, "Content-Type": "application/json"},
        ) as response:
            assert response.status_code == status, response.text
            return response.get_json()


def content_of(answer: Any) -> str:
    return str(answer["choices"][0]["message"]["content"])


def chat(api: FlaskClient, chat_id: str = "chat-1", **headers: str) -> Client:
    return Client(api, X_OpenWebUI_Chat_Id=chat_id, **headers)


def named(client: Client, answer: str, parent: str) -> Client:
    client.headers |= {
        "X-OpenWebUI-Message-Id": answer,
        "X-OpenWebUI-User-Message-Parent-Id": parent,
    }
    return client


# --- clients that name no chat ------------------------------------------------------------------


def test_a_loop_that_sends_its_history_stays_in_one_conversation(
    api: FlaskClient, memory: RememberingDify
) -> None:
    client = Client(api)
    assert len({client.say(text) for text in ("one", "two", "three", "four")}) == 1
    assert [arrival.query for arrival in memory.arrivals] == ["one", "two", "three", "four"]


def test_a_client_that_sends_its_last_messages_stays_in_one_conversation(
    api: FlaskClient, memory: RememberingDify
) -> None:
    client = Client(api)
    found = set()
    for number in range(6):
        found.add(client.say(f"question {number}", user="ada"))
        del client.messages[:-4]
    assert len(found) == 1


def test_a_loop_with_changing_instructions_before_and_behind_stays_in_one_conversation(
    api: FlaskClient, memory: RememberingDify
) -> None:
    client = Client(api)
    found = set()
    for number in range(3):
        said = client.messages
        told = {"role": "system", "content": f"It is {number} o'clock."}
        client.messages = [told, *said, {"role": "user", "content": f"{number}"}, told]
        found.add(client.send())
        answer = client.messages[-1]
        client.messages = [*said, {"role": "user", "content": f"{number}"}, answer]
    assert len(found) == 1


def test_chats_that_begin_alike_stay_apart_and_each_where_it_is(
    api: FlaskClient, memory: RememberingDify
) -> None:
    clients = [Client(api), Client(api)]
    first = [client.say("hello") for client in clients]
    second = [client.say(f"I am number {i}") for i, client in enumerate(clients)]
    third = [client.say("who am I?") for client in clients]
    assert len(set(first)) == 2
    assert second == third
    assert set(second) == set(first)  # of equal ones, each may have the other's


def test_chats_that_meet_in_one_exchange_part_again(
    api: FlaskClient, memory: RememberingDify
) -> None:
    long, short = Client(api), Client(api)
    first = [long.say("a long story"), short.say("thanks")]
    assert long.say("thanks") == first[0]
    assert short.say("and now?") == first[1]
    assert long.say("and now?") == first[0]


def test_an_answer_that_is_taken_back_is_taken_back_in_dify_too(
    api: FlaskClient, memory: RememberingDify
) -> None:
    client = Client(api)
    first = client.say("one")
    client.say("two")
    del client.messages[2:]
    again = client.say("two")
    assert again != first
    assert memory.arrivals[-1].before == (("user", "one"), ("assistant", "re one"))
    assert client.say("three") == again


def test_chats_without_ids_wait_for_nobody(
    api: FlaskClient, dify: FakeDify, memory: RememberingDify
) -> None:
    client = Client(api)
    client.say("one")
    client.messages.append({"role": "user", "content": "two"})
    running = threading.Barrier(5)

    def answer(request: Request) -> Steps:
        if request.path == "/v1/chat-messages":
            running.wait(5)  # until all have come
        return memory(request)

    dify.answer = answer
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda: found.append(client.send(keeps=False))) for _ in range(5)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(set(found)) == 5


# --- what the client's names of its answers tell -----------------------------------------------


def test_an_only_message_after_the_named_answer_continues_the_chat(
    api: FlaskClient, memory: RememberingDify
) -> None:
    client = named(chat(api), "m1", "")
    first = client.say("one")
    client.messages = []
    assert named(client, "m2", "m1").say("two") == first
    client.messages = []
    assert named(client, "m3", "m2").say("three") == first


@pytest.mark.parametrize("parent", ["", "m1", "{{USER_MESSAGE_PARENT_ID}}"])
def test_an_only_message_after_another_answer_begins_anew(
    api: FlaskClient, memory: RememberingDify, parent: str
) -> None:
    client = named(chat(api), "m1", "")
    client.say("one")
    first = named(client, "m2", "m1").say("two")
    client.messages = []
    assert named(client, "m3", parent).say("three") != first


def test_an_answer_that_is_taken_back_from_a_chat_that_repeats_itself_is_known_by_its_name(
    api: FlaskClient, memory: RememberingDify
) -> None:
    client = named(chat(api), "m1", "")
    first = client.say("go on")
    assert named(client, "m2", "m1").say("go on") == first
    del client.messages[2:]
    assert named(client, "m3", "m1").say("go on") != first
    assert len(memory.arrivals[-1].before) == 2


def test_deleting_the_first_exchange_in_open_webui_begins_a_new_conversation(
    api: FlaskClient, memory: RememberingDify
) -> None:
    client = named(chat(api), "m1", "")
    client.say("my secret is 1234")
    named(client, "m2", "m1").say("two")
    first = named(client, "m3", "m2").say("three")
    del client.messages[:2]
    again = named(client, "m4", "m3").say("what is my secret?")
    assert again != first
    assert [text for _, text in memory.arrivals[-1].before] == [
        "two",
        "re two",
        "three",
        "re three",
    ]
    assert named(client, "m5", "m4").say("go on") == again


# --- branches -----------------------------------------------------------------------------------


@pytest.mark.parametrize("headers", ["a header", "metadata"])
def test_going_back_to_a_branch_goes_on_in_its_conversation(
    api: FlaskClient, memory: RememberingDify, headers: str
) -> None:
    is_header = headers == "a header"
    client = chat(api) if is_header else Client(api)
    fields = {} if is_header else {"metadata": {"chat_id": "chat-1"}}
    first = client.say("one", **fields)
    assert client.say("two", **fields) == first
    left = list(client.messages)
    del client.messages[2:]
    second = client.say("two, otherwise", **fields)
    assert second != first
    other, client.messages = client.messages, left
    assert client.say("three", **fields) == first
    client.messages = other
    assert client.say("four", **fields) == second
    assert len(memory.conversations) == 2


def test_a_request_beside_the_chat_becomes_a_branch_and_costs_nothing(
    api: FlaskClient, memory: RememberingDify
) -> None:
    client = chat(api)
    first = client.say("one")
    beside = chat(api)
    assert beside.say("Name this conversation: one") != first
    assert client.say("two") == first
    assert beside.say("Shorter, please") not in (first, "")
    assert client.say("three") == first


def test_the_branch_used_longest_ago_is_forgotten_but_stays_its_owner_s(
    api: FlaskClient, memory: RememberingDify
) -> None:
    client = chat(api)
    found = []
    for number in range(9):
        client.messages = []
        found.append(client.say(f"question {number}"))
    assert len(set(found)) == 9
    asked: Messages = [{"role": "user", "content": "hi"}]
    answer = client.ask(200, model="tiny", messages=asked, conversation_id=found[0])
    assert answer["dify"]["conversation_id"] == found[0]
    client.messages = [
        {"role": "user", "content": "question 8"},
        {"role": "assistant", "content": "re question 8"},
    ]
    assert client.say("next") == found[8]


# --- what a client shows otherwise than it was sent ---------------------------------------------

WRAPPED = [
    pytest.param(
        "### Aufgabe:\nAntworte\n<context>\nx\n</context>\n{}", id="a translated template"
    ),
    pytest.param(
        "### Task:\nx\n<context>\ny\n</context>\n{}\n\nAgain: {}", id="the question twice"
    ),
    pytest.param("{}\n\nUse this: y", id="the question first"),
    pytest.param("[2026-12-01 10:00] {}", id="a time stamp"),
    pytest.param("{} /no_think", id="a switch"),
]


@pytest.mark.parametrize("template", WRAPPED)
@pytest.mark.parametrize("names", [True, False])
@pytest.mark.parametrize("footer", ["", "\n\n-- the assistant"])
def test_a_chat_whose_texts_a_filter_changes_stays_in_its_conversation(
    api: FlaskClient, memory: RememberingDify, template: str, names: bool, footer: str
) -> None:
    client = chat(api)
    found = set()
    for number, text in enumerate(("what?", "more?", "plain", "and?")):
        if names:
            named(client, f"m{number + 1}", f"m{number}" if number else "")
        found.add(client.say(template.replace("{}", text)))
        question, answer = client.messages[-2:]
        question["content"] = text
        answer["content"] += footer
    assert len(found) == 1


def test_an_outlet_filter_that_changes_the_whole_answer_is_known_by_the_answer_s_name(
    api: FlaskClient, memory: RememberingDify
) -> None:
    client = chat(api)
    found = set()
    for number in range(4):
        named(client, f"m{number + 1}", f"m{number}" if number else "")
        found.add(client.say(f"question {number}"))
        client.messages[-1]["content"] = f"Antwort {number}"
    assert len(found) == 1


def test_what_has_come_back_once_and_is_changed_then_is_an_edit(
    api: FlaskClient, memory: RememberingDify
) -> None:
    client = chat(api)
    first = client.say("[10:00] one")
    client.messages[0]["content"] = "one"
    assert client.say("two") == first
    client.messages[0]["content"] = "one!"
    assert client.say("three") != first


# --- a chat whose memory is left to Dify --------------------------------------------------------


def test_a_script_that_names_its_chat_and_sends_its_last_message_stays_in_one_conversation(
    api: FlaskClient, memory: RememberingDify
) -> None:
    client, metadata = Client(api), {"chat_id": "chat-1"}
    found = []
    for text in ("one", "two", "two", "one"):
        client.messages = []
        found.append(client.say(text, metadata=metadata))
    assert len(set(found)) == 1


def script(api: FlaskClient) -> Callable[..., str]:
    """Sends a chat id and one message; returns the conversation."""

    def say(text: str, status: int = 200, **fields: Any) -> str:
        messages = [{"role": "user", "content": text}]
        body = {"model": "tiny", "messages": messages, "metadata": {"chat_id": "s"}, **fields}
        answer = Client(api).ask(status, **body)
        return str(answer["dify"]["conversation_id"]) if status == 200 else ""

    return say


@pytest.mark.parametrize("trouble", ["502", "run 502", "run 504", "500", "run page", "302", "cut"])
def test_a_chat_left_to_dify_stays_in_its_conversation_whatever_happens_to_a_turn(
    api: FlaskClient, memory: RememberingDify, trouble: str
) -> None:
    say = script(api)
    first = say("one")
    memory.trouble.append(trouble)
    with suppress(AssertionError):  # whichever error it is
        say("two")
    assert say("three") == first
    assert say("four", stop=[" fo"]) == first
    assert say("five") == first


def test_a_chat_left_to_dify_stays_in_its_conversation_after_a_first_turn_that_broke_off(
    api: FlaskClient, memory: RememberingDify
) -> None:
    say = script(api)
    memory.trouble.append("cut")
    say("one", status=502)
    first = memory.arrivals[-1].conversation_id
    assert say("two") == first
    assert say("three") == first


def test_a_first_question_is_sent_again_in_a_new_conversation_after_it_broke_off(
    api: FlaskClient, memory: RememberingDify
) -> None:
    say = script(api)
    memory.trouble.append("cut")
    say("one", status=502)
    again = say("one")
    assert again != memory.arrivals[0].conversation_id
    assert say("two") == again


def test_answers_beside_the_chat_push_no_branch_of_it_out(
    api: FlaskClient, memory: RememberingDify
) -> None:
    client = chat(api)
    first = client.say("one")
    for number in range(10):
        asked = [*client.messages, {"role": "system", "content": f"Sum up, {number}"}]
        client.ask(200, model="tiny", messages=asked)
    assert client.say("two") == first


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_whole_answer_whose_end_the_caller_did_not_wait_for_is_in_the_conversation(
    api: FlaskClient, memory: RememberingDify, wrapped: bool
) -> None:
    """Also where the client shows the question otherwise, and a system message was sent."""
    client = chat(api)
    shown = {"role": "user", "content": "one"}
    sent = {"role": "user", "content": "[10:00] one"} if wrapped else shown
    messages = [{"role": "system", "content": "Be kind."}, sent]
    body = {"model": "tiny", "messages": messages, "stream": True}
    response = api.post("/v1/chat/completions", json=body, headers=client.headers, buffered=False)
    events = iter(response.response)
    while b"re " not in bytes(next(events)):
        pass
    for _ in memory_finished(memory):
        pass
    response.close()
    first = memory.arrivals[-1].conversation_id
    answer = memory.conversations[first].messages[-1]["answer"]
    client.messages = [messages[0], shown, {"role": "assistant", "content": answer}]
    assert client.say("two") == first


def memory_finished(memory: RememberingDify) -> Iterator[None]:
    """Until Dify has the whole answer."""
    conversation = memory.conversations[memory.arrivals[-1].conversation_id]
    deadline = time.monotonic() + 20
    while not conversation.messages[-1]["answer"] and time.monotonic() < deadline:
        time.sleep(0.01)
        yield


def test_a_first_message_that_is_sent_again_gets_a_new_conversation(
    api: FlaskClient, memory: RememberingDify
) -> None:
    client, metadata = Client(api), {"chat_id": "chat-1"}
    first = client.say("one", metadata=metadata)
    client.messages = []
    again = client.say("one", metadata=metadata)
    assert again != first
    client.messages = []
    assert client.say("two", metadata=metadata) == again


def test_a_first_message_that_is_edited_by_a_client_that_sends_histories_is_a_branch(
    api: FlaskClient, memory: RememberingDify
) -> None:
    client, metadata = Client(api), {"chat_id": "chat-1"}
    first = client.say("one", metadata=metadata)
    assert client.say("two", metadata=metadata) == first
    client.messages = []
    assert client.say("one, otherwise", metadata=metadata) != first
    assert memory.arrivals[-1].before == ()


# --- what is not certain to be in dify's memory -------------------------------------------------


def test_a_chat_with_an_answer_cut_at_a_stop_sequence_gets_a_new_conversation(
    api: FlaskClient, memory: RememberingDify
) -> None:
    memory.reply = lambda query: ["one two", " three"]
    client = chat(api)
    first = client.say("count", stop=[" thr"])
    assert client.messages[-1]["content"] == "one two"
    assert client.say("on") != first
    assert memory.arrivals[-1].before == (("user", "count"), ("assistant", "one two"))


def test_a_stop_sequence_that_does_not_come_changes_nothing(
    api: FlaskClient, memory: RememberingDify
) -> None:
    client = chat(api)
    assert client.say("one", stop=["nowhere"]) == client.say("two", stop=["nowhere"])


@pytest.mark.parametrize(
    ("steps", "status", "goes_on"),
    [
        pytest.param([STREAM_HEAD, FOREVER], 504, True, id="silence"),
        pytest.param([STREAM_HEAD], 502, True, id="an early end"),
        pytest.param(
            refused(429, {"code": "too_many_requests", "message": "Too many", "status": 429}),
            429,
            True,
            id="refused",
        ),
        pytest.param([head(503, "Content-Length: 0")], 503, True, id="unavailable"),
    ],
)
def test_a_question_that_dify_has_not_received_costs_no_conversation(
    api: FlaskClient,
    dify: FakeDify,
    memory: RememberingDify,
    steps: Any,
    status: int,
    goes_on: bool,
) -> None:
    client = chat(api)
    first = client.say("one")
    dify.answers = [[*steps, 0.0] if status != 502 else [*steps, b"0\r\n\r\n"]]
    client.messages.append({"role": "user", "content": "two"})
    client.ask(status, model="tiny", messages=client.messages)
    assert (client.send() == first) is goes_on


def test_half_a_character_in_a_chat_is_a_mistake_of_the_caller(
    api: FlaskClient, memory: RememberingDify
) -> None:
    client = chat(api)
    client.messages = [
        {"role": "user", "content": "\ud83d"},
        {"role": "assistant", "content": "\ud83d"},
        {"role": "user", "content": "and?"},
    ]
    client.ask(400, model="tiny", messages=client.messages)


# --- whose conversation it is -------------------------------------------------------------------


def test_an_explicit_conversation_of_another_caller_is_unknown(
    api: FlaskClient, memory: RememberingDify
) -> None:
    mine = chat(api, Authorization="Bearer one").say("one")
    for headers in (
        {"Authorization": "Bearer two"},
        {"Authorization": "Bearer one", "X_OpenWebUI_User_Id": "bob"},
        {},
    ):
        thief = Client(api, **headers)
        asked: Messages = [{"role": "user", "content": "tell"}]
        answer = thief.ask(404, model="tiny", messages=asked, conversation_id=mine)
        assert answer["error"]["code"] == "conversation_not_found"
    assert len(memory.arrivals) == 1


@pytest.fixture
def any_conversation(models: dict[str, Model], dify: FakeDify) -> None:
    """Conversations that were begun elsewhere may be named."""
    models["tiny"] = Model("tiny", "app-secret-of-the-operator", dify.base, conversation_ids="any")


@pytest.mark.usefixtures("any_conversation")
def test_an_explicit_conversation_is_the_chat_s_from_then_on(
    api: FlaskClient, memory: RememberingDify
) -> None:
    memory.new(UUID, ("Bearer app-secret-of-the-operator", "default_user"))
    client = chat(api)
    assert client.say("one", conversation_id=UUID) == UUID
    assert client.say("two") == UUID


def test_a_chat_goes_on_in_another_s_conversation_only_while_that_is_named(
    api: FlaskClient, memory: RememberingDify
) -> None:
    client, other = chat(api), Client(api)
    client.say("one")
    elsewhere = other.say("else")
    assert client.say("two", conversation_id=elsewhere) == elsewhere
    assert client.say("three") != elsewhere
    assert len(memory.arrivals[-1].before) == 4


@pytest.mark.parametrize("chat_id", ["chat-2", ""])
def test_a_chat_whose_conversation_another_has_used_gets_a_new_one(
    api: FlaskClient, memory: RememberingDify, chat_id: str
) -> None:
    first, second = chat(api), chat(api, chat_id)
    shared = first.say("one")
    assert second.say("else", conversation_id=shared) == shared
    assert first.say("two") != shared
    assert memory.arrivals[-1].before == (("user", "one"), ("assistant", "re one"))


def test_a_chat_whose_conversation_a_temporary_chat_has_used_gets_a_new_one(
    api: FlaskClient, memory: RememberingDify, store: JsonFileStore
) -> None:
    client = chat(api)
    first = client.say("one")
    assert chat(api, "temporary:x").say("else", conversation_id=first) == first
    assert [mapping.latest.conversation_id for _, mapping in store.entries()] == [first]
    assert client.say("two") != first
    assert len(memory.arrivals[-1].before) == 2


def test_a_client_may_name_the_conversation_and_send_no_history(
    api: FlaskClient, memory: RememberingDify
) -> None:
    client, metadata = Client(api), {"chat_id": "chat-1"}
    first = client.say("one", metadata=metadata)
    for text in ("two", "three"):
        client.messages = []
        assert client.say(text, metadata=metadata, conversation_id=first) == first
    assert client.say("four", metadata=metadata) == first  # by the end of what it contains
    assert len(memory.conversations) == 1


@pytest.fixture
def legacy(store: JsonFileStore, memory: RememberingDify) -> JsonFileStore:
    """An entry of an earlier system, for bob's conversation."""
    store.adopt({"chat-1": ChatRecord((ConversationRecord(UUID, 1, 1),))})
    return store


HISTORY: list[Said] = [("user", "before"), ("assistant", "yes")]


def with_history(client: Client) -> Client:
    client.messages = [{"role": role, "content": text} for role, text in HISTORY]
    return client


def remember(memory: RememberingDify, user: str) -> None:
    from_before = memory.new(UUID, ("Bearer app-secret-of-the-operator", user))
    from_before.said += HISTORY


def test_an_earlier_entry_is_its_user_s_alone(
    api: FlaskClient, memory: RememberingDify, legacy: JsonFileStore
) -> None:
    remember(memory, "bob")
    ada = with_history(chat(api, X_OpenWebUI_User_Id="ada"))
    assert ada.say("hi") != UUID
    assert legacy.get("chat-1") is not None
    bob = with_history(chat(api, X_OpenWebUI_User_Id="bob"))
    assert bob.say("hi") == UUID
    assert legacy.get("chat-1") is None
    assert bob.say("and?") == UUID


def test_an_earlier_entry_survives_a_refusal(
    api: FlaskClient, memory: RememberingDify, legacy: JsonFileStore
) -> None:
    remember(memory, "bob")
    bob = with_history(chat(api, X_OpenWebUI_User_Id="bob"))
    bob.messages.append({"role": "user", "content": "hi"})
    memory.trouble = ["busy"]
    bob.ask(429, model="tiny", messages=bob.messages)
    assert bob.send() == UUID


def test_an_earlier_entry_of_which_dify_knows_nothing_is_not_used(
    api: FlaskClient, dify: FakeDify, memory: RememberingDify, legacy: JsonFileStore
) -> None:
    remember(memory, "bob")
    broken = refused(500, {"code": "internal_server_error", "message": "", "status": 500})
    dify.answer = lambda request: broken if "/messages?" in request.path else memory(request)
    assert with_history(chat(api, X_OpenWebUI_User_Id="bob")).say("hi") != UUID
    assert legacy.get("chat-1") is not None


# --- chatflows that hang in an unknown conversation ---------------------------------------------


@pytest.fixture
def hanging(
    dify: FakeDify, memory: RememberingDify, monkeypatch: pytest.MonkeyPatch
) -> RememberingDify:
    """A Dify 1.13 whose chatflow says nothing of a conversation that it has not."""
    monkeypatch.setattr(conversation_probe, "SILENCE_SECONDS", 0.1)
    memory.modes = {"app-secret-of-the-operator": "advanced-chat"}

    def answer(request: Request) -> Steps:
        if request.path == "/v1/chat-messages":
            id_ = request.json["conversation_id"]
            if id_ and id_ not in memory.conversations:
                return [STREAM_HEAD, chunk(b"event: ping\n\n"), FOREVER]
        return versioned(memory(request))

    dify.answer = answer
    return memory


def versioned(steps: Steps) -> Iterator[Any]:
    for step in steps:
        is_head = isinstance(step, bytes) and step.startswith(b"HTTP/1.1")
        yield step.replace(b"\r\n", b"\r\nX-Version: 1.13.2\r\n", 1) if is_head else step  # type: ignore[attr-defined]


def asked_for(dify: FakeDify) -> int:
    return sum("/messages?" in request.path for request in dify.requests)


def test_a_deleted_conversation_is_noticed_beside_the_silent_run_and_the_turn_is_asked_anew(
    api: FlaskClient, dify: FakeDify, hanging: RememberingDify
) -> None:
    client = chat(api)
    first = client.say("one")
    assert client.say("two") == first
    assert asked_for(dify) == 0
    hanging.conversations.clear()
    second = client.say("three")
    assert second != first
    assert asked_for(dify) == 1
    assert [r.json["conversation_id"] for r in dify.asked()] == ["", first, first, ""]
    assert len(hanging.arrivals[-1].before) == 4
    assert client.say("four") == second


def test_a_deleted_conversation_is_noticed_in_a_streamed_response_too(
    api: FlaskClient, dify: FakeDify, hanging: RememberingDify
) -> None:
    client = chat(api)
    first = client.say("one")
    hanging.conversations.clear()
    messages = [*client.messages, {"role": "user", "content": "two"}]
    body = {"model": "tiny", "messages": messages, "stream": True}
    with api.post("/v1/chat/completions", json=body, headers=client.headers) as response:
        assert '"content":"re two"' in response.text
    assert hanging.arrivals[-1].conversation_id != first
    assert hanging.arrivals[-1].before == (("user", "one"), ("assistant", "re one"))


def test_a_run_that_is_only_slow_goes_on_while_dify_looks_for_its_conversation(
    api: FlaskClient, dify: FakeDify, hanging: RememberingDify
) -> None:
    client = chat(api)
    first = client.say("one")
    looked = threading.Event()
    answered = threading.Event()
    usual = dify.answer

    def answer(request: Request) -> Steps:
        if "/messages?" in request.path:
            return waits_for(answered, looked, usual(request))
        if request.path == "/v1/chat-messages":
            return slow(looked, usual(request))
        return usual(request)

    dify.answer = answer
    assert client.say("two") == first  # while the look-up is still running
    answered.set()
    assert len(dify.asked()) == 2


def waits_for(answered: threading.Event, looked: threading.Event, steps: Steps) -> Iterator[Any]:
    looked.set()
    assert answered.wait(20)
    yield from steps


def slow(looked: threading.Event, steps: Steps) -> Iterator[Any]:
    for number, step in enumerate(steps):
        if number == 1:
            yield chunk(b"event: ping\n\n")
            assert looked.wait(20)
        yield step


def test_a_run_stays_where_it_is_when_dify_cannot_say_whether_its_conversation_exists(
    api: FlaskClient, dify: FakeDify, hanging: RememberingDify
) -> None:
    client = chat(api)
    first = client.say("one")
    looked = threading.Event()
    usual = dify.answer

    def answer(request: Request) -> Steps:
        if "/messages?" in request.path:
            looked.set()
            return refused(500, {"code": "internal_server_error", "message": "", "status": 500})
        if request.path == "/v1/chat-messages":
            return slow(looked, usual(request))
        return usual(request)

    dify.answer = answer
    assert client.say("two") == first
    assert len(dify.asked()) == 2


@pytest.mark.usefixtures("any_conversation")
def test_an_explicit_conversation_that_is_lost_is_refused_and_nothing_is_asked_elsewhere(
    api: FlaskClient, dify: FakeDify, hanging: RememberingDify
) -> None:
    asked: Messages = [{"role": "user", "content": "hi"}]
    chat(api).ask(404, model="tiny", messages=asked, conversation_id=UUID)
    assert [r.json["conversation_id"] for r in dify.asked()] == [UUID]


# --- turns of one chat at once ------------------------------------------------------------------


def test_a_turn_beside_a_running_one_gets_a_branch_of_its_own_and_waits_for_nothing(
    api: FlaskClient, dify: FakeDify, memory: RememberingDify
) -> None:
    asked, answered = threading.Event(), threading.Event()

    def answer(request: Request) -> Steps:
        if request.path == "/v1/chat-messages" and request.json["query"] == "one":
            return long(memory(request))
        return memory(request)

    def long(steps: Steps) -> Iterator[Any]:
        asked.set()
        assert answered.wait(20)
        yield from steps

    dify.answer = answer
    first, second = chat(api), chat(api)
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(first.say("one")))
    thread.start()
    assert asked.wait(20)
    other = second.say("two")
    answered.set()
    thread.join(20)
    assert found != [other]
    assert first.say("three") == found[0]
    assert second.say("four") == other


def test_of_turns_that_continue_one_conversation_at_once_only_one_does(
    api: FlaskClient, dify: FakeDify, memory: RememberingDify
) -> None:
    client = chat(api)
    first = client.say("one")
    client.messages.append({"role": "user", "content": "two"})
    together = threading.Barrier(4)

    def answer(request: Request) -> Steps:
        if request.path == "/v1/chat-messages":
            together.wait(20)
        return memory(request)

    dify.answer = answer
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda: found.append(client.send(keeps=False))) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert found.count(first) == 1
    assert len(set(found)) == 4


# --- settings -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("continuity", "without_id", "with_id"),
    [("auto", 1, 1), ("always-new", 3, 3), ("off", 3, 1)],
)
def test_a_model_says_how_its_chats_are_continued(
    dify: FakeDify,
    memory: RememberingDify,
    models: dict[str, Model],
    api: FlaskClient,
    continuity: str,
    without_id: int,
    with_id: int,
) -> None:
    models["tiny"] = Model("tiny", "app-secret-of-the-operator", dify.base, continuity=continuity)
    nameless, client = Client(api), chat(api)
    assert len({nameless.say(text) for text in "abc"}) == without_id
    told = memory.arrivals[-1].before
    assert len(told) == (0 if continuity == "off" else 4)
    assert len({client.say(text) for text in "abc"}) == with_id
    assert len(memory.arrivals[-1].before) == 4
