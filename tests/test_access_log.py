"""What callers may write into Gunicorn's access log."""

import base64
import logging
from collections.abc import Iterator
from datetime import timedelta
from types import SimpleNamespace
from typing import Any

import pytest
from gunicorn.config import Config
from gunicorn.glogging import Logger
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from opendify.worker.access_log import (
    _VARIABLES,
    Log,
    _clean_referer,
    escaped,
)


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("/v1/models/中文", "/v1/models/中文"),
        ("/a\n2026 forged", "/a\\n2026 forged"),
        ("/a\r\x1b[2J\x85\u2028b", "/a\\r\\x1b[2J\\x85\\u2028b"),
        ("\ud800", "\\ud800"),
        ('"\n', '\\"\\n'),
        ('a"b\\" FAKE', 'a\\"b\\\\\\" FAKE'),
        ("\\n", "\\\\n"),
        (200, 200),
        (None, None),
    ],
)
def test_nobody_begins_a_line(value: object, written: object) -> None:
    assert escaped(value) == written


FORMAT = '%(h)s "%(U)s" %(s)s %({X-Client}i)s %({wsgi.url_scheme}e)s'
# All that Gunicorn documents but for the time, headers and variables; and a name that it does not
# know.
EVERYTHING = " ".join(f"%({name})s" for name in "hlursmUqHbBfaTDMLp") + " %(D)d %(x)s"


@pytest.fixture
def log() -> Iterator[Log]:
    cfg = Config()
    cfg.set("access_log_format", FORMAT)
    loggers = [logging.getLogger(name) for name in ("gunicorn.error", "gunicorn.access")]
    before = [(logger, list(logger.handlers), logger.propagate) for logger in loggers]
    yield Log(cfg)
    for logger, handlers, propagates in before:
        logger.handlers[:], logger.propagate = handlers, propagates


def test_a_line_has_all_that_its_format_names_and_nothing_else(log: Log) -> None:
    environ = {"REQUEST_METHOD": "GET", "RAW_URI": "/a", "SERVER_PROTOCOL": "HTTP/1.1"}
    environ |= {"REMOTE_ADDR": "10.0.0.1", "PATH_INFO": "/a\n", "wsgi.url_scheme": "http"}
    req = SimpleNamespace(headers=[("X-CLIENT", "one\r"), ("AUTHORIZATION", "Bearer key")])
    resp = SimpleNamespace(status="200 OK", sent=3, headers=[])
    atoms = log.atoms(resp, req, environ, timedelta())
    shown = log.cfg.access_log_format % log.atoms_wrapper_class(atoms)
    assert shown == '10.0.0.1 "/a\\n" 200 one\\r http'
    assert "key" not in str(atoms)


TEXTS = st.text() | st.text('"\\n\x85?%s')
NEEDED = ("REQUEST_METHOD", "RAW_URI", "SERVER_PROTOCOL")
ENVIRONS = st.fixed_dictionaries(
    {name: TEXTS for name in NEEDED},
    optional={name: TEXTS for name in {*_VARIABLES, "wsgi.url_scheme"} - {*NEEDED}},
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(ENVIRONS, st.sampled_from(["200 OK", 404]), st.none() | st.integers(0, 9), st.floats(0, 9e4))
def test_a_line_is_that_of_gunicorn_with_escapes(
    log: Log, environ: dict[str, Any], status: Any, sent: int | None, seconds: float
) -> None:
    log.cfg.set("access_log_format", EVERYTHING)
    log.setup(log.cfg)
    resp = SimpleNamespace(status=status, sent=sent, headers=[("X-ANY", "one")])
    asked = (resp, SimpleNamespace(headers=[]), environ, timedelta(seconds=seconds))
    expected = Logger.atoms(log, *asked) | {"x": "-"}
    expected["u"] = "-"
    expected["f"] = _clean_referer(str(environ.get("HTTP_REFERER", "-")))
    expected = {name: escaped(value) for name, value in expected.items()}
    assert EVERYTHING % log.atoms_wrapper_class(log.atoms(*asked)) == EVERYTHING % expected


@pytest.mark.parametrize(
    ("page", "shown"),
    [
        ("https://a.example/chat/1", "https://a.example/chat/1"),
        ("https://a.example/chat?token=secret", "https://a.example/chat"),
        ("https://a.example/chat#token=secret", "https://a.example/chat"),
        ("https://ann:secret@a.example/chat", "[removed]@a.example/chat"),
        ("https://secret@a.example:8443/", "[removed]@a.example:8443/"),
        ("//ann:secret@a.example/", "[removed]@a.example/"),
        ("ann:secret@a.example", "[removed]@a.example"),
        ("https://ann:s@ec/ret@a.example/#x?y", "[removed]@a.example/"),
        ("-", "-"),
        ("", ""),
    ],
)
def test_a_referer_is_logged_without_what_may_be_secret(log: Log, page: str, shown: str) -> None:
    log.cfg.set("access_log_format", "%(f)s")
    log.setup(log.cfg)
    environ = dict.fromkeys(NEEDED, "") | {"HTTP_REFERER": page}
    resp = SimpleNamespace(status="200 OK", sent=3, headers=[])
    assert log.atoms(resp, SimpleNamespace(headers=[]), environ, timedelta()) == {"f": shown}


KEYS = "%(u)s %({Authorization}i)s %({http_authorization}e)s %({Proxy-Authorization}i)s"
KEYS += " %({HTTP_PROXY_AUTHORIZATION}e)s %({cookie}i)s %({X-Api-Key}i)s %({HTTP_API_KEY}e)s"


def test_no_format_shows_a_key(log: Log) -> None:
    """``curl -u KEY:`` sends one as a user name."""
    log.cfg.set("access_log_format", KEYS)
    log.setup(log.cfg)
    basic = f"Basic {base64.b64encode(b'sk-secret:').decode()}"
    names = ("Authorization", "Proxy-Authorization", "Cookie", "X-Api-Key", "Api-Key")
    headers = [(name.upper(), basic) for name in names]
    environ = dict.fromkeys(NEEDED, "") | {
        f"HTTP_{name.upper().replace('-', '_')}": basic for name in names
    }
    resp = SimpleNamespace(status="200 OK", sent=3, headers=[])
    atoms = log.atoms(resp, SimpleNamespace(headers=headers), environ, timedelta())
    assert KEYS % log.atoms_wrapper_class(atoms) == " ".join("-" * 8)


def test_a_name_that_the_format_has_not_is_a_dash(log: Log) -> None:
    environ = dict.fromkeys(NEEDED, "")
    resp = SimpleNamespace(status="200 OK", sent=3, headers=[("X-Any", "one")])
    line = log.atoms_wrapper_class(log.atoms(resp, [("X-Client", "two")], environ, timedelta()))
    assert (line["D"], line["{x-any}o"], line["{X-CLIENT}i"]) == ("-", "-", "two")


def test_the_time_of_a_line_is_that_of_its_second(
    log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    for moment in (0.5, 0.9, 1.0, 86_400.0, 0.9):
        now = f"[{int(moment)}]"
        monkeypatch.setattr("opendify.worker.access_log.time.time", lambda at=moment: at)
        monkeypatch.setattr("gunicorn.glogging.time.strftime", lambda form, now=now: now)
        assert log.now() == now
