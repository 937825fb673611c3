"""Gunicorn's logs, of which no caller can write a line: the path of a request comes decoded, and
``%0A`` in it would begin a new one."""

import re
from datetime import timedelta
from typing import Any

from gunicorn.glogging import Logger

_CONTROLS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


class Log(Logger):
    """Gunicorn's own, with control characters written as escapes, and without the query of the
    page that a caller comes from, which may hold secrets as our own may."""

    def atoms(
        self, resp: Any, req: Any, environ: dict[str, Any], request_time: timedelta
    ) -> dict[str, Any]:
        atoms = super().atoms(resp, req, environ, request_time)
        atoms["f"] = str(atoms["f"]).partition("?")[0]
        return {name: escaped(value) for name, value in atoms.items()}


def escaped(value: Any) -> Any:
    """A text with its control characters as escapes; anything else as it is."""
    if not isinstance(value, str):
        return value
    return _CONTROLS.sub(lambda match: ascii(match[0])[1:-1], value)
