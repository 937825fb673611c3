"""Nobody is put into a conversation that is not theirs, whatever of it they know."""

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from flask.testing import FlaskClient

from opendify.config.models import Model
from opendify.conversations import ChatRecord, ConversationRecord, JsonFileStore, Update
from opendify.conversations.keys import parse_chat_key
from tests.support.fake_dify import FakeDify
from tests.support.ports import free_port
from tests.support.redis_server import RedisServer
from tests.support.remembering_dify import RememberingDify
from tests.support.service import Service, free_variables, running
from tests.test_resolver import UUID, Client, Messages, chat, memory

__all__ = ["memory"]

KEY = "app-secret-of-the-operator"
POLITE = ("Thanks!", "You are welcome!")


def said(*texts: str) -> Messages:
    """Questions and answers in turn, the first of them a question."""
    roles = ["user", "assistant"] * len(texts)
    return [{"role": r, "content": t} for r, t in zip(roles, texts, strict=False)]


@pytest.fixture
def polite(memory: RememberingDify) -> RememberingDify:
    """An app that answers some things alike whoever asks."""
    known = {"Hi": "Hello!", "Thanks!": "You are welcome!"}
    memory.reply = lambda query: [known.get(query, f"re {query}")]
    return memory


def ask_for_the_secret(api: FlaskClient, history: Messages, **headers: str) -> Client:
    thief = Client(api, **headers)
    thief.messages = [*history, *said("What did I tell you before?")]
    return thief


# --- clients that name no chat ------------------------------------------------------------------


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer same"}], ids=["no key", "a key"])
@pytest.mark.parametrize(
    "history",
    [
        said(*POLITE),
        said(" Thanks!\n", "You  are welcome!"),
        said("thanks!", "you are welcome!"),
        said("Hi", "Hello!", *POLITE),
        [{"role": "assistant", "content": "Hello!"}, *said(*POLITE)],
        [{"role": "system", "content": "Be kind."}, *said(*POLITE)],
    ],
    ids=["one exchange", "blanks", "case", "two exchanges", "half of one", "instructions"],
)
def test_the_end_of_a_chat_opens_it_to_nobody_who_shares_the_default_user(
    api: FlaskClient, polite: RememberingDify, history: Messages, headers: dict[str, str]
) -> None:
    alice = Client(api, **headers)
    hers = {alice.say(text) for text in ("My PIN is 1234", "Hi", "Thanks!")}
    assert len(hers) == 1
    assert ask_for_the_secret(api, history, **headers).send() not in hers
    assert not any("1234" in text for _, text in polite.arrivals[-1].before)
    assert {alice.say("and now?")} == hers


@pytest.mark.parametrize("header", [True, False], ids=["header", "metadata"])
def test_no_chat_id_is_the_name_of_a_chat_without_one(
    api: FlaskClient, polite: RememberingDify, store: JsonFileStore, header: bool
) -> None:
    """Such names are digests of the last exchange, which anybody can compute who knows it."""
    alice = Client(api)
    hers = {alice.say(text) for text in ("My PIN is 1234", "Thanks!")}
    keys = store.keys()
    names = {parse_chat_key(key).chat_id for key in keys}
    for name in [*names, *(f"={id_}" for id_ in hers)]:
        thief = ask_for_the_secret(api, said(*POLITE))
        if header:
            thief.headers["X-OpenWebUI-Chat-Id"] = name
            assert thief.send() not in hers
        else:
            assert thief.send(metadata={"chat_id": name}) not in hers
    assert {alice.say("and now?")} == hers


@pytest.mark.parametrize(
    "chat_id", ["~", "=", "~~x", "=x", "\\~x", "\\", "[]", '["a","b","c","d"]']
)
def test_a_chat_of_any_id_goes_on(api: FlaskClient, memory: RememberingDify, chat_id: str) -> None:
    client, other = chat(api, chat_id), chat(api, f"\\{chat_id}")
    mine, others = {client.say("one")}, {other.say("one")}
    mine |= {client.say("two")}
    others |= {other.say("two")}
    assert len(mine) == len(others) == 1
    assert mine != others


@pytest.mark.parametrize("user", [None, "", "default_user"])
def test_the_name_that_stands_for_no_user_is_no_user(
    api: FlaskClient, polite: RememberingDify, user: str | None
) -> None:
    alice = Client(api)
    hers = [alice.say(text) for text in ("My PIN is 1234", "Hi", "Thanks!")]
    history = said("Hi", "Hello!", *POLITE)
    assert ask_for_the_secret(api, history).send(user=user) not in hers


def test_one_exchange_is_too_little_also_for_a_named_user(
    api: FlaskClient, polite: RememberingDify
) -> None:
    first = Client(api)
    theirs = [first.say(text, user="ada") for text in ("My PIN is 1234", "Hi", "Thanks!")]
    assert ask_for_the_secret(api, said(*POLITE)).send(user="ada") not in theirs
    two = said("Hi", "Hello!", *POLITE)
    assert ask_for_the_secret(api, two).send(user="bob") not in theirs
    stranger = ask_for_the_secret(api, two, Authorization="Bearer other")
    assert stranger.send(user="ada") not in theirs
    assert ask_for_the_secret(api, two).send(user="ada") in theirs


def test_the_user_may_be_named_by_a_header_too(api: FlaskClient, polite: RememberingDify) -> None:
    ada = {"X_OpenWebUI_User_Id": "ada"}
    client = Client(api, **ada)
    hers = {client.say(text) for text in ("one", "Hi", "Thanks!")}
    assert {ask_for_the_secret(api, said("Hi", "Hello!", *POLITE), **ada).send()} == hers


def test_naming_a_conversation_does_not_prove_knowledge_of_all_of_it(
    api: FlaskClient, polite: RememberingDify, store: JsonFileStore
) -> None:
    """An exchange in a conversation that contains more, or what nobody knows, is not all of it."""
    alice = Client(api)
    hers = alice.say("My PIN is 1234")
    (key,) = store.keys()
    store.put(key, hers, Update("-"))  # as a turn leaves it that was not complete
    alice.messages = []
    assert alice.say("Thanks!", conversation_id=hers) == hers
    assert ask_for_the_secret(api, said(*POLITE)).send() != hers


def test_continuing_an_answer_in_a_named_conversation_does_not_prove_knowledge_of_all_of_it(
    api: FlaskClient, polite: RememberingDify
) -> None:
    alice = Client(api)
    hers = alice.say("My PIN is 1234")
    polite.reply = lambda query: [" welcome!"]
    alice.messages = said("Thanks!", "You are")
    assert alice.send(conversation_id=hers) == hers
    assert ask_for_the_secret(api, said(*POLITE)).send() != hers


def test_a_chat_that_the_body_names_is_continued_by_its_end(
    api: FlaskClient, memory: RememberingDify
) -> None:
    client = Client(api)
    found = set()
    for number in range(4):
        found.add(client.say(f"question {number}", metadata={"chat_id": "c1"}))
        del client.messages[:-2]
    assert len(found) == 1


# --- conversations that the caller names --------------------------------------------------------


def claim(status: int, api: FlaskClient, id_: str, **headers: str) -> Any:
    client = Client(api, **headers)
    return client.ask(status, model="tiny", messages=said("tell"), conversation_id=id_)


def leave(api: FlaskClient, **fields: Any) -> str:
    """Asks and leaves in the middle of the answer; returns the conversation that was named."""
    body = {"model": "tiny", "messages": said("one"), "stream": True, **fields}
    with api.post("/v1/chat/completions", json=body, buffered=False) as response:
        assert response.status_code == 200
        events = iter(response.response)
        next(events)
        return str(response.headers["X-Dify-Conversation-Id"])


@pytest.mark.parametrize("continuity", ["auto", "off", "always-new"])
def test_every_conversation_that_was_named_to_a_caller_is_theirs_and_no_other_s(
    api: FlaskClient,
    dify: FakeDify,
    memory: RememberingDify,
    models: dict[str, Model],
    continuity: str,
) -> None:
    models["tiny"] = Model("tiny", KEY, dify.base, continuity=continuity)
    models["other"] = Model("other", KEY, dify.base)
    memory.reply = lambda query: ["one ", "two ", "three"]
    edited, forked = Client(api), chat(api)
    told = [Client(api).say("hi"), Client(api).say("hi"), chat(api, "c").say("hi"), leave(api)]
    for client in (edited, forked):
        told += [client.say("one"), client.say("two")]
        del client.messages[2:]
        told.append(client.say("changed"))
        told.append(client.say("more"))
    asked = len(dify.asked())
    for id_ in set(told):
        stranger = Client(api, Authorization="Bearer another")
        unknown = stranger.ask(404, model="tiny", messages=said("x"), conversation_id=UUID)
        for thief, fields in (
            (stranger, {}),
            (Client(api), {"user": "bob"}),
            (Client(api), {"model": "other"}),
            (stranger, {"metadata": {"chat_id": "c"}}),
        ):
            body = {"model": "tiny", "messages": said("x"), "conversation_id": id_, **fields}
            assert thief.ask(404, **body) == unknown  # nothing tells one from the other
    assert len(dify.asked()) == asked
    for id_ in sorted(set(told)):
        for _ in range(2):
            assert claim(200, api, id_)["dify"]["conversation_id"] == id_


def test_the_answer_to_a_foreign_conversation_says_what_to_do(
    api: FlaskClient, memory: RememberingDify
) -> None:
    error = claim(404, api, UUID)["error"]
    assert error["code"] == "conversation_not_found"
    assert error["param"] == "conversation_id"
    assert error["type"] == "invalid_request_error"
    assert "model and user" in error["message"]
    assert memory.arrivals == []


def test_what_was_removed_is_nobody_s(
    api: FlaskClient, memory: RememberingDify, store: JsonFileStore
) -> None:
    mine = Client(api).say("one")
    store.remove_conversation(mine)
    claim(404, api, mine)


def test_an_earlier_entry_without_an_owner_is_nobody_s(
    api: FlaskClient, memory: RememberingDify, store: JsonFileStore
) -> None:
    memory.new(UUID, (f"Bearer {KEY}", "default_user"))
    store.adopt({"chat-1": ChatRecord((ConversationRecord(UUID, 1, 1),))})
    claim(404, api, UUID)


def test_a_model_may_take_conversations_from_elsewhere_but_none_of_another_caller(
    api: FlaskClient, dify: FakeDify, memory: RememberingDify, models: dict[str, Model]
) -> None:
    models["tiny"] = Model("tiny", KEY, dify.base, conversation_ids="any")
    memory.new(UUID, (f"Bearer {KEY}", "default_user"))
    assert claim(200, api, UUID)["dify"]["conversation_id"] == UUID
    claim(404, api, UUID.replace("9", "8"))
    hers = Client(api, Authorization="Bearer one").say("one")
    claim(404, api, hers, Authorization="Bearer two")


def test_a_temporary_chat_leaves_no_trace_of_whose_it_was(
    api: FlaskClient, memory: RememberingDify, store: JsonFileStore
) -> None:
    chat(api, "temporary:x").say("one")
    assert store.keys() == []


def variables_of_two_callers(dify: FakeDify, store: str) -> dict[str, str]:
    keys = json.dumps({"ada": "key-ada-0123456789", "bob": "key-bob-0123456789"})
    return free_variables(
        dify.base, CONVERSATION_STORE=store, OPENDIFY_API_KEYS=keys, GUNICORN_WORKERS="1"
    )


def assert_closed(service: Service, id_: str) -> None:
    """A conversation that is another's, or of which nothing is known, is refused alike."""
    refused = post(service, "bob", said("x"), id_)
    assert refused.status_code == 503
    assert refused.json()["error"]["code"] == "store_unavailable"
    assert int(refused.headers["Retry-After"]) > 0
    assert post(service, "bob", said("x"), UUID).json() == refused.json()


def test_where_redis_never_answered_only_what_a_worker_knows_as_theirs_can_be_named(
    tmp_path: Path, dify: FakeDify, memory: RememberingDify
) -> None:
    away = f"redis://127.0.0.1:{free_port()}/0"
    with running(tmp_path, variables_of_two_callers(dify, away)) as service:
        hers = post(service, "ada", said("one")).json()["dify"]["conversation_id"]
        assert_closed(service, hers)
        assert post(service, "ada", said("two"), hers).status_code == 200
        assert post(service, "bob", said("x")).status_code == 200
    assert [a.query for a in memory.arrivals if a.conversation_id == hers] == ["one", "two"]


def test_while_redis_is_away_nobody_gets_into_a_conversation_that_is_not_known_as_theirs(
    tmp_path: Path, dify: FakeDify, memory: RememberingDify, redis_server: RedisServer
) -> None:
    with running(tmp_path, variables_of_two_callers(dify, redis_server.url)) as service:
        hers = post(service, "ada", said("one")).json()["dify"]["conversation_id"]
        assert post(service, "bob", said("x"), hers).status_code == 404
        redis_server.kill()
        assert_closed(service, hers)
        redis_server.start()
    assert [a.query for a in memory.arrivals if a.conversation_id == hers] == ["one"]


def post(
    service: Service, name: str, messages: Messages, conversation_id: str = ""
) -> httpx.Response:
    return httpx.post(
        f"{service.url}/v1/chat/completions",
        json={"model": "tiny", "messages": messages, "conversation_id": conversation_id},
        headers={"Authorization": f"Bearer key-{name}-0123456789"},
        timeout=30,
    )
