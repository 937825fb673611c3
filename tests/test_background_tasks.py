"""Background tasks and temporary chats, from the caller's request to what Dify receives."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from flask.testing import FlaskClient

from opendify.chat import background_tasks
from opendify.config.models import Model
from opendify.conversations.store.json_file import JsonFileStore
from tests.support import clients
from tests.support.application import make_settings, open_app
from tests.support.clients import ANSWER, QUESTION
from tests.support.fake_dify import FakeDify, refused
from tests.support.openwebui import Recorded, recorded, task_body, task_prompt
from tests.support.ports import free_port
from tests.support.service import Service, running
from tests.support.talking_dify import TalkingDify
from tests.support.waiting import wait_for

CHATS = ("chat", "agent-chat", "advanced-chat")
MODES = (*CHATS, "completion", "workflow")
KINDS = ("title_generation", "follow_up_generation", "tags_generation")
HEADERS = {"X-OpenWebUI-Chat-Id": "c1", "X-OpenWebUI-User-Id": "ada"}


@pytest.fixture
def talking(dify: FakeDify) -> TalkingDify:
    dify.tells_of_its_app = True
    dify.answer = TalkingDify()
    return dify.answer


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A title without a first turn is given up soon."""
    monkeypatch.setattr(background_tasks, "SECONDS_FOR_FIRST_TURN", 0.3)


@pytest.fixture
def running_tasks(models: dict[str, Model]) -> None:
    """The app answers its background tasks itself."""
    models["tiny"] = replace(models["tiny"], tasks="throwaway")


def turn(*said: str, model: str = "tiny", **more: Any) -> dict[str, Any]:
    roles = ["user", "assistant"] * len(said)
    messages = [{"role": r, "content": s} for r, s in zip(roles, said, strict=False)]
    return {"model": model, "messages": messages, **more}


def ask(api: FlaskClient, body: dict[str, Any], **headers: str) -> Any:
    told = {name.replace("_", "-"): value for name, value in headers.items()}
    response = api.post(
        "/v1/chat/completions", json=body, headers={**HEADERS, **told}, buffered=True
    )
    assert response.status_code == 200, response.text
    response.get_data()
    response.close()
    return response


def content(response: Any) -> str:
    """The text of an answer, streamed or not."""
    if not response.mimetype.startswith("text/event-stream"):
        return str(response.json["choices"][0]["message"]["content"])
    lines = [line for line in response.text.split("\n\n") if line.startswith("data: {")]
    deltas = [json.loads(line.removeprefix("data: "))["choices"][0] for line in lines]
    assert deltas[-1]["finish_reason"] == "stop"
    assert response.text.endswith("data: [DONE]\n\n")
    return "".join(delta["delta"].get("content") or "" for delta in deltas)


def untouched(talking: TalkingDify) -> bool:
    """Whether no conversation that is left has received a task."""
    return not any("### Task:" in query for received in talking.queries() for query in received)


@pytest.mark.parametrize(
    ("header", "streamed"),
    [
        pytest.param(False, False, id="by shape"),
        pytest.param(True, False, id="by header"),
        pytest.param(True, True, id="by header, streamed"),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("setting", ["", "throwaway", "local", "model:org/model"])
@pytest.mark.parametrize("mode", MODES)
def test_no_task_reaches_the_conversation_of_a_person(
    api: FlaskClient,
    models: dict[str, Model],
    store: JsonFileStore,
    talking: TalkingDify,
    mode: str,
    setting: str,
    kind: str,
    header: bool,
    streamed: bool,
) -> None:
    talking.mode = mode
    models["tiny"] = replace(models["tiny"], tasks=setting)
    ask(api, turn("Hi"))
    before = list(store.entries())
    told = {"X_OpenWebUI_Task": kind} if header else {}
    said = content(ask(api, task_body(kind, stream=streamed), **told))
    runs = [run for run in talking.runs if "### Task:" in json.dumps(run)]
    is_local = setting in ("", "local")
    assert len(runs) == (0 if is_local else 1)
    assert list(store.entries()) == before
    assert len(before) == (1 if mode in CHATS else 0)
    assert talking.queries() == ([["Hi"]] if mode in CHATS else [])
    assert untouched(talking)
    if is_local:
        assert set(json.loads(said)) <= {"title", "follow_ups", "tags"}
    elif mode in CHATS:
        assert [c.queries for c in talking.deleted.values()] == [[task_prompt(kind)]]
        (run,) = runs
        assert (run["conversation_id"], run["auto_generate_name"]) == ("", False)
        assert said == "Answer 1"
    ask(api, turn("Hi", "Answer 1", "Go on"))
    if mode in CHATS:
        assert talking.queries() == [["Hi", "Go on"]]


def test_a_task_that_comes_before_the_first_turn_does_not_begin_the_conversation(
    api: FlaskClient, store: JsonFileStore, talking: TalkingDify
) -> None:
    ask(api, task_body("title_generation"))
    assert not list(store.entries())
    ask(api, turn("Hi"))
    assert talking.queries() == [["Hi"]]


def test_a_task_never_goes_where_the_request_points(
    api: FlaskClient, running_tasks: None, talking: TalkingDify
) -> None:
    ask(api, turn("Hi"))
    (mine,) = talking.conversations
    body = task_body("tags_generation", conversation_id=mine, auto_generate_name=True)
    ask(api, body)
    assert talking.queries() == [["Hi"]]
    assert talking.runs[-1]["auto_generate_name"] is False


def test_another_model_answers_for_one_that_should_not_run(
    api: FlaskClient, models: dict[str, Model], dify: FakeDify, talking: TalkingDify
) -> None:
    models["tiny"] = replace(models["tiny"], tasks="model:org/model")
    models["org/model"] = replace(models["org/model"], tasks="local")
    answer = ask(api, task_body("title_generation")).json
    assert answer["model"] == "tiny"
    (asked,) = dify.asked()
    assert asked.headers["authorization"] == f"Bearer {models['org/model'].key}"
    (deleted,) = [r for r in dify.requests if r.method == "DELETE"]
    assert deleted.headers["authorization"] == f"Bearer {models['org/model'].key}"
    assert deleted.json == {"user": "ada"}
    assert not talking.conversations


ADA, CAROL = "key-ada-0123456789", "key-carol-0123456789"


@pytest.fixture
def served(
    http: httpx.Client,
    models: dict[str, Model],
    tmp_path: Path,
    talking: TalkingDify,
) -> Iterator[FlaskClient]:
    """Ada may use both models, Carol only the one whose tasks the other answers for; the helper
    answers one request at a time, and Ada may ask thrice a minute."""
    models["tiny"] = replace(models["tiny"], tasks="model:org/model")
    models["org/model"] = replace(models["org/model"], max_streams=1)
    callers = {
        "ada": {"keys": ADA, "requests_per_minute": 3},
        "carol": {"keys": CAROL, "models": ["tiny"]},
    }
    settings = make_settings(models, tmp_path, api_keys=json.dumps(callers))
    with open_app(settings, http) as app:
        yield app.test_client()


def run_by_helper(dify: FakeDify, models: dict[str, Model]) -> list[bool]:
    """Of the questions to Dify, whether they were asked with the helper's key."""
    key = f"Bearer {models['org/model'].key}"
    return [request.headers["authorization"] == key for request in dify.asked()]


@pytest.mark.parametrize("header", [True, False], ids=["by header", "by shape"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_task_does_not_reach_a_model_that_the_caller_may_not_use(
    served: FlaskClient,
    dify: FakeDify,
    models: dict[str, Model],
    caplog: pytest.LogCaptureFixture,
    kind: str,
    header: bool,
) -> None:
    hers = {"Authorization": f"Bearer {CAROL}"} | ({"X_OpenWebUI_Task": kind} if header else {})
    for _ in range(2):
        assert set(json.loads(content(ask(served, task_body(kind), **hers)))) <= {
            "title",
            "follow_ups",
            "tags",
        }
    assert not any(run_by_helper(dify, models))
    warned = [r for r in caplog.records if r.levelname == "WARNING" and "org/model" in r.message]
    assert len(warned) == 1
    assert CAROL not in caplog.text
    assert content(
        ask(served, task_body(kind), Authorization=f"Bearer {ADA}", X_OpenWebUI_Task=kind)
    )
    assert run_by_helper(dify, models)[-1]


@pytest.mark.parametrize("kind", ["anything", "function_calling", "emoji_generation"])
def test_no_made_up_task_reaches_it_either(
    served: FlaskClient, dify: FakeDify, models: dict[str, Model], kind: str
) -> None:
    hers = {"Authorization": f"Bearer {CAROL}", "X_OpenWebUI_Task": kind}
    ask(served, turn("Write me a poem"), **hers)
    assert run_by_helper(dify, models) == []


def test_a_merged_answer_comes_from_the_model_itself_where_the_helper_is_not_the_caller_s(
    served: FlaskClient, dify: FakeDify, models: dict[str, Model]
) -> None:
    hers = {"Authorization": f"Bearer {CAROL}", "X_OpenWebUI_Task": "moa_response_generation"}
    assert content(ask(served, turn("Merge these"), **hers)) == "Answer 1"
    assert run_by_helper(dify, models) == [False]


def test_a_task_takes_a_permit_of_the_model_that_answers_it_and_counts_for_its_caller(
    served: FlaskClient, dify: FakeDify, models: dict[str, Model], talking: TalkingDify
) -> None:
    arrived, may_go_on = threading.Event(), threading.Event()

    def slowly(request: Any) -> Any:
        if request.path == "/v1/chat-messages":
            arrived.set()
            may_go_on.wait(20)
        return talking(request)

    dify.answer = slowly
    hers, helping = {"Authorization": f"Bearer {ADA}"}, turn("Hi", model="org/model")
    other = served.application.test_client()
    first = threading.Thread(target=lambda: ask(other, helping, **hers))
    first.start()
    assert arrived.wait(20)
    refused = task_of_ada(served)
    may_go_on.set()
    first.join(20)
    assert (refused.status_code, refused.json["error"]["code"]) == (503, "overloaded")
    assert "org/model" in refused.json["error"]["message"]
    assert task_of_ada(served).status_code == 200
    assert task_of_ada(served).status_code == 429  # the fourth of her requests in a minute


def task_of_ada(api: FlaskClient) -> Any:
    response = api.post(
        "/v1/chat/completions",
        json=task_body("tags_generation"),
        headers={"Authorization": f"Bearer {ADA}", **HEADERS},
        buffered=True,
    )
    response.close()
    return response


def test_titles_and_follow_ups_of_an_agent_come_from_dify_itself(
    api: FlaskClient, dify: FakeDify, talking: TalkingDify
) -> None:
    talking.mode = "agent-chat"
    ask(api, turn("Hi"))
    assert content(ask(api, task_body("title_generation"))) == '{"title":"A fine name"}'
    follow_ups = ask(api, task_body("follow_up_generation"))
    assert content(follow_ups) == '{"follow_ups":["How?","Why?"]}'
    assert content(ask(api, task_body("tags_generation"))) == '{"tags":[]}'
    assert follow_ups.json["usage"]["total_tokens"] == 0
    assert "X-Dify-Conversation-Id" not in follow_ups.headers
    ((id_, conversation),) = talking.conversations.items()
    paths = [r.path for r in dify.requests if "suggested" in r.path or "/messages?" in r.path]
    assert paths == [
        f"/v1/messages?conversation_id={id_}&user=ada&limit=1",
        f"/v1/messages/{conversation.message_id}/suggested?user=ada",
    ]
    assert len(talking.runs) == 1


NOTHING = [
    pytest.param({"suggestions": False}, id="suggestions are off"),
    pytest.param({"suggested": []}, id="no suggestions"),
    pytest.param({"suggested": None}, id="no list of suggestions"),
    pytest.param({"suggested": [5, " ", None]}, id="suggestions that are no text"),
    pytest.param({"refuses_all_but_runs": True}, id="Dify fails"),
]


@pytest.mark.parametrize("state", NOTHING)
def test_without_suggestions_of_dify_there_are_none(
    api: FlaskClient, talking: TalkingDify, state: dict[str, Any]
) -> None:
    talking.mode = "advanced-chat"
    for name, value in state.items():
        setattr(talking, name, value)
    ask(api, turn("Hi"))
    assert content(ask(api, task_body("follow_up_generation"))) == '{"follow_ups":[]}'


@pytest.mark.parametrize(
    "state",
    [
        pytest.param({"name": "New conversation"}, id="Dify found none"),
        pytest.param({"name": None}, id="no name"),
        pytest.param({"name": " "}, id="a blank name"),
        pytest.param({"refuses_all_but_runs": True}, id="Dify fails"),
    ],
)
def test_without_a_name_of_dify_the_title_is_empty(
    api: FlaskClient, talking: TalkingDify, state: dict[str, Any]
) -> None:
    talking.mode = "agent-chat"
    for name, value in state.items():
        setattr(talking, name, value)
    ask(api, turn("Hi"))
    assert content(ask(api, task_body("title_generation"))) == '{"title":""}'


@pytest.mark.parametrize("other", [{"X_OpenWebUI_User_Id": "eve"}, {"X_OpenWebUI_Chat_Id": "c2"}])
def test_a_task_learns_nothing_of_the_chats_of_others(
    api: FlaskClient, talking: TalkingDify, other: dict[str, str]
) -> None:
    talking.mode = "agent-chat"
    ask(api, turn("Hi"))
    assert content(ask(api, task_body("title_generation"), **other)) == '{"title":""}'
    assert content(ask(api, task_body("follow_up_generation"), **other)) == '{"follow_ups":[]}'


def test_a_title_waits_for_the_first_turn(
    api: FlaskClient, monkeypatch: pytest.MonkeyPatch, talking: TalkingDify
) -> None:
    monkeypatch.setattr(background_tasks, "SECONDS_FOR_FIRST_TURN", 20.0)
    talking.mode = "agent-chat"
    titles: list[str] = []
    asking = threading.Thread(
        target=lambda: titles.append(content(ask(api, task_body("title_generation"))))
    )
    asking.start()
    time.sleep(0.3)
    ask(api.application.test_client(), turn("Hi"))
    asking.join(20)
    assert titles == ['{"title":"A fine name"}']
    assert talking.queries() == [["Hi"]]


def test_where_dify_is_away_a_local_answer_still_comes(
    api: FlaskClient, models: dict[str, Model]
) -> None:
    nowhere = f"http://127.0.0.1:{free_port()}/v1"
    models["tiny"] = replace(models["tiny"], tasks="local", base=nowhere)
    assert content(ask(api, task_body("title_generation"))) == '{"title":""}'


def test_a_task_that_fails_leaves_nothing_behind(
    api: FlaskClient, running_tasks: None, dify: FakeDify, talking: TalkingDify
) -> None:
    failed = {"event": "error", "status": 400, "code": "completion_request_error", "message": "x"}
    talking.say = lambda query: [f"data: {json.dumps(failed)}\n\n".encode()]
    response = api.post(
        "/v1/chat/completions", json=task_body("tags_generation"), headers=HEADERS, buffered=True
    )
    assert response.status_code == 502
    assert not talking.conversations
    assert len(talking.deleted) == 1


def test_a_deletion_that_fails_spoils_no_answer(
    api: FlaskClient, running_tasks: None, talking: TalkingDify, caplog: pytest.LogCaptureFixture
) -> None:
    talking.refuses_all_but_runs = True
    assert content(ask(api, task_body("tags_generation"))) == "Answer 1"
    assert any("could not delete a conversation" in line for line in caplog.messages)
    assert "app-secret" not in caplog.text


def test_a_conversation_that_is_already_deleted_is_no_error(
    api: FlaskClient,
    running_tasks: None,
    dify: FakeDify,
    talking: TalkingDify,
    caplog: pytest.LogCaptureFixture,
) -> None:
    gone = {"code": "not_found", "message": "Conversation Not Exists.", "status": 404}
    dify.answer = lambda r: refused(404, gone) if r.method == "DELETE" else talking(r)
    assert content(ask(api, task_body("tags_generation"))) == "Answer 1"
    assert "could not" not in caplog.text


OTHER_CLIENTS = [
    pytest.param(clients.nextchat_title(), id="NextChat"),
    pytest.param(clients.librechat_title(), id="LibreChat"),
    pytest.param(clients.lobechat_title(), id="LobeChat"),
    pytest.param(clients.cherry_studio_title(), id="Cherry Studio"),
    pytest.param(clients.chatbox_title(), id="Chatbox"),
    pytest.param(clients.chatbox_title(stream=True), id="Chatbox, streamed"),
]


def ask_plainly(api: FlaskClient, body: dict[str, Any], **headers: str) -> Any:
    """As a client asks that sends no headers of Open WebUI."""
    told = {name.replace("_", "-"): value for name, value in headers.items()}
    response = api.post("/v1/chat/completions", json=body, headers=told, buffered=True)
    assert response.status_code == 200, response.text
    response.close()
    return response


@pytest.mark.parametrize("body", OTHER_CLIENTS)
@pytest.mark.parametrize("mode", CHATS)
def test_a_title_of_another_client_neither_runs_nor_ends_the_conversation(
    api: FlaskClient, store: JsonFileStore, talking: TalkingDify, mode: str, body: dict[str, Any]
) -> None:
    talking.mode = mode
    ask_plainly(api, turn(QUESTION))
    before = list(store.entries())
    assert content(ask_plainly(api, body)) == QUESTION
    assert list(store.entries()) == before
    ask_plainly(api, turn(QUESTION, "Answer 1", "And tea?"))
    assert talking.queries() == [[QUESTION, "And tea?"]]


@pytest.mark.parametrize("body", OTHER_CLIENTS)
def test_a_title_of_another_client_is_the_name_of_dify_where_the_chat_is_known(
    api: FlaskClient, talking: TalkingDify, body: dict[str, Any]
) -> None:
    told = {"X_Conversation_Id": "c1", "X_User_Id": "ada"}
    by_user = {"user": body["user"]} if "user" in body else {}
    ask_plainly(api, turn(QUESTION, **by_user), **told)
    assert content(ask_plainly(api, body, **told)) == "A fine name"
    talking.name = None
    assert content(ask_plainly(api, body, **told)) == QUESTION


@pytest.mark.parametrize("body", OTHER_CLIENTS)
def test_a_title_of_another_client_can_be_run_aside(
    api: FlaskClient, running_tasks: None, talking: TalkingDify, body: dict[str, Any]
) -> None:
    assert content(ask_plainly(api, body)) == "Answer 1"
    assert not talking.conversations
    assert len(talking.deleted) == 1


@pytest.mark.parametrize("system", ["first", "drop"])
@pytest.mark.parametrize("history", ["query", "drop"])
def test_a_summary_for_the_memory_of_nextchat_is_made_by_the_app(
    api: FlaskClient,
    models: dict[str, Model],
    store: JsonFileStore,
    talking: TalkingDify,
    system: str,
    history: str,
) -> None:
    models["tiny"] = replace(models["tiny"], system=system, history=history)
    ask_plainly(api, turn(QUESTION))
    assert content(ask_plainly(api, clients.nextchat_summary())) == "Answer 1"
    ((asked,),) = (one.queries for one in talking.deleted.values())
    assert asked.endswith(clients.NEXTCHAT_SUMMARY)
    assert f"User: {QUESTION}\n\nAssistant: {ANSWER}" in asked
    assert talking.queries() == [[QUESTION]]
    assert len(list(store.entries())) == 1


def test_a_translation_is_made_by_the_app_with_its_instruction(
    api: FlaskClient, models: dict[str, Model], talking: TalkingDify
) -> None:
    models["tiny"] = replace(models["tiny"], system="drop")
    body = clients.system_and_user(clients.LOBE_TRANSLATION, QUESTION, stream=True)
    assert content(ask_plainly(api, body)) == "Answer 1"
    (query,) = (run["query"] for run in talking.runs)
    assert query == f"{clients.LOBE_TRANSLATION}\n\n{QUESTION}"
    assert not talking.conversations


def test_the_task_in_the_body_counts_as_the_one_in_the_header(
    api: FlaskClient, talking: TalkingDify
) -> None:
    ask(api, turn("Hi"))
    body = turn("Some words", metadata={"task": "tags_generation", "chat_id": "c1"})
    assert content(ask_plainly(api, body)) == '{"tags":[]}'
    assert talking.queries() == [["Hi"]]


@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("mode", CHATS)
def test_a_model_that_keeps_nothing_leaves_nothing_and_knows_what_it_is_told(
    api: FlaskClient,
    models: dict[str, Model],
    store: JsonFileStore,
    talking: TalkingDify,
    mode: str,
    streamed: bool,
) -> None:
    talking.mode = mode
    models["tiny"] = replace(models["tiny"], keep=False)
    assert content(ask(api, turn("One", stream=streamed))) == "Answer 1"
    ask(api, turn("One", "Answer 1", "Two", stream=streamed))
    first, second = (c.queries for c in talking.deleted.values())
    assert first == ["One"]
    assert "User: One" in second[0] and second[0].endswith("Two")
    assert not talking.conversations
    assert not list(store.entries())


def test_a_second_name_of_the_app_takes_the_titles_of_a_client(
    api: FlaskClient, models: dict[str, Model], talking: TalkingDify
) -> None:
    """NextChat's compressModel, LibreChat's titleModel ..., with any prompt, and one that is
    recognised is run too: that is what the model is there for."""
    models["org/model"] = replace(models["org/model"], key=models["tiny"].key, keep=False)
    ask_plainly(api, turn(QUESTION))
    own = turn(QUESTION, "Answer 1", "A title in my own words, please", model="org/model")
    assert content(ask_plainly(api, own)) == "Answer 1"
    known = {**clients.librechat_title(), "model": "org/model"}
    assert content(ask_plainly(api, known)) == "Answer 1"
    assert len(talking.deleted) == 2
    ask_plainly(api, turn(QUESTION, "Answer 1", "And tea?"))
    assert talking.queries() == [[QUESTION, "And tea?"]]


def test_a_model_that_keeps_nothing_continues_no_conversation_of_dify(
    api: FlaskClient, models: dict[str, Model], talking: TalkingDify
) -> None:
    models["tiny"] = replace(models["tiny"], keep=False)
    body = turn("Hi", conversation_id="840fe2ff-0f44-4254-b205-c3a4da2d6b8b")
    response = api.post("/v1/chat/completions", json=body, buffered=True)
    assert response.status_code == 400
    error = response.json["error"]
    assert error["param"] == "conversation_id"
    assert "'keep'" in error["message"] and "'tiny'" in error["message"]
    assert not talking.runs


def test_of_a_task_without_a_chat_the_history_stays_where_continuity_is_off(
    api: FlaskClient, models: dict[str, Model], talking: TalkingDify
) -> None:
    models["tiny"] = replace(models["tiny"], continuity="off", tasks="throwaway")
    ask_plainly(api, clients.nextchat_title())
    ((asked,),) = (one.queries for one in talking.deleted.values())
    assert f"User: {QUESTION}" in asked


TEMPORARY = {"X_OpenWebUI_Chat_Id": "temporary:ElSHthyP8UPrB3UtAAAJ"}


@pytest.mark.parametrize("chat_id", ["temporary:ElSHthyP8UPrB3UtAAAJ", "local:ElSHthyP8UPrB3"])
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("mode", CHATS)
def test_of_a_temporary_chat_nothing_stays(
    api: FlaskClient,
    store: JsonFileStore,
    talking: TalkingDify,
    mode: str,
    streamed: bool,
    chat_id: str,
) -> None:
    talking.mode = mode
    told = {"X_OpenWebUI_Chat_Id": chat_id}
    assert content(ask(api, turn("One", stream=streamed), **told)) == "Answer 1"
    ask(api, turn("One", "Answer 1", "Two", stream=streamed), **told)
    first, second = (c.queries for c in talking.deleted.values())
    assert first == ["One"]
    assert "User: One" in second[0] and "Assistant: Answer 1" in second[0]
    assert second[0].endswith("Two")
    assert not talking.conversations
    assert not list(store.entries())


@pytest.mark.parametrize("mode", ["completion", "workflow"])
def test_an_app_without_conversations_has_none_to_delete(
    api: FlaskClient, dify: FakeDify, talking: TalkingDify, mode: str
) -> None:
    talking.mode = mode
    assert content(ask(api, turn("One"), **TEMPORARY)) == "Done"
    assert not [r for r in dify.requests if r.method == "DELETE"]


def test_a_conversation_that_was_there_before_a_temporary_chat_is_not_deleted(
    api: FlaskClient, store: JsonFileStore, talking: TalkingDify
) -> None:
    ask(api, turn("Hi"))
    (mine,) = talking.conversations
    ask(api, turn("Go on", conversation_id=mine), **TEMPORARY)
    assert talking.queries() == [["Hi", "Go on"]]
    assert len(list(store.entries())) == 1


def test_the_tasks_of_a_temporary_chat_wait_for_nothing(
    api: FlaskClient, monkeypatch: pytest.MonkeyPatch, talking: TalkingDify
) -> None:
    monkeypatch.setattr(background_tasks, "SECONDS_FOR_FIRST_TURN", 3600.0)
    talking.mode = "agent-chat"
    assert content(ask(api, task_body("title_generation"), **TEMPORARY)) == '{"title":""}'


SECRET = "a secret of at least 32 characters"


@contextmanager
def service(
    folder: Path, dify: FakeDify, tasks: str = "local", **variables: str
) -> Iterator[Service]:
    config = json.dumps({"tiny": {"key": "app-secret-key", "tasks": tasks}})
    told = {"DIFY_API_BASE": dify.base, "MODEL_CONFIG": config, "GUNICORN_WORKERS": "2"}
    with running(folder, {**told, **variables}) as started:
        yield started


def mappings(started: Service) -> int:
    url = f"{started.url}/v1/conversation/mappings"
    return int(httpx.get(url, timeout=10, trust_env=False).json()["mapping_count"])


def send(started: Service, one: Recorded, with_task: bool) -> httpx.Response:
    return httpx.post(
        f"{started.url}/v1/chat/completions",
        json=one.body,
        headers=one.headers(with_task),
        timeout=30,
        trust_env=False,
    )


def leave(started: Service, body: dict[str, Any], after: float, **headers: str) -> None:
    """Asks, and hangs up so many seconds later."""
    data = json.dumps(body).encode()
    told = {name.replace("_", "-"): value for name, value in {**HEADERS, **headers}.items()}
    lines = [f"{name}: {value}" for name, value in told.items()]
    head = "\r\n".join(
        [
            "POST /v1/chat/completions HTTP/1.1",
            "Host: x",
            "Content-Type: application/json",
            f"Content-Length: {len(data)}",
            *lines,
            "",
            "",
        ]
    )
    port = int(started.url.rpartition(":")[2])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(head.encode() + data)
        time.sleep(after)


@pytest.mark.parametrize("with_task", [True, False], ids=["by header", "by shape"])
@pytest.mark.parametrize("mode", CHATS)
def test_the_recorded_sessions_leave_no_task_in_any_conversation(
    tmp_path: Path, dify: FakeDify, talking: TalkingDify, mode: str, with_task: bool
) -> None:
    talking.mode = mode
    requests = recorded()
    with service(tmp_path, dify, "throwaway" if mode == "chat" else "local") as started:
        answers: list[httpx.Response] = []
        for chat in dict.fromkeys(one.chat for one in requests):
            threads = [
                threading.Thread(
                    target=lambda one=one: answers.append(send(started, one, with_task))
                )
                for one in requests
                if one.chat == chat
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join(60)
        assert [answer.status_code for answer in answers] == [200] * len(requests)
        temporary = [one for one in requests if one.chat.startswith("temporary:")]
        runs = [one for one in requests if one.task and mode == "chat"]
        wait_for(lambda: len(talking.deleted) == len(temporary) + len(runs))
        kept = {one.chat for one in requests} - {one.chat for one in temporary}
        assert mappings(started) == len(kept)
    received = [query for queries in talking.queries("ada") for query in queries]
    assert not any("<chat_history>" in query for query in received)
    assert any(query.startswith("### Task:\nRespond to the user query") for query in received)
    assert not any("temp one" in query for query in received)


def test_a_temporary_chat_left_before_the_first_token_is_deleted_in_dify(
    tmp_path: Path, dify: FakeDify, talking: TalkingDify
) -> None:
    talking.before = lambda query: [1.5]
    talking.say = lambda query: [30.0]
    with service(tmp_path, dify) as started:
        leave(started, turn("Secret", stream=True), 0.5, **TEMPORARY)
        wait_for(lambda: len(talking.deleted) == 1)
        assert not talking.conversations
        assert len(dify.stopped()) == 1
        assert mappings(started) == 0


def test_a_task_whose_caller_left_is_deleted_in_dify(
    tmp_path: Path, dify: FakeDify, talking: TalkingDify
) -> None:
    talking.say = lambda query: [30.0]
    with service(tmp_path, dify, "throwaway") as started:
        leave(started, task_body("tags_generation"), 0.5)
        wait_for(lambda: len(talking.deleted) == 1)
        assert not talking.conversations
        assert len(dify.stopped()) == 1


def test_a_caller_that_leaves_is_no_longer_waited_for(
    tmp_path: Path, dify: FakeDify, talking: TalkingDify
) -> None:
    talking.mode = "agent-chat"
    with service(tmp_path, dify, GUNICORN_WORKERS="1") as started:
        leave(started, task_body("title_generation"), 0.3)
        ended = "status=499"
        wait_for(lambda: ended in started.output(), seconds=4)


def test_only_users_with_a_token_of_open_webui_are_served(
    tmp_path: Path, dify: FakeDify, talking: TalkingDify
) -> None:
    with service(tmp_path, dify, OPENWEBUI_JWT_SECRET=SECRET) as started:
        url = f"{started.url}/v1/chat/completions"

        def post(**headers: str) -> httpx.Response:
            told = {name.replace("_", "-"): value for name, value in headers.items()}
            body = turn("Hi", user="eve")
            return httpx.post(url, json=body, headers=told, timeout=30, trust_env=False)

        def token(secret: str, lasts: float) -> str:
            claims = {"sub": "ada", "role": "user", "iss": "open-webui"}
            return jwt.encode({**claims, "exp": int(time.time() + lasts)}, secret)

        for refused_one in (
            post(X_OpenWebUI_User_Id="ada"),
            post(X_User_Id="ada"),
            post(X_OpenWebUI_User_Jwt=token(SECRET[::-1], 300)),
            post(X_OpenWebUI_User_Jwt=token(SECRET, -300)),
        ):
            assert refused_one.status_code == 401
            error = refused_one.json()["error"]
            assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_user_token")
        assert not talking.runs
        genuine = {"X_OpenWebUI_User_Jwt": token(SECRET, 300), "X_OpenWebUI_User_Id": "eve"}
        genuine["X_User_Id"] = "eve"
        assert post(**genuine).status_code == 200
        assert talking.runs[0]["user"] == "ada"
        assert httpx.get(f"{started.url}/v1/models", trust_env=False).status_code == 200
        assert SECRET not in started.output()
