"""The log: to standard output, and to LOG_FILE as well, with what Gunicorn logs."""

import codecs
import io
import json
import logging
import re
import sys
import time
from collections.abc import Iterable, Mapping
from contextvars import ContextVar
from datetime import UTC, datetime
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any

GUNICORN_LOGGERS = ("gunicorn.error", "gunicorn.access")
FORMAT = "%(asctime)s - %(levelname)s - %(name)s - %(message)s"

# The request that this thread serves: every line that is logged meanwhile names it.
request_id: ContextVar[str] = ContextVar("request_id", default="")

_REMOVED = "[removed]"
_MIN_SECRET_CHARS = 8  # a shorter one would blot out words
# "Bearer ..." is how our own messages tell callers to send a key.
_BEARER = re.compile(r"(?i)\b(bearer\s+)(?!\.\.\.')[^\s'\",;]+")
# What could begin a new line, or move about in a terminal, written as JSON writes it.
_BREAKS = {code: f"\\u{code:04x}" for code in (*range(32), *range(127, 160), 0x2028, 0x2029)}
_BREAKS |= {ord("\n"): "\\n", ord("\r"): "\\r", ord("\t"): "\\t"}
_NEEDS_QUOTES = re.compile(r'[\s"=\\]')

_ESCAPED = "opendify.escaped"


def _escape(exc: UnicodeError) -> tuple[str, int]:
    """What an encoding does not have, as JSON writes it, so that a line of JSON stays one."""
    if not isinstance(exc, UnicodeEncodeError):
        raise exc
    return json.dumps(exc.object[exc.start : exc.end])[1:-1], exc.end


codecs.register_error(_ESCAPED, _escape)


class LogFileError(RuntimeError):
    """LOG_FILE cannot be written. A RuntimeError, of which Gunicorn shows the message alone."""


def configure_logging(level: str, file: str, form: str, secrets: Iterable[str] = ()) -> None:
    """Sets the level of our own loggers; those of the libraries stay at warnings.

    ``file`` is empty for none. Rotation may move it away at any time: it is opened anew.
    ``form`` is "text" or "json". Should one of the ``secrets`` be in a line, it is not written.
    Raises LogFileError.
    """
    formatter = _JsonFormatter(secrets) if form == "json" else _TextFormatter(secrets)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors=_ESCAPED)  # in some locales it can write ASCII only
    logging.basicConfig(level=logging.WARNING, stream=sys.stdout)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(formatter)
    ours = logging.getLogger("opendify")
    ours.setLevel(level.upper())
    # Flask's own server would write whole addresses, with the signatures of file links.
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    gunicorns = [logging.getLogger(name) for name in GUNICORN_LOGGERS]
    if form == "json":
        for handler in (handler for logger in gunicorns for handler in logger.handlers):
            handler.setFormatter(formatter)
    if file and not ours.handlers:
        _require_writable(Path(file))
        for logger in (ours, *gunicorns):
            handler = WatchedFileHandler(file, delay=True, encoding="utf-8", errors=_ESCAPED)
            handler.setFormatter(formatter)
            logger.addHandler(handler)


def log_fields(logger: logging.Logger, level: int, message: str, fields: Mapping[str, Any]) -> None:
    """Logs a message with fields. Where in the code that is done, which no form tells, is not
    looked for."""
    if logger.isEnabledFor(level):
        extra = {"fields": fields}
        logger.handle(logger.makeRecord(logger.name, level, "", 0, message, (), None, extra=extra))


def _require_writable(path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.open("a").close()
    except OSError as exc:
        raise LogFileError(
            f"LOG_FILE cannot be written ({exc}). Choose a path that this user may write to, or "
            "leave it unset: the log always goes to standard output as well."
        ) from exc


class _Formatter(logging.Formatter):
    """What both forms share. ``fields`` of a record are a mapping of what its line says."""

    def __init__(self, secrets: Iterable[str]) -> None:
        super().__init__(FORMAT)
        long_enough = {secret for secret in secrets if len(secret) >= _MIN_SECRET_CHARS}
        self._secrets = sorted(long_enough, key=len, reverse=True)
        self._secret = re.compile("|".join(map(re.escape, self._secrets)))
        self._cached_second = (-1, "")

    def redact(self, line: str) -> str:
        if "bearer" in line.lower():  # to search with a pattern takes ten times as long
            line = _BEARER.sub(rf"\1{_REMOVED}", line)
        if any(secret in line for secret in self._secrets):
            line = self._secret.sub(_REMOVED, line)
        return line


class _TextFormatter(_Formatter):
    """One line; a traceback goes below it."""

    def format(self, record: logging.LogRecord) -> str:
        return self.redact(super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:
        line = super().formatMessage(record)
        for name, value in _fields(record).items():
            line += f" {name}={_format_value(value)}"
        return _escape_breaks(line)

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """As logging has it, with the seconds written once for all lines of the same one."""
        second = int(record.created)
        noted, text = self._cached_second
        if second != noted:
            text = time.strftime(self.default_time_format, self.converter(second))
            self._cached_second = second, text
        return f"{text},{int(record.msecs):03d}"


class _JsonFormatter(_Formatter):
    """One JSON object on one line, its traceback in it."""

    def format(self, record: logging.LogRecord) -> str:
        said = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            said["traceback"] = self.formatException(record.exc_info)
        line = _escape_breaks(json.dumps(said, ensure_ascii=False, default=str))
        return self.redact(line)


def _escape_breaks(text: str) -> str:
    return text if text.isprintable() else text.translate(_BREAKS)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = getattr(record, "fields", {})
    serving = request_id.get()
    return fields if "id" in fields or not serving else {**fields, "id": serving}


def _format_value(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    return text if text and not _NEEDS_QUOTES.search(text) else json.dumps(text, ensure_ascii=False)
