"""How these tests call the service: as a client library does, or byte by byte."""

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import httpx

from tests.support.service import Service

PATH = "/v1/chat/completions"


@dataclass
class Answer:
    """What a caller got; ``events`` are the payloads of a stream, as text."""

    status: int
    headers: httpx.Headers
    text: str
    events: list[str] = field(default_factory=list)

    @property
    def json(self) -> Any:
        return json.loads(self.text)

    @property
    def error(self) -> dict[str, Any]:
        """The error object, which must have OpenAI's form."""
        assert list(self.json) == ["error"], self.text
        error = self.json["error"]
        assert sorted(error) == ["code", "message", "param", "type"], error
        assert isinstance(error["message"], str) and error["message"], error
        return dict(error)

    def chunks(self) -> list[dict[str, Any]]:
        return [json.loads(one) for one in self.events if one != "[DONE]"]

    def said(self) -> str:
        """The text of the answer, streamed or not."""
        if not self.events:
            return str(self.json["choices"][0]["message"]["content"])
        deltas = [c["choices"][0]["delta"] for c in self.chunks() if c.get("choices")]
        return "".join(delta.get("content") or "" for delta in deltas)

    def finishes(self) -> list[str]:
        """The reasons for which the answer says that it is complete."""
        choices = [one for chunk in self.chunks() for one in chunk.get("choices", [])]
        return [one["finish_reason"] for one in choices if one["finish_reason"]]

    def stream_errors(self) -> list[dict[str, Any]]:
        """The error events, which must have no choices."""
        failed = [chunk for chunk in self.chunks() if "error" in chunk]
        assert all("choices" not in chunk for chunk in failed)
        return [chunk["error"] for chunk in failed]


def question(model: str, user: str = "somebody", text: str = "Hi", **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": text}]
    return {"model": model, "user": user, "messages": messages, **more}


def ask(
    service: Service, body: Any, headers: dict[str, str] | None = None, timeout: float = 30
) -> Answer:
    """Posts a chat request and reads the whole answer."""
    response = httpx.post(
        service.url + PATH, json=body, headers=headers, timeout=timeout, trust_env=False
    )
    return to_answer(response)


def to_answer(response: httpx.Response) -> Answer:
    answer = Answer(response.status_code, response.headers, response.text)
    if response.headers.get("content-type", "").startswith("text/event-stream"):
        answer.events = payloads(response.text)
    return answer


def payloads(text: str) -> list[str]:
    blocks = [block for block in text.split("\n\n") if block and not block.startswith(":")]
    assert all(block.startswith("data: ") for block in blocks), text
    return [block.removeprefix("data: ") for block in blocks]


@contextmanager
def streaming(service: Service, body: Any, timeout: float = 30) -> Iterator[Iterator[str]]:
    """The lines of a streamed answer as they come."""
    url = service.url + PATH
    with (
        httpx.Client(trust_env=False, timeout=timeout) as client,
        client.stream("POST", url, json={**body, "stream": True}) as response,
    ):
        assert response.status_code == 200, response.read()
        yield (line for line in response.iter_lines() if line)


def until_text(lines: Iterator[str]) -> str:
    """Reads up to the first piece of the answer; returns it."""
    for line in lines:
        if line.startswith("data: {"):
            delta = json.loads(line[6:])["choices"][0]["delta"]
            if delta.get("content"):
                return str(delta["content"])
    raise AssertionError("the stream ended before any text")


def address(service: Service) -> tuple[str, int]:
    host, _, port = service.url.removeprefix("http://").partition(":")
    return host, int(port)


def connected(service: Service, timeout: float = 20) -> socket.socket:
    return socket.create_connection(address(service), timeout=timeout)


def raw_head(length: int | None, *more: str, method: str = "POST", path: str = PATH) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: opendify", "Content-Type: application/json"]
    lines += [] if length is None else [f"Content-Length: {length}"]
    return "\r\n".join([*lines, *more, "", ""]).encode()


def asking(service: Service, body: Any, *headers: str) -> socket.socket:
    """A connection on which a question has been asked; whoever gets it must close it."""
    data = json.dumps(body).encode()
    connection = connected(service)
    connection.sendall(raw_head(len(data), *headers) + data)
    return connection


def receive_all(connection: socket.socket) -> bytes:
    """Everything up to the end of the connection, however that comes."""
    received = b""
    try:
        while piece := connection.recv(65536):
            received += piece
    except ConnectionError:
        pass
    return received
