"""MODEL_CONFIG: which Dify app each model name maps to, and its settings. No I/O."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from opendify.config.aliases import alias_problems, parse_aliases
from opendify.config.history_words import WordsByLanguage, parse_history_words
from opendify.config.parsing import InvalidValue, parse_object, parse_positive

# About 25,000 tokens of English, or 70,000 of Chinese, which the models of today take.
DEFAULT_HISTORY_MAX_CHARS = 100_000
MAX_HISTORY_MAX_CHARS = 10_000_000

APP_TYPES = ("chat", "agent-chat", "agent", "advanced-chat", "completion", "workflow")

_INPUT = r"input:[^\s:]+"
_CHOICES = {
    "type": "|".join(APP_TYPES),
    "system": f"changed|first|every|drop|{_INPUT}",
    "history": f"query|drop|{_INPUT}",
    "continuity": "auto|always-new|off",
    "conversation_ids": "own|any",
    "tasks": "throwaway|local|model:.+",
    "reasoning": "split|inline|drop",
    "agent_steps": "reasoning|progress|off",
    "progress": "off|reasoning|status",
    "citations": "auto|annotations|events|markdown|off",
}


# What clients show of a model, whoever wrote it.
MAX_NAME_CHARS = 200
MAX_DESCRIPTION_CHARS = 2000

_MAX_EMOJI_CHARS = 16
_MAX_ICON_CHARS = 100_000
_ICON_ADDRESS = re.compile(
    r"https?://[^\s/?#]+[^\s]*"
    r"|data:image/(png|jpeg|gif|webp|svg\+xml);base64,[A-Za-z0-9+/]+={0,2}"
)

# The fields that are not named as their setting.
_FIELDS: Mapping[Any, str] = {"name": "title"}

_NO_DEFAULTS: Mapping[str, Any] = {}


@dataclass(frozen=True, slots=True)
class Model:
    """One model: its app and settings, named as in MODEL_CONFIG (but ``title``)."""

    name: str
    key: str = field(repr=False)
    base: str
    aliases: tuple[str, ...] = field(default=(), repr=False)
    type: str = ""
    inputs: Mapping[str, Any] = field(default_factory=dict)
    text_input: str = ""
    output: str = ""
    system: str = "changed"
    history: str = ""  # as is usual for apps of its mode
    history_max_chars: int = DEFAULT_HISTORY_MAX_CHARS
    history_words: WordsByLanguage = field(default_factory=WordsByLanguage)
    continuity: str = "auto"
    conversation_ids: str = "own"
    reasoning: str = "split"
    agent_steps: str = "reasoning"
    progress: str = "off"
    citations: str = "auto"
    tasks: str = ""
    keep: bool = True
    max_streams: int = 0  # 0: no limit for this model
    title: str = ""  # the setting "name"
    description: str = ""
    icon: str = ""  # an emoji, or an address that clients can show
    hidden: bool = False


def parse_models(
    text: str,
    default_base: str,
    problems: list[str],
    callers_bring_keys: bool = False,
    defaults: Mapping[str, Any] = _NO_DEFAULTS,
) -> dict[str, Model]:
    """The models of MODEL_CONFIG; problems are added to ``problems``.

    ``default_base`` is DIFY_API_BASE, for models without a ``base``. With ``callers_bring_keys``,
    models have no key, so that none can be used in place of the caller's. ``defaults`` are the
    other fields of models that do not set them.
    """
    try:
        raw = parse_object(text, "model", """'{"my-model":"app-..."}', on one line""")
    except InvalidValue as exc:
        problems.append(f"MODEL_CONFIG{exc}")
        return {}
    models = {}
    for name, entry in raw.items():
        try:
            models[name] = _parse_model(name, entry, default_base, callers_bring_keys, defaults)
        except InvalidValue as exc:
            problems.append(f"MODEL_CONFIG: {exc}")
    problems += alias_problems({name: model.aliases for name, model in models.items()}, set(raw))
    problems += _task_problems(models, set(raw))
    return models


def parse_base(url: str) -> str:
    """The base URL of a Dify API, without trailing slashes. Raises InvalidValue."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
        is_valid = parts.scheme in ("http", "https") and host and (parts.port or 1)
        if re.fullmatch(r"[0-9.]+", host):
            ip_address(host)
    except ValueError:
        is_valid = False
    if not is_valid or re.search(r"\s", url):
        raise InvalidValue("must be an address like https://dify.example.com/v1")
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise InvalidValue("must be a plain address, without user, password, query or fragment")
    return url.rstrip("/")


def _task_problems(models: Mapping[str, Model], names: set[str]) -> list[str]:
    """Invalid references in ``tasks``. ``names`` includes models that failed validation."""
    problems = []
    for model in models.values():
        if not model.tasks.startswith("model:"):
            continue
        other = model.tasks.removeprefix("model:")
        where = f"MODEL_CONFIG: model '{model.name}', setting 'tasks'"
        if other not in names:
            problems.append(f"{where} refers to the model '{other}', which does not exist")
        elif other == model.name:
            problems.append(f"{where} must name a different model, or be 'throwaway'")
    return problems


def _parse_model(
    name: str,
    entry: Any,
    default_base: str,
    callers_bring_keys: bool,
    defaults: Mapping[str, Any],
) -> Model:
    if not name.strip() or name != name.strip() or not name.isprintable():
        raise InvalidValue(
            "a model name is empty, or has spaces around it or control characters in it"
        )
    settings = {"key": entry} if isinstance(entry, str) else entry
    if not isinstance(settings, dict):
        raise InvalidValue(f"model '{name}' must have a key (a string) or an object with 'key'")
    unknown = sorted(set(settings) - set(SETTINGS))
    if unknown:
        raise InvalidValue(
            f"model '{name}' has an unknown setting '{unknown[0]}'; known are {', '.join(SETTINGS)}"
        )
    values = dict(defaults)
    for setting, value in settings.items():
        values[_FIELDS.get(setting, setting)] = SETTINGS[setting](
            value, f"model '{name}', setting '{setting}'"
        )
    _check_continuity(name, values)
    base = values.pop("base", default_base)
    if callers_bring_keys:
        values["key"] = ""
        # A caller with the key of an app can read all its conversations in Dify anyway.
        values.setdefault("conversation_ids", "any")
        if base != default_base:
            raise InvalidValue(
                f"model '{name}' has its own 'base', but with DIFY_KEY_PASSTHROUGH the keys "
                "of callers are sent to DIFY_API_BASE only"
            )
    if "key" not in values:
        raise InvalidValue(f"model '{name}' has no 'key'")
    names = {model_field.name for model_field in fields(Model)}
    return Model(name, base=base, **{k: v for k, v in values.items() if k in names})


def _check_continuity(name: str, values: Mapping[str, Any]) -> None:
    if values.get("keep") is False and "continuity" in values:
        raise InvalidValue(
            f"model '{name}' has 'continuity', but with 'keep' false no conversation is continued: "
            "remove one of them"
        )


def _key(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidValue(f"{where} must be the API key of a Dify app")
    if not value.isascii() or not value.isprintable() or " " in value:
        raise InvalidValue(
            f"{where} contains characters that keys never have (spaces or non-ASCII)"
        )
    return value


def _base(value: Any, where: str) -> str:
    try:
        return parse_base(value if isinstance(value, str) else "")
    except InvalidValue as exc:
        raise InvalidValue(f"{where} {exc}") from None


def _inputs(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InvalidValue(f"{where} must be an object")
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value:
        raise InvalidValue(f"{where} must be a non-empty string")
    return value


def _short_text(max_chars: int) -> Callable[[Any, str], str]:
    """A check of texts that clients show."""

    def check(value: Any, where: str) -> str:
        if not isinstance(value, str) or not value.strip() or len(value) > max_chars:
            raise InvalidValue(f"{where} must be a text of 1 to {max_chars} characters")
        return value.strip()

    return check


def _icon(value: Any, where: str) -> str:
    text = value.strip() if isinstance(value, str) else ""
    is_emoji = not text.isascii() and len(text) <= _MAX_EMOJI_CHARS
    if not (is_emoji or (_ICON_ADDRESS.fullmatch(text) and len(text) <= _MAX_ICON_CHARS)):
        raise InvalidValue(
            f"{where} must be an emoji, an address that starts with http:// or https://, or "
            "data:image/png;base64,... (also jpeg, gif, webp, svg+xml) of "
            f"{_MAX_ICON_CHARS} characters at most"
        )
    return text


def _history_max_chars(value: Any, where: str) -> int:
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole or not 0 <= value <= MAX_HISTORY_MAX_CHARS:
        raise InvalidValue(f"{where} must be a whole number from 0 to {MAX_HISTORY_MAX_CHARS}")
    return int(value)


def _boolean(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise InvalidValue(f"{where} must be true or false")
    return value


def _choice(value: Any, where: str) -> str:
    pattern = _CHOICES[where.rsplit("'", 2)[1]]
    if not isinstance(value, str) or not re.fullmatch(pattern, value):
        shown = pattern.replace(_INPUT, "input:<name>").replace("model:.+", "model:<name>")
        raise InvalidValue(f"{where} must be one of {shown.replace('|', ', ')}")
    return value


SETTINGS: dict[str, Callable[[Any, str], Any]] = {
    "key": _key,
    "base": _base,
    "aliases": parse_aliases,
    "type": _choice,
    "inputs": _inputs,
    "text_input": _text,
    "output": _text,
    "system": _choice,
    "history": _choice,
    "history_max_chars": _history_max_chars,
    "history_words": parse_history_words,
    "continuity": _choice,
    "conversation_ids": _choice,
    "tasks": _choice,
    "keep": _boolean,
    "reasoning": _choice,
    "agent_steps": _choice,
    "progress": _choice,
    "citations": _choice,
    "max_streams": parse_positive,
    "name": _short_text(MAX_NAME_CHARS),
    "description": _short_text(MAX_DESCRIPTION_CHARS),
    "icon": _icon,
    "hidden": _boolean,
}
