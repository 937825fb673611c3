"""Chats stay in their conversations: what single clients do, and what can go wrong with it."""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from flask.testing import FlaskClient

from opendify.config.models import Model
from opendify.conversations import ConversationRecord, JsonFileStore
from opendify.conversations.locks.files import FileTurnLocks
from tests.support.application import make_settings, open_app
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
    assert [mapping.conversation_id for _, mapping in store.entries()] == [first]
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
    store.adopt({"chat-1": ConversationRecord(UUID, 1, 1)})
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
def hanging(dify: FakeDify, memory: RememberingDify) -> RememberingDify:
    """A Dify 1.13 whose chatflow says nothing of a conversation that it has not."""
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


@pytest.fixture
def aged(
    http: httpx.Client, tmp_path: Path, models: dict[str, Model]
) -> Iterator[tuple[FlaskClient, Callable[[float], None]]]:
    """An application, and what lets time pass for it."""
    times = [1_000_000_000.0]

    def wait(seconds: float) -> None:
        times[0] += seconds

    with open_app(make_settings(models, tmp_path), http, clock=lambda: times[0]) as app:
        yield app.test_client(), wait


def asked_for(dify: FakeDify) -> int:
    return sum("/messages?" in request.path for request in dify.requests)


def test_a_lost_conversation_heals_before_it_can_hang(
    aged: tuple[FlaskClient, Callable[[float], None]], dify: FakeDify, hanging: RememberingDify
) -> None:
    api, wait = aged
    client = chat(api)
    first = client.say("one")
    wait(299)
    assert client.say("two") == first
    assert asked_for(dify) == 0
    wait(301)
    assert client.say("three") == first
    assert asked_for(dify) == 1
    hanging.conversations.clear()
    wait(301)
    assert client.say("four") != first
    assert [r.json["conversation_id"] for r in dify.asked()] == ["", first, first, ""]
    assert len(hanging.arrivals[-1].before) == 6


def test_a_conversation_lost_in_the_last_minutes_costs_one_error_and_no_more(
    api: FlaskClient, dify: FakeDify, hanging: RememberingDify
) -> None:
    client = chat(api)
    first = client.say("one")
    hanging.conversations.clear()
    client.messages.append({"role": "user", "content": "two"})
    client.ask(504, model="tiny", messages=client.messages)
    assert len(dify.asked()) == 2  # never repeated
    assert client.send() != first
    assert hanging.arrivals[-1].before == (("user", "one"), ("assistant", "re one"))


@pytest.mark.usefixtures("any_conversation")
def test_an_explicit_conversation_that_is_lost_is_refused_before_it_can_hang(
    api: FlaskClient, dify: FakeDify, hanging: RememberingDify
) -> None:
    asked: Messages = [{"role": "user", "content": "hi"}]
    chat(api).ask(404, model="tiny", messages=asked, conversation_id=UUID)
    assert dify.asked() == []


# --- turns of one chat at once ------------------------------------------------------------------


def test_a_later_turn_waits_until_the_conversation_is_known_and_no_longer(
    api: FlaskClient, dify: FakeDify, memory: RememberingDify
) -> None:
    """The first answer goes on until the other turn is over, which is not put into its
    conversation."""
    happened: list[str] = []
    asked, answered = threading.Event(), threading.Event()

    def answer(request: Request) -> Steps:
        if request.path != "/v1/chat-messages":
            return memory(request)
        happened.append(f"asked {request.json['query']}")
        return long(memory(request)) if request.json["query"] == "one" else memory(request)

    def long(steps: Steps) -> Iterator[Any]:
        asked.set()
        yield 0.3  # for the other turn to come, and to wait
        for number, step in enumerate(steps):
            if number == 1:  # the first event
                happened.append("named")
            yield step
            if number == 1:
                answered.wait(20)

    dify.answer = answer
    found: dict[str, str] = {}

    def ask(text: str) -> None:
        found[text] = chat(api).say(text)

    first = threading.Thread(target=ask, args=("one",))
    first.start()
    assert asked.wait(20)
    ask("two")
    assert "one" not in found
    answered.set()
    first.join(20)
    assert happened == ["asked one", "named", "asked two"]
    assert found["one"] != found["two"]


def test_a_caller_that_leaves_while_it_waits_costs_no_run(
    api: FlaskClient, memory: RememberingDify, tmp_path: Path
) -> None:
    key = json.dumps(["-", "tiny", "default_user", "chat-1"], separators=(",", ":"))
    held = FileTurnLocks(tmp_path / "data").acquire(key, time.monotonic() + 1, lambda: False)
    assert held is not None
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours:
        response = api.post(
            "/v1/chat/completions",
            json={"model": "tiny", "messages": [{"role": "user", "content": "hi"}]},
            headers=chat(api).headers,
            environ_overrides={"gunicorn.socket": ours},
        )
    held.release()
    assert response.status_code == 499
    assert memory.arrivals == []


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
