"""Values from files, such as Docker and Kubernetes secrets. No I/O: the caller reads."""

from collections import ChainMap
from collections.abc import Callable, Mapping, MutableMapping
from typing import cast

FILE_VARIABLES = {
    "MODEL_CONFIG": "MODEL_CONFIG_FILE",
    "OPENDIFY_API_KEYS": "OPENDIFY_API_KEYS_FILE",
    "OPENDIFY_ADMIN_KEYS": "OPENDIFY_ADMIN_KEYS_FILE",
    "CONVERSATION_STORE": "CONVERSATION_STORE_FILE",
}


def resolve_secret_files(
    environ: Mapping[str, str], read_file: Callable[[str], str], problems: list[str]
) -> Mapping[str, str]:
    """The environment, with the contents of the files that it refers to.

    ``read_file`` may raise OSError and UnicodeError. Problems are added to ``problems``: a missing
    secret must not look like one that is not configured.
    """
    values: dict[str, str] = {}
    for name, variable in FILE_VARIABLES.items():
        path = environ.get(variable, "").strip()
        if path and environ.get(name, "").strip():
            problems.append(f"{name} and {variable} are both set. Remove one of them.")
        elif path:
            values[name] = _text(variable, path, read_file, problems)
    return ChainMap(values, cast(MutableMapping[str, str], environ))


def _text(variable: str, path: str, read_file: Callable[[str], str], problems: list[str]) -> str:
    try:
        text = read_file(path).strip()
    except OSError as exc:
        problems.append(f"{variable}: {path} cannot be read ({exc.strerror or 'no such file'}).")
        return ""
    except (UnicodeError, ValueError):
        problems.append(f"{variable}: {path} is not UTF-8 text.")
        return ""
    if not text:
        problems.append(f"{variable}: {path} is empty.")
    return text
