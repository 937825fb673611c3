"""Whose chats are whose, which key opens what, what is in the log, and who may read the files."""

import json
import os
import re
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.faults.calls import PATH, ask, question
from tests.faults.chaos import PAGE_MARK, REFUSALS, Chaos
from tests.faults.conftest import started
from tests.support import service
from tests.support.fake_dify import FakeDify
from tests.support.talking_dify import TalkingDify

HISTORY = [
    {"role": "user", "content": "Hi"},
    {"role": "assistant", "content": "All is well"},
    {"role": "user", "content": "And now?"},
]


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


# --- isolation ---------------------------------------------------------------------------------

MINE: dict[str, Any] = {"model": "trailers", "user": "ann", "key": "key-1", "chat": "chat-1"}
OTHERS = {
    "user": {"user": "bob"},
    "model": {"model": "early-hints"},
    "key": {"key": "key-2"},
    "no-key": {"key": ""},
    "chat": {"chat": "chat-2"},
    "user-that-looks-alike": {"user": 'ann","chat-1'},
    "user-in-other-letters": {"user": "Ann"},
}


def turn(running: service.Service, chaos: Chaos, model: str, user: str, key: str, chat: str) -> str:
    """Says something in a chat; returns the conversation in which it was asked."""
    headers = {"X-OpenWebUI-Chat-Id": chat} | (bearer(key) if key else {})
    answer = ask(running, {**question(model, user), "messages": HISTORY}, headers)
    assert answer.status == 200
    return str(chaos.asked(model, user)[-1].json["conversation_id"])


@pytest.mark.parametrize("name", OTHERS)
def test_a_conversation_is_nobody_else_s(
    shared: service.Service, chaos: Chaos, user: str, name: str
) -> None:
    mine = MINE | {"chat": f"chat-of-{user}"}
    first = {**question("trailers", "ann"), "messages": HISTORY[:1]}
    headers = {"X-OpenWebUI-Chat-Id": mine["chat"], **bearer("key-1")}
    assert ask(shared, first, headers).status == 200
    other = mine | OTHERS[name]
    assert turn(shared, chaos, **other) == "", "somebody continued another's conversation"
    assert turn(shared, chaos, **mine), "it is continued by its owner"


def test_no_other_user_and_chat_have_the_same_name(
    shared: service.Service, chaos: Chaos, user: str
) -> None:
    """However they are written."""
    mine = MINE | {"user": user, "chat": 'a","b'}
    first = {**question("trailers", user), "messages": HISTORY[:1]}
    headers = {"X-OpenWebUI-Chat-Id": mine["chat"], **bearer("key-1")}
    assert ask(shared, first, headers).status == 200
    other = mine | {"user": f'{user}","a', "chat": "b"}
    assert turn(shared, chaos, **other) == "", "somebody continued another's conversation"
    assert turn(shared, chaos, **mine), "it is continued by its owner"


# --- keys --------------------------------------------------------------------------------------

ANN, BOB, ADMIN = "sk-of-ann-0123456789", "sk-of-bob-0123456789", "adm-of-eve-0123456789"


@pytest.fixture(scope="module")
def locked(chaos: Chaos, tmp_path_factory: pytest.TempPathFactory) -> Iterator[service.Service]:
    """A service with keys: of Ann, of Bob who may use one model, and of an admin."""
    accounts = {"ann": ANN, "bob": {"keys": [BOB], "models": ["trailers"]}}
    variables = {"OPENDIFY_API_KEYS": json.dumps(accounts), "OPENDIFY_ADMIN_KEYS": ADMIN}
    with started(tmp_path_factory.mktemp("locked"), chaos, **variables) as running:
        yield running


def call(running: service.Service, method: str, path: str, key: str = "") -> httpx.Response:
    headers = bearer(key) if key else {}
    body = question("trailers") if path == PATH else None
    return httpx.request(
        method, running.url + path, json=body, headers=headers, timeout=10, trust_env=False
    )


ROUTES = [
    ("POST", PATH),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/trailers"),
    ("GET", "/v1/conversation/mappings"),
    ("GET", "/v1/conversation/mappings?limit=1"),
    ("POST", "/v1/conversation/cleanup"),
    ("DELETE", "/v1/conversation/mappings/x"),
    ("GET", "/metrics"),
    ("GET", "/nowhere"),
]
FOR_ADMINS = [route for route in ROUTES if "conversation" in route[1] or route[1] == "/metrics"]
WRONG = ["", "wrong", ANN[:-1], f"{ANN}x", ANN.upper(), "sha256:" + "0" * 64]


@pytest.mark.parametrize("key", WRONG)
@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_without_a_key_nothing_opens(
    locked: service.Service, method: str, path: str, key: str
) -> None:
    response = call(locked, method, path, key)
    assert response.status_code == 401
    assert response.headers["www-authenticate"].startswith("Bearer")
    assert response.json()["error"]["type"] == "invalid_request_error"
    assert not key or key not in response.text


@pytest.mark.parametrize(("method", "path"), FOR_ADMINS)
def test_an_ordinary_key_opens_nothing_of_the_operator_s(
    locked: service.Service, method: str, path: str
) -> None:
    assert call(locked, method, path, ANN).status_code == 403


@pytest.mark.parametrize(("method", "path"), [route for route in FOR_ADMINS if "x" not in route[1]])
def test_an_admin_key_opens_what_is_the_operator_s(
    locked: service.Service, method: str, path: str
) -> None:
    assert call(locked, method, path, ADMIN).status_code == 200


def test_a_key_opens_its_models_and_others_are_not_there(locked: service.Service) -> None:
    assert call(locked, "POST", PATH, ANN).json()["choices"][0]["message"]["content"]
    assert call(locked, "POST", PATH, BOB).status_code == 200
    forbidden = ask(locked, question("early-hints"), bearer(BOB))
    unknown = ask(locked, question("nobody"), bearer(BOB))
    assert (forbidden.status, unknown.status) == (404, 404)
    told = [answer.text.replace(name, "?") for answer, name in
            ((forbidden, "early-hints"), (unknown, "nobody"))]  # fmt: skip
    assert told[0] == told[1], "it can be told from a model that does not exist"
    listed = call(locked, "GET", "/v1/models", BOB).json()["data"]
    assert [model["id"] for model in listed] == ["trailers"]


def test_probes_need_no_key_and_tell_nothing(locked: service.Service) -> None:
    assert call(locked, "GET", "/healthz").json() == {"status": "ok"}
    ready = call(locked, "GET", "/readyz")
    assert list(ready.json()) == ["status"]
    assert len(call(locked, "GET", "/readyz", ADMIN).json()) > 1


def test_without_keys_the_guide_s_calls_are_open_and_the_rest_is_not(
    shared: service.Service,
) -> None:
    for method, path in FOR_ADMINS:
        guide_s = "limit" not in path and method != "DELETE"
        assert call(shared, method, path).status_code == (200 if guide_s else 403), path
    assert call(shared, "GET", "/v1/models").status_code == 200


# --- the log -----------------------------------------------------------------------------------

PROMPT, HEADER = "Zq8 prompt of a person", "Zq8-header-value"
FORGED = "2026-01-01 00:00:00,000 - CRITICAL - forged"
LOGGED = ["trailers", "cut-closed", "cut-a-page", "cut-error-with-a-page"]
LOGGED += [name for name in REFUSALS if "silent" not in name][::6]


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize("level", ["info", "debug"])
def test_nothing_secret_is_in_the_log(chaos: Chaos, tmp_path: Path, level: str, form: str) -> None:
    """And nobody can write a line of it."""
    variables = {
        "LOG_LEVEL": level,
        "LOG_FORMAT": form,
        "LOG_FILE": "logs/opendify.log",
        "ACCESS_LOG": "true",
        "OPENDIFY_API_KEYS": f"{ANN},{BOB}",
        "OPENDIFY_ADMIN_KEYS": ADMIN,
    }
    headers = {"X-Custom": HEADER, "X-OpenWebUI-Chat-Id": f"c\\n{FORGED}", **bearer(ANN)}
    with started(tmp_path, chaos, **variables) as running:
        for name in LOGGED:
            for stream in (True, False):
                body = question(name, f"u\n{FORGED}", PROMPT, stream=stream)
                ask(running, body, headers)
        ask(running, question(f"m\n{FORGED}", text=PROMPT), headers)
        ask(running, question("trailers", text=PROMPT), bearer("sk-wrong-0123456789"))
        call(running, "GET", f"/v1/%0A{FORGED.replace(' ', '%20')}?key={ADMIN}", ADMIN)
        assert running.stop() == 0
        logs = running.output() + (tmp_path / "logs/opendify.log").read_text()
    secrets = [ANN, BOB, ADMIN, "sk-wrong", "app-secret-of", PROMPT, HEADER, "Half an", "is well"]
    for secret in [*secrets, PAGE_MARK, "ThisIsASecret"]:
        assert secret not in logs, secret
    assert not re.search(r"Bearer (?!\.\.\.')", logs)  # as our own messages have it
    assert not [line for line in logs.splitlines() if line.startswith(FORGED[:10])]


# --- files -------------------------------------------------------------------------------------


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_what_is_kept_is_its_owner_s_alone(chaos: Chaos, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir(mode=0o755)
    with started(tmp_path, chaos, GUNICORN_WORKERS="2") as running:
        for number in range(6):
            headers = {"X-OpenWebUI-Chat-Id": f"c{number}"}
            assert ask(running, question("trailers"), headers).status == 200
        running.stop()
    kept = list((tmp_path / "data").rglob("*"))
    assert kept and mode(tmp_path / "data") == 0o700
    assert {
        path.name: oct(mode(path)) for path in kept if path.is_file() and mode(path) != 0o600
    } == {}
    assert all(mode(path) == 0o700 for path in kept if path.is_dir())
    saved = json.loads((tmp_path / "data/conversation_mappings.json").read_text())
    assert len(saved) == 6


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_somebody_else_is_left_as_it_is(chaos: Chaos, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    os.chown(data, 12345, 12345)
    data.chmod(0o777)
    with started(tmp_path, chaos) as running:
        for number in range(4):
            headers = {"X-OpenWebUI-Chat-Id": f"c{number}"}
            assert ask(running, question("trailers"), headers).status == 200
        warned = [line for line in running.output().splitlines() if "WARNING" in line]
    assert mode(data) == 0o777
    assert len([line for line in warned if "data" in line]) == 1, warned


def test_an_address_of_a_caller_is_never_fetched(tmp_path: Path) -> None:
    """Whether it is a picture, a file, or an answer of Dify that names it."""
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.settimeout(0.5)
        url = f"http://127.0.0.1:{trap.getsockname()[1]}/x.png"
        fake = FakeDify(answer=TalkingDify())  # what the app takes is not known: all is tried
        variables = service.free_variables(fake.base, PUBLIC_BASE_URL="https://ai.example.com")
        with service.running(tmp_path, variables) as running:
            for part in (
                {"type": "image_url", "image_url": {"url": url}},
                {"type": "file", "file": {"file_url": url}},
                {"type": "file", "file": {"file_data": url}},
                {"type": "file", "file": {"file_id": url}},
            ):
                parts = [{"type": "text", "text": f"Look at {url}"}, part]
                messages = [{"role": "user", "content": parts}]
                assert ask(running, {"model": "tiny", "messages": messages}).status < 500
            with pytest.raises(TimeoutError):
                trap.accept()
        fake.close()


def test_a_redirect_is_followed_nowhere(tmp_path: Path) -> None:
    """A question with its prompt would go to whoever Dify's address names."""
    with socket.create_server(("127.0.0.1", 0)) as trap:
        trap.settimeout(0.5)
        location = f"Location: http://127.0.0.1:{trap.getsockname()[1]}/v1/chat-messages"
        chaos = Chaos(
            {
                f"to-{status}": lambda request, status=status: [
                    f"HTTP/1.1 {status} Go\r\n{location}\r\nContent-Length: 0\r\n\r\n".encode()
                ]
                for status in (301, 302, 303, 307, 308)
            }
        )
        with started(tmp_path, chaos) as running:
            for status in (301, 302, 303, 307, 308):
                answer = ask(running, question(f"to-{status}", stream=True))
                assert (answer.status, answer.error["code"]) == (502, "upstream_error")
                assert "DIFY_API_BASE" in answer.error["message"]
            with pytest.raises(TimeoutError):
                trap.accept()
        chaos.dify.close()


def test_a_wrong_configuration_starts_nothing_and_all_problems_are_reported(tmp_path: Path) -> None:
    variables = {
        "DIFY_API_BASE": "dify.example.com",
        "MODEL_CONFIG": json.dumps(
            {"a": 7, "b": {"key": "app-Zq8-secret", "type": "chess"}, "c": {"key": "app-Zq8 x"}}
        ),
        "DIFY_READ_TIMEOUT": "soon",
        "GUNICORN_THREADS": "many",
    }
    with service.running(tmp_path, variables, ready=False) as running:
        assert running.process.wait(30) != 0
        output = running.output()
    for problem in ("DIFY_API_BASE", "'a'", "'b'", "'c'", "DIFY_READ_TIMEOUT", "GUNICORN_THREADS"):
        assert problem in output, problem
    assert "Zq8" not in output and "Traceback" not in output
