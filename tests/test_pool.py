"""Several pools act as one."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import pytest

from opendify.upstream.pool import Pools
from tests.fake_dify import FOREVER, FakeDify, head
from tests.support.ports import free_port

LIMIT = 21  # no multiple of the number of pools


@pytest.fixture
def client() -> Iterator[httpx.Client]:
    limits = httpx.Limits(max_connections=LIMIT, max_keepalive_connections=LIMIT)
    with httpx.Client(transport=Pools(limits=limits), trust_env=False) as client:
        yield client


def test_requests_in_turn_share_one_connection(client: httpx.Client, dify: FakeDify) -> None:
    for _ in range(20):
        client.get(f"{dify.base}/info")
    assert dify.connections == 1


def test_as_many_answers_as_the_limit_says_are_under_way(
    client: httpx.Client, dify: FakeDify
) -> None:
    dify.answers = [[head(200, "Content-Length: 1"), FOREVER] for _ in range(LIMIT + 3)]
    with ExitStack() as answers:

        def ask(count: int) -> None:
            for _ in range(count):
                stream = client.stream("POST", f"{dify.base}/chat-messages", timeout=5)
                answers.enter_context(stream)

        ask(LIMIT)
        answers.pop_all().close()
        ask(3)


def test_what_fails_is_no_longer_under_way(client: httpx.Client) -> None:
    nobody = f"http://127.0.0.1:{free_port()}/info"
    for _ in range(3 * LIMIT):
        with pytest.raises(httpx.ConnectError):
            client.get(nobody)
    transport = client._transport
    assert isinstance(transport, Pools)
    assert not any(transport._under_way)


def test_threads_leave_nothing_under_way(client: httpx.Client, dify: FakeDify) -> None:
    def ask() -> None:
        for _ in range(10):
            client.get(f"{dify.base}/info")

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    transport = client._transport
    assert isinstance(transport, Pools)
    assert not any(transport._under_way)
    assert dify.connections <= 8
