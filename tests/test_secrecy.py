"""The real service at its most verbose log level, with everything that can happen: nothing that is
anybody's secret is in what it writes."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.fake_dify import CLOSE, Chat, FakeDify, Request, Steps, event, refused, streamed
from tests.support.service import Service, free_variables, running

KEYS = {
    "the key of an app": "app-Zq7secretOfTheApp",
    "an admin key": "adm-Zq7secretOfTheAdmin",
    "the key of a caller": "sk-Zq7secretOfTheCaller",
    "the secret of links": "Zq7secret-of-the-links",
}
PROMPT = "Zq7prompt of a person"
ANSWER = "Zq7answer of an app"
HEADER = "Zq7header-of-a-client"
QUERY = "Zq7query"
PICTURE = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAQAAAC1HAwCAAAAC0lEQVR42mNk+A8AAQUB"
    "AScY42YAAAAASUVORK5CYII="
)
CALLER = {"Authorization": f"Bearer {KEYS['the key of a caller']}", "X-Custom": HEADER}
ADMIN = {"Authorization": f"Bearer {KEYS['an admin key']}"}


def repeats_what_it_was_told(request: Request) -> Steps:
    """A Dify that says no, and says it with all it was given."""
    said = f"{request.body!r} {request.headers}"
    return refused(400, {"code": "invalid_param", "message": said, "status": 400})


def answers() -> Iterator[Callable[[Request], Steps]]:
    chat = Chat()
    yield lambda request: chat.says(ANSWER)
    yield lambda request: chat.says(ANSWER)
    yield repeats_what_it_was_told
    yield repeats_what_it_was_told
    yield lambda request: refused(500, f"<html>{PROMPT} {request.headers}".encode(), "text/html")
    yield lambda request: [*streamed(chat.text(ANSWER))[:-1], CLOSE]
    yield lambda request: streamed(event(event="error", status=400, code="x", message=PROMPT))
    yield lambda request: streamed(
        chat.text(ANSWER), b'data: {"answer": "' + ANSWER.encode() + b"\n\n"
    )
    yield lambda request: [CLOSE]


@pytest.fixture
def talkative(dify: FakeDify) -> FakeDify:
    parameters = {
        "file_upload": {
            "enabled": True,
            "allowed_file_types": ["image"],
            "allowed_file_upload_methods": ["local_file"],
            "number_limits": 3,
        },
        "user_input_form": [],
    }
    prepared = answers()

    def answer(request: Request) -> Steps:
        path = request.path.partition("?")[0]
        if path == "/v1/info":
            return refused(200, {"name": "App", "mode": "chat"})
        if path == "/v1/parameters":
            return refused(200, parameters)
        if path == "/v1/files/upload":
            return refused(201, {"id": "f-1"})
        if path == "/v1/chat-messages":
            return next(prepared, lambda request: Chat().says(ANSWER))(request)
        return repeats_what_it_was_told(request)

    dify.tells_of_its_app, dify.answer = True, answer
    return dify


def everything(service: Service) -> list[int]:
    """Uses the service in every way, and returns the statuses."""
    with httpx.Client(base_url=service.url, trust_env=False, timeout=30) as api:
        statuses = []

        def ask(content: Any = PROMPT, headers: dict[str, str] = CALLER, **more: Any) -> None:
            body = {"model": "tiny", "messages": [{"role": "user", "content": content}], **more}
            statuses.append(
                api.post("/v1/chat/completions", json=body, headers=headers).status_code
            )

        def send(method: str, path: str, **more: Any) -> None:
            statuses.append(api.request(method, path, **more).status_code)

        for stream in (True, False) * 5:
            ask(stream=stream, metadata={"chat_id": "chat-1"}, user="ann")
        ask(
            [{"type": "text", "text": PROMPT}, {"type": "image_url", "image_url": {"url": PICTURE}}]
        )
        ask(model=PROMPT)
        ask(PROMPT, temperature=PROMPT)
        ask(PROMPT, CALLER | {"X-Request-Id": f"{HEADER} and more", "traceparent": HEADER})
        ask(PROMPT, {"Authorization": f"Basic {HEADER}"})
        for headers in ({"Content-Type": "application/json"}, {"Content-Type": HEADER}):
            cut = b'{"messages": "' + PROMPT.encode()
            send("POST", "/v1/chat/completions", content=cut, headers=CALLER | headers)
        send("GET", f"/v1/models?key={QUERY}", headers=CALLER)
        send("GET", f"/v1/files/abc/content?sig={QUERY}")
        send("GET", "/v1/models", headers=CALLER | {"Referer": f"https://page.example/?{QUERY}"})
        for headers in (ADMIN, CALLER, {}):
            send("GET", "/v1/conversation/mappings?limit=5", headers=headers)
            send("GET", f"/v1/conversation/mappings?chat_id={QUERY}", headers=headers)
            send("DELETE", "/v1/conversation/mappings/c-1?dify=true", headers=headers)
            send("POST", "/v1/conversation/cleanup", headers=headers, json={"max_age_days": PROMPT})
            send("GET", "/metrics", headers=headers)
            send("GET", "/readyz", headers=headers)
        return statuses


@pytest.mark.parametrize("form", ["text", "json"])
def test_nothing_secret_is_in_the_log_at_its_most_verbose(
    tmp_path: Path, talkative: FakeDify, form: str
) -> None:
    variables = free_variables(
        talkative.base,
        MODEL_CONFIG=json.dumps({"tiny": KEYS["the key of an app"]}),
        OPENDIFY_ADMIN_KEYS=KEYS["an admin key"],
        OPENDIFY_API_KEYS=KEYS["the key of a caller"],
        OPENDIFY_SECRET=KEYS["the secret of links"],
        GUNICORN_WORKERS="1",
        LOG_LEVEL="debug",
        LOG_FORMAT=form,
        LOG_FILE="logs/gunicorn.log",
    )
    with running(tmp_path, variables) as service:
        statuses = everything(service)
    written = service.output() + (tmp_path / "logs" / "gunicorn.log").read_text()
    assert {200, 400, 401, 403, 404, 415, 502} <= set(statuses), statuses
    assert 500 not in statuses
    assert written.count("ended") == 2 * (len(statuses) + 1)  # and that it is ready
    for what, secret in KEYS.items():
        assert secret not in written, what
    for secret in (PROMPT, ANSWER, HEADER, QUERY, PICTURE[30:60]):
        assert secret.split()[0] not in written
    if form == "json":
        for line in (tmp_path / "logs" / "gunicorn.log").read_text().splitlines():
            assert {"time", "level", "logger", "message"} <= json.loads(line).keys()
