"""Answers that wait: for Dify, which says nothing for long, and for a caller who takes nothing."""

import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from opendify import sse
from tests.faults.calls import address, ask, asking, question, raw_head
from tests.faults.chaos import READ_TIMEOUT, Chaos, chat_of
from tests.faults.conftest import started
from tests.support.fake_dify import LAST_CHUNK, PING, STREAM_HEAD, Request, Step, chunk
from tests.support.service import Service, receive_until
from tests.support.waiting import wait_for

# A comment is due after 10 s; the end must not come before a slow machine has sent it.
SECONDS_OF_SILENCE = 14

# A caller who takes nothing is given up after some waits of 10 s; see serving/connection.py.
SECONDS_UNTIL_LEFT = 60


def _long(pings: bool, request: Request) -> Iterator[Step]:
    chat = chat_of(request)
    yield STREAM_HEAD + chunk(chat.text("All "))
    for _ in range(SECONDS_OF_SILENCE):
        yield 1.0
        if pings:
            yield chunk(PING)
    yield chunk(chat.text("is well")) + chunk(chat.end()) + LAST_CHUNK


def _endless(request: Request) -> Iterator[Step]:
    """First more than the system holds for a caller, then without an end what a machine can bear
    where it is held for ever."""
    text = chunk(chat_of(request).text("word " * 2000))
    yield STREAM_HEAD
    for _ in range(1000):
        yield text
    while True:
        yield 0.1
        yield text


@pytest.fixture(scope="module")
def patient() -> Iterator[Chaos]:
    chaos = Chaos(
        {
            "silent": lambda request: _long(False, request),
            "pinging": lambda request: _long(True, request),
            "endless": _endless,
        }
    )
    yield chaos
    chaos.dify.close()


@pytest.fixture(scope="module")
def waited(patient: Chaos, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with started(
        tmp_path_factory.mktemp("waited"), patient, DIFY_READ_TIMEOUT="60", MAX_ANSWER_MB="1024"
    ) as running:
        yield running


@pytest.mark.parametrize("name", ["silent", "pinging"])
def test_a_caller_who_waits_long_gets_keep_alive_comments(
    waited: Service, user: str, name: str
) -> None:
    """Proxies hang up on what is silent for long; Dify's pings are for us only."""
    with asking(waited, question(name, user, stream=True)) as connection:
        given = receive_until(connection, b"[DONE]")
    first, comment, second = (given.find(part) for part in (b"All ", sse.KEEP_ALIVE, b"is well"))
    assert 0 <= first < comment < second


def test_silence_ends_for_each_in_its_time(shared: Service, user: str) -> None:
    with ThreadPoolExecutor(2) as pool:
        answers = []
        for number in range(2):
            body = question("cut-silence", f"{user}-{number}", stream=True)
            answers.append(pool.submit(ask, shared, body))
            time.sleep(READ_TIMEOUT / 3)
        for answer in answers:
            (error,) = answer.result().stream_errors()
            assert error["code"] == "upstream_timeout"


def test_who_takes_nothing_is_left(waited: Service, patient: Chaos, user: str) -> None:
    data = json.dumps(question("endless", user, stream=True)).encode()
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect(address(waited))
        connection.sendall(raw_head(len(data)) + data)
        wait_for(lambda: patient.stopped("endless", user), SECONDS_UNTIL_LEFT, "the stop")
    text = "Disconnecting a client that does not read its response"  # logged after the stop
    wait_for(lambda: text in waited.output(), SECONDS_UNTIL_LEFT, "the line in the log")
