"""``POST /v1/completions``: the client of OpenAI before real Gunicorn and recorded Dify."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from openai import OpenAI

from tests.support import service
from tests.support.fake_dify import FakeDify, Request, Steps, replayed

RECORDED = {
    "1.11": "1.11.4/completion/stream_first",
    "1.13": "1.13.2/completion/stream_first",
    "1.16": "1.16.1/completion/stream_first",
    "chat": "1.13.2/chat/stream_first",
    "thinks": "1.11.4/chat/think_stream",
    "breaks": "1.16.1/completion/llm_fail_mid_stream",
    "fails": "1.16.1/completion/llm_fail_start_stream",
    "refused": "1.13.2/completion/missing_inputs",
}
ANSWER = "tok0 tok1 tok2 tok3 tok4 "
MODELS = {
    "text": {"key": "app-text", "type": "completion", "text_input": "query"},
    "chat": {"key": "app-chat", "type": "chat"},
}


def answer(request: Request) -> Steps:
    body = request.json
    query = body.get("query") or body["inputs"]["query"]
    return replayed(RECORDED[query.split()[0]])


@pytest.fixture(scope="module")
def dify() -> Iterator[FakeDify]:
    fake = FakeDify(answer=answer)
    yield fake
    fake.close()


@pytest.fixture(scope="module")
def url(dify: FakeDify, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    variables = service.free_variables(
        dify.base, MODEL_CONFIG=json.dumps(MODELS), GUNICORN_WORKERS="1", GUNICORN_THREADS="8"
    )
    with service.running(tmp_path_factory.mktemp("service"), variables) as running:
        yield running.url


@pytest.fixture
def client(url: str) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{url}/v1", api_key="sk-caller", max_retries=0, timeout=30) as made:
        yield made


@pytest.mark.parametrize("release", ["1.11", "1.13", "1.16"])
def test_a_text_generator_answers_in_one_piece(
    client: OpenAI, dify: FakeDify, release: str
) -> None:
    completion = client.completions.create(model="text", prompt=release, user="u")
    assert completion.choices[0].text == ANSWER
    assert completion.choices[0].finish_reason == "stop"
    assert completion.object == "text_completion"
    assert completion.model == "text"
    assert completion.id.startswith("cmpl-")
    assert completion.usage is not None
    assert completion.usage.total_tokens in (10, 21)
    asked = next(r for r in reversed(dify.requests) if r.path == "/v1/completion-messages")
    assert (asked.json["inputs"], asked.json["user"]) == ({"query": release}, "u")


@pytest.mark.parametrize("release", ["1.11", "1.13", "1.16"])
def test_a_text_generator_answers_as_a_stream(client: OpenAI, release: str) -> None:
    with client.completions.create(
        model="text", prompt=[release], stream=True, stream_options={"include_usage": True}
    ) as stream:
        *chunks, usage = list(stream)
    assert "".join(chunk.choices[0].text for chunk in chunks) == ANSWER
    assert len(chunks) >= 5
    reasons: list[Any] = [chunk.choices[0].finish_reason for chunk in chunks]
    assert reasons == [None] * (len(chunks) - 1) + ["stop"]
    assert usage.usage is not None
    assert usage.choices == []
    assert {chunk.object for chunk in chunks} == {"text_completion"}
    assert len({chunk.id for chunk in [*chunks, usage]}) == 1


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_reasoning_is_left_out(client: OpenAI, stream: bool) -> None:
    made: Any = client.completions.create(model="chat", prompt="thinks", stream=stream)
    text = "".join(c.choices[0].text for c in made) if stream else made.choices[0].text
    assert text == "tok0 tok1 tok2 "


def test_the_prompt_is_repeated_where_the_caller_wants_it(client: OpenAI) -> None:
    whole = client.completions.create(model="text", prompt="1.16", echo=True)
    assert whole.choices[0].text == "1.16" + ANSWER
    with client.completions.create(model="text", prompt="1.16", echo=True, stream=True) as stream:
        assert "".join(chunk.choices[0].text for chunk in stream) == "1.16" + ANSWER


def test_a_stop_sequence_ends_the_answer(client: OpenAI) -> None:
    whole = client.completions.create(model="text", prompt="1.16", stop=["tok2"])
    assert whole.choices[0].text == "tok0 tok1 "


def test_each_request_is_a_conversation_of_its_own_unless_it_names_a_chat(
    client: OpenAI, dify: FakeDify
) -> None:
    before = len(dify.asked())
    prompts = ["chat one", "chat two", "chat three", "chat four"]
    for prompt, chat in zip(prompts, (None, None, "c", "c"), strict=True):
        body = {"metadata": {"chat_id": chat}}
        client.completions.create(model="chat", prompt=prompt, extra_body=body)
    ids = [request.json["conversation_id"] for request in dify.asked()[before:]]
    assert ids[:3] == ["", "", ""]
    assert ids[3]
    assert [request.json["query"] for request in dify.asked()[before:]] == prompts


def test_what_has_no_effect_is_named(client: OpenAI) -> None:
    raw = client.completions.with_raw_response.create(
        model="text", prompt="1.16", temperature=0, max_tokens=99, best_of=2, logprobs=3
    )
    assert raw.headers["X-OpenDify-Ignored"] == "temperature, logprobs, max_tokens, best_of"


FAILURES: list[Any] = [
    pytest.param({"prompt": "fails"}, 502, "run_failed", None, id="a failed run"),
    pytest.param({"prompt": "refused"}, 400, "rejected_by_dify", None, id="refused by Dify"),
    pytest.param({"suffix": "x"}, 400, "invalid_request", "suffix", id="suffix"),
    pytest.param({"n": 2}, 400, "invalid_request", "n", id="two answers"),
    pytest.param({"prompt": ["a", "b"]}, 400, "invalid_request", "prompt", id="two prompts"),
    pytest.param({"model": "other"}, 404, "model_not_found", "model", id="no model"),
]


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
@pytest.mark.parametrize(("fields", "status", "code", "param"), FAILURES)
def test_a_failure_raises(
    client: OpenAI, fields: dict[str, Any], status: int, code: str, param: str, stream: bool
) -> None:
    with pytest.raises(openai.APIStatusError) as caught:
        client.completions.create(**{"model": "text", "prompt": "1.16"} | fields, stream=stream)
    error = caught.value
    assert (error.status_code, error.code, error.param) == (status, code, param)


def test_a_failure_in_the_middle_of_a_stream_raises_after_the_text(client: OpenAI) -> None:
    text = ""
    stream = client.completions.create(model="text", prompt="breaks", stream=True)
    with stream, pytest.raises(openai.APIError) as caught:
        for chunk in stream:
            text += chunk.choices[0].text
    assert text == "tok0 tok1 tok2 "
    assert caught.value.code == "run_failed"
