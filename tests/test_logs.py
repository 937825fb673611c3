"""The forms of the log, and what is kept out of it."""

import json
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from opendify.logs import _JsonFormatter, _TextFormatter, request_id
from tests.service import ROOT, environment, free_variables

FORMS = pytest.mark.parametrize("formatter", [_TextFormatter, _JsonFormatter])
Formatter = Callable[..., logging.Formatter]


def record(message: str, *values: object, **more: object) -> logging.LogRecord:
    made = logging.LogRecord("opendify.x", logging.INFO, "x.py", 1, message, values, None)
    made.__dict__ |= more
    return made


@pytest.fixture
def serving() -> Iterator[None]:
    token = request_id.set("r-1")
    yield
    request_id.reset(token)


def test_text_ends_with_the_fields() -> None:
    fields = {"id": "r", "model": "my model", "yes": True, "none": None, "total": 1.23456, "e": ""}
    line = _TextFormatter([]).format(record("request", fields=fields))
    assert line.endswith(
        'opendify.x - request id=r model="my model" yes=yes none=- total=1.235 e=""'
    )


def test_json_has_the_fields_as_they_are() -> None:
    line = _JsonFormatter([]).format(record("asked %s", "模型", fields={"status": 200, "id": "r"}))
    said = json.loads(line)
    assert said.pop("time").endswith("+00:00")
    assert said == {
        "level": "INFO",
        "logger": "opendify.x",
        "message": "asked 模型",
        "status": 200,
        "id": "r",
    }


@pytest.mark.usefixtures("serving")
@FORMS
def test_a_line_names_the_request_that_is_being_served(formatter: Formatter) -> None:
    assert "r-1" in formatter([]).format(record("an answer failed"))


@FORMS
def test_nobody_can_begin_a_line(formatter: Formatter) -> None:
    evil = "a\nb\rc\x1b[2Jd\x85e\u2028f\x7fg"
    line = formatter([]).format(record("said %s", evil, fields={"said": evil}))
    assert line.isprintable()
    assert len(line.splitlines()) == 1


@FORMS
def test_a_traceback_is_told(formatter: Formatter) -> None:
    try:
        raise KeyError("gone")
    except KeyError:
        line = formatter([]).format(record("unexpected", exc_info=sys.exc_info()))
    assert "Traceback" in line and "KeyError" in line
    assert formatter is _TextFormatter or "KeyError" in json.loads(line)["traceback"]


@FORMS
def test_a_secret_is_removed_wherever_it_stands(formatter: Formatter) -> None:
    secrets = ["app-secret-of-dify", "app-secret-of-dify-2", "", "abc"]
    made = record(
        "abc: %s", "app-secret-of-dify-2", fields={"header": "Bearer sk-other, app-secret-of-dify"}
    )
    line = formatter(secrets).format(made)
    assert "secret" not in line and "sk-other" not in line
    assert "abc" in line  # too short to be told from a word


LOG = """
import logging
from opendify.logs import configure_logging
configure_logging("debug", "", "text")
logging.getLogger("opendify.x").debug("ours")
for name in ("httpx", "httpcore.connection", "werkzeug", "urllib3"):
    logging.getLogger(name).info("theirs")
    logging.getLogger(name).warning("loud")
"""


def test_libraries_are_heard_from_warnings_on_whatever_the_level() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOG], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "ours" in done.stdout
    assert "theirs" not in done.stdout + done.stderr
    assert done.stdout.count("loud") == 4


def test_a_log_file_that_cannot_be_written_is_told_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file, and no folder")
    server = [sys.executable, "-m", "gunicorn", "--config", str(ROOT / "gunicorn_config.py")]
    done = subprocess.run(
        [*server, "--bind", "127.0.0.1:0", "main:app"],
        cwd=tmp_path,
        env=environment(**free_variables("http://127.0.0.1:9/v1", LOG_FILE="logs/x.log")),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode != 0
    assert "LOG_FILE cannot be written" in done.stderr and "Choose a place" in done.stderr
    assert "Traceback" not in done.stderr
