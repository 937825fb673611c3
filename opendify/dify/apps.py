"""What Dify tells of an app: its mode, its form, what files it takes. No I/O.

From ``GET /info`` (mode since Dify 1.4.0) and ``GET /parameters`` (the same shape for all modes).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

FILE_KINDS = ("image", "document", "audio", "video", "custom")

_SIZE_LIMITS = {
    "image": "image_file_size_limit",
    "audio": "audio_file_size_limit",
    "video": "video_file_size_limit",
}


@dataclass(frozen=True, slots=True)
class FormField:
    """One input of the app's form. ``kind`` is Dify's word: ``text-input``, ``paragraph``,
    ``select``, ``number``, ``checkbox``, ``file``, ``file-list``, ``json_object`` ..."""

    name: str
    kind: str
    required: bool
    default: Any = None
    options: tuple[str, ...] = ()
    max_length: int = 0


@dataclass(frozen=True, slots=True)
class FileRules:
    """Which files the app takes with a message. ``kinds`` is empty where it takes none;
    ``extensions`` are lower case without a dot and count for the kind ``custom``;
    ``methods`` are ``local_file`` and ``remote_url``; ``max_bytes`` is by kind."""

    kinds: frozenset[str] = frozenset()
    extensions: frozenset[str] = frozenset()
    methods: frozenset[str] = frozenset()
    max_count: int = 0
    max_bytes: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class App:
    """A Dify app as far as it is known. ``mode`` is empty where nothing has told it."""

    mode: str = ""
    name: str = ""
    description: str = ""
    form: tuple[FormField, ...] | None = None
    files: FileRules | None = None
    speech_to_text: bool = False
    suggestions: bool = False


def parse_info(raw: Any) -> tuple[str, str, str]:
    """``GET /info``: mode, name and description, each empty where it is missing."""
    info = _object(raw)
    return _string(info.get("mode")), _string(info.get("name")), _string(info.get("description"))


def parse_form(raw: Any) -> tuple[FormField, ...]:
    """The ``user_input_form`` of ``GET /parameters``: a list of ``{kind: {...}}``."""
    fields = []
    for item in raw if isinstance(raw, list) else []:
        for kind, told in _object(item).items():
            told = _object(told)
            name = _string(told.get("variable"))
            if name:
                fields.append(
                    FormField(
                        name=name,
                        kind=_string(told.get("type")) or kind,
                        required=told.get("required") is True,
                        default=told.get("default"),
                        options=tuple(_strings(told.get("options"))),
                        max_length=_count(told.get("max_length")),
                    )
                )
    return tuple(fields)


def parse_file_rules(raw: Any) -> FileRules:
    """``file_upload`` and ``system_parameters`` of ``GET /parameters``."""
    parameters = _object(raw)
    upload = _object(parameters.get("file_upload"))
    image = _object(upload.get("image"))
    kinds = set(_strings(upload.get("allowed_file_types"))) if upload.get("enabled") else set()
    if image.get("enabled"):
        kinds.add("image")
    methods = _strings(upload.get("allowed_file_upload_methods"))
    limits = _object(parameters.get("system_parameters"))
    return FileRules(
        kinds=frozenset(kinds),
        extensions=frozenset(
            name.lower().lstrip(".") for name in _strings(upload.get("allowed_file_extensions"))
        ),
        methods=frozenset(methods or _strings(image.get("transfer_methods"))),
        max_count=_count(upload.get("number_limits")) or _count(image.get("number_limits")),
        max_bytes={
            kind: megabytes * 1024 * 1024
            for kind in FILE_KINDS
            if (megabytes := _count(limits.get(_SIZE_LIMITS.get(kind, "file_size_limit"))))
        },
    )


def parse_app(info: Any, parameters: Any) -> App:
    """Both answers together; either may be None where Dify did not give it."""
    mode, name, description = parse_info(info)
    told = _object(parameters)
    return App(
        mode=mode,
        name=name,
        description=description,
        form=None if parameters is None else parse_form(told.get("user_input_form")),
        files=None if parameters is None else parse_file_rules(told),
        speech_to_text=_object(told.get("speech_to_text")).get("enabled") is True,
        suggestions=_object(told.get("suggested_questions_after_answer")).get("enabled") is True,
    )


def _object(raw: Any) -> dict[str, Any]:
    return raw if isinstance(raw, dict) else {}


def _string(raw: Any) -> str:
    return raw if isinstance(raw, str) else ""


def _strings(raw: Any) -> list[str]:
    return [item for item in raw if isinstance(item, str)] if isinstance(raw, list) else []


def _count(raw: Any) -> int:
    return raw if isinstance(raw, int) and not isinstance(raw, bool) and raw > 0 else 0
