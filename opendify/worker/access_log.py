"""Gunicorn's logs, of which no caller can write a line: the path of a request comes decoded, and
``%0A`` in it would begin a new one."""

import re
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

from opendify.worker.gunicorn_api import Config, Logger

# What a format names, as in %(h)s.
_NAMED = re.compile(r"%\((.*?)\)")
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

# Hold keys, in whatever form a format names them.
_SECRET = re.compile(r"\{(http_)?((proxy[-_])?authorization|cookie|(x[-_])?api[-_]key)\}")

# The variables that Gunicorn 27 looks at for what a format may name without braces, but for
# HTTP_AUTHORIZATION: the user name in it may be a key (`curl -u KEY:`), and nobody has checked it.
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
    """What a line may hold, by name; "-" for what a request has not."""

    def __missing__(self, name: str) -> Any:
        return self.get(name.lower(), "-") if name.startswith("{") else "-"


@dataclass(frozen=True, slots=True)
class _Bare:
    """An answer without its headers."""

    status: Any
    sent: Any
    headers: tuple[()] = ()


class Log(Logger):
    """Gunicorn's own, with quotes, backslashes and control characters written as escapes, and
    without what may be secret: headers with keys, the user name that a caller claims, and the
    query and user of the page that it comes from."""

    atoms_wrapper_class = AccessLogLine  # type: ignore[assignment]  # a mapping is all that is needed

    def setup(self, cfg: Config) -> None:
        super().setup(cfg)
        named = _NAMED.findall(cfg.access_log_format)
        # Headers and variables, which are in braces, are known by their names in lower case.
        known = {name.lower() if name.startswith("{") else name for name in named}
        self._named = {name for name in known if not _SECRET.match(name)}
        self._names_headers = any(name.startswith("{") for name in named)
        self._noted = (-1, "")

    def atoms(
        self, resp: Any, req: Any, environ: dict[str, Any], request_time: timedelta
    ) -> dict[str, Any]:
        if not self._names_headers:  # of each of them Gunicorn would make a value, some fifty
            resp, req = _Bare(resp.status, getattr(resp, "sent", None)), ()
            environ = {name: environ[name] for name in _VARIABLES if name in environ}
        atoms = super().atoms(resp, req, environ, request_time)
        atoms["u"] = "-"
        atoms["f"] = _page(str(atoms["f"]))
        return {name: escaped(atoms[name]) for name in self._named if name in atoms}

    def now(self) -> str:
        """The time as Gunicorn writes it, made once a second."""
        second = int(time.time())
        noted, text = self._noted
        if second != noted:
            text = super().now()
            self._noted = second, text
        return text


def escaped(value: Any) -> Any:
    """A text with its quotes, backslashes and control characters as escapes, so that it cannot
    end the field in which it stands; anything else as it is."""
    if not isinstance(value, str):
        return value
    value = value.replace("\\", "\\\\").replace('"', '\\"')
    if value.isprintable():  # which no control character is
        return value
    return _CONTROLS.sub(lambda match: ascii(match[0])[1:-1], value)


def _page(referer: str) -> str:
    """The address of a page without its query, fragment, user and password. What stands before an
    "@" is taken out wherever that is: a password may hold any sign."""
    address = re.split(r"[?#]", referer, maxsplit=1)[0]
    _, at, rest = address.rpartition("@")
    return f"[removed]@{rest}" if at else address
