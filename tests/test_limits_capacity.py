"""How many responses there are at once, and how requests beyond that are refused."""

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from opendify import errors
from opendify.limits.capacity import ServerCapacity, files_count_as_responses, max_files
from tests.support import schemas
from tests.support.fake_dify import Chat, FakeDify, streamed
from tests.support.service import Service, free_variables, running

QUESTION = {"model": "tiny", "stream": True, "messages": [{"role": "user", "content": "Hello"}]}
ALL_TAKEN = "OpenDify is answering as many requests as it can; try again in a moment."
MODEL_TAKEN = "The model 'tiny' is answering as many requests as it may; try again in a moment."


def test_there_are_so_many_permits_and_each_is_released_once() -> None:
    capacity = ServerCapacity(2, {}, 1)
    for _ in range(3):
        first, second = capacity.acquire_response(), capacity.acquire_response()
        for _ in range(2):
            with pytest.raises(errors.Overloaded, match="as many requests as it can") as caught:
                capacity.acquire_response()
            assert caught.value.retry_after
        first()
        first()
        third = capacity.acquire_response()
        with pytest.raises(errors.Overloaded):
            capacity.acquire_response()
        second()
        third()


def test_a_model_has_no_more_runs_than_its_own_limit() -> None:
    capacity = ServerCapacity(4, {"a": 1}, 1)
    release = capacity.acquire_run("a")
    with pytest.raises(errors.Overloaded, match="The model 'a'"):
        capacity.acquire_run("a")
    for _ in range(9):
        capacity.acquire_run("b")
    release()
    capacity.acquire_run("a")


def test_files_and_responses_do_not_take_permits_from_one_another() -> None:
    capacity = ServerCapacity(1, {}, 1)
    release, _ = capacity.acquire_file(), capacity.acquire_response()
    with pytest.raises(errors.Overloaded, match="as many files as it can"):
        capacity.acquire_file()
    release()
    capacity.acquire_file()


def test_a_file_takes_the_permit_of_a_response_where_no_thread_is_left_for_it() -> None:
    capacity = ServerCapacity(2, {}, 1, files_count_as_responses=True)
    first, second = capacity.acquire_response(), capacity.acquire_response()
    with pytest.raises(errors.Overloaded, match="answering"):
        capacity.acquire_file()
    first()
    release = capacity.acquire_file()
    with pytest.raises(errors.Overloaded, match="answering"):
        capacity.acquire_response()
    release()
    release()
    second()
    capacity.acquire_response()
    capacity.acquire_file()
    with pytest.raises(errors.Overloaded):
        capacity.acquire_response()


@pytest.mark.parametrize(
    ("threads", "responses", "do"),
    [(128, 112, False), (16, 14, False), (8, 6, False), (8, 7, True), (4, 3, True), (1, 1, True)],
)
def test_one_thread_is_left_beside_responses_and_files(
    threads: int, responses: int, do: bool
) -> None:
    assert files_count_as_responses(threads, responses) is do


@pytest.mark.parametrize(
    ("threads", "responses", "files"),
    [(128, 112, 12), (48, 42, 5), (16, 8, 2), (128, 1, 1), (8, 7, 1), (2, 1, 1), (1, 1, 1)],
)
def test_files_have_threads_that_responses_never_need(
    threads: int, responses: int, files: int
) -> None:
    assert max_files(threads, responses) == files


@contextlib.contextmanager
def opened(service: Service) -> Iterator[httpx.Response]:
    url = f"{service.url}/v1/chat/completions"
    limits = httpx.Timeout(10)
    with (
        httpx.Client(trust_env=False, timeout=limits) as client,
        client.stream("POST", url, json=QUESTION) as response,
    ):
        yield response


def assert_is_full(service: Service, message: str) -> None:
    begun_at = time.monotonic()
    with opened(service) as refused:
        assert refused.status_code == 503
        refused.read()
        schemas.assert_error(refused.json())
        error = refused.json()["error"]
        assert (error["code"], error["message"]) == ("overloaded", message)
        assert int(refused.headers["Retry-After"]) > 0
        assert refused.headers["x-should-retry"] == "true"
    for path in ("/healthz", "/v1/models"):
        assert httpx.get(service.url + path, trust_env=False, timeout=20).status_code == 200
    assert time.monotonic() - begun_at < 15


@pytest.mark.parametrize("workers", [1, 3])
def test_streams_fill_all_workers_before_one_is_refused(
    tmp_path: Path, dify: FakeDify, workers: int
) -> None:
    dify.answer = lambda request: streamed(Chat().text("Hello"), 60.0, Chat().end())
    variables = free_variables(
        dify.base, GUNICORN_WORKERS=str(workers), GUNICORN_THREADS="6", MAX_CONCURRENT_STREAMS="4"
    )
    with running(tmp_path, variables) as service, contextlib.ExitStack() as streams:
        for _ in range(4 * workers):
            response = streams.enter_context(opened(service))
            assert response.status_code == 200
        assert_is_full(service, ALL_TAKEN)
        streams.close()
        wait_until_free(service)


def test_a_model_may_have_fewer(tmp_path: Path, dify: FakeDify) -> None:
    dify.answer = lambda request: streamed(Chat().text("Hello"), 60.0, Chat().end())
    variables = free_variables(dify.base, GUNICORN_WORKERS="1") | {
        "MODEL_CONFIG": '{"tiny":{"key":"app-1","max_streams":1},"other":"app-2"}'
    }
    with running(tmp_path, variables) as service:
        with opened(service) as first:
            assert first.status_code == 200
            assert_is_full(service, MODEL_TAKEN)
        wait_until_free(service)


def wait_until_free(service: Service) -> None:
    """The permits of callers who have left are free within two seconds."""
    until = time.monotonic() + 4
    while True:
        with opened(service) as response:
            if response.status_code == 200:
                return
        assert time.monotonic() < until
        time.sleep(0.1)
