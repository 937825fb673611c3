"""Whatever may be sent by the description of our API, and what it forbids: no 500, and nothing
that the description does not tell of. The real service, under Gunicorn, and a Dify that answers.

Each run sends the same; FUZZ_SEED=<number> sends something else."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.fake_dify import Chat, FakeDify, Request, Steps, refused
from tests.support.service import ROOT, environment, free_variables, running

pytestmark = pytest.mark.fuzz

SECONDS = 75
CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
    "unsupported_method",
    "ignored_auth",
)


def answer(request: Request) -> Steps:
    if request.path == "/v1/files/upload":
        return refused(201, {"id": "11111111-1111-4111-8111-111111111111"})
    if request.path.startswith("/v1/parameters"):
        return refused(200, {"file_upload": {"enabled": True, "allowed_file_types": ["image"]}})
    if request.path.startswith("/v1/info"):
        return refused(200, {"name": "a", "mode": "chat", "description": ""})
    return Chat().says("Hel", "lo")


def narrowed(folder: Path) -> Path:
    """The description, in which the models are those that there are: else all is a 404."""
    described: dict[str, Any] = json.loads((ROOT / "opendify/api/openapi.json").read_text())
    for name in ("ChatRequest", "CompletionRequest", "MessageRequest", "CountRequest"):
        described["components"]["schemas"][name]["properties"]["model"]["enum"] = ["tiny"]
    path = folder / "openapi.json"
    path.write_text(json.dumps(described))
    return path


def test_no_request_makes_a_500(dify: FakeDify, tmp_path: Path) -> None:
    dify.tells_of_its_app = True
    dify.answer = answer
    variables = free_variables(
        dify.base,
        GUNICORN_WORKERS="2",
        GUNICORN_THREADS="16",
        OPENDIFY_API_KEYS="key",
        OPENDIFY_ADMIN_KEYS="admin",
        MAX_BODY_MB="1",
    )
    with running(tmp_path, variables) as service:
        done = subprocess.run(
            [
                str(Path(sys.executable).with_name("schemathesis")),
                "run",
                str(narrowed(tmp_path)),
                f"--url={service.url}",
                f"--checks={','.join(CHECKS)}",
                "--mode=all",
                "--phases=examples,coverage,fuzzing",
                f"--max-time={SECONDS}",
                f"--seed={os.environ.get('FUZZ_SEED', '1')}",
                "--header=Authorization: Bearer admin",
                "--request-timeout=20",
                # Hypothesis parses code, which threads of Python 3.11 must not do at once.
                "--workers=1",
                "--continue-on-failure",
                "--warnings=off",
                "--no-color",
            ],
            cwd=tmp_path,
            env=environment(),
            capture_output=True,
            text=True,
            timeout=SECONDS + 100,
            check=False,
        )
        assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2000:]
        assert service.stop() == 0
        assert "Traceback" not in service.output()
