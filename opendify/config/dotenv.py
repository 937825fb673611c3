"""The environment of this process: what is set, and what ``.env`` adds to it."""

import os
import ssl
from collections.abc import MutableMapping
from pathlib import Path

from dotenv import dotenv_values

from opendify.config.parsing import strip_quotes
from opendify.config.settings import ConfigError


def load_environment(environ: MutableMapping[str, str] = os.environ) -> None:
    """Adds the values of ``.env`` in the working folder; what is set already wins.

    A pair of quotes around a whole value is taken off: ``docker run --env-file`` leaves them on.
    Raises ConfigError where ``.env`` is there and cannot be read.
    """
    for name, value in _read_dotenv().items():
        if value is not None:
            environ.setdefault(name, value)
    for name, value in environ.items():
        if (bare := strip_quotes(value)) != value:
            environ[name] = bare


def _read_dotenv() -> dict[str, str | None]:
    try:
        return dotenv_values(Path(".env"), interpolate=False)
    except OSError as exc:
        raise ConfigError([f".env cannot be read ({exc.strerror})."]) from None
    except UnicodeError:  # it quotes the bytes, which may be a key
        raise ConfigError(
            [".env is not UTF-8 text. Save it with the encoding UTF-8 in your editor."]
        ) from None


def read_file(path: str) -> str:
    """The text of a file that a variable names. Raises OSError and UnicodeError."""
    return Path(path).read_text(encoding="utf-8-sig")


def check_certificates(pem: str) -> None:
    """Raises ValueError, which says what is wrong, where one of the certificates is damaged."""
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=pem)
    except (ssl.SSLError, ValueError) as exc:
        raise ValueError("contains a damaged certificate") from exc
