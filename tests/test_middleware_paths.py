"""Paths as clients write them, before a real server."""

import http.client
import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai import OpenAI

from opendify.api.middleware.paths import normalize_path, path_hint
from tests.support.fake_dify import Chat, FakeDify
from tests.support.service import Service, running

CHAT = "/v1/chat/completions"
QUESTION = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}


@pytest.mark.parametrize(
    ("path", "plain"),
    [
        ("/", "/"),
        ("//", "/"),
        ("", ""),
        ("*", "*"),
        ("/v1/chat/completions", CHAT),
        ("//v1///chat/completions//", CHAT),
        ("/healthz/", "/healthz"),
        ("/v1/models/", "/v1/models"),
        ("//v1//models//", "/v1/models"),
        ("/v1//models/tiny", "/v1/models/tiny"),
        ("/v1/models/org//model/", "/v1/models/org//model/"),
        ("/v1/models/a\nb/", "/v1/models/a\nb/"),
        ("/v1/modelsx/", "/v1/modelsx"),
        ("/v1/conversation/mappings/", "/v1/conversation/mappings"),
    ],
)
def test_a_path_has_one_plain_form(path: str, plain: str) -> None:
    assert normalize_path(path) == plain
    assert normalize_path(plain) == plain


@given(st.text("/v1models ", max_size=30))
def test_a_plain_path_has_no_doubled_slashes_but_in_the_name_of_a_model(path: str) -> None:
    plain = normalize_path(f"/{path}")
    assert plain.startswith("/v1/models/") or "//" not in plain
    assert plain == "/" or plain.startswith("/v1/models/") or not plain.endswith("/")


@pytest.fixture(scope="module")
def dify() -> Iterator[FakeDify]:
    fake = FakeDify()
    yield fake
    fake.close()


@pytest.fixture(scope="module")
def service(dify: FakeDify, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    settings = {
        "DIFY_API_BASE": dify.base,
        "MODEL_CONFIG": json.dumps(dict.fromkeys(("tiny", "org/model", "odd//name/"), "app-k")),
        "OPENDIFY_ADMIN_KEYS": "adm-secret",
        "GUNICORN_WORKERS": "1",
    }
    with running(tmp_path_factory.mktemp("paths"), settings) as running_service:
        yield running_service


def ask(service: Service, method: str, path: str, body: Any = None) -> tuple[int, Any]:
    """The path goes out as it is, which no library for HTTP would do."""
    link = http.client.HTTPConnection(service.url.removeprefix("http://"), timeout=20)
    data = None if body is None else json.dumps(body)
    link.request(method, path, data, {"Content-Type": "application/json"})
    response = link.getresponse()
    content = response.read()
    link.close()
    assert "Location" not in response.headers
    return response.status, json.loads(content)


@pytest.mark.parametrize(
    "path",
    [
        "//v1/chat/completions",
        "/v1//chat/completions",
        "/v1/chat//completions",
        "/v1/chat/completions/",
        "///v1///chat///completions///",
        "/%2Fv1/chat/completions%2f",
        "/v1/chat/completions/?a=b//c/",
    ],
)
def test_a_question_is_answered_where_it_was_meant(
    service: Service, dify: FakeDify, path: str
) -> None:
    dify.answers.append(Chat().says("Hello"))
    status, answer = ask(service, "POST", path, QUESTION)
    assert (status, answer["choices"][0]["message"]["content"]) == (200, "Hello")


@pytest.mark.parametrize(
    ("path", "id_"),
    [
        ("/v1/models/tiny", "tiny"),
        ("/v1/models/tiny/", "tiny"),
        ("//v1/models//tiny", "tiny"),
        ("/v1/models/org/model", "org/model"),
        ("/v1/models/org%2Fmodel/", "org/model"),
        ("/v1/models/org//model", "org/model"),
        ("/v1/models/odd//name/", "odd//name/"),
        ("//v1//models/odd//name/", "odd//name/"),
    ],
)
def test_a_model_is_found_by_its_name(service: Service, path: str, id_: str) -> None:
    status, answer = ask(service, "GET", path)
    assert (status, answer.get("id")) == (200, id_)


@pytest.mark.parametrize("path", ["/v1/models/", "//v1/models", "/v1//models//", "//healthz/"])
def test_what_is_read_is_found_as_well(service: Service, path: str) -> None:
    assert ask(service, "GET", path)[0] == 200


@pytest.mark.parametrize("path", ["//metrics", "/metrics/", "/v1//conversation/mappings/"])
def test_what_needs_a_key_needs_it_by_any_path(service: Service, path: str) -> None:
    assert ask(service, "GET", path)[0] == 401


WRONG = [
    (
        "POST",
        "/chat/completions",
        f"Did you mean {CHAT}? The base URL of a client ends in /v1.",
    ),
    ("POST", "/v1/v1/chat/completions", "ends in /v1, once."),
    ("POST", "//v1//v1//chat/completions/", "ends in /v1, once."),
    ("POST", "/v1/chat/completions/chat/completions", "without anything after it"),
    ("POST", "/v1/chat/completions/v1/chat/completions", "without anything after it"),
    ("GET", "/v1/chat/completions/models", "Did you mean /v1/models?"),
    ("GET", "/v1/chat/completions/v1/models", "without anything after it"),
    ("POST", "/v1/models/chat/completions", "without anything after it"),
    ("GET", "/models", "Did you mean /v1/models? The base URL of a client ends in /v1."),
    ("POST", "/api/v1/chat/completions", "Remove '/api' from"),
    ("POST", "/ai/opendify/v1/chat/completions", "Remove '/ai/opendify' from"),
    ("GET", "/ai/v1/models", "Remove '/ai' from"),
    ("POST", "/V1/chat/completions", "lower case"),
    ("POST", "/openai/deployments/tiny/chat/completions", f"Did you mean {CHAT}?"),
    ("POST", "/v1/responses", "switch the Responses API off"),
    ("POST", "/responses", "switch the Responses API off"),
    ("GET", "/v1/responses/resp_1", "switch the Responses API off"),
    ("POST", "/completions", "Did you mean /v1/completions? The base URL of a client ends in /v1."),
    ("POST", "/v1/v1/completions", "ends in /v1, once."),
    ("POST", "/api/v1/completions", "Remove '/api' from"),
    ("POST", "/v1/completions/completions", "without anything after it"),
    ("POST", "/v1/chat", f"Did you mean {CHAT}?"),
    ("POST", "/v1/chat/completion", f"Did you mean {CHAT}?"),
    ("POST", "/v1/embeddings", "Admin Panel > Settings > Documents > Embedding"),
    ("POST", "/embeddings", "There are no embeddings"),
    ("POST", "/v1/rerank", "Admin Panel > Settings > Documents"),
    ("POST", "/v1/audio/speech", "Admin Panel > Settings > Audio"),
    ("POST", "/v1/images/generations", "Admin Panel > Settings > Images"),
    ("POST", "/v1/images/edits", "Admin Panel > Settings > Images"),
    ("POST", "/v1/moderations", "OPENAI_MODERATION=false"),
    ("POST", "/v1/files", "send them in the messages of a chat"),
    ("GET", "/v1/files/file-1", "send them in the messages of a chat"),
    ("POST", "/v1/uploads", "send them in the messages of a chat"),
    ("POST", "/v1/batches", "send the requests one by one"),
    ("GET", "/v1/assistants", "There are no assistants"),
    ("POST", "/v1/threads", "There are no threads"),
    ("POST", "/v1/threads/thread_1/messages", "There are no threads"),
    ("POST", "/v1/threads/runs", "There are no threads"),
    ("GET", "/v1/realtime", "There are no realtime sessions"),
    ("POST", "/v1/realtime/sessions", "There are no realtime sessions"),
    ("POST", "/v1/fine_tuning/jobs", "There is no fine-tuning"),
    ("POST", "/v1/vector_stores", "There are no vector stores"),
    ("POST", "/v1/vector_stores/vs_1/files", "There are no vector stores"),
    ("POST", "/v1/videos", "There is no generation of videos"),
    ("POST", "/messages", "does not add /v1 itself: its base URL must end in /v1"),
    ("POST", "/v1/v1/messages", "adds /v1 itself: leave it out"),
    ("GET", "/api/tags", "choose the connection type 'OpenAI'"),
    ("POST", "/api/chat", "choose the connection type 'OpenAI'"),
    ("POST", "/v1beta/models/tiny:generateContent", "choose the connection type 'OpenAI'"),
    ("GET", "/", "The base URL of a client ends in /v1;"),
    ("GET", "/v1", "The base URL of a client ends in /v1;"),
    ("GET", "/v1/", "The base URL of a client ends in /v1;"),
    ("GET", "/v1/nothing", "GET /v1/models and POST /v1/chat/completions"),
    ("GET", "/favicon.ico", "The base URL of a client ends in /v1."),
]


@pytest.mark.parametrize(("method", "path", "hint"), WRONG)
def test_a_wrong_path_is_explained(service: Service, method: str, path: str, hint: str) -> None:
    status, answer = ask(service, method, path, {} if method == "POST" else None)
    assert status == (405 if path.startswith("/v1/models/") else 404)
    assert answer["error"]["type"] == "invalid_request_error"
    assert hint in answer["error"]["message"]


def test_the_client_of_openai_shows_what_is_missing(service: Service) -> None:
    client = OpenAI(base_url=f"{service.url}/v1", api_key="sk")
    with client, pytest.raises(openai.NotFoundError) as caught:
        client.embeddings.create(model="tiny", input="Hi")
    assert (caught.value.code, caught.value.type) == ("not_found", "invalid_request_error")
    assert "There is no POST /v1/embeddings here. There are no embeddings" in caught.value.message


SERVED = {CHAT, "/v1/completions", "/v1/models", "/v1/messages", "/v1/messages/count_tokens"}
PARTS = sorted({part for path in SERVED for part in path.split("/") if part})


@given(st.lists(st.text(max_size=5) | st.sampled_from(PARTS)))
def test_there_is_advice_for_any_path(parts: list[str]) -> None:
    path = normalize_path("/" + "/".join(parts))
    assert path_hint(path).endswith((".", "?")) or path in SERVED
