"""By which names a model answers."""

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from opendify.config.models import Model
from opendify.upstream.transport.transport import PooledClient
from tests.support.application import make_settings, open_app
from tests.support.fake_dify import Chat, FakeDify, Request, Steps

ANTHROPIC = {"anthropic-version": "2023-06-01"}
ASK = "/v1/chat/completions"
KEYS = {"all": "key-all", "small": {"keys": "key-small", "models": ["small"]}}
Opener = Callable[..., FlaskClient]


def answer(request: Request) -> Steps:
    return Chat().says(request.headers["authorization"].removeprefix("Bearer app-"))


@pytest.fixture
def dify() -> Iterator[FakeDify]:
    fake = FakeDify(answer=answer)
    yield fake
    fake.close()


@pytest.fixture
def opened(http: PooledClient, dify: FakeDify, tmp_path: Path) -> Iterator[Opener]:
    models = {
        "large": Model("large", "app-large", dify.base, ("gpt-*", "claude-*", "gpt-4o-mini")),
        "small": Model("small", "app-small", dify.base, ("gpt-*-mini", "whisper-1", "*-mini")),
        "gpt-5": Model("gpt-5", "app-five", dify.base),
    }
    with ExitStack() as stack:

        def open_(default_model: str = "", **changes: Any) -> FlaskClient:
            settings = make_settings(models, tmp_path, default_model=default_model, **changes)
            return stack.enter_context(open_app(settings, http)).test_client()

        yield open_


def ask(api: FlaskClient, model: str | None, key: str = "", **fields: Any) -> Any:
    named = {} if model is None else {"model": model}
    body = {**named, "messages": [{"role": "user", "content": "Hi"}], **fields}
    return api.post(ASK, json=body, headers={"Authorization": f"Bearer {key}"}, buffered=True)


def app_of(response: Any) -> str:
    return str(response.json["choices"][0]["message"]["content"])


NAMES = [
    pytest.param("gpt-5", "five", id="a model before the pattern of another"),
    pytest.param("gpt-4", "large", id="a pattern"),
    pytest.param("gpt-4o-mini", "large", id="a name before a longer pattern"),
    pytest.param("gpt-5-mini", "small", id="the longest pattern"),
    pytest.param("o4-mini", "small", id="a pattern at the end"),
    pytest.param("whisper-1", "small", id="a name"),
]


@pytest.mark.parametrize(("name", "app"), NAMES)
def test_a_name_leads_to_its_model_and_is_the_name_in_the_answer(
    opened: Opener, name: str, app: str
) -> None:
    response = ask(opened(), name)
    assert (app_of(response), response.json["model"]) == (app, name)


def test_a_stream_has_the_name_that_the_caller_sent(opened: Opener) -> None:
    raw = ask(opened(), "gpt-4", stream=True).data.decode()
    chunks = [json.loads(line[6:]) for line in raw.splitlines() if line.startswith("data: {")]
    assert {chunk["model"] for chunk in chunks} == {"gpt-4"}


@pytest.mark.parametrize("default", ["", "large"])
def test_a_caller_reaches_only_its_models_by_any_name(opened: Opener, default: str) -> None:
    api = opened(default, api_keys=json.dumps(KEYS))
    assert app_of(ask(api, "claude-1", "key-all")) == "large"
    assert ask(api, "claude-1", "key-small").json["error"]["code"] == "model_not_found"
    assert ask(api, "gpt-5", "key-small").json["error"]["code"] == "model_not_found"
    assert app_of(ask(api, "gpt-4o-mini", "key-small")) == "small"
    unnamed = ask(api, None, "key-small")
    assert (unnamed.status_code, unnamed.json["error"]["param"]) == (400, "model")
    assert "large" not in unnamed.text


def test_all_names_of_a_model_share_its_chats(opened: Opener, dify: FakeDify) -> None:
    api = opened()
    said: list[dict[str, str]] = []
    for name in ("large", "gpt-4", "claude-1"):
        said += [{"role": "user", "content": f"Hi {name}"}]
        answer = ask(api, name, messages=said, chat_id="c")
        said += [{"role": "assistant", "content": app_of(answer)}]
    ids = [request.json["conversation_id"] for request in dify.asked()]
    assert ids == ["", Chat().conversation_id, Chat().conversation_id]


@pytest.mark.parametrize("headers", [{}, ANTHROPIC], ids=["OpenAI", "Anthropic"])
def test_names_without_a_star_are_listed(opened: Opener, headers: dict[str, str]) -> None:
    api = opened()
    listed = [model["id"] for model in api.get("/v1/models", headers=headers).json["data"]]
    assert listed == ["large", "small", "gpt-5", "gpt-4o-mini", "whisper-1"]
    restricted = opened(api_keys=json.dumps(KEYS))
    headers = {"Authorization": "Bearer key-small", **headers}
    listed = [m["id"] for m in restricted.get("/v1/models", headers=headers).json["data"]]
    assert listed == ["small", "whisper-1"]


@pytest.mark.parametrize("headers", [{}, ANTHROPIC], ids=["OpenAI", "Anthropic"])
def test_a_hidden_model_is_not_listed_by_any_name(
    http: PooledClient, dify: FakeDify, tmp_path: Path, headers: dict[str, str]
) -> None:
    hidden = Model("hidden", "app-hidden", dify.base, ("alias",), hidden=True)
    models = {"hidden": hidden, "shown": Model("shown", "app-shown", dify.base, title="Shown")}
    with open_app(make_settings(models, tmp_path), http) as application:
        api = application.test_client()
        (entry,) = api.get("/v1/models", headers=headers).json["data"]
        assert (entry["id"], entry.get("name", entry.get("display_name"))) == ("shown", "Shown")
        assert api.get("/v1/models/hidden", headers=headers).json["id"] == "hidden"


@pytest.mark.parametrize("headers", [{}, ANTHROPIC], ids=["OpenAI", "Anthropic"])
def test_each_name_is_shown(opened: Opener, headers: dict[str, str]) -> None:
    api = opened("large")
    for name in ("large", "whisper-1", "gpt-4"):
        assert api.get(f"/v1/models/{name}", headers=headers).json["id"] == name
    assert api.get("/v1/models/other", headers=headers).status_code == 404


def test_the_log_and_the_metrics_have_the_name_of_the_model(
    opened: Opener, caplog: pytest.LogCaptureFixture
) -> None:
    api = opened("small")
    with caplog.at_level(logging.INFO, "opendify.requests"):
        for name in ("gpt-4", "nobody", None):
            ask(api, name)
    assert [record.fields["model"] for record in caplog.records] == [  # type: ignore[attr-defined]
        "large",
        "small",
        "small",
    ]
    figures = api.get("/metrics").text
    assert 'model="large"' in figures
    assert "gpt-4" not in figures


@pytest.mark.parametrize("name", ["nobody", "", None])
def test_without_a_default_a_request_must_name_a_model(opened: Opener, name: str | None) -> None:
    response = ask(opened(), name)
    assert response.status_code == (404 if name else 400)
    assert response.json["error"]["param"] == "model"


@pytest.mark.parametrize(
    ("name", "shown"), [("nobody", "nobody"), ("", "small"), (None, "small"), ("gpt-4", "gpt-4")]
)
def test_the_default_answers_where_no_model_does(
    opened: Opener, name: str | None, shown: str
) -> None:
    response = ask(opened("small"), name)
    assert app_of(response) == ("large" if name == "gpt-4" else "small")
    assert response.json["model"] == shown


def test_the_default_also_answers_texts(opened: Opener) -> None:
    response = opened("small").post("/v1/completions", json={"prompt": "Hi", "model": None})
    assert (response.json["choices"][0]["text"], response.json["model"]) == ("small", "small")


@pytest.mark.parametrize(
    ("name", "shown"), [("gpt-4", "gpt-4"), ("nobody", "nobody"), (None, "small")]
)
def test_all_names_and_the_default_answer_messages(
    opened: Opener, name: str | None, shown: str
) -> None:
    api = opened("small")
    body = {"model": name, "max_tokens": 9, "messages": [{"role": "user", "content": "Hi"}]}
    response = api.post("/v1/messages", json=body, buffered=True)
    assert response.json["content"][0]["text"] == ("large" if name == "gpt-4" else "small")
    assert response.json["model"] == shown
    assert api.post("/v1/messages/count_tokens", json=body).status_code == 200


def test_a_model_of_another_type_is_still_wrong(opened: Opener) -> None:
    response = opened("small").post(ASK, json={"model": 5, "messages": [{"role": "user"}]})
    assert (response.status_code, response.json["error"]["param"]) == (400, "model")
