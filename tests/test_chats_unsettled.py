"""A restart of Dify, a timeout or a killed worker costs no chat its conversation: before the next
turn, Dify is asked whether it has received the question."""

import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
from flask.testing import FlaskClient

from opendify.config.models import Model
from opendify.conversations import JsonFileStore, Update
from tests.support.fake_dify import (
    CLOSE,
    FOREVER,
    FakeDify,
    Request,
    Steps,
    recording,
    refused,
)
from tests.support.remembering_dify import NOT_TAKEN, RememberingDify
from tests.support.service import Service, free_variables, running
from tests.test_resolver import Client, asked_for, chat, memory

__all__ = ["memory"]

KEY = "app-secret-of-the-operator"


def fail(client: Client, text: str, **fields: Any) -> None:
    """A turn that is answered with an error; the client keeps its question, and can send again."""
    client.messages.append({"role": "user", "content": text})
    body = {"model": "tiny", "messages": client.messages, **fields}
    with client.api.post(
        "/v1/chat/completions", json=body, headers=client.headers, buffered=True
    ) as response:
        assert response.status_code >= 500, response.get_data()


def begun(api: FlaskClient, how: str) -> tuple[Client, str]:
    """A client that has said two things, and its conversation."""
    client = chat(api) if how == "a chat id" else Client(api)
    first = client.say("one")
    assert client.say("two") == first
    return client, first


WAYS = pytest.mark.parametrize("how", ["a chat id", "no chat id"])
PAGES = pytest.mark.parametrize("page", sorted(NOT_TAKEN))


@WAYS
@PAGES
def test_a_page_instead_of_dify_costs_no_conversation(
    api: FlaskClient, dify: FakeDify, memory: RememberingDify, how: str, page: str
) -> None:
    client, first = begun(api, how)
    for _ in range(3):
        memory.trouble = [page]
        fail(client, "three")
        client.messages.pop()
    assert client.say("three") == first
    looks = asked_for(dify)
    assert client.say("four") == first
    assert asked_for(dify) == looks <= 3  # a healthy turn asks nothing
    assert len(memory.conversations) == 1


@WAYS
def test_a_dify_that_is_away_for_a_while_costs_no_conversation(
    api: FlaskClient, dify: FakeDify, memory: RememberingDify, how: str
) -> None:
    """It cannot even be asked for the messages."""
    client, first = begun(api, how)
    dify.answer = lambda request: NOT_TAKEN["502"]
    for _ in range(3):
        fail(client, "three")
        client.messages.pop()
    dify.answer = memory
    assert client.say("three") == first


@WAYS
@PAGES
def test_a_question_that_has_run_is_not_asked_again_in_its_conversation(
    api: FlaskClient, memory: RememberingDify, how: str, page: str
) -> None:
    client, first = begun(api, how)
    memory.trouble = [f"run {page}"]
    fail(client, "three")
    again = client.send()
    assert again != first
    assert [text for _, text in memory.arrivals[-1].before] == ["one", "re one", "two", "re two"]
    assert client.say("four") == again


@WAYS
@PAGES
@pytest.mark.parametrize("ran", ["", "run "])
def test_a_question_that_is_taken_back_or_changed(
    api: FlaskClient, memory: RememberingDify, how: str, page: str, ran: str
) -> None:
    client, first = begun(api, how)
    memory.trouble = [f"{ran}{page}"]
    fail(client, "three")
    client.messages.pop()
    assert (client.say("something else") == first) is (ran == "")
    assert len(memory.arrivals[-1].before) == 4


@WAYS
@pytest.mark.parametrize("ran", ["", "run "])
def test_a_question_that_repeats_the_one_before(
    api: FlaskClient, memory: RememberingDify, how: str, ran: str
) -> None:
    client = chat(api) if how == "a chat id" else Client(api)
    first = client.say("start")
    assert client.say("go on") == first
    memory.trouble = [f"{ran}502"]
    fail(client, "go on")
    assert (client.send() == first) is (ran == "")


@pytest.mark.parametrize("mode", ["chat", "agent-chat", "advanced-chat"])
@pytest.mark.parametrize("system", ["first", "every", "drop"])
@pytest.mark.parametrize("ran", ["", "run "])
def test_instructions_and_inputs_do_not_hide_the_question(
    api: FlaskClient,
    dify: FakeDify,
    memory: RememberingDify,
    models: dict[str, Model],
    mode: str,
    system: str,
    ran: str,
) -> None:
    memory.modes = {KEY: mode}
    models["tiny"] = Model("tiny", KEY, dify.base, system=system)
    client = chat(api)
    client.messages = [{"role": "system", "content": "Be kind. \n\n Be brief."}]
    first = client.say("one", inputs={"a": "b"})
    assert client.say(" two\n\n\0three ") == first
    memory.trouble = [f"{ran}502"]
    fail(client, " four  \n\n five ")
    assert (client.send() == first) is (ran == "")


def test_a_chat_whose_first_question_failed_begins_anew(
    api: FlaskClient, memory: RememberingDify
) -> None:
    client = chat(api)
    memory.trouble = ["502"]
    fail(client, "one")
    first = client.send()
    assert memory.arrivals[-1].before == ()
    assert client.say("two") == first


@pytest.mark.parametrize("how", ["a chat id", "no chat id"])
def test_an_answer_that_broke_off_after_dify_had_all_of_it(
    api: FlaskClient, dify: FakeDify, memory: RememberingDify, how: str
) -> None:
    """The client keeps what it got: where that is what Dify keeps, the chat goes on there."""
    client, first = begun(api, how)

    def without_an_end(request: Request) -> Steps:
        steps = memory(request)
        return [*list(steps)[:2], CLOSE] if request.path == "/v1/chat-messages" else steps

    dify.answer = without_an_end
    fail(client, "three")
    dify.answer = memory
    kept = {"role": "assistant", "content": "re three"}
    client.messages.append(kept)
    if how == "a chat id":
        assert client.say("four") == first
        assert len(memory.arrivals[-1].before) == 6
    client.messages[5:] = [{"role": "assistant", "content": "re thr"}]
    assert client.say("four") != first
    assert len(memory.arrivals[-1].before) == 6


@pytest.mark.parametrize("told", ["error", "nothing", "gone", "no list"])
def test_a_chat_gets_a_new_conversation_where_dify_cannot_say_what_it_has(
    api: FlaskClient, dify: FakeDify, memory: RememberingDify, told: str
) -> None:
    client, first = begun(api, "a chat id")
    memory.trouble = ["502"]
    fail(client, "three")
    answers = {
        "error": refused(500, {"code": "internal_server_error", "message": "", "status": 500}),
        "nothing": refused(200, {"data": []}),
        "gone": refused(404, {"code": "not_found", "message": "Conversation Not Exists."}),
        "no list": refused(200, {"data": "x"}),
    }
    dify.answer = lambda r: answers[told] if "/messages?" in r.path else memory(r)
    assert client.send() != first
    assert len(memory.arrivals[-1].before) == 4


def test_a_message_from_elsewhere_is_not_in_the_history_of_the_client(
    api: FlaskClient, memory: RememberingDify
) -> None:
    client, first = begun(api, "a chat id")
    memory.trouble = ["502"]
    fail(client, "three")
    time.sleep(1)  # Dify's times are whole seconds
    memory.conversations[first].note("asked in Dify itself", time.time())
    assert client.send() != first


@pytest.mark.parametrize("kind", ["chat", "agent-chat", "advanced-chat"])
@pytest.mark.parametrize("version", ["1.11.4", "1.13.2"])
@pytest.mark.parametrize("is_listed", [True, False])
def test_what_dify_lists_is_understood(
    api: FlaskClient,
    dify: FakeDify,
    memory: RememberingDify,
    store: JsonFileStore,
    version: str,
    kind: str,
    is_listed: bool,
) -> None:
    """A recorded list, with and without its newest message, which is the question that failed."""
    listed = json.loads(recording(f"{version}/{kind}/messages").body)["data"]
    client, first = begun(api, "a chat id")
    forget_message_ids(store)
    memory.trouble = ["502"]
    fail(client, listed[-1]["query"])
    page = listed if is_listed else listed[:-1]
    told = refused(200, {"limit": 5, "has_more": False, "data": page})
    dify.answer = lambda r: told if "/messages?" in r.path else memory(r)
    assert (client.send() == first) is not is_listed


def test_a_turn_that_still_runs_is_not_taken_for_one_that_did_not(
    api: FlaskClient, dify: FakeDify, memory: RememberingDify
) -> None:
    """Dify has not even noted the question of the other turn when the next one comes."""
    client, first = begun(api, "a chat id")
    arrived, may_go_on = threading.Event(), threading.Event()

    def answer(request: Request) -> Steps:
        if request.path == "/v1/chat-messages" and request.json["query"] == "slow":
            arrived.set()
            may_go_on.wait(20)
        return memory(request)

    dify.answer = answer
    other = chat(api)
    other.messages = list(client.messages)
    thread = threading.Thread(target=other.say, args=("slow",))
    thread.start()
    assert arrived.wait(10)
    assert client.say("quick") != first
    may_go_on.set()
    thread.join(20)
    assert [a.query for a in memory.arrivals if a.conversation_id == first][-1] == "slow"


def test_a_question_whose_caller_left_may_arrive_a_moment_later(
    tmp_path: Path, dify: FakeDify, memory: RememberingDify
) -> None:
    left = threading.Event()

    def answer(request: Request) -> Steps:
        if request.path == "/v1/chat-messages" and request.json["query"] == "slow":
            left.wait(20)
            time.sleep(0.7)
        return memory(request)

    dify.answer = answer
    with running(tmp_path, free_variables(dify.base, GUNICORN_WORKERS="1")) as service:
        person = Remote(service.url)
        first = person.say("one")
        with pytest.raises(httpx.ReadTimeout):
            person.ask("slow", 0.5)
        left.set()
        assert person.say("other") != first


def test_a_worker_that_is_killed_before_dify_has_noted_the_question_costs_no_conversation(
    tmp_path: Path, dify: FakeDify, memory: RememberingDify
) -> None:
    with running(tmp_path, free_variables(dify.base, GUNICORN_WORKERS="1")) as service:
        person = Remote(service.url)
        first = person.say("one")
        asked = threading.Event()

        def lost(request: Request) -> Steps:
            if request.path == "/v1/chat-messages" and not asked.is_set():
                asked.set()
                return [FOREVER]
            return memory(request)

        dify.answer = lost
        thread = threading.Thread(target=person.ask_and_lose, args=("two",))
        thread.start()
        assert asked.wait(10)
        kill_all(service)
        thread.join(20)
        assert person.say("two") == first
        assert person.say("three") == first


def test_a_worker_that_is_killed_in_the_middle_of_an_answer(
    tmp_path: Path, dify: FakeDify, memory: RememberingDify
) -> None:
    with running(tmp_path, free_variables(dify.base, GUNICORN_WORKERS="1")) as service:
        person = Remote(service.url)
        first = person.say("one")
        asked = threading.Event()

        def stuck(request: Request) -> Steps:
            steps = memory(request)
            if request.path == "/v1/chat-messages" and not asked.is_set():
                asked.set()
                return [*list(steps)[:2], FOREVER]
            return steps

        dify.answer = stuck
        thread = threading.Thread(target=person.ask_and_lose, args=("two",))
        thread.start()
        assert asked.wait(10)
        kill_all(service)
        thread.join(20)
        again = person.say("two")
        assert again != first
        assert [text for _, text in memory.arrivals[-1].before] == ["one", "re one"]
        assert person.say("three") == again


def kill_all(service: Service) -> None:
    for worker in service.workers():
        os.kill(worker, signal.SIGKILL)


class Remote:
    """A client of a real service, with a chat id."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.messages: list[dict[str, Any]] = []

    def ask(self, text: str, timeout: float) -> Any:
        body = {
            "model": "tiny",
            "messages": [*self.messages, {"role": "user", "content": text}],
        }
        return httpx.post(
            f"{self.url}/v1/chat/completions",
            json=body,
            headers={"X-OpenWebUI-Chat-Id": "c1"},
            timeout=timeout,
        ).json()

    def ask_and_lose(self, text: str) -> None:
        with pytest.raises(httpx.TransportError):
            self.ask(text, 20)

    def say(self, text: str) -> str:
        """Asks until there is somebody to answer; tells the conversation."""
        deadline = time.monotonic() + 30
        while True:
            try:
                answer = self.ask(text, 20)
                break
            except httpx.TransportError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        content = answer["choices"][0]["message"]["content"]
        self.messages += [
            {"role": "user", "content": text},
            {"role": "assistant", "content": content},
        ]
        return str(answer["dify"]["conversation_id"])


# --- what earlier releases kept -----------------------------------------------------------------


def forget_message_ids(store: JsonFileStore) -> None:
    for key, mapping in list(store.entries()):
        older = mapping.latest.history_digest.partition("#")[0]
        store.put(key, mapping.latest.conversation_id, Update(older))


def test_a_chat_of_an_earlier_release_is_settled_by_the_texts(
    api: FlaskClient, memory: RememberingDify, store: JsonFileStore
) -> None:
    client, first = begun(api, "a chat id")
    forget_message_ids(store)
    memory.trouble = ["502"]
    fail(client, "three")
    assert client.send() == first
    forget_message_ids(store)
    memory.trouble = ["run 502"]
    fail(client, "four")
    assert client.send() != first


def test_a_chat_with_an_unsettled_turn_of_an_earlier_release_gets_a_new_conversation(
    api: FlaskClient, dify: FakeDify, memory: RememberingDify, store: JsonFileStore
) -> None:
    client, first = begun(api, "a chat id")
    (key,) = store.keys()
    store.put(key, first, Update("-"))
    assert client.say("three") != first
    assert asked_for(dify) == 0


def test_nothing_that_was_said_is_kept(
    api: FlaskClient, memory: RememberingDify, store: JsonFileStore, tmp_path: Path
) -> None:
    client, _ = begun(api, "a chat id")
    memory.trouble = ["502"]
    fail(client, "unmistakable")
    store.close()
    files = [path for path in (tmp_path / "data").rglob("*") if path.is_file()]
    assert files
    assert all(b"unmistakable" not in path.read_bytes() for path in files)


@pytest.mark.parametrize("mode", ["completion", "workflow"])
def test_an_app_without_conversations_is_not_asked_for_messages(
    api: FlaskClient, dify: FakeDify, models: dict[str, Model], mode: str
) -> None:
    models["tiny"] = Model("tiny", KEY, dify.base, type=mode)
    dify.answer = lambda request: NOT_TAKEN["502"]
    client = chat(api)
    for _ in range(2):
        fail(client, "one")
    assert asked_for(dify) == 0
