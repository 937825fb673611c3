"""``setup``: asks for the address and the models, or takes them from options, and writes a valid
configuration file."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from opendify.config.models import parse_base, parse_models
from opendify.config.parsing import InvalidValue, parse_object
from opendify.config.settings import SERVER_NUMBERS
from opendify.deploy.env_files import (
    UnwritableValue,
    parse_assignments,
    write_assignment,
    write_json,
)
from opendify.deploy.masking import mask_key
from opendify.deploy.messages import problem
from opendify.deploy.operator import Aborted, Operator

MAX_MODEL_NAME = 128
DEFAULT_PORT = 5000

_BASE = "https://dify.example.com/v1"  # placeholder for checks of keys and names
_MANAGED = ("DIFY_API_BASE", "MODEL_CONFIG", "MODEL_CONFIG_FILE", "SERVER_HOST", "SERVER_PORT")


@dataclass(frozen=True, slots=True)
class SetupOptions:
    """Command line options; empty if not given."""

    env_file: str
    shown_as: str
    api_base: str = ""
    models: Sequence[str] = ()
    key_files: Sequence[str] = ()
    models_file: str = ""
    port: str = ""


def run_setup(operator: Operator, options: SetupOptions) -> None:
    """Makes deploy.sh write the configuration file. Raises Aborted."""
    operator.tell("setup_title")
    old_text = _old_text(operator, options)
    models: dict[str, Any] = {}
    if options.models_file:
        models = _models_from_file(operator, options.models_file)
    elif options.models:
        models = _models_from_options(operator, options)
    else:
        if not operator.is_terminal:
            operator.warn("visible_input")
        operator.tell("setup_intro")
    base = _base(operator, options.api_base)
    if not models:
        models = _ask_for_models(operator)
    port, other_lines = _kept(old_text, options)
    operator.write_file(_file(base, models, port, [line for _, line in other_lines]))
    _report(operator, options, models, [name for name, _ in other_lines])


def parse_address(text: str) -> str:
    """A Dify API address that every reader of the file reads alike. Raises InvalidValue."""
    base = parse_base(text)
    try:
        write_assignment("DIFY_API_BASE", base, '"')
    except UnwritableValue as exc:
        raise InvalidValue(str(exc)) from None
    if not base.isascii() or not base.isprintable() or set(base) & set("#'<>^{}|"):
        raise InvalidValue("contains characters that must be percent-encoded")
    return base


def is_model_name(name: str) -> bool:
    """Whether the application accepts the name, with a limit on its length."""
    return len(name) <= MAX_MODEL_NAME and not _problems({name: "app-key"})


def is_key(key: str) -> bool:
    return not _problems({"model": key})


def _problems(models: Mapping[str, Any]) -> list[str]:
    found: list[str] = []
    parse_models(json.dumps(models), _BASE, found)
    return found


def _base(operator: Operator, option: str) -> str:
    while True:
        answer = option.encode() if option else operator.ask("ask_base")
        if answer is None:
            raise operator.abort(65, "input_ended")
        try:
            base = parse_address(answer.decode())
        except ValueError:
            if option:
                raise operator.abort(65, "bad_base") from None
            operator.error_or_abort("bad_base")
            continue
        _warn_about(operator, base)
        return base


def _warn_about(operator: Operator, base: str) -> None:
    parts = urlsplit(base)
    host = parts.hostname or ""
    if parts.scheme == "http" and host not in ("localhost", "::1") and host[:4] != "127.":
        operator.warn("base_http", parts.netloc)
    if not base.endswith("/v1"):
        operator.warn("base_no_v1")


def _ask_for_models(operator: Operator) -> dict[str, str]:
    models: dict[str, str] = {}
    operator.tell("setup_models")
    while True:
        answer = operator.ask("ask_model")
        if answer is None or answer == b"done":
            if models:
                return models
            if answer is None:
                raise operator.abort(65, "input_ended")
            operator.error_or_abort("no_models")
            continue
        name = _decode(answer)
        if not is_model_name(name):
            operator.error_or_abort("bad_model")
        elif _confirm_replacement(operator, name, models):
            models[name] = _ask_for_key(operator)


def _confirm_replacement(operator: Operator, name: str, models: Mapping[str, str]) -> bool:
    if name not in models:
        return True
    if not operator.is_terminal:
        raise operator.abort(65, "duplicate_model", name)
    return operator.confirm("ask_replace", name)


def _ask_for_key(operator: Operator) -> str:
    while True:
        answer = operator.ask("ask_key", hidden=True)
        if answer is None:
            raise operator.abort(65, "input_ended")
        key = _decode(answer)
        if is_key(key):
            _warn_about_key(operator, key)
            return key
        operator.error_or_abort("bad_key")


def _warn_about_key(operator: Operator, key: str) -> None:
    if not key.startswith("app-"):
        operator.warn("key_prefix")


def _decode(answer: bytes) -> str:
    """Invalid UTF-8 becomes a character that no name and no key may contain."""
    return answer.removesuffix(b"\r").decode(errors="replace").replace("\ufffd", "\0")


def _models_from_options(operator: Operator, options: SetupOptions) -> dict[str, str]:
    files = {}
    for entry in options.key_files:
        name, equals, path = entry.rpartition("=")
        if not equals or not path:
            raise operator.abort(64, "key_file_form")
        files[name] = path
    models: dict[str, str] = {}
    for name in options.models:
        if not is_model_name(name):
            raise operator.abort(65, "bad_model")
        if name in models:
            raise operator.abort(65, "duplicate_model", name)
        if name not in files:
            raise operator.abort(64, "no_key_file", name)
        models[name] = _key_from_file(operator, files[name])
    return models


def _key_from_file(operator: Operator, path: str) -> str:
    key = _read_text(operator, path).rstrip("\r\n")
    if not is_key(key):
        raise operator.abort(65, "bad_key")
    _warn_about_key(operator, key)
    return key


def _models_from_file(operator: Operator, path: str) -> dict[str, Any]:
    text = _read_text(operator, path)
    found: list[str] = []
    models = parse_models(text, _BASE, found)
    if any(len(name) > MAX_MODEL_NAME for name in models):
        found.append(operator.text("bad_model"))
    if found:
        operator.error("problems", path)
        for sentence in found:
            operator.detail(problem(operator.language, sentence))
        raise Aborted(65)
    return parse_object(text, "model", "{}")


def _read_text(operator: Operator, path: str) -> str:
    try:
        return operator.read_file(path).decode("utf-8-sig")
    except OSError:
        raise operator.abort(65, "cannot_read", path) from None
    except UnicodeError:
        raise operator.abort(65, "not_utf8", path) from None


def _old_text(operator: Operator, options: SetupOptions) -> str:
    """The file that is there, once the operator has agreed to overwrite it; "" if there is none."""
    text = ""
    try:
        text = operator.read_file(options.env_file).decode(errors="surrogateescape")
    except FileNotFoundError:
        return ""
    except OSError:
        pass
    operator.warn("exists", options.shown_as)
    if not operator.is_terminal and not operator.assume_yes:
        raise operator.abort(1, "needs_yes")
    if not operator.confirm("ask_overwrite"):
        raise Aborted(1)
    return text


def _kept(text: str, options: SetupOptions) -> tuple[int, list[tuple[str, str]]]:
    """The port to write, and names and lines of the old file that setup does not manage."""
    port, other_lines = DEFAULT_PORT, {}
    for found in parse_assignments(text):
        if found.name == "SERVER_PORT":
            port = _port(found.value, port)
        elif found.name not in _MANAGED:
            other_lines[found.name] = found.line
    return _port(options.port, port), list(other_lines.items())


def _port(text: str, default: int) -> int:
    minimum, maximum = SERVER_NUMBERS["SERVER_PORT"]
    if text.isascii() and text.isdigit() and minimum <= int(text) <= maximum:
        return int(text)
    return default


def _file(base: str, models: Mapping[str, Any], port: int, other_lines: Sequence[str]) -> str:
    lines = [
        write_assignment("DIFY_API_BASE", base, '"'),
        write_assignment("MODEL_CONFIG", write_json(models)),
        write_assignment("SERVER_HOST", "0.0.0.0", '"'),
        f"SERVER_PORT={port}",
        *other_lines,
    ]
    return "".join(f"{line}\n" for line in lines)


def _report(
    operator: Operator, options: SetupOptions, models: Mapping[str, Any], other_lines: Sequence[str]
) -> None:
    operator.line("")
    operator.tell("setup_done", options.shown_as)
    for name, entry in models.items():
        shown = mask_key(entry) if isinstance(entry, str) else "{…}"
        operator.line(f"  {name}  {shown}")
    if other_lines:
        operator.say("setup_carried", " ".join(other_lines))
