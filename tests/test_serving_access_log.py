"""What callers may write into Gunicorn's access log."""

import logging
from collections.abc import Iterator
from datetime import timedelta
from types import SimpleNamespace

import pytest
from gunicorn.config import Config

from opendify.serving.access_log import Log, escaped


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("/v1/models/中文", "/v1/models/中文"),
        ("/a\n2026 forged", "/a\\n2026 forged"),
        ("/a\r\x1b[2J\x85\u2028b", "/a\\r\\x1b[2J\\x85\\u2028b"),
        ("\ud800", "\\ud800"),
        (200, 200),
        (None, None),
    ],
)
def test_nobody_begins_a_line(value: object, written: object) -> None:
    assert escaped(value) == written


@pytest.fixture
def log() -> Iterator[Log]:
    cfg = Config()
    cfg.set("access_log_format", '%(h)s "%(U)s" %(s)s %({X-Client}i)s %({wsgi.url_scheme}e)s')
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
