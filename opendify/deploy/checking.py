"""Whether the service would start with a configuration. The caller reads files."""

import posixpath
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache

from opendify.config.dotenv import check_certificates, read_file
from opendify.config.parsing import InvalidValue, parse_object, strip_quotes
from opendify.config.secret_files import FILE_VARIABLES, resolve_secret_files
from opendify.config.settings import ConfigError, Settings, load_settings
from opendify.deploy.env_files import UnwritableValue, write_for_docker, write_json

ReadFile = Callable[[str], str]

# Set by ``plan``, and where the volume is mounted.
_MANAGED = ("SERVER_HOST", "SERVER_PORT", "PUBLISH_ADDRESS", "DATA_DIR")


@dataclass(frozen=True, slots=True)
class ValidConfig:
    """A valid configuration: the application's settings, the values as they are in the file, and in
    ``raw`` the file for ``docker run --env-file``."""

    settings: Settings
    values: Mapping[str, str] = field(repr=False)
    raw: str = field(repr=False)


class InvalidConfig(Exception):
    """An invalid configuration: the application's messages, and values that Docker's format cannot
    represent."""

    def __init__(self, sentences: list[str], unwritable: list[UnwritableValue]) -> None:
        super().__init__(sentences)
        self.sentences, self.unwritable = sentences, unwritable


def check(values: Mapping[str, str], env_file: str, read_host_file: ReadFile) -> ValidConfig:
    """Checks the values of a configuration file as the application does at startup. Raises
    InvalidConfig.

    ``read_host_file`` reads the files of FILE_VARIABLES. They are on the host, where the container
    cannot see them, so their contents go into ``raw``. Other files (certificates) are in the
    container.
    """
    found = {name: strip_quotes(value) for name, value in values.items()}
    host_paths = set()
    for variable in FILE_VARIABLES.values():
        if path := found.get(variable, "").strip():
            found[variable] = path if env_file == "-" else resolve_path(env_file, path)
            host_paths.add(found[variable])
    read = cache(lambda path: (read_host_file if path in host_paths else read_file)(path))
    raw, unwritable = _raw(found, read)
    try:
        settings = load_settings(found, read, check_certificates)
    except ConfigError as exc:
        raise InvalidConfig(exc.problems, unwritable) from None
    if unwritable:
        raise InvalidConfig([], unwritable)
    return ValidConfig(settings, found, raw)


def resolve_path(env_file: str, path: str) -> str:
    """A path in a configuration file, relative to the file's directory."""
    return posixpath.join(posixpath.dirname(env_file), path)


def _raw(found: Mapping[str, str], read_file: ReadFile) -> tuple[str, list[UnwritableValue]]:
    resolved = resolve_secret_files(found, read_file, [])
    raw, unwritable = [], []
    for name in dict.fromkeys([*found, *FILE_VARIABLES]):
        if name in _MANAGED or name in FILE_VARIABLES.values() or name not in resolved:
            continue
        value = resolved[name]
        if name in FILE_VARIABLES and not found.get(name):
            value = _on_one_line(value)
        try:
            raw.append(write_for_docker({name: value}))
        except UnwritableValue as exc:
            unwritable.append(exc)
    return "".join(raw), unwritable


def _on_one_line(text: str) -> str:
    """JSON in compact form, lists of keys with commas."""
    try:
        return write_json(parse_object(text, "entry", "{}"))
    except (InvalidValue, ValueError):
        return text.replace("\r", "").replace("\n", ",")
