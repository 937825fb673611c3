"""Questions to the running service and to Dify, and whatever they may answer."""

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from opendify.config.settings import load_settings
from opendify.deploy.online import KeyCheck, check_all
from opendify.deploy.probe import Service, probe
from tests.support.service import free_port

Answers = dict[str, tuple[int, str]]


@contextmanager
def serving(answers: Answers) -> Iterator[int]:
    """A server on loopback that gives these answers by path, and 404 for all else."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            status, body = answers.get(self.path, (404, "{}"))
            self.send_response(status)
            if status == 302:
                self.send_header("Location", "/elsewhere")
            self.end_headers()
            self.wfile.write(body.encode())

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server.server_port
        server.shutdown()


@pytest.mark.parametrize(
    ("answers", "lines"),
    [
        (
            {"/readyz": (503, "{}"), "/v1/models": (200, "no JSON")},
            ["readyz 503", "api 200", "models []"],
        ),
        (
            {"/v1/models": (200, '{"data":[{"id":"中 文"},{"id":1},{"id":"a\\nb"},"x"]}')},
            ["readyz 404", "api 200", 'models ["中 文"]'],
        ),
        ({"/v1/models": (401, "{}")}, ["readyz 404", "api 401", "models []"]),
    ],
)
def test_what_a_probe_says(answers: Answers, lines: list[str]) -> None:
    with serving(answers) as port:
        assert list(probe(Service(port), with_question=False)) == lines


@pytest.mark.parametrize(
    ("answer", "line"),
    [
        ((200, "{}"), "answer 200"),
        ((502, '{"error":{"code":"upstream_auth_error"}}'), "answer 502 upstream_auth_error"),
        ((500, "<html>"), "answer 500"),
        ((500, '{"error":"odd"}'), "answer 500"),
    ],
)
def test_what_a_question_is_answered(answer: tuple[int, str], line: str) -> None:
    models = (200, json.dumps({"data": [{"id": "gpt-4"}]}))
    with serving({"/v1/models": models, "/v1/chat/completions": answer}) as port:
        assert list(probe(Service(port), with_question=True))[-1] == line


def test_a_service_that_does_not_answer() -> None:
    lines = list(probe(Service(free_port()), with_question=True))
    assert lines == ["readyz 0", "api 0", "models []"]


@pytest.mark.parametrize(
    ("environ", "service"),
    [
        ({}, Service(5000)),
        ({"SERVER_PORT": '"5100"'}, Service(5100)),
        ({"SERVER_PORT": "nonsense"}, Service(5000)),
        ({"OPENDIFY_API_KEYS": "'one,two'"}, Service(5000, "one")),
    ],
)
def test_where_the_service_is(environ: dict[str, str], service: Service) -> None:
    assert Service.from_environ(environ) == service


@pytest.mark.parametrize(
    ("answers", "kind", "detail"),
    [
        ({"/v1/info": (200, "{}")}, "good", "200"),
        ({"/v1/parameters": (200, "{}")}, "good", "200"),
        ({"/v1/info": (401, "{}")}, "refused", "401"),
        ({"/v1/info": (302, "")}, "status", "302"),
        ({"/v1/info": (500, "")}, "status", "500"),
        ({}, "status", "404"),
    ],
)
def test_what_dify_says_to_a_key(answers: Answers, kind: str, detail: str) -> None:
    with serving(answers) as port:
        environ = {
            "DIFY_API_BASE": f"http://127.0.0.1:{port}/v1",
            "MODEL_CONFIG": '{"m":"app-k"}',
        }
        assert list(check_all(load_settings(environ), environ)) == [KeyCheck("m", kind, detail)]


def test_a_dify_that_is_not_there_and_one_behind_a_proxy() -> None:
    away = f"http://127.0.0.1:{free_port()}/v1"
    environ = {"DIFY_API_BASE": away, "MODEL_CONFIG": '{"m":"app-k"}'}
    (answer,) = check_all(load_settings(environ), environ)
    assert (answer.kind, answer.code) == ("unreachable", 1)
    with serving({f"{away}/info": (200, "{}")}) as port:
        environ["HTTP_PROXY"] = f"http://127.0.0.1:{port}"
        (answer,) = check_all(load_settings(environ), environ)
    assert (answer.kind, answer.code) == ("good", 0)


def test_keys_that_callers_bring_are_not_asked_for() -> None:
    environ = {
        "DIFY_API_BASE": f"http://127.0.0.1:{free_port()}/v1",
        "MODEL_CONFIG": '{"m":{}}',
        "DIFY_KEY_PASSTHROUGH": "true",
    }
    assert [answer.kind for answer in check_all(load_settings(environ), environ)] == ["callers"]
