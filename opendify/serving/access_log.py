"""Gunicorn's logs, of which no caller can write a line: the path of a request comes decoded, and
``%0A`` in it would begin a new one."""

import re
from datetime import timedelta
from typing import Any

from gunicorn.config import Config
from gunicorn.glogging import Logger

# What a format names, as in %(h)s.
_NAMED = re.compile(r"%\((.*?)\)")
_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class Log(Logger):
    """Gunicorn's own, with control characters written as escapes, and without the query of the
    page that a caller comes from, which may hold secrets as our own may."""

    def setup(self, cfg: Config) -> None:
        super().setup(cfg)
        named = _NAMED.findall(cfg.access_log_format)
        # Headers and variables, which are in braces, are known by their names in lower case.
        self._named = {name.lower() if name.startswith("{") else name for name in named}

    def atoms(
        self, resp: Any, req: Any, environ: dict[str, Any], request_time: timedelta
    ) -> dict[str, Any]:
        atoms = super().atoms(resp, req, environ, request_time)
        atoms["f"] = str(atoms["f"]).partition("?")[0]
        # Of all headers and variables of a request, few or none are in a line.
        return {name: escaped(atoms[name]) for name in self._named if name in atoms}


def escaped(value: Any) -> Any:
    """A text with its control characters as escapes; anything else as it is."""
    if not isinstance(value, str):
        return value
    return _CONTROLS.sub(lambda match: ascii(match[0])[1:-1], value)
