"""The entries of ``GET /v1/models``: OpenAI's fields, and what Open WebUI reads besides. No I/O.

Open WebUI (0.12.4) takes ``name`` and ``info.meta`` of an entry as they come: ``description``,
``suggestion_prompts``, ``profile_image_url`` and ``capabilities``.
"""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from opendify.config.aliases import is_pattern
from opendify.config.models import MAX_DESCRIPTION_CHARS, MAX_NAME_CHARS, Model
from opendify.dify.apps import App
from opendify.files.icons import emoji_icon

# /v1/models wants a creation time. Dify tells none, and one that moved with each restart would
# make clients take every model for a new one.
MODEL_CREATED = 1735689600

MAX_QUESTIONS = 10
MAX_QUESTION_CHARS = 300

# Switches of Open WebUI that have no effect: each is a tool that it would have the model call.
_WITHOUT_EFFECT = ("web_search", "image_generation", "code_interpreter", "builtin_tools")


def model_list(apps: Sequence[tuple[Model, App]]) -> dict[str, Any]:
    """The list: the models, then their aliases that are no patterns, without hidden models."""
    entries = model_entries(apps)
    listed = [model for model, _ in apps if not model.hidden]
    data = [entries[model.name] for model in listed]
    data += [
        entries[model.name] | {"id": alias}
        for model in listed
        for alias in model.aliases
        if not is_pattern(alias)
    ]
    return {"object": "list", "data": data}


def model_entries(apps: Sequence[tuple[Model, App]]) -> dict[str, dict[str, Any]]:
    """Each model by its id: what the operator says of it, else what Dify does. Unknown things are
    left out. Models that would be listed with the same name, such as two of one app, are told apart
    by their ids."""
    counts = Counter(_name(model, app) for model, app in apps if not model.hidden)
    return {
        model.name: _entry(model, app, is_name_shared=counts[_name(model, app)] > 1)
        for model, app in apps
    }


def _entry(model: Model, app: App, *, is_name_shared: bool) -> dict[str, Any]:
    name = _name(model, app)
    if name and is_name_shared and not model.title:
        name = f"{name} ({model.name})"
    about = {
        "name": name,
        "description": model.description or _shortened(app.description, MAX_DESCRIPTION_CHARS),
        "mode": app.mode,
        "opening_statement": _shortened(app.opening_statement, MAX_DESCRIPTION_CHARS),
    }
    entry = {
        "id": model.name,
        "object": "model",
        "created": MODEL_CREATED,
        "owned_by": "dify",
        **{key: value for key, value in about.items() if value},
    }
    if app.mode:
        entry["capabilities"] = _abilities(app)
    meta = _meta(model, app)
    return entry | ({"info": {"meta": meta}} if meta else {})


def _name(model: Model, app: App) -> str:
    return model.title or _shortened(" ".join(app.name.split()), MAX_NAME_CHARS)


def _abilities(app: App) -> dict[str, Any]:
    kinds = app.files.kinds if app.files else frozenset()
    return {
        "vision": "image" in kinds,
        "files": sorted(kinds),
        "speech_to_text": app.speech_to_text,
    }


def _meta(model: Model, app: App) -> dict[str, Any]:
    greeting = _without_variables(app.opening_statement) or app.description
    questions = [question for text in app.suggested_questions if (question := text.strip())]
    meta = {
        "description": model.description or _shortened(greeting, MAX_DESCRIPTION_CHARS),
        "profile_image_url": _icon(model.icon) or app.icon,
        "suggestion_prompts": [
            {"content": _shortened(question, MAX_QUESTION_CHARS)}
            for question in questions[:MAX_QUESTIONS]
        ],
        "capabilities": _switches(model, app) if app.mode else {},
    }
    return {key: value for key, value in meta.items() if value}


def _switches(model: Model, app: App) -> dict[str, bool]:
    """What Open WebUI offers with this model. It reads documents itself and sends their text, so
    ``file_upload`` is good for any app; for pictures it asks ``vision``."""
    return {
        "vision": _abilities(app)["vision"],
        "file_upload": True,
        "citations": model.citations != "off",
        "usage": True,
        **dict.fromkeys(_WITHOUT_EFFECT, False),
    }


def _without_variables(opening: str) -> str:
    """The opening statement; empty where it has ``{{inputs}}``, which only Dify's own pages
    fill in."""
    return "" if "{{" in opening else opening


def _icon(icon: str) -> str:
    """The operator's icon as an address."""
    return emoji_icon(icon) or icon


def _shortened(text: str, max_chars: int) -> str:
    text = text.strip()
    return text if len(text) <= max_chars else f"{text[: max_chars - 1]}…"
