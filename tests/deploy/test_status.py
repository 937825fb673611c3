"""status: what is made of the lines that deploy.sh sends."""

import io
import json
from datetime import UTC, datetime, timedelta

import pytest

from opendify.deploy.doctor import examine_container
from opendify.deploy.operator import Operator
from opendify.deploy.status import HEADER, describe, parse, write_json, write_row

RUNNING = """name opendify
state running
health healthy
restarts 0
image sha256:0123456789abcdef
ref opendify:latest
version
started 2026-01-02T03:04:05.678901234Z
address 127.0.0.1:5000
data opendify_data
"""
ANSWERS = """readyz 200
api 200
models ["gpt-4", "模型"]
writable yes
"""


def test_a_service_that_is_well() -> None:
    status = parse(RUNNING + ANSWERS)
    assert status.is_healthy and not status.is_unready and status.is_writable
    assert list(describe(status, "en")) == [
        "📊 Service status",
        "Container: running",
        "Health: healthy",
        "API: good",
        "Image: opendify:latest 0123456789ab (version ?)",
        "Address: 127.0.0.1:5000",
        "Up since: 2026-01-02T03:04:05, restarts: 0",
        "Models:",
        "  - gpt-4",
        "  - 模型",
    ]


def test_a_service_that_is_not_there() -> None:
    status = parse("name other\n")
    assert list(describe(status, "en"))[1:] == [
        "Container: not deployed",
        "Health: unknown",
        "API: failing",
    ]
    assert json.loads(write_json(status)) == {
        "name": "other",
        "restarts": 0,
        "healthy": False,
        "api": "bad",
        "ready": "",
        "models": [],
        "state": "absent",
        "health": "none",
    } | dict.fromkeys(("ref", "image", "version", "address", "started"), "")


@pytest.mark.parametrize(
    ("old", "new", "is_healthy"),
    [
        ("health healthy", "health none", True),
        ("health healthy", "health starting", False),
        ("health healthy", "health unhealthy", False),
        ("state running", "state exited", False),
        ("api 200", "api 401", True),
        ("api 200", "api 403", True),
        ("api 200", "api 500", False),
        ("api 200", "api 0", False),
        ("api 200", "", False),
        ("api 200", "/opt/venv/bin/python: No module named opendify.deploy", True),
        ("readyz 200", "readyz 503", True),
    ],
)
def test_when_a_service_is_healthy(old: str, new: str, is_healthy: bool) -> None:
    assert parse((RUNNING + ANSWERS).replace(old, new)).is_healthy == is_healthy


@pytest.mark.parametrize(
    ("state", "health", "restarts", "words"),
    [
        ("running", "unhealthy", 2, ["Container: running", "Health: unhealthy"]),
        ("running", "starting", 2, ["Container: running", "Health: starting"]),
        ("running", "starting", 3, ["Container: restart loop (3 times)", "Health: starting"]),
        ("running", "healthy", 3, ["Container: running", "Health: healthy"]),
        ("restarting", "starting", 1, ["Container: restart loop (1 times)", "Health: unhealthy"]),
        ("exited", "unhealthy", 0, ["Container: stopped", "Health: unknown"]),
    ],
)
def test_words_for_each_state(state: str, health: str, restarts: int, words: list[str]) -> None:
    text = f"name x\nstate {state}\nhealth {health}\nrestarts {restarts}\n"
    assert list(describe(parse(text), "en"))[1:3] == words


def test_a_row_of_the_table() -> None:
    status = parse(RUNNING + ANSWERS)
    now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC) + timedelta(days=3, hours=2, minutes=1)
    row = write_row(status, now)
    assert row.split() == [
        *("opendify", "running", "healthy", "opendify:latest", "-", "127.0.0.1:5000"),
        *("3d2h1m", "0", "gpt-4,模型"),
    ]
    assert row.index("3d2h1m") == HEADER.index("UPTIME")
    assert write_row(parse("name x\nstate exited\n"), now).split() == [
        *("x", "exited", "none", "-", "-", "0", "-"),
    ]


def test_the_last_failed_checks() -> None:
    checks = "".join(f"check {code} {json.dumps('out' * 200)}\n" for code in range(1, 6))
    found = parse(RUNNING + checks).failed_checks
    assert [check.split()[0] for check in found] == ["3", "4", "5"]
    assert {len(check) for check in found} == {300}


@pytest.mark.parametrize(
    ("old", "new", "finding"),
    [
        ("", "", "good d_volume Data opendify_data is writable"),
        ("writable yes", "writable no", "bad d_volume_bad The container cannot write data"),
        ("readyz 200", "readyz 503", "warn d_ready /readyz says 503"),
        ("restarts 0", "restarts 2", "warn d_restarts The container was restarted 2 times"),
        ("health healthy", "health starting", "bad d_container Container opendify: running"),
        ("data opendify", 'check 1 "refused"\ndata opendify', "warn d_probe Health check said: 1"),
    ],
)
def test_what_doctor_makes_of_it(old: str, new: str, finding: str) -> None:
    requests = io.BytesIO()
    examine_container(
        Operator("en", requests=requests), parse((RUNNING + ANSWERS).replace(old, new))
    )
    assert f"finding {finding}" in requests.getvalue().decode()
