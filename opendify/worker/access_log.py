"""Gunicorn's logger, made safe against log injection: Gunicorn logs the decoded path of a request,
in which ``%0A`` is a line break."""

import re
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from opendify.worker.gunicorn_api import Config, Logger

# The names in a format, as in %(h)s.
_FORMAT_NAME = re.compile(r"%\((.*?)\)")
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

# Headers and variables that hold keys.
_SECRET = re.compile(r"\{(http_)?((proxy[-_])?authorization|cookie|(x[-_])?api[-_]key)\}")

# The variables from which Gunicorn 27 makes the names without braces, except HTTP_AUTHORIZATION:
# the user name in it is not verified, and may be a key (`curl -u KEY:`).
_VARIABLES = (
    "REMOTE_ADDR",
    "REQUEST_METHOD",
    "RAW_URI",
    "SERVER_PROTOCOL",
    "PATH_INFO",
    "QUERY_STRING",
    "HTTP_REFERER",
    "HTTP_USER_AGENT",
)


class AccessLogLine(dict[str, Any]):
    """The values of a line by name; "-" where a request has none."""

    def __missing__(self, name: str) -> Any:
        return self.get(name.lower(), "-") if name.startswith("{") else "-"


@dataclass(frozen=True, slots=True)
class _HeaderlessResponse:
    """A response without its headers."""

    status: Any
    sent: Any
    headers: tuple[()] = ()


class Log(Logger):
    """Escapes quotes, backslashes and control characters, and leaves out what may be secret:
    headers with keys, the user name of Basic authentication, and the query and user of the
    Referer."""

    atoms_wrapper_class = AccessLogLine  # type: ignore[assignment]  # any mapping will do

    def setup(self, cfg: Config) -> None:
        super().setup(cfg)
        names = _FORMAT_NAME.findall(cfg.access_log_format)
        # Gunicorn has headers and variables, which are in braces, in lower case.
        known = {name.lower() if name.startswith("{") else name for name in names}
        self._names = {name for name in known if not _SECRET.match(name)}
        self._uses_headers = any(name.startswith("{") for name in names)
        self._cached_time = (-1, "")

    def atoms(
        self, resp: Any, req: Any, environ: dict[str, Any], request_time: timedelta
    ) -> dict[str, Any]:
        if not self._uses_headers:  # else Gunicorn makes about fifty values of them
            resp, req = _HeaderlessResponse(resp.status, getattr(resp, "sent", None)), ()
            environ = {name: environ[name] for name in _VARIABLES if name in environ}
        atoms = super().atoms(resp, req, environ, request_time)
        atoms["u"] = "-"
        atoms["f"] = _clean_referer(str(atoms["f"]))
        return {name: escaped(atoms[name]) for name in self._names if name in atoms}

    def now(self) -> str:
        """The time in Gunicorn's format, computed once per second."""
        second = int(time.time())
        cached, text = self._cached_time
        if second != cached:
            text = super().now()
            self._cached_time = second, text
        return text


def escaped(value: Any) -> Any:
    """Escapes quotes, backslashes and control characters of a string, so that it cannot end its
    field; returns anything else unchanged."""
    if not isinstance(value, str):
        return value
    value = value.replace("\\", "\\\\").replace('"', '\\"')
    if value.isprintable():  # so it has no control characters
        return value
    return _CONTROLS.sub(lambda match: ascii(match[0])[1:-1], value)


def _clean_referer(referer: str) -> str:
    """A URL without query, fragment, user and password. Everything before the last "@" is removed,
    wherever it is: a password may contain any character."""
    address = re.split(r"[?#]", referer, maxsplit=1)[0]
    _, at, rest = address.rpartition("@")
    return f"[removed]@{rest}" if at else address
