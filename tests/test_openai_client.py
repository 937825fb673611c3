"""The official client of OpenAI, before real Gunicorn with several workers."""

import time
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.support import service
from tests.support.fake_dify import (
    CLOSE,
    Chat,
    FakeDify,
    Request,
    Steps,
    refused,
    replayed,
    streamed,
)

FAILURES: dict[str, Steps] = {
    "wrong key": replayed("1.13.2/chat/wrong_key"),
    "missing": replayed("1.13.2/chat-inputs/missing_required_input_stream"),
    "not chat": replayed("1.13.2/workflow/on_chat_messages"),
    "busy": refused(429, {"code": "too_many_requests", "message": "Slow down."}),
    "down": refused(503, b"<html>nginx</html>", "text/html"),
    "broken": refused(502, b"<html>nginx</html>", "text/html"),
    "gateway": refused(504, b"<html>nginx</html>", "text/html"),
    "no stream": refused(200, b"<html>Dify</html>", "text/html"),
    "cut": [CLOSE],
    "cut later": [*streamed(Chat().text("Half of"))[:-1], CLOSE],
    "fails later": replayed("1.13.2/chat/llm_fail_mid_stream"),
    "unknown": replayed("1.13.2/chat/stream_conv_unknown"),
}


def answer(request: Request) -> Steps:
    query = request.json["query"]
    return FAILURES.get(query) or Chat().says(*(f"{word} " for word in query.split()))


@pytest.fixture(scope="module")
def dify() -> Iterator[FakeDify]:
    fake = FakeDify(answer=answer)
    yield fake
    fake.close()


@pytest.fixture(scope="module")
def url(dify: FakeDify, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    models = '{"tiny":"app-secret-key","org/model":{"key":"app-other-key"}}'
    variables = service.free_variables(
        dify.base, MODEL_CONFIG=models, GUNICORN_WORKERS="3", GUNICORN_THREADS="8", MAX_BODY_MB="1"
    )
    with service.running(tmp_path_factory.mktemp("service"), variables) as running:
        until = time.monotonic() + 20
        while len(running.workers()) < 3 and time.monotonic() < until:
            time.sleep(0.05)
        assert len(running.workers()) == 3
        yield running.url


@pytest.fixture
def client(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{url}/v1", api_key="sk-caller", max_retries=0, timeout=30) as made:
        yield made


def messages(text: str) -> Any:
    return [{"role": "user", "content": text}]


def test_an_answer_in_one_piece(client: OpenAI) -> None:
    completion = client.chat.completions.create(model="tiny", messages=messages("Hi there"))
    assert completion.choices[0].message.content == "Hi there "
    assert completion.choices[0].message.role == "assistant"
    assert completion.choices[0].finish_reason == "stop"
    assert completion.model == "tiny"
    assert completion.id == f"chatcmpl-{Chat().message_id}"
    assert completion.usage is not None
    assert completion.usage.total_tokens == 5
    assert completion.model_extra is not None
    assert completion.model_extra["dify"]["conversation_id"] == Chat().conversation_id


def test_an_answer_as_a_stream(client: OpenAI) -> None:
    with client.chat.completions.create(
        model="tiny", messages=messages("one two 三"), stream=True
    ) as stream:
        chunks = list(stream)
    assert [chunk.choices[0].delta.content for chunk in chunks] == [
        "",
        "one ",
        "two ",
        "三 ",
        None,
    ]
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert all(chunk.usage is None for chunk in chunks)


def test_usage_comes_last_where_it_was_asked_for(client: OpenAI) -> None:
    with client.chat.completions.create(
        model="tiny",
        messages=messages("Hi"),
        stream=True,
        stream_options={"include_usage": True},
    ) as stream:
        *before, last = list(stream)
    assert last.choices == []
    assert last.usage is not None
    assert (last.usage.prompt_tokens, last.usage.completion_tokens) == (3, 2)
    assert all(chunk.usage is None for chunk in before)


def test_the_stream_helper_of_the_client_follows_it_to_its_end(client: OpenAI) -> None:
    with client.chat.completions.stream(model="tiny", messages=messages("one two")) as stream:
        kinds = [event.type for event in stream]
        completion = stream.get_final_completion()
    assert kinds.count("content.delta") >= 2
    assert completion.choices[0].message.content == "one two "
    assert completion.choices[0].finish_reason == "stop"


def test_the_raw_answer_names_what_was_ignored(client: OpenAI) -> None:
    raw = client.chat.completions.with_raw_response.create(
        model="tiny", messages=messages("Hi"), temperature=0.5, max_tokens=5, seed=1
    )
    assert raw.headers["X-OpenDify-Ignored"] == "temperature, seed, max_tokens"
    assert raw.headers["X-Dify-Conversation-Id"] == Chat().conversation_id
    assert raw.parse().choices[0].message.content == "Hi "


def test_fields_of_dify_pass_by_extra_body(client: OpenAI, dify: FakeDify) -> None:
    client.chat.completions.create(
        model="tiny", messages=messages("Hi"), user="u", extra_body={"inputs": {"city": "Rome"}}
    )
    sent = dify.asked()[-1].json
    assert (sent["inputs"], sent["user"]) == ({"city": "Rome"}, "u")


ERRORS = [
    pytest.param("wrong key", openai.InternalServerError, 502, "upstream_auth_error", id="our key"),
    pytest.param("missing", openai.BadRequestError, 400, "rejected_by_dify", id="a missing input"),
    pytest.param("unknown", openai.NotFoundError, 404, "conversation_not_found", id="unknown"),
    pytest.param("not chat", openai.InternalServerError, 502, "upstream_config_error", id="an app"),
    pytest.param("busy", openai.RateLimitError, 429, "rate_limit_exceeded", id="too many"),
    pytest.param("down", openai.InternalServerError, 503, "upstream_unavailable", id="503"),
    pytest.param("broken", openai.InternalServerError, 502, "upstream_error", id="a page"),
    pytest.param("gateway", openai.InternalServerError, 504, "upstream_timeout", id="504"),
    pytest.param("no stream", openai.InternalServerError, 502, "upstream_error", id="no stream"),
    pytest.param("cut", openai.InternalServerError, 502, "upstream_error", id="a cut connection"),
]


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize(("query", "kind", "status", "code"), ERRORS)
def test_a_failure_raises_what_the_client_knows_it_as(
    client: OpenAI,
    query: str,
    kind: type[openai.APIStatusError],
    status: int,
    code: str,
    stream: bool,
) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(model="tiny", messages=messages(query), stream=stream)
    error = caught.value
    assert type(error) is kind
    assert (error.status_code, error.code) == (status, code)
    assert len(error.message) > 20
    assert "app-secret" not in str(error)
    assert "<html" not in str(error)


@pytest.mark.parametrize("query", ["cut later", "fails later"])
def test_a_failure_in_the_middle_of_a_stream_raises_after_the_text(
    client: OpenAI, query: str
) -> None:
    text = ""
    stream = client.chat.completions.create(model="tiny", messages=messages(query), stream=True)
    with stream, pytest.raises(openai.APIError) as caught:
        for chunk in stream:
            text += chunk.choices[0].delta.content or ""
    assert text
    assert caught.value.code in ("upstream_error", "run_failed")
    assert caught.value.message


@pytest.mark.parametrize(
    ("fields", "kind", "code", "param"),
    [
        pytest.param({"model": "gpt-5"}, openai.NotFoundError, "model_not_found", "model", id="no"),
        pytest.param({"n": 2}, openai.BadRequestError, "invalid_request", "n", id="two answers"),
        pytest.param(
            {"messages": []}, openai.BadRequestError, "invalid_request", "messages", id="[]"
        ),
        pytest.param(
            {"tool_choice": "required"},
            openai.BadRequestError,
            "invalid_request",
            "tool_choice",
            id="a forced tool",
        ),
    ],
)
def test_a_wrong_request_raises_and_names_its_field(
    client: OpenAI, fields: dict[str, Any], kind: type[openai.APIStatusError], code: str, param: str
) -> None:
    with pytest.raises(kind) as caught:
        client.chat.completions.create(**{"model": "tiny", "messages": messages("Hi"), **fields})
    assert (caught.value.code, caught.value.param) == (code, param)


def test_a_question_that_is_too_large_raises(client: OpenAI) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        client.chat.completions.create(model="tiny", messages=messages("x" * 2_000_000))
    assert caught.value.status_code == 413
    assert caught.value.code == "request_too_large"


def test_a_run_is_not_repeated_by_the_client_itself(url: str, dify: FakeDify) -> None:
    with OpenAI(base_url=f"{url}/v1", api_key="sk", max_retries=2, timeout=30) as client:
        for query in ("broken", "cut later", "gateway"):
            before = len(dify.asked())
            with pytest.raises(openai.InternalServerError):
                client.chat.completions.create(model="tiny", messages=messages(query))
            assert len(dify.asked()) == before + 1, query


def test_models_are_listed_and_retrieved(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny", "org/model"]
    model = client.models.retrieve("org/model")
    assert (model.id, model.object, model.owned_by) == ("org/model", "model", "dify")
    assert client.models.retrieve("tiny").created == model.created
    with pytest.raises(openai.NotFoundError) as caught:
        client.models.retrieve("other")
    assert caught.value.code == "model_not_found"


def test_a_chat_keeps_its_conversation_whichever_worker_answers(url: str, dify: FakeDify) -> None:
    headers = {"X-OpenWebUI-Chat-Id": "chat-1"}
    before = len(dify.asked())
    said = messages("Hi")
    for _ in range(8):
        # A connection of its own each time, so that the workers take turns.
        with OpenAI(base_url=f"{url}/v1", api_key="sk", default_headers=headers) as client:
            answer = client.chat.completions.create(model="tiny", messages=said, user="u")
        said += [{"role": "assistant", "content": answer.choices[0].message.content}]
        said += messages("And?")
    ids = [request.json["conversation_id"] for request in dify.asked()[before:]]
    assert ids == ["", *[Chat().conversation_id] * 7]
