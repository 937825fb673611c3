"""The demo Dify behind the whole service: every kind of app, and everything that it can say."""

import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from demo.apps import picture
from demo.server import DemoServer
from tests.support.service import Service, running
from tests.support.streams import Streamed, read_stream
from tests.test_demo import AT_ONCE, KEYS, serving

CHATS = ("chat", "agent-chat", "agent", "advanced-chat")
PNG, PDF, WAV = picture(), b"%PDF-1.7\n" + bytes(500), b"RIFF\x24\0\0\0WAVEfmt " + bytes(700)
PUBLIC = "https://ai.example.com"


def data(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


IMAGE = {"type": "image_url", "image_url": {"url": data(PNG, "image/png")}}
PAPER_DATA = data(PDF, "application/pdf")
PAPER = {"type": "file", "file": {"filename": "手册.pdf", "file_data": PAPER_DATA}}
WAV_DATA = base64.b64encode(WAV).decode()
SOUND = {"type": "input_audio", "input_audio": {"data": WAV_DATA, "format": "wav"}}
REMOTE = {"type": "image_url", "image_url": {"url": "https://cdn.example/cat.jpg?x=1"}}


@pytest.fixture(scope="module")
def demo() -> Iterator[DemoServer]:
    with serving(AT_ONCE) as server:
        yield server


@pytest.fixture(scope="module")
def service(demo: DemoServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    variables = {
        "DIFY_API_BASE": demo.base,
        "MODEL_CONFIG": json.dumps(KEYS),
        "GUNICORN_WORKERS": "1",
        "PUBLIC_BASE_URL": PUBLIC,
    }
    folder: Path = tmp_path_factory.mktemp("service")
    with running(folder, variables) as service:
        yield service


def user(*parts: Any) -> dict[str, Any]:
    content = [part if isinstance(part, dict) else {"type": "text", "text": part} for part in parts]
    return {"role": "user", "content": content}


def ask(service: Service, model: str, *messages: Any, **more: Any) -> httpx.Response:
    body = {"model": model, "messages": list(messages), **more}
    url = f"{service.url}/v1/chat/completions"
    return httpx.post(url, json=body, timeout=60, trust_env=False)


def said(response: httpx.Response) -> str:
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])


def streamed(service: Service, model: str, text: str, **more: Any) -> Streamed:
    response = ask(service, model, user(text), stream=True, **more)
    assert response.status_code == 200, response.text
    return read_stream(response.content)


def received(answer: str) -> list[str]:
    return re.findall(r"^- (.*)$", answer, re.MULTILINE)


SHOWN_IMAGE = f"image.png: image, image/png, {len(PNG)} bytes"
SHOWN_PAPER = f"手册.pdf: document, application/pdf, {len(PDF)} bytes"
SHOWN_SOUND = f"audio.wav: audio, audio/wav, {len(WAV)} bytes"


@pytest.mark.parametrize("model", CHATS)
def test_each_file_of_a_conversation_arrives_once(
    model: str, service: Service, demo: DemoServer
) -> None:
    """A client such as Open WebUI sends the whole chat with each turn, pictures and all."""
    before = len(demo.memory._files)
    chat: list[Any] = []
    turns = [
        (user("Hello"), []),
        (user("Look", IMAGE), [SHOWN_IMAGE]),
        (user("Read", PAPER), [SHOWN_PAPER]),
        (user("Hear and look", SOUND, IMAGE), [SHOWN_SOUND, SHOWN_IMAGE]),
        (user("So?"), []),
    ]
    for number, (message, shown) in enumerate(turns, 1):
        chat.append(message)
        answer = said(ask(service, model, *chat, user=f"files-{model}"))
        assert f"turn {number} of this conversation" in answer
        assert received(answer) == shown
        chat.append({"role": "assistant", "content": answer})
    assert len(demo.memory._files) == before + 3


@pytest.mark.parametrize("model", ["completion", "workflow"])
def test_apps_without_memory_take_files_too(model: str, service: Service) -> None:
    answer = said(ask(service, model, user("Look", IMAGE, PAPER, SOUND)))
    assert received(answer) == [SHOWN_IMAGE, SHOWN_PAPER, SHOWN_SOUND]
    remote = received(said(ask(service, model, user("Look", REMOTE))))
    assert remote == ["cat.jpg: image, image/jpeg, not fetched: https://cdn.example/cat.jpg?x=1"]


def test_nothing_but_a_picture_is_a_question(service: Service) -> None:
    answer = said(ask(service, "chat", user(IMAGE)))
    assert "Please look at what is attached." in answer
    assert received(answer) == [SHOWN_IMAGE]


@pytest.mark.parametrize("model", KEYS)
def test_a_picture_that_the_app_draws_is_shown_once_and_can_be_had(
    model: str, service: Service
) -> None:
    text = streamed(service, model, "Draw /image").text
    (link,) = re.findall(r"!\[[^]]*\]\(([^)]*)\)", text)
    assert text.count(link) == 1
    assert "/files/tools/" not in text
    assert link.startswith(f"{PUBLIC}/v1/files/")
    served = httpx.get(link.replace(PUBLIC, service.url), trust_env=False)
    assert (served.status_code, served.content) == (200, PNG)
    assert served.headers["Content-Type"] == "image/png"
    assert served.headers["X-Content-Type-Options"] == "nosniff"
    assert "sandbox" in served.headers["Content-Security-Policy"]


@pytest.mark.parametrize("model", KEYS)
def test_thoughts_are_apart_from_the_answer(model: str, service: Service) -> None:
    one = streamed(service, model, "/think")
    assert "The question has" in one.reasoning
    assert "The question has" not in one.text
    assert "<think>" not in one.text + one.reasoning
    message = ask(service, model, user("/think")).json()["choices"][0]["message"]
    assert "The question has" in message["reasoning_content"]
    assert one.text == message["content"]


@pytest.mark.parametrize("model", [name for name in KEYS if name != "workflow"])
def test_sources_are_listed(model: str, service: Service) -> None:
    one = streamed(service, model, "/sources")
    assert [a["url_citation"]["title"] for a in one.annotations] == ["Handbook.md"]
    assert one.text.endswith("**Sources**\n\n1. Notes.txt")
    headers = {"X-OpenWebUI-Chat-Id": f"sources-{model}"}
    body = {"model": model, "messages": [user("/sources")], "stream": True}
    url = f"{service.url}/v1/chat/completions"
    raw = httpx.post(url, json=body, headers=headers, timeout=60, trust_env=False).content
    shown = [chunk["event"] for chunk in read_stream(raw).chunks if "event" in chunk]
    assert [event["type"] for event in shown] == ["source", "source"]
    assert "**Sources**" not in read_stream(raw).text


@pytest.mark.parametrize("model", KEYS)
def test_a_failing_model_is_an_error_after_its_text(model: str, service: Service) -> None:
    one = streamed(service, model, "/error")
    assert one.text
    assert one.error is not None
    assert one.error["code"] == "run_failed"
    whole = ask(service, model, user("/error"))
    assert (whole.status_code, whole.json()["error"]) == (502, one.error)


@pytest.mark.parametrize("model", KEYS)
def test_a_stop_sequence_ends_the_answer_and_the_run(model: str, service: Service) -> None:
    one = streamed(service, model, "Say STOPWORD and more", stop=["STOPWORD"])
    assert one.text.endswith("Say ")
    assert one.finish_reason == "stop"


def test_inputs_reach_the_app(service: Service) -> None:
    answer = said(ask(service, "advanced-chat", user("Hi"), inputs={"city": "Oslo"}))
    assert "Inputs: city=Oslo" in answer
    refused = ask(service, "advanced-chat", user("Hi"), inputs={"city": "x" * 49})
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "inputs.city")


def test_the_models_say_what_they_are(service: Service) -> None:
    said(ask(service, "chat", user("Hi")))
    models = httpx.get(f"{service.url}/v1/models", trust_env=False).json()["data"]
    told = next(model for model in models if model["id"] == "chat")
    assert (told["name"], told["mode"]) == ("Demo Chat", "chat")
    assert told["capabilities"]["vision"] is True
