"""Logging: to standard output, and to LOG_FILE as well, together with Gunicorn's logs."""

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

# The id of the request that this thread serves; every log line contains it.
request_id: ContextVar[str] = ContextVar("request_id", default="")

_REMOVED = "[removed]"
_MIN_SECRET_CHARS = 8  # redacting shorter ones would hit ordinary words
# Our own messages tell callers to send "Bearer ...".
_BEARER = re.compile(r"(?i)\b(bearer\s+)(?!\.\.\.')[^\s'\",;]+")
# Characters that could start a new line or control a terminal, escaped as in JSON.
_BREAKS = {code: f"\\u{code:04x}" for code in (*range(32), *range(127, 160), 0x2028, 0x2029)}
_BREAKS |= {ord("\n"): "\\n", ord("\r"): "\\r", ord("\t"): "\\t"}
_NEEDS_QUOTES = re.compile(r'[\s"=\\]')

_ESCAPED = "opendify.escaped"


def _escape(exc: UnicodeError) -> tuple[str, int]:
    """Escapes unencodable characters as JSON does, so that a JSON line stays valid."""
    if not isinstance(exc, UnicodeEncodeError):
        raise exc
    return json.dumps(exc.object[exc.start : exc.end])[1:-1], exc.end


codecs.register_error(_ESCAPED, _escape)


class LogFileError(RuntimeError):
    """LOG_FILE cannot be written. A RuntimeError, because Gunicorn prints only its message."""


def configure_logging(level: str, file: str, form: str, secrets: Iterable[str] = ()) -> None:
    """Sets the level of OpenDify's loggers; the loggers of libraries stay at warning.

    ``file`` may be empty for none. It may be rotated at any time: it is reopened then. ``form`` is
    "text" or "json". The ``secrets`` are redacted in every line. Raises LogFileError.
    """
    formatter = _JsonFormatter(secrets) if form == "json" else _TextFormatter(secrets)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors=_ESCAPED)  # ASCII only in some locales
    logging.basicConfig(level=logging.WARNING, stream=sys.stdout)
    for handler in logging.getLogger().handlers:
        handler.setFormatter(formatter)
    own_logger = logging.getLogger("opendify")
    own_logger.setLevel(level.upper())
    # Flask's development server would log full URLs, with the signatures of file links.
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    gunicorn_loggers = [logging.getLogger(name) for name in GUNICORN_LOGGERS]
    if form == "json":
        for handler in (handler for logger in gunicorn_loggers for handler in logger.handlers):
            handler.setFormatter(formatter)
    if file and not own_logger.handlers:
        _require_writable(Path(file))
        for logger in (own_logger, *gunicorn_loggers):
            handler = WatchedFileHandler(file, delay=True, encoding="utf-8", errors=_ESCAPED)
            handler.setFormatter(formatter)
            logger.addHandler(handler)


def log_fields(logger: logging.Logger, level: int, message: str, fields: Mapping[str, Any]) -> None:
    """Logs a message with fields. Skips finding the caller's source line, which no format
    prints."""
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
    """Shared code of both formats. The ``fields`` of a log record are a mapping."""

    def __init__(self, secrets: Iterable[str]) -> None:
        super().__init__(FORMAT)
        long_enough = {secret for secret in secrets if len(secret) >= _MIN_SECRET_CHARS}
        self._secrets = sorted(long_enough, key=len, reverse=True)
        self._secret = re.compile("|".join(map(re.escape, self._secrets)))
        self._cached_second = (-1, "")

    def redact(self, line: str) -> str:
        if "bearer" in line.lower():  # a regular expression takes ten times as long
            line = _BEARER.sub(rf"\1{_REMOVED}", line)
        if any(secret in line for secret in self._secrets):
            line = self._secret.sub(_REMOVED, line)
        return line


class _TextFormatter(_Formatter):
    """One line; a traceback follows below it."""

    def format(self, record: logging.LogRecord) -> str:
        return self.redact(super().format(record))

    def formatMessage(self, record: logging.LogRecord) -> str:
        line = super().formatMessage(record)
        for name, value in _fields(record).items():
            line += f" {name}={_format_value(value)}"
        return _escape_breaks(line)

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """Like logging's, but caches the text of the current second."""
        second = int(record.created)
        noted, text = self._cached_second
        if second != noted:
            text = time.strftime(self.default_time_format, self.converter(second))
            self._cached_second = second, text
        return f"{text},{int(record.msecs):03d}"


class _JsonFormatter(_Formatter):
    """One JSON object per line, including the traceback."""

    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_fields(record),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        line = _escape_breaks(json.dumps(entry, ensure_ascii=False, default=str))
        return self.redact(line)


def _escape_breaks(text: str) -> str:
    return text if text.isprintable() else text.translate(_BREAKS)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = getattr(record, "fields", {})
    current_id = request_id.get()
    return fields if "id" in fields or not current_id else {**fields, "id": current_id}


def _format_value(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    return text if text and not _NEEDS_QUOTES.search(text) else json.dumps(text, ensure_ascii=False)
