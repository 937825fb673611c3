"""The forms of the log, and what is kept out of it."""

import json
import logging
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opendify.observability.logs import (
    _BEARER,
    _BREAKS,
    FORMAT,
    _escape_breaks,
    _JsonFormatter,
    _TextFormatter,
    log_fields,
    request_id,
)
from tests.support.service import ROOT, environment, free_variables

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
def test_no_value_can_begin_a_log_line(formatter: Formatter) -> None:
    evil = "a\nb\rc\x1b[2Jd\x85e\u2028f\x7fg"
    line = formatter([]).format(record("said %s", evil, fields={"said": evil}))
    assert line.isprintable()
    assert len(line.splitlines()) == 1


@FORMS
def test_a_traceback_is_logged(formatter: Formatter) -> None:
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


@given(st.lists(st.floats(0, 4e9) | st.floats(1e9, 1e9 + 2)))
def test_a_time_is_written_as_logging_writes_it(moments: list[float]) -> None:
    ours, theirs = _TextFormatter([]), logging.Formatter(FORMAT)
    for moment in moments:
        made = record("said")
        made.created, made.msecs = moment, int((moment - int(moment)) * 1000) + 0.0
        assert ours.formatTime(made) == theirs.formatTime(made)


def test_whatever_is_escaped_does_not_count_as_printable() -> None:
    assert not any(chr(code).isprintable() for code in _BREAKS)


@given(st.text(st.characters() | st.sampled_from([chr(code) for code in _BREAKS])))
def test_a_text_without_breaks_stays_as_it_is(text: str) -> None:
    assert _escape_breaks(text) == text.translate(_BREAKS)


def test_whatever_the_pattern_takes_for_the_word_bearer_is_looked_for() -> None:
    every = "".join(chr(code) for code in range(0x110000))
    for letter in set("bearer"):
        alike = re.findall(letter, every, re.IGNORECASE)
        assert {one.lower() for one in alike} == {letter}


@given(
    st.lists(
        st.sampled_from(["bearer", "BeaRer ", "Bearer\t", "sk-1", " ", "\u0130", "app-0123456"])
    )
)
def test_all_that_is_secret_goes(words: list[str]) -> None:
    line = "".join(words)
    gone = _BEARER.sub(r"\1[removed]", line).replace("app-0123456", "[removed]")
    assert _TextFormatter(["app-0123456", "sk-1"]).redact(line) == gone


def test_fields_are_logged_from_the_level_on(caplog: pytest.LogCaptureFixture) -> None:
    logger = logging.getLogger("opendify.test")
    with caplog.at_level("INFO", "opendify.test"):
        log_fields(logger, logging.DEBUG, "unheard", {"a": 1})
        log_fields(logger, logging.INFO, "heard", {"b": 2})
    (told,) = caplog.records
    assert (told.name, told.levelname, told.getMessage()) == ("opendify.test", "INFO", "heard")
    assert told.__dict__["fields"] == {"b": 2}


LOG = """
import logging
from opendify.observability.logs import configure_logging
configure_logging("debug", "", "text")
logging.getLogger("opendify.x").debug("ours")
for name in ("httpx", "httpcore.connection", "werkzeug", "urllib3"):
    logging.getLogger(name).info("theirs")
    logging.getLogger(name).warning("loud")
"""


def test_libraries_log_from_warnings_on_whatever_the_level() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOG], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert "ours" in done.stdout
    assert "theirs" not in done.stdout + done.stderr
    assert done.stdout.count("loud") == 4


ENCODINGS = [
    ("ascii", {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}),
    ("latin-1", {"LC_ALL": "C", "PYTHONIOENCODING": "latin-1", "PYTHONUTF8": "0"}),
    ("ascii", {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
    ("gb18030", {"PYTHONIOENCODING": "gb18030"}),
    ("utf-8", {"PYTHONUTF8": "1"}),
]
TEXTS = "\u03bcs \u6a21\u578b \U0001f600 \xe9 \udc80"
SAY = f"""
import logging, sys
from opendify.observability.logs import configure_logging, log_fields
configure_logging("info", sys.argv[1], sys.argv[2])
log_fields(logging.getLogger("opendify.x"), logging.INFO, "said", {{"text": {TEXTS!a}}})
"""


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize(("encoding", "variables"), ENCODINGS)
def test_any_text_can_be_logged_whatever_the_encoding(
    tmp_path: Path, encoding: str, variables: dict[str, str], form: str
) -> None:
    file = tmp_path / "x.log"
    done = subprocess.run(
        [sys.executable, "-c", SAY, str(file), form],
        env=environment(**variables),
        capture_output=True,
        check=True,
    )
    assert done.stderr == b""
    for line in (done.stdout.decode(encoding), file.read_text(encoding="utf-8")):
        assert line.count("\n") == 1
        if form == "json":
            assert json.loads(line)["text"] == TEXTS
        else:
            assert json.loads(line[line.index('"') :]) == TEXTS


def test_a_log_file_that_cannot_be_written_is_reported_in_one_sentence(tmp_path: Path) -> None:
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
    assert "LOG_FILE cannot be written" in done.stderr and "Choose a path" in done.stderr
    assert "Traceback" not in done.stderr
