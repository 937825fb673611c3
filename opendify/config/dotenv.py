"""The environment of this process, completed from ``.env``."""

import os
import ssl
from collections.abc import MutableMapping
from pathlib import Path

from dotenv import dotenv_values

from opendify.config.parsing import strip_quotes
from opendify.config.settings import ConfigError


def load_environment(environ: MutableMapping[str, str] = os.environ) -> None:
    """Adds the values of ``.env`` in the working directory; variables that are set already win.

    A pair of quotes around a whole value is removed: ``docker run --env-file`` keeps them. Raises
    ConfigError if ``.env`` exists and cannot be read.
    """
    for name, value in _read_dotenv().items():
        if value is not None:
            environ.setdefault(name, value)
    for name, value in environ.items():
        if (stripped := strip_quotes(value)) != value:
            environ[name] = stripped


def _read_dotenv() -> dict[str, str | None]:
    try:
        return dotenv_values(Path(".env"), interpolate=False)
    except OSError as exc:
        raise ConfigError([f".env cannot be read ({exc.strerror})."]) from None
    except UnicodeError:  # its message quotes the bytes, which may be a key
        raise ConfigError(
            [".env is not UTF-8 text. Save it with the encoding UTF-8 in your editor."]
        ) from None


def read_file(path: str) -> str:
    """The text of a file that a variable refers to. Raises OSError and UnicodeError."""
    return Path(path).read_text(encoding="utf-8-sig")


def check_certificates(pem: str) -> None:
    """Raises ValueError with a reason if a certificate is damaged."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=pem)
    except (ssl.SSLError, ValueError) as exc:
        raise ValueError("contains a damaged certificate") from exc
