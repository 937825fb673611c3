"""How much a caller may ask for: by one worker's share, and by all in Redis."""

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
from flask.testing import FlaskClient

from opendify import errors
from opendify.config.accounts import Limits
from opendify.config.models import Model
from opendify.limits.concurrency import ConcurrencyLimiter, Slot
from opendify.limits.limiter import CallerLimiter
from opendify.limits.rate import RateLimiter
from opendify.storage.redis_connection import RedisConnection
from tests.support import schemas
from tests.support.application import make_settings, open_app
from tests.support.fake_dify import (
    CLOSE,
    FOREVER,
    Chat,
    FakeDify,
    Request,
    Steps,
    refused,
    streamed,
)
from tests.support.redis_server import RedisServer
from tests.support.service import Service, free_variables, running
from tests.support.waiting import wait_for

CHAT = "/v1/chat/completions"
BODY = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}


def link(url: str) -> RedisConnection:
    return RedisConnection(url, "Redis")


def hits(rates: RateLimiter, caller: str, per_minute: int, times: int) -> int:
    """How many of so many requests at once are let through."""
    with ThreadPoolExecutor(8) as pool:
        waits = list(pool.map(lambda _: rates.hit(caller, per_minute), range(times)))
    assert all(0 <= wait <= 60 for wait in waits)
    return waits.count(0)


def taken(slots: ConcurrencyLimiter, caller: str, most: int, times: int) -> list[Slot]:
    with ThreadPoolExecutor(8) as pool:
        found = pool.map(lambda _: slots.acquire(caller, most), range(times))
        return [slot for slot in found if slot is not None]


@pytest.fixture
def away() -> RedisConnection:
    return link("redis://127.0.0.1:1/0")


@pytest.mark.parametrize(
    ("limit", "workers", "share"), [(10, 1, 10), (10, 4, 2), (3, 5, 1), (1, 1, 1)]
)
class TestOfOneWorker:
    def test_requests(self, limit: int, workers: int, share: int) -> None:
        rates = RateLimiter(None, workers)
        assert hits(rates, "a", limit, 20) == share
        assert hits(rates, "b", limit, 20) == share
        assert 55 <= rates.hit("a", limit) <= 60

    def test_streams(self, limit: int, workers: int, share: int) -> None:
        slots = ConcurrencyLimiter(None, workers)
        first = taken(slots, "a", limit, 20)
        assert len(first) == share
        assert len(taken(slots, "b", limit, 20)) == share
        first[0].release()
        first[0].release()
        assert len(taken(slots, "a", limit, 20)) == 1

    def test_it_is_the_same_while_redis_is_away(
        self, away: RedisConnection, limit: int, workers: int, share: int
    ) -> None:
        assert hits(RateLimiter(away, workers), "a", limit, 20) == share
        slots = ConcurrencyLimiter(away, workers)
        first = taken(slots, "a", limit, 20)
        assert len(first) == share
        for slot in first:
            slot.release()
        assert len(taken(slots, "a", limit, 20)) == share


def test_workers_count_requests_together_in_redis(redis_url: str) -> None:
    workers = [RateLimiter(link(redis_url), 3) for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        let_through = list(pool.map(lambda rates: hits(rates, "a", 10, 15), workers))
    assert sum(let_through) == 10
    assert hits(workers[0], "another", 10, 15) == 10
    assert 50 <= workers[1].hit("a", 10) <= 60


def test_workers_count_streams_together_in_redis(redis_url: str) -> None:
    workers = [ConcurrencyLimiter(link(redis_url), 3) for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:
        found = list(pool.map(lambda slots: taken(slots, "a", 10, 15), workers))
    held = [slot for slots in found for slot in slots]
    assert len(held) == 10
    held[0].release()
    assert len(taken(workers[2], "a", 10, 5)) == 1
    for slot in held:
        slot.release()
    assert len(taken(workers[1], "a", 10, 15)) == 9


def test_a_slot_is_kept_as_long_as_its_holder_lives(redis_url: str) -> None:
    mine, other = (
        ConcurrencyLimiter(link(redis_url), 1, lease=0.3),
        ConcurrencyLimiter(link(redis_url), 1),
    )
    slot = mine.acquire("a", 1)
    assert slot is not None
    for _ in range(4):
        time.sleep(0.2)
        assert other.acquire("a", 1) is None
    mine._leases.discard(slot)  # as if its process had died
    wait_for(lambda: other.acquire("a", 1) is not None, 5)


def test_nothing_stays_in_redis(redis_url: str) -> None:
    gate = CallerLimiter(RateLimiter(link(redis_url), 1), ConcurrencyLimiter(link(redis_url), 1))
    gate.acquire("a b/ü", Limits(5, 5))()
    with redis.Redis.from_url(redis_url) as client:
        for key in client.scan_iter():
            assert key.startswith(b"opendify:")
            assert 0 < client.ttl(key) <= 61


def test_redis_that_comes_back_counts_again(caplog: pytest.LogCaptureFixture) -> None:
    server = RedisServer()
    rates, slots = (kind(link(server.url), 2) for kind in (RateLimiter, ConcurrencyLimiter))
    assert hits(rates, "a", 4, 6) == 4
    server.kill()
    assert hits(rates, "a", 4, 6) == 2
    assert len(taken(slots, "a", 4, 6)) == 2
    assert "counts the requests of callers by itself" in caplog.text
    server.start()
    wait_for(lambda: hits(rates, "b", 4, 6) == 4 or not time.sleep(0.5))
    server.close()


def test_what_is_refused_by_one_limit_counts_for_none() -> None:
    gate = CallerLimiter(RateLimiter(None, 1), ConcurrencyLimiter(None, 1))
    leave = gate.acquire("a", Limits(2, 1))
    for _ in range(5):
        with pytest.raises(errors.CallerRateLimited) as caught:
            gate.acquire("a", Limits(2, 1))
        assert caught.value.retry_after == 2
    leave()
    gate.acquire("a", Limits(2, 1))()
    with pytest.raises(errors.CallerRateLimited) as caught:
        gate.acquire("a", Limits(2, 1))
    assert 55 <= (caught.value.retry_after or 0) <= 60
    gate.acquire("a", Limits(0, 1))()


def test_without_limits_nothing_is_asked(away: RedisConnection, caplog: Any) -> None:
    gate = CallerLimiter(RateLimiter(away, 1), ConcurrencyLimiter(away, 1))
    for _ in range(5):
        gate.acquire("a", Limits())
    assert caplog.messages == []


# --- through the door --------------------------------------------------------------------------


@pytest.fixture
def limited(http: httpx.Client, models: dict[str, Model], tmp_path: Path) -> Iterator[FlaskClient]:
    keys = json.dumps({"a": {"keys": "key-a", "requests_per_minute": 3}, "b": "key-b"})
    settings = make_settings(
        models, tmp_path, api_keys=keys, admin_keys="admin", limits=Limits(0, 1)
    )
    with open_app(settings, http) as application:
        yield application.test_client()


def ask(api: FlaskClient, key: str, stream: bool = False, buffered: bool = True) -> Any:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return api.post(CHAT, json={**BODY, "stream": stream}, headers=headers, buffered=buffered)


def test_too_many_requests_are_an_error_as_openai_writes_it(limited: FlaskClient) -> None:
    statuses = [ask(limited, "key-a").status_code for _ in range(5)]
    assert statuses == [200, 200, 200, 429, 429]
    response = ask(limited, "key-a")
    schemas.assert_error(response.json)
    error = response.json["error"]
    assert (error["type"], error["code"]) == ("rate_limit_error", "rate_limit_exceeded")
    assert 1 <= int(response.headers["Retry-After"]) <= 60
    assert response.headers.get("x-should-retry") != "false"
    assert ask(limited, "key-b").status_code == 200
    assert limited.get("/v1/models", headers={"Authorization": "Bearer key-a"}).status_code == 200


def test_a_bad_request_counts_too(limited: FlaskClient) -> None:
    headers = {"Authorization": "Bearer key-a"}
    statuses = [limited.post(CHAT, data=b"{", headers=headers).status_code for _ in range(4)]
    assert statuses == [400, 400, 400, 429]


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_one_answer_at_once(limited: FlaskClient, dify: FakeDify, stream: bool) -> None:
    go_on = threading.Event()

    def slowly(request: Request) -> Steps:
        yield streamed(Chat().text("Hel"))[0]
        yield streamed(Chat().text("Hel"))[1]
        go_on.wait(10)
        yield from streamed(Chat().text("lo"), Chat().end())[1:]

    dify.answers.append(slowly(None))  # type: ignore[arg-type]
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(lambda: ask(limited, "key-b", stream).data)
        wait_for(lambda: len(dify.asked()) == 1)
        second = ask(limited.application.test_client(), "key-b")
        assert (second.status_code, second.headers["Retry-After"]) == (429, "2")
        assert ask(limited.application.test_client(), "admin").status_code == 200
        go_on.set()
        assert b"lo" in first.result(10)
    assert ask(limited, "key-b").status_code == 200


@pytest.mark.parametrize("steps", [[CLOSE], streamed(Chat().text("Hi"), CLOSE)])
def test_a_failed_answer_holds_no_slot(limited: FlaskClient, dify: FakeDify, steps: Any) -> None:
    for stream in (True, False, True):
        dify.answers.append(list(steps))
        assert ask(limited, "key-b", stream).data


@pytest.mark.parametrize("is_read", [False, True])
def test_a_stream_that_is_closed_early_holds_its_slot_until_it_is_stopped(
    limited: FlaskClient, dify: FakeDify, is_read: bool
) -> None:
    go_on = threading.Event()

    def stopped_late() -> Steps:
        go_on.wait(10)
        yield from refused(200, {"result": "success"})

    dify.answers.append(streamed(Chat().text("Hi"), FOREVER))
    dify.answer_stop = stopped_late()
    response = ask(limited, "key-b", stream=True, buffered=False)
    assert response.status_code == 200
    if is_read:
        next(iter(response.response))
    response.close()
    assert ask(limited, "key-b").status_code == 429
    go_on.set()
    wait_for(lambda: ask(limited, "key-b").status_code == 200)


def test_without_keys_all_are_one_caller(
    http: httpx.Client, models: dict[str, Model], tmp_path: Path
) -> None:
    with open_app(make_settings(models, tmp_path, limits=Limits(2, 0)), http) as application:
        api = application.test_client()
        assert [ask(api, key).status_code for key in ("", "x", "y")] == [200, 200, 429]


# --- in real workers ---------------------------------------------------------------------------


def asked_at_once(services: list[Service], times: int) -> list[int]:
    def status(number: int) -> int:
        service = services[number % len(services)]
        with httpx.Client(trust_env=False, timeout=30) as client:
            return client.post(f"{service.url}{CHAT}", json=BODY).status_code

    with ThreadPoolExecutor(12) as pool:
        return list(pool.map(status, range(times)))


def test_the_limit_is_exact_over_workers_and_instances_with_redis(
    dify: FakeDify, redis_url: str, tmp_path: Path
) -> None:
    variables = free_variables(
        dify.base,
        CONVERSATION_STORE=redis_url,
        GUNICORN_WORKERS="2",
        GUNICORN_THREADS="8",
        CALLER_REQUESTS_PER_MINUTE="20",
    )
    with ExitStack() as stack:
        services = []
        for name in ("one", "two"):
            (tmp_path / name).mkdir()
            services.append(stack.enter_context(running(tmp_path / name, variables)))
        statuses = asked_at_once(services, 40)
        assert (statuses.count(200), statuses.count(429)) == (20, 20)
        assert len(dify.asked()) == 20
        for service in services:
            assert service.stop() == 0
            assert "Traceback" not in service.output()
