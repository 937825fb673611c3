"""Dify restarts in the middle of a chat: whatever comes in the place of its answer, the chat goes
on in its conversation, which alone has the variables of the app."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support.fake_dify import CLOSE, RESET, FakeDify, Request, Step, Steps, head, refused
from tests.support.remembering_dify import NOT_TAKEN, RememberingDify
from tests.support.service import Service, free_variables, running

FAULTS: dict[str, list[Step]] = {
    **NOT_TAKEN,
    "closed": [CLOSE],
    "reset": [RESET],
    "half a head": [b"HTTP/1.1 200 OK\r\nContent-", CLOSE],
    "no answer of HTTP": [b"\x15\x03\x01\x00\x02\x02\x16", CLOSE],
    "501": refused(501, b"<html>Not Implemented</html>", "text/html"),
    "503": refused(503, b"<html>No server is available</html>", "text/html"),
    "521": refused(521, b"<html>Web server is down</html>", "text/html"),
    "524": refused(524, b"<html>A timeout occurred</html>", "text/html"),
    "307 to elsewhere": [head(307, "Location: https://login.example.com/", "Content-Length: 0")],
}


@pytest.fixture(scope="module")
def memory() -> RememberingDify:
    return RememberingDify(lambda query: [f"re {query}"])


@pytest.fixture(scope="module")
def dify(memory: RememberingDify) -> Iterator[FakeDify]:
    dify = FakeDify(memory, tells_of_its_app=True)
    yield dify
    dify.close()


@pytest.fixture(scope="module")
def service(dify: FakeDify, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    variables = free_variables(dify.base, GUNICORN_WORKERS="1", DIFY_READ_TIMEOUT="5")
    with running(tmp_path_factory.mktemp("restart"), variables) as service:
        yield service


def ask(service: Service, chat: str, *said: str, stream: bool = False) -> httpx.Response:
    roles = ["user", "assistant"] * len(said)
    messages = [{"role": r, "content": t} for r, t in zip(roles, said, strict=False)]
    body: dict[str, Any] = {"model": "tiny", "messages": messages, "stream": stream}
    headers = {"X-OpenWebUI-Chat-Id": chat}
    return httpx.post(f"{service.url}/v1/chat/completions", json=body, headers=headers, timeout=30)


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_restart_of_dify_costs_no_chat_its_conversation(
    service: Service, dify: FakeDify, memory: RememberingDify, fault: str, stream: bool
) -> None:
    chat = f"{fault} {stream}"
    first = ask(service, chat, "p1").headers["X-Dify-Conversation-Id"]

    def restarting(request: Request) -> Steps:
        return FAULTS[fault] if request.path == "/v1/chat-messages" else memory(request)

    dify.answer = restarting
    for _ in range(2):
        assert ask(service, chat, "p1", "re p1", "p2", stream=stream).status_code >= 500
    dify.answer = memory
    after = ask(service, chat, "p1", "re p1", "p2", stream=stream)
    assert (after.status_code, after.headers["X-Dify-Conversation-Id"]) == (200, first)
    assert [text for _, text in memory.conversations[first].said] == ["p1", "re p1", "p2", "re p2"]
