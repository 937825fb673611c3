"""Callers who send what nobody should: over a socket, byte for byte, to the real service."""

import json
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from tests.support import schemas
from tests.support.fake_dify import FakeDify
from tests.support.service import Service, free_variables, running

CHAT = b"/v1/chat/completions"
CLEANUP = b"/v1/conversation/cleanup"
MAPPINGS = b"/v1/conversation/mappings"
MEGABYTE = 1_000_000
TINY: dict[str, Any] = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}


@dataclass
class Answer:
    status: int
    headers: str
    body: bytes


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    dify = FakeDify()
    variables = free_variables(
        dify.base, GUNICORN_WORKERS="1", GUNICORN_THREADS="8", MAX_BODY_MB="4"
    )
    with running(tmp_path_factory.mktemp("bad"), variables) as started:
        yield started
        assert "Traceback" not in started.output()
        assert started.stop() == 0
    dify.close()


def sent(service: Service, data: bytes) -> Answer:
    """What is answered; the last, where the server said 100 Continue first."""
    host, _, port = service.url.removeprefix("http://").partition(":")
    received = b""
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        try:
            connection.sendall(data)
            while piece := connection.recv(65536):
                received += piece
        except ConnectionError:  # it does not read to the end what it refuses
            pass
    head, _, body = received.removeprefix(b"HTTP/1.1 100 Continue\r\n\r\n").partition(b"\r\n\r\n")
    assert head, "the connection was closed without a word"
    return Answer(int(head.split()[1]), head.decode("latin-1").lower(), body)


def request(method: bytes, path: bytes, *headers: bytes, body: bytes = b"") -> bytes:
    lines = [b"%s %s HTTP/1.1" % (method, path), b"Host: x", b"Connection: close", *headers]
    if body:
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join([*lines, b"", b""]) + body


def asked(*headers: bytes, **fields: Any) -> bytes:
    body = json.dumps({**TINY, **fields}).encode()
    return request(b"POST", CHAT, b"Content-Type: application/json", *headers, body=body)


def cleanup(body: bytes) -> bytes:
    return request(b"POST", CLEANUP, b"Content-Type: application/json", body=body)


def bare(*headers: bytes, body: bytes = b"{}") -> bytes:
    return request(b"POST", CHAT, *headers) + body


PICTURE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,@@@"}}

STRANGE = [
    ("a chat id of a megabyte", asked(metadata={"chat_id": "c" * MEGABYTE}), 200),
    ("a user of a megabyte", asked(user="u" * MEGABYTE), 200),
    ("a model of a megabyte", asked(model="m" * MEGABYTE), 404),
    ("a conversation of a megabyte", asked(conversation_id="c" * MEGABYTE), 400),
    ("a conversation that is a path", asked(conversation_id="../../x?y#z\0"), 400),
    ("a number as chat id", asked(metadata={"chat_id": 10**300}), 200),
    ("control characters as trace id", asked(trace_id="\n\r\0" * 1000), 200),
    ("inputs with odd names", asked(inputs={"k" * 100_000: 1, "": None, "\0": {}}), 200),
    ("inputs that are deep", asked(inputs={"a": json.loads("[" * 90 + "]" * 90)}), 200),
    ("files of no type", asked(files=[{"type": [], "transfer_method": {}}]), 400),
    ("thousands of stops", asked(stop=["a" * 200] * 4000), 400),
    ("thousands of messages", asked(messages=TINY["messages"] * 20_000), 400),
    ("a role that is an object", asked(messages=[{"role": {}, "content": "Hi"}]), 400),
    ("a picture that is none", asked(messages=[{"role": "user", "content": [PICTURE]}]), 400),
    ("a header of a megabyte", asked(b"X-OpenWebUI-Chat-Id: " + b"c" * MEGABYTE), 431),
    ("two hundred headers", asked(*[b"X-%d: 1" % number for number in range(200)]), 431),
    (
        "headers in Latin-1",
        asked(b"X-OpenWebUI-Chat-Id: \xff\xe9", b"Authorization: Bearer \xff"),
        200,
    ),
    ("NUL in a header", asked(b"X-OpenWebUI-Chat-Id: a\0b"), 400),
    ("a line end in a header", asked(b"X-OpenWebUI-Chat-Id: a\rb"), 400),
    ("an empty body", bare(b"Content-Length: 0", body=b""), 400),
    ("a body of no length", bare(body=b""), 400),
    ("a body of 100 MB", bare(b"Content-Length: 100000000"), 413),
    ("a body beyond all sizes", bare(b"Content-Length: 99999999999999"), 413),
    ("a negative length", bare(b"Content-Length: -1"), 400),
    ("two lengths", bare(b"Content-Length: 2", b"Content-Length: 3"), 400),
    ("a length and chunks", bare(b"Content-Length: 2", b"Transfer-Encoding: chunked"), 400),
    ("bad chunks", bare(b"Transfer-Encoding: chunked", body=b"zz\r\n{}\r\n0\r\n\r\n"), 400),
    ("a form", bare(b"Content-Type: multipart/form-data", b"Content-Length: 2"), 415),
    ("a packed body", bare(b"Content-Encoding: gzip", b"Content-Length: 2"), 415),
    ("a broken content type", bare(b"Content-Type: ;;;=", b"Content-Length: 2"), 400),
    ("days that are no number", cleanup(b'{"max_age_days": NaN}'), 400),
    ("endless days", cleanup(b'{"max_age_days": 1e400}'), 400),
    ("days of 4000 digits", cleanup(b'{"max_age_days": 1' + b"0" * 4000 + b"}"), 400),
    ("days in a list", cleanup(b"[30]"), 400),
    ("a query that is no text", request(b"GET", MAPPINGS + b"?limit=%ff&chat_id=%00"), 403),
    ("a path that is no text", request(b"GET", b"/v1/models/%ff%00"), 404),
    ("a path upwards", request(b"GET", b"/v1/models/../../etc/passwd"), 404),
    ("two slashes", request(b"POST", b"/v1//chat/completions", body=b"{}"), 400),
    ("a path of 10 kB", request(b"GET", b"/v1/models/" + b"a" * 10_000), 414),
    ("a file of nobody", request(b"GET", b"/v1/files/%ff/content?sig=%ff"), 403),
    ("to be a proxy", request(b"CONNECT", b"dify.example.com:443"), 404),
    ("a method of nobody", request(b"FOO", b"/v1/models"), 405),
    ("to see what was sent", request(b"TRACE", b"/v1/models"), 405),
    ("to expect something else", asked(b"Expect: magic"), 417),
    ("to be told to go on", asked(b"Expect: 100-continue"), 200),
    ("no HTTP", b"\0\1\2\r\n\r\n", 400),
]


@pytest.mark.parametrize(("data", "status"), [pytest.param(d, s, id=i) for i, d, s in STRANGE])
def test_what_is_strange_is_answered_or_refused_in_json(
    service: Service, data: bytes, status: int
) -> None:
    answer = sent(service, data)
    assert answer.status == status
    assert "content-type: application/json" in answer.headers
    told = json.loads(answer.body)
    if status >= 400:
        schemas.assert_error(told)
        assert len(answer.body) < 2000
    assert sent(service, request(b"GET", b"/healthz")).status == 200
