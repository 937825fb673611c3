"""The routes for operators: who may use them, and what they tell and do."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from opendify.conversations import (
    ChatRecord,
    ConversationRecord,
    ConversationStore,
    JsonFileStore,
    Update,
)
from opendify.conversations.store.redis import RedisStore
from opendify.storage.redis_connection import RedisConnection
from tests.conftest import KEY
from tests.support import schemas
from tests.support.chats import conversations_of, one_branch
from tests.support.fake_dify import FakeDify, head, refused
from tests.support.remembering_dify import RememberingDify

ADMIN = {"Authorization": "Bearer admin-secret"}
ONE = "11111111-1111-4111-8111-111111111111"
MAPPINGS = "/v1/conversation/mappings"
CLEANUP = "/v1/conversation/cleanup"


@pytest.fixture
def admin_keys() -> str:
    return "other-secret,admin-secret"


@pytest.fixture(params=["file", "redis"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ConversationStore]:
    store: ConversationStore
    if request.param == "file":
        store = JsonFileStore(
            tmp_path / "data", clock=time.time, max_age_days=None, max_entries=1000
        )
    else:
        link = RedisConnection(request.getfixturevalue("redis_url"), "Redis")
        store = RedisStore(link, clock=time.time, max_age_days=None, max_entries=1000)
    yield store
    store.close()


def key(model: str, user: str, chat: str) -> str:
    return json.dumps(["-", model, user, chat], ensure_ascii=False, separators=(",", ":"))


@pytest.fixture
def chats(store: ConversationStore) -> None:
    store.adopt(
        {
            key("tiny", "anna", "chat 1"): one_branch(ONE, 10, 40, "digest-secret", "first-turn"),
            key("tiny", "ben", "聊天"): one_branch("c2", 20, 30),
            key("org/model", "anna", "chat 1"): one_branch("c3", 30, 20),
            "an earlier chat": one_branch("c4", 5, 10),
        }
    )


def error_of(response: TestResponse) -> tuple[int, str]:
    schemas.assert_error(response.json)
    return response.status_code, response.json["error"]["code"]


REQUESTS = [
    pytest.param("GET", MAPPINGS, None, False, id="counts"),
    pytest.param("POST", CLEANUP, {}, False, id="cleanup"),
    pytest.param("GET", f"{MAPPINGS}?limit=5", None, True, id="list"),
    pytest.param("GET", f"{MAPPINGS}?limit=", None, True, id="list, of nothing"),
    pytest.param("GET", f"{MAPPINGS}?chat_id=x", None, True, id="list of a chat"),
    pytest.param("DELETE", f"{MAPPINGS}/{ONE}", None, True, id="delete"),
    pytest.param("DELETE", f"{MAPPINGS}/{ONE}?dify=true", None, True, id="delete in Dify too"),
]


@pytest.mark.parametrize(("method", "path", "body", "single"), REQUESTS)
@pytest.mark.parametrize(
    "headers",
    [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic admin-secret"}],
    ids=["no key", "another key", "another scheme"],
)
def test_with_admin_keys_everything_needs_one(
    api: FlaskClient,
    store: ConversationStore,
    chats: None,
    dify: FakeDify,
    method: str,
    path: str,
    body: Any,
    single: bool,
    headers: dict[str, str],
) -> None:
    before = dict(store.entries())
    response = api.open(path, method=method, json=body, headers=headers)
    assert error_of(response) == (401, "invalid_api_key")
    assert response.headers["WWW-Authenticate"] == "Bearer"
    assert "OPENDIFY_ADMIN_KEYS" in response.json["error"]["message"]
    assert dict(store.entries()) == before
    assert dify.requests == []


class TestWithoutAdminKeys:
    @pytest.fixture
    def admin_keys(self) -> str:
        return ""

    @pytest.mark.parametrize(("method", "path", "body", "single"), REQUESTS)
    def test_only_single_mappings_are_closed(
        self,
        api: FlaskClient,
        store: ConversationStore,
        chats: None,
        method: str,
        path: str,
        body: Any,
        single: bool,
    ) -> None:
        for headers in ({}, ADMIN):
            response = api.open(path, method=method, json=body, headers=headers)
            if single:
                assert error_of(response) == (403, "admin_keys_not_set")
                assert "OPENDIFY_ADMIN_KEYS" in response.json["error"]["message"]
                assert store.owners(ONE)
            else:
                assert response.status_code == 200
                assert "mappings" not in response.json


def test_the_counts_have_the_four_fields_and_more(
    api: FlaskClient, chats: None, store: ConversationStore
) -> None:
    told = api.get(MAPPINGS, headers=ADMIN).json
    assert abs(told.pop("timestamp") - time.time()) < 10
    assert told == {
        "mapping_count": 4,
        "oldest_mapping": 5,
        "newest_mapping": 30,
        "store": store.kind,
        "store_available": True,
        "by_model": {"tiny": 2, "org/model": 1},
    }


def branch(
    conversation: str, created_at: int, last_used: int, reason: str | None = None
) -> dict[str, Any]:
    return {
        "dify_conversation_id": conversation,
        "created_at": created_at,
        "last_used": last_used,
        "reason": reason,
    }


def shown(*parts: str | None, branches: list[dict[str, Any]]) -> dict[str, Any]:
    names = ("caller", "model", "user", "chat_id")
    return {**dict(zip(names, parts, strict=True)), **branches[0], "branches": branches}


ANNA = shown("-", "tiny", "anna", "chat 1", branches=[branch(ONE, 10, 40, "first-turn")])
BEN = shown("-", "tiny", "ben", "聊天", branches=[branch("c2", 20, 30)])
OTHER = shown("-", "org/model", "anna", "chat 1", branches=[branch("c3", 30, 20)])
EARLIER = shown(None, None, None, "an earlier chat", branches=[branch("c4", 5, 10)])


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"limit": "2"}, [ANNA, BEN]),
        ({"limit": "10000"}, [ANNA, BEN, OTHER, EARLIER]),
        ({"chat_id": "chat 1"}, [ANNA, OTHER]),
        ({"chat_id": "chat 1", "limit": "1"}, [ANNA]),
        ({"chat_id": "聊天"}, [BEN]),
        ({"chat_id": "an earlier chat"}, [EARLIER]),
        ({"chat_id": "unknown"}, []),
        ({"chat_id": ""}, []),
    ],
)
def test_mappings_are_listed(
    api: FlaskClient, chats: None, query: dict[str, str], expected: list[dict[str, Any]]
) -> None:
    response = api.get(MAPPINGS, query_string=query, headers=ADMIN)
    assert response.json["mappings"] == expected
    assert response.json["mapping_count"] == 4
    assert "digest" not in response.text


@pytest.fixture
def branched(store: ConversationStore) -> str:
    """The key of a chat that was edited and regenerated."""
    edited = key("tiny", "anna", "edited")
    store.adopt(
        {
            edited: ChatRecord(
                (
                    ConversationRecord("b3", 30, 90, "digest-secret", "whole-history", "system"),
                    ConversationRecord("b1", 10, 50, "digest-secret", "end-of-history"),
                    ConversationRecord(ONE, 20, 40, "", "other-history"),
                    ConversationRecord("b0", 15, 35),
                )
            )
        }
    )
    return edited


@pytest.mark.parametrize("query", [{"chat_id": "edited"}, {"limit": "1"}])
def test_a_chat_is_listed_with_its_branches_and_why_their_last_turns_went_there(
    api: FlaskClient, chats: None, branched: str, query: dict[str, str]
) -> None:
    response = api.get(MAPPINGS, query_string=query, headers=ADMIN)
    branches = [
        branch("b3", 30, 90, "whole-history"),
        branch("b1", 10, 50, "end-of-history"),
        branch(ONE, 20, 40, "other-history"),
        branch("b0", 15, 35),
    ]
    assert response.json["mappings"] == [shown("-", "tiny", "anna", "edited", branches=branches)]
    assert response.json["mapping_count"] == 5
    assert "digest" not in response.text


def ask(api: FlaskClient, *texts: str) -> str:
    """One turn of a chat; returns its conversation."""
    roles = ("user", "assistant")
    messages = [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]
    body = {"model": "tiny", "metadata": {"chat_id": "edited"}, "messages": messages}
    response = api.post("/v1/chat/completions", json=body)
    assert response.status_code == 200, response.text
    return str(response.json["dify"]["conversation_id"])


def test_the_list_shows_what_turns_did(
    api: FlaskClient, store: ConversationStore, dify: FakeDify
) -> None:
    dify.answer = RememberingDify(lambda query: ["re ", query])
    first = ask(api, "one")
    assert ask(api, "one", "re one", "two") == first
    edited = ask(api, "one", "re one", "two, edited")
    assert edited != first
    (chat,) = api.get(MAPPINGS, query_string={"chat_id": "edited"}, headers=ADMIN).json["mappings"]
    told = [(found["dify_conversation_id"], found["reason"]) for found in chat["branches"]]
    assert told == [(edited, "other-history"), (first, "whole-history")]
    assert (chat["dify_conversation_id"], chat["reason"]) == told[0]


def test_removing_a_branch_leaves_the_others(
    api: FlaskClient, store: ConversationStore, branched: str
) -> None:
    for conversation, left in (
        (ONE, ["b3", "b1", "b0"]),
        ("b3", ["b1", "b0"]),
        ("b0", ["b1"]),
        ("b1", []),
    ):
        response = api.delete(f"{MAPPINGS}/{conversation}", headers=ADMIN)
        assert (response.status_code, response.json["removed_count"]) == (200, 1)
        assert conversations_of(store.get(branched)) == left
        listed = api.get(MAPPINGS, query_string={"chat_id": "edited"}, headers=ADMIN)
        found = [b["dify_conversation_id"] for m in listed.json["mappings"] for b in m["branches"]]
        assert found == left
        again = api.delete(f"{MAPPINGS}/{conversation}", headers=ADMIN)
        assert error_of(again) == (404, "mapping_not_found")


def test_a_conversation_of_several_chats_is_removed_from_all_of_them(
    api: FlaskClient, store: ConversationStore, chats: None, branched: str
) -> None:
    response = api.delete(f"{MAPPINGS}/{ONE}", headers=ADMIN)
    assert (response.status_code, response.json["removed_count"]) == (200, 2)
    assert store.get(key("tiny", "anna", "chat 1")) is None
    assert conversations_of(store.get(branched)) == ["b3", "b1", "b0"]


def test_a_branch_that_is_not_the_latest_is_deleted_in_dify_too(
    api: FlaskClient, store: ConversationStore, branched: str, dify: FakeDify
) -> None:
    dify.answer = lambda request: [head(204, "Content-Length: 0")]
    response = api.delete(f"{MAPPINGS}/b1?dify=true", headers=ADMIN)
    assert (response.status_code, response.json["dify"]) == (200, "deleted")
    assert [request.path for request in dify.requests] == ["/v1/conversations/b1"]
    assert conversations_of(store.get(branched)) == ["b3", ONE, "b0"]


@pytest.mark.parametrize("limit", ["", "0", "-1", "1.5", "x", "10001", "1" * 5000, "²"])
def test_a_wrong_limit_is_refused(api: FlaskClient, limit: str) -> None:
    response = api.get(MAPPINGS, query_string={"limit": limit}, headers=ADMIN)
    assert error_of(response) == (400, "invalid_request")
    assert response.json["error"]["param"] == "limit"


def test_a_mapping_is_removed(
    api: FlaskClient, store: ConversationStore, chats: None, dify: FakeDify
) -> None:
    response = api.delete(f"{MAPPINGS}/{ONE}", headers=ADMIN)
    assert (response.status_code, response.json["removed_count"]) == (200, 1)
    assert response.json["dify"] == "kept"
    assert store.owners(ONE) == []
    assert store.stats().count == 3
    assert dify.requests == []
    again = api.delete(f"{MAPPINGS}/{ONE}", headers=ADMIN)
    assert error_of(again) == (404, "mapping_not_found")


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        pytest.param([head(204, "Content-Length: 0")], "deleted", id="204"),
        pytest.param(refused(200, {"result": "success"}), "deleted", id="200"),
        pytest.param(
            refused(
                404, {"code": "not_found", "message": "Conversation Not Exists.", "status": 404}
            ),
            "unknown",
            id="404",
        ),
    ],
)
def test_a_conversation_is_deleted_in_dify_too(
    api: FlaskClient,
    store: ConversationStore,
    chats: None,
    dify: FakeDify,
    answer: list[bytes],
    outcome: str,
) -> None:
    dify.answer = lambda request: answer
    response = api.delete(f"{MAPPINGS}/{ONE}?dify=true", headers=ADMIN)
    assert (response.status_code, response.json["dify"]) == (200, outcome)
    assert store.owners(ONE) == []
    (request,) = dify.requests
    assert (request.method, request.path) == ("DELETE", f"/v1/conversations/{ONE}")
    assert request.json == {"user": "anna"}
    assert request.headers["authorization"] == f"Bearer {KEY}"


def test_what_dify_does_not_delete_is_kept_here_too(
    api: FlaskClient, store: ConversationStore, chats: None, dify: FakeDify
) -> None:
    dify.answer = lambda request: refused(401, {"code": "unauthorized", "message": "no"})
    response = api.delete(f"{MAPPINGS}/{ONE}?dify=true", headers=ADMIN)
    assert error_of(response) == (502, "upstream_auth_error")
    assert store.owners(ONE)


def test_what_is_not_known_in_dify_is_not_deleted_there(
    api: FlaskClient, store: ConversationStore, chats: None, dify: FakeDify
) -> None:
    store.adopt({key("a model of old", "anna", "x"): one_branch("c5", 1, 1)})
    for conversation in ("c4", "c5"):
        response = api.delete(f"{MAPPINGS}/{conversation}?dify=true", headers=ADMIN)
        assert error_of(response) == (400, "invalid_request")
        assert response.json["error"]["param"] == "dify"
        assert api.delete(f"{MAPPINGS}/{conversation}", headers=ADMIN).status_code == 200
    assert dify.requests == []


@pytest.mark.parametrize("flag", ["", "yes", "1", "True"])
def test_a_wrong_flag_deletes_nothing(
    api: FlaskClient, store: ConversationStore, chats: None, flag: str
) -> None:
    response = api.delete(f"{MAPPINGS}/{ONE}?dify={flag}", headers=ADMIN)
    assert error_of(response) == (400, "invalid_request")
    assert store.owners(ONE)


@pytest.mark.parametrize("path", [f"{MAPPINGS}/a/b", f"{MAPPINGS}/..%2f..", f"{MAPPINGS}/%00"])
def test_an_odd_id_is_unknown(api: FlaskClient, chats: None, dify: FakeDify, path: str) -> None:
    assert error_of(api.delete(f"{path}?dify=true", headers=ADMIN))[0] == 404
    assert dify.requests == []


@pytest.mark.parametrize(
    "body",
    ["[]", "null", "3", '{"max_age_days": "3"}', '{"max_age_days": true}']
    + [f'{{"max_age_days": {number}}}' for number in ("-1", "36501", "NaN", "Infinity", "1e999")],
)
def test_a_wrong_age_is_refused(
    api: FlaskClient, store: ConversationStore, chats: None, body: str
) -> None:
    response = api.post(CLEANUP, data=body, content_type="application/json", headers=ADMIN)
    assert error_of(response)[0] == 400
    assert store.stats().count == 4


@pytest.mark.parametrize("body", [None, {}, {"max_age_days": 30}, {"max_age_days": 0.5}])
def test_cleanup_removes_what_is_old(
    api: FlaskClient, store: ConversationStore, chats: None, body: Any
) -> None:
    store.put("new", "c9", Update(""))
    response = api.post(CLEANUP, json=body, headers=ADMIN)
    assert response.json["removed_count"] == 4
    assert response.json["max_age_days"] == (body or {}).get("max_age_days", 30)
    assert store.keys() == ["new"]


class TestWhileTheStoreIsAway:
    @pytest.fixture
    def store(self) -> Iterator[ConversationStore]:
        link = RedisConnection("redis://127.0.0.1:1/0", "Redis")
        store = RedisStore(link, clock=time.time, max_age_days=None, max_entries=10)
        yield store
        store.close()

    @pytest.mark.parametrize(("method", "path", "body", "single"), REQUESTS)
    def test_nothing_is_reported_as_unknown_or_done(
        self, api: FlaskClient, method: str, path: str, body: Any, single: bool
    ) -> None:
        if path.endswith("limit="):
            path += "5"
        response = api.open(path, method=method, json=body, headers=ADMIN)
        if method == "GET" and not single:
            assert response.json["store_available"] is False
        else:
            assert error_of(response) == (503, "store_unavailable")


TAMPERED = [
    '["-","tiny","an\\ud800na","chat 1"]',
    '["\\udc00","ti\\ud800ny","anna","\\ud800"]',
    "\ud800 an earlier chat",
]


@pytest.mark.parametrize("tampered", TAMPERED)
def test_half_a_surrogate_pair_in_the_store_hides_nothing(
    api: FlaskClient, store: ConversationStore, chats: None, tampered: str
) -> None:
    half = "c\udfff5"
    older = ConversationRecord("\ud8006", 1, 90, half, half, half)
    store.adopt({tampered: ChatRecord((ConversationRecord(half, 1, 100, half, half, half), older))})
    counts = api.get(MAPPINGS, headers=ADMIN)
    assert (counts.status_code, counts.json["mapping_count"]) == (200, 5)
    listed = api.get(f"{MAPPINGS}?limit=10", headers=ADMIN)
    assert listed.status_code == 200
    ids = [entry["dify_conversation_id"] for entry in listed.json["mappings"]]
    assert ids == ["c?5", ONE, "c2", "c3", "c4"]
    branches = listed.json["mappings"][0]["branches"]
    assert [found["dify_conversation_id"] for found in branches] == ["c?5", "?6"]
