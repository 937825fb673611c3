"""Several instances of OpenDify, without a folder in common, that share one Redis."""

import hashlib
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.support.fake_dify import Chat, FakeDify
from tests.support.redis_server import RedisServer
from tests.support.service import Service, free_variables, running

ADMIN = {"Authorization": "Bearer admin-key"}


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """One that a test may harm."""
    server = RedisServer()
    yield server
    server.close()


@pytest.fixture
def instances(dify: FakeDify, redis_server: RedisServer, tmp_path: Path) -> Iterator[list[Service]]:
    variables = free_variables(
        dify.base,
        CONVERSATION_STORE=redis_server.url,
        OPENDIFY_ADMIN_KEYS=f"sha256:{hashlib.sha256(b'admin-key').hexdigest()}",
        GUNICORN_WORKERS="2",
        GUNICORN_THREADS="8",
    )
    with ExitStack() as stack:
        services = []
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            services.append(stack.enter_context(running(tmp_path / name, variables)))
        yield services


def ask(service: Service, *texts: str) -> str:
    """One turn of a chat; returns the answer."""
    roles = ("user", "assistant")
    messages = [{"role": roles[n % 2], "content": text} for n, text in enumerate(texts)]
    body = {"model": "tiny", "metadata": {"chat_id": "chat"}, "messages": messages}
    response = httpx.post(
        f"{service.url}/v1/chat/completions", json=body, timeout=30, trust_env=False
    )
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])


def test_a_chat_goes_on_at_another_instance(
    instances: list[Service], dify: FakeDify, tmp_path: Path
) -> None:
    one, two = instances
    ask(one, "first")
    ask(two, "first", "Hello", "second")
    ask(one, "first", "Hello", "second", "Hello", "third")
    conversations = [request.json.get("conversation_id", "") for request in dify.asked()]
    assert conversations == ["", Chat().conversation_id, Chat().conversation_id]
    for service in instances:
        told = httpx.get(
            f"{service.url}/v1/conversation/mappings?limit=5", headers=ADMIN, trust_env=False
        ).json()
        assert (told["store"], told["mapping_count"]) == ("redis", 1)
        assert told["mappings"][0]["chat_id"] == "chat"
    assert not list(tmp_path.glob("*/data/conversation_mappings*"))
    for service in instances:
        assert service.stop() == 0


def test_responses_are_sent_while_redis_is_unreachable_and_the_log_reports_it(
    instances: list[Service], redis_server: RedisServer, dify: FakeDify
) -> None:
    one = instances[0]
    ask(one, "first")
    redis_server.kill()
    for _ in range(3):
        assert ask(one, "first", "Hello", "second") == "Hello"
    assert "cannot be used (ConnectionError" in one.output()
    assert one.output().count("cannot be used") <= 2  # once in each worker
    redis_server.start()
    told = httpx.get(f"{one.url}/v1/conversation/mappings", headers=ADMIN, trust_env=False)
    assert told.status_code == 200
    assert one.stop() == 0
    assert "Traceback" not in one.output()
