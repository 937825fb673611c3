"""Chats go on where they were, or in a new conversation, when workers are killed with -9."""

import os
import random
import signal
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.fake_dify import FakeDify, Request, Steps
from tests.support.remembering_dify import RememberingDify, Said
from tests.support.service import Service, free_variables, running

TURNS = 8


@dataclass
class Person:
    """Somebody who goes on with a chat whatever happens to the service, and says again what was
    not answered."""

    url: str
    chat_id: str
    said: list[Said] = field(default_factory=list)
    sent: dict[str, tuple[Said, ...]] = field(default_factory=dict)
    conversations: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with suppress(httpx.TransportError):
                return self._try_to_say(text)
            time.sleep(0.05)
        raise AssertionError("nobody answers")

    def _try_to_say(self, text: str) -> None:
        trace = uuid.uuid4().hex
        self.sent[trace] = tuple(self.said)
        said = [*self.said, ("user", text)]
        headers = {"X-OpenWebUI-Chat-Id": self.chat_id} if self.chat_id else {}
        body: dict[str, Any] = {
            "model": "tiny",
            "user": self.chat_id or "nobody",
            "messages": [{"role": role, "content": content} for role, content in said],
            "trace_id": trace,
        }
        answer = httpx.post(
            f"{self.url}/v1/chat/completions", json=body, headers=headers, timeout=20
        ).json()
        self.said = [*said, ("assistant", answer["choices"][0]["message"]["content"])]
        self.conversations.append(answer["dify"]["conversation_id"])


@pytest.fixture
def memory(dify: FakeDify) -> RememberingDify:
    memory = RememberingDify(lambda query: ["re ", query])

    def slowly(steps: Steps) -> Iterator[Any]:
        for step in steps:
            yield step
            yield 0.02

    def answer(request: Request) -> Steps:
        is_question = request.path == "/v1/chat-messages"
        return slowly(memory(request)) if is_question else memory(request)

    dify.answer = answer
    dify.tells_of_its_app = True
    return memory


def kill(service: Service) -> None:
    """One of the workers, which says no last word."""
    with suppress(ProcessLookupError, IndexError):
        os.kill(random.choice(service.workers()), signal.SIGKILL)


def test_killed_workers_leave_every_chat_in_the_conversation_that_has_its_history(
    tmp_path: Path, dify: FakeDify, memory: RememberingDify
) -> None:
    variables = free_variables(dify.base, GUNICORN_WORKERS="2", DIFY_READ_TIMEOUT="5")
    with running(tmp_path, variables) as service:
        people = [Person(service.url, name) for name in ("one", "two", "")]
        threads = [
            threading.Thread(target=lambda p=p: [p.say(f"turn {i}") for i in range(TURNS)])
            for p in people
        ]
        for thread in threads:
            thread.start()
        for _ in range(4):
            time.sleep(0.3)
            kill(service)
        for thread in threads:
            thread.join(60)
        quiet = [person.conversations[-1] for person in people]
        for _ in people:
            kill(service)
        for person in people:
            person.say("and now?")
    assert [person.conversations[-1] for person in people] == quiet
    assert [len(person.said) for person in people] == [2 * (TURNS + 1)] * len(people)
    sent = {trace: said for person in people for trace, said in person.sent.items()}
    assert len(memory.arrivals) >= len(people) * (TURNS + 1)
    for arrival in memory.arrivals:
        assert arrival.before == sent[arrival.trace]
