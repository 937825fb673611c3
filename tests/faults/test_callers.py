"""Callers who send what they should not: a 4xx in OpenAI's form, and the others are served."""

import contextlib
import gzip
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.faults.calls import (
    PATH,
    Answer,
    ask,
    connected,
    question,
    raw_head,
    receive_all,
    to_answer,
)
from tests.faults.chaos import Chaos, chat_of
from tests.faults.conftest import started
from tests.support import service
from tests.support.fake_dify import STREAM_HEAD, chunk
from tests.support.waiting import wait_for

GOOD = "carriage-returns"
HALF = "\\ud800"


def body(**changes: Any) -> bytes:
    return json.dumps({**question(GOOD), **changes}).encode()


def content(text: str) -> bytes:
    """A good body but for its text, which is written into the JSON as it is."""
    return body().replace(b'"Hi"', text.encode())


def parts(*parts: Any) -> bytes:
    return body(messages=[{"role": "user", "content": list(parts)}])


def image(url: Any) -> bytes:
    return parts({"type": "image_url", "image_url": {"url": url}})


BAD_BODIES = {
    "empty": b"",
    "blank": b"  \n",
    "no-json": b"model=tiny",
    "half": body()[:-9],
    "two": body() + body(),
    "list": b"[]",
    "string": b'"Hi"',
    "number": b"7",
    "null": b"null",
    "empty-object": b"{}",
    "nan": content("NaN"),
    "nan-in-a-field-of-no-effect": body()[:-1] + b', "temperature": NaN}',
    "infinity": content("-Infinity"),
    "number-beyond-all": content("1e999"),
    "digits": content("9" * 100_000),
    "half-a-pair": content(f'"{HALF}"'),
    "half-a-pair-in-a-name": body()[:-1] + f', "{HALF}": 1}}'.encode(),
    "half-a-pair-in-the-user": body().replace(b'"somebody"', f'"{HALF}"'.encode()),
    "latin-1": content('"é"').replace("é".encode(), b"\xe9"),
    "utf-16": json.dumps(question(GOOD)).encode("utf-16"),
    "bytes": bytes(range(256)) * 64,
    "packed": gzip.compress(body()),
    "deep": b"[" * 200_000,
    "deep-and-closed": b"[" * 100_000 + b"]" * 100_000,
    "deep-objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "deep-inputs": body()[:-1] + b', "inputs": {"a":' + b"[" * 90_000 + b"]" * 90_000 + b"}}",
    "model-none": body(model=None),
    "model-number": body(model=7),
    "model-list": body(model=["tiny"]),
    "model-empty": body(model=""),
    "model-unknown": body(model="nobody"),
    "model-endless": body(model="m" * 1_000_000),
    "model-nul": body(model="ti\0ny"),
    "messages-none": body(messages=None),
    "messages-object": body(messages={}),
    "messages-text": body(messages="Hi"),
    "messages-empty": body(messages=[]),
    "messages-numbers": body(messages=[1]),
    "messages-nones": body(messages=[None]),
    "messages-without-user": body(messages=[{"role": "assistant", "content": "Hi"}]),
    "message-empty": body(messages=[{}]),
    "role-unknown": body(messages=[{"role": "boss", "content": "Hi"}]),
    "role-list": body(messages=[{"role": ["user"], "content": "Hi"}]),
    "role-object": body(messages=[{"role": {}, "content": "Hi"}]),
    "content-none": body(messages=[{"role": "user", "content": None}]),
    "content-number": body(messages=[{"role": "user", "content": 7}]),
    "content-empty": body(messages=[{"role": "user", "content": ""}]),
    "content-nul": body(messages=[{"role": "user", "content": "\0"}]),
    "content-object": body(messages=[{"role": "user", "content": {"text": "Hi"}}]),
    "part-number": parts(7),
    "part-without-type": parts({}),
    "part-type-list": parts({"type": ["text"]}),
    "part-text-none": parts({"type": "text", "text": None}),
    "image-none": image(None),
    "image-file": image("file:///etc/passwd"),
    "image-script": image("javascript:alert(1)"),
    "image-broken-data": image("data:image/png;base64"),
    "image-no-base64": image("data:image/png;base64,%%%%"),
    "image-list": parts({"type": "image_url", "image_url": []}),
    "audio-none": parts({"type": "input_audio"}),
    "stream-text": body(stream="yes"),
    "stream-number": body(stream=1),
    "stream-options-list": body(stream=True, stream_options=[]),
    "usage-text": body(stream=True, stream_options={"include_usage": "yes"}),
    "stop-number": body(stop=7),
    "stop-numbers": body(stop=[7]),
    "n-two": body(n=2),
    "n-text": body(n="1"),
    "tool-forced": body(tool_choice="required"),
    "metadata-list": body(metadata=[]),
    "inputs-list": body(inputs=[]),
    "conversation-list": body(conversation_id=[]),
    "user-object": body(user={}),
    "files-object": body(files={}),
    "files-numbers": body(files=[7]),
}

# Whatever they are answered with, it is not a fault of the server.
ODD_BODIES = {
    "user-endless": body(user="u" * 1_000_000),
    "user-nul": body(user="a\0b"),
    "user-lines": body(user="a\r\nX-Forged: 1"),
    "user-number": body(user=10**30),
    "chat-endless": body(chat_id="c" * 1_000_000),
    "chat-lines": body(chat_id='a"\n{"b'),
    "many-messages": body(messages=[{"role": "user", "content": "Hi"}] * 20_000),
    "many-parts": parts(*[{"type": "text", "text": "Hi"}] * 20_000),
    "many-names": body()[:-1] + b"".join(b', "n%d": 1' % number for number in range(50_000)) + b"}",
    "temperature-text": body(temperature="hot"),
    "tools-text": body(tools="all"),
    "thousand-stops": body(stop=["x"] * 1000),
    "stop-empty": body(stop=["", ""]),
    "names-twice": body()[:-1] + b', "model": "nobody"}',
    "deep-but-carried": body()[:-1] + b', "inputs": {"a":' + b"[" * 400 + b"]" * 400 + b"}}",
    "conversation-odd": body(conversation_id="../../etc/passwd"),
    "workflow-odd": body(workflow_id="../x?y#z"),
    "trace-odd": body(trace_id="a\r\nb"),
    "file-id-odd": parts({"type": "file", "file": {"file_id": "../../etc/passwd"}}),
}


def post(running: service.Service, data: bytes, **headers: str) -> Answer:
    told = {"Content-Type": "application/json"} | {
        name.replace("_", "-"): value for name, value in headers.items()
    }
    response = httpx.post(
        running.url + PATH, content=data, headers=told, timeout=30, trust_env=False
    )
    return to_answer(response)


@pytest.fixture(autouse=True)
def others_are_served(shared: service.Service) -> Iterator[None]:
    """After each case, and nothing unexpected has happened."""
    seen = shared.output().count("Traceback")
    yield
    assert httpx.get(f"{shared.url}/healthz", timeout=5, trust_env=False).status_code == 200
    now = shared.output().count("Traceback")
    assert now == seen, shared.output().rpartition("Traceback")[2][:3000]


@pytest.mark.parametrize("name", BAD_BODIES)
def test_a_bad_body_is_refused(shared: service.Service, name: str) -> None:
    answer = post(shared, BAD_BODIES[name])
    assert answer.status in (400, 404, 413, 415), answer.text[:500]
    assert answer.error["type"] == "invalid_request_error"
    assert len(answer.text) < 2000, "what was sent is not repeated in full"


@pytest.mark.parametrize("name", ODD_BODIES)
def test_an_odd_body_is_no_fault_of_the_server(shared: service.Service, name: str) -> None:
    answer = post(shared, ODD_BODIES[name])
    assert answer.status < 500, answer.text[:500]
    assert "X-Forged" not in answer.headers
    assert answer.status == 200 or answer.error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "kind", ["text/plain", "multipart/form-data", "application/x-www-form-urlencoded", "nonsense"]
)
def test_a_body_of_another_type_is_refused(shared: service.Service, kind: str) -> None:
    answer = post(shared, body(), Content_Type=kind)
    assert (answer.status, answer.error["code"]) == (415, "unsupported_media_type")


ROUTES = [
    ("GET", PATH, 405),
    ("DELETE", PATH, 405),
    ("POST", "/v1/models", 405),
    ("GET", "/", 404),
    ("GET", "/v1", 404),
    ("POST", "/v1/chat/completions/v1/", 404),
    ("GET", "/v1/models/nobody", 404),
    ("GET", "/v1/models/%00", 404),
    ("GET", "/v1/models/..%2f..%2fetc%2fpasswd", 404),
    ("GET", "/%ff%fe", 404),
    ("GET", "/v1/files/nonsense/content?sig=x", 403),
    ("BREW", "/v1/models", 405),
]


@pytest.mark.parametrize(("method", "path", "status"), ROUTES)
def test_other_routes_are_refused_in_json(
    shared: service.Service, method: str, path: str, status: int
) -> None:
    response = httpx.request(method, shared.url + path, timeout=10, trust_env=False)
    answer = to_answer(response)
    assert answer.status == status
    assert answer.error["type"] == "invalid_request_error"


LINE = b"GET /healthz HTTP/1.1\r\n"
CHUNKED = raw_head(None, "Transfer-Encoding: chunked")
BAD_HTTP = {
    "nonsense": b"Hello\r\n\r\n",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200) + b"\r\n\r\n",
    "http-2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "bare-newlines": b"GET /healthz HTTP/1.1\n\n",
    "bad-header": LINE + b"No colon\r\n\r\n",
    "folded-header": LINE + b"Host: x\r\n a\r\n\r\n",
    "nul-in-header": LINE + b"Host: x\0y\r\n\r\n",
    "header-of-a-megabyte": LINE + b"X-A: " + b"a" * 1_000_000 + b"\r\n\r\n",
    "ten-thousand-headers": LINE + b"".join(b"X-%d: a\r\n" % n for n in range(10_000)) + b"\r\n",
    "address-of-a-megabyte": b"GET /" + b"a" * 1_000_000 + b" HTTP/1.1\r\n\r\n",
    "chat-id-of-a-megabyte": raw_head(2, "X-OpenWebUI-Chat-Id: " + "c" * 1_000_000) + b"{}",
    "two-lengths": raw_head(5, "Content-Length: 6") + b"Hello!",
    "length-and-chunks": raw_head(5, "Transfer-Encoding: chunked") + b"0\r\n\r\n",
    "negative-length": raw_head(-5),
    "length-in-words": raw_head(None, "Content-Length: ten"),
    "chunk-without-a-size": CHUNKED + b"zz\r\nHello\r\n0\r\n\r\n",
    "chunk-of-a-wrong-size": CHUNKED + b"2\r\nHello\r\n0\r\n\r\n",
    "coding-unknown": raw_head(None, "Transfer-Encoding: zip") + b"x",
    "hundred-megabytes": raw_head(100 * 1024 * 1024),
    "more-than-a-number": raw_head(10**30),
}


@pytest.mark.parametrize("name", BAD_HTTP)
def test_bad_http_is_refused_or_disconnected(shared: service.Service, name: str) -> None:
    with connected(shared) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(BAD_HTTP[name])
        answer = first_answer(connection)
    if answer:
        head, _, text = answer.partition(b"\r\n\r\n")
        status = int(head.split()[1])
        assert 400 <= status < 500 or status == 501, answer[:500]
        assert list(json.loads(text)) == ["error"]
        assert b"aaaa" not in text


def first_answer(connection: socket.socket) -> bytes:
    """One answer with its body, or nothing where there is none."""
    received = b""
    with contextlib.suppress(ConnectionError):
        while piece := connection.recv(65536):
            received += piece
            head, end, text = received.partition(b"\r\n\r\n")
            for line in head.lower().split(b"\r\n"):
                if end and line.startswith(b"content-length:") and len(text) >= int(line[15:]):
                    return received
    return received


@pytest.mark.parametrize("name", ["chunk-without-a-size", "chunk-of-a-wrong-size", "two-lengths"])
def test_what_follows_a_bad_body_is_no_request(shared: service.Service, name: str) -> None:
    with connected(shared) as connection:
        connection.sendall(BAD_HTTP[name] + LINE + b"Host: x\r\n\r\n")
        answers = receive_all(connection)
    assert answers.count(b"HTTP/1.1 ") <= 1, answers


@pytest.mark.parametrize("framing", ["counted", "chunked"])
def test_a_body_of_a_hundred_megabytes_is_refused(shared: service.Service, framing: str) -> None:
    piece = b" " * 1024 * 1024
    data = piece if framing == "counted" else b"100000\r\n" + piece + b"\r\n"
    head = raw_head(100 * len(piece)) if framing == "counted" else CHUNKED
    with connected(shared) as connection:
        sent = 0
        with contextlib.suppress(ConnectionError):
            connection.sendall(head)
            for _ in range(100):
                connection.sendall(data)
                sent += 1
        answer = first_answer(connection)
    assert answer.startswith(b"HTTP/1.1 413 ") or (not answer and sent < 100), answer[:300]


# --- slow callers ------------------------------------------------------------------------------

DOZENS = 40


@pytest.fixture(scope="module")
def narrow(chaos: Chaos, tmp_path_factory: pytest.TempPathFactory) -> Iterator[service.Service]:
    """A service with far fewer threads than there are slow callers."""
    folder = tmp_path_factory.mktemp("narrow")
    with started(folder, chaos, GUNICORN_THREADS="8", MAX_CONCURRENT_STREAMS="4") as running:
        yield running


SLOW = {
    "nothing": b"",
    "half-a-head": b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nX-",
    "half-a-body": raw_head(10_000) + b'{"model": ',
    "half-a-chunked-body": CHUNKED + b"5\r\nHel",
}


@pytest.mark.parametrize("name", SLOW)
def test_slow_callers_do_not_block_others(narrow: service.Service, name: str) -> None:
    with contextlib.ExitStack() as stack:
        slow = [stack.enter_context(connected(narrow)) for _ in range(DOZENS)]
        for connection in slow:
            connection.sendall(SLOW[name])
        for _ in range(5):
            for connection in slow if name != "nothing" else []:
                with contextlib.suppress(ConnectionError):
                    connection.sendall(b"a")  # they trickle
            answer = ask(narrow, question(GOOD, stream=True), timeout=10)
            assert (answer.status, answer.said()) == (200, "All is well")
            time.sleep(0.1)


def test_a_caller_that_never_finishes_is_disconnected(narrow: service.Service) -> None:
    """A head has 15 s, however it trickles."""
    with connected(narrow, timeout=40) as connection:
        connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nX-A: ")
        stop = threading.Event()

        def trickle() -> None:
            with contextlib.suppress(OSError):
                while not stop.wait(0.5):
                    connection.sendall(b"a")

        thread = threading.Thread(target=trickle)
        thread.start()
        try:
            answer = receive_all(connection)
        finally:
            stop.set()
            thread.join()
    assert not answer or answer.startswith(b"HTTP/1.1 408 ")


def said_if_served(running: service.Service) -> str:
    """What a question is answered with, "" where it is refused."""
    answer = ask(running, question(GOOD), timeout=10)
    return answer.said() if answer.status == 200 else ""


def test_callers_that_do_not_read_do_not_block_others(tmp_path_factory: Any) -> None:
    """They may hold all the permits for responses; health and the refusals still come."""

    def flood(request: Any) -> Iterator[bytes]:
        yield STREAM_HEAD
        text = chunk(chat_of(request).text("word " * 2000))
        while True:
            yield text

    chaos = Chaos({"flood": flood})
    folder = tmp_path_factory.mktemp("unread")
    settings = {"GUNICORN_THREADS": "8", "MAX_CONCURRENT_STREAMS": "4", "MAX_ANSWER_MB": "1024"}
    with (
        started(folder, chaos, **settings) as running,
        contextlib.ExitStack() as stack,
    ):
        data = json.dumps(question("flood", stream=True)).encode()
        for _ in range(4):
            connection = socket.socket()
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            host, _, port = running.url.removeprefix("http://").partition(":")
            connection.connect((host, int(port)))
            stack.enter_context(connection).sendall(raw_head(len(data)) + data)
        wait_for(lambda: len(chaos.asked("flood")) == 4, what="the questions")
        answer = ask(running, question(GOOD), timeout=10)
        assert (answer.status, answer.error["code"]) == (503, "overloaded")
        assert int(answer.headers["retry-after"]) >= 1
        assert httpx.get(f"{running.url}/healthz", timeout=5, trust_env=False).status_code == 200
        assert httpx.get(f"{running.url}/v1/models", timeout=5, trust_env=False).status_code == 200
        stack.close()
        wait_for(lambda: said_if_served(running) == "All is well", what="a permit")
    chaos.dify.close()
