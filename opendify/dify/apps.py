"""What Dify tells of an app: its mode, its form, what files it takes. No I/O.

From ``GET /info`` (mode since Dify 1.4.0) and ``GET /parameters`` (the same shape for all modes).
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from opendify.dify.fields import as_count, as_object, as_string, as_strings

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
    info = as_object(raw)
    return (
        as_string(info.get("mode")),
        as_string(info.get("name")),
        as_string(info.get("description")),
    )


def parse_form(raw: Any) -> tuple[FormField, ...]:
    """The ``user_input_form`` of ``GET /parameters``: a list of ``{kind: {...}}``."""
    fields = []
    for item in raw if isinstance(raw, list) else []:
        for kind, told in as_object(item).items():
            told = as_object(told)
            name = as_string(told.get("variable"))
            if name:
                fields.append(
                    FormField(
                        name=name,
                        kind=as_string(told.get("type")) or kind,
                        required=told.get("required") is True,
                        default=told.get("default"),
                        options=tuple(as_strings(told.get("options"))),
                        max_length=as_count(told.get("max_length")),
                    )
                )
    return tuple(fields)


def parse_file_rules(raw: Any) -> FileRules:
    """``file_upload`` and ``system_parameters`` of ``GET /parameters``."""
    parameters = as_object(raw)
    upload = as_object(parameters.get("file_upload"))
    image = as_object(upload.get("image"))
    kinds = set(as_strings(upload.get("allowed_file_types"))) if upload.get("enabled") else set()
    if image.get("enabled"):
        kinds.add("image")
    methods = as_strings(upload.get("allowed_file_upload_methods"))
    limits = as_object(parameters.get("system_parameters"))
    return FileRules(
        kinds=frozenset(kinds),
        extensions=frozenset(
            name.lower().lstrip(".") for name in as_strings(upload.get("allowed_file_extensions"))
        ),
        methods=frozenset(methods or as_strings(image.get("transfer_methods"))),
        max_count=as_count(upload.get("number_limits")) or as_count(image.get("number_limits")),
        max_bytes={
            kind: megabytes * 1024 * 1024
            for kind in FILE_KINDS
            if (megabytes := as_count(limits.get(_SIZE_LIMITS.get(kind, "file_size_limit"))))
        },
    )


def parse_app(info: Any, parameters: Any) -> App:
    """Both answers together; either may be None where Dify did not give it."""
    mode, name, description = parse_info(info)
    told = as_object(parameters)
    return App(
        mode=mode,
        name=name,
        description=description,
        form=None if parameters is None else parse_form(told.get("user_input_form")),
        files=None if parameters is None else parse_file_rules(told),
        speech_to_text=as_object(told.get("speech_to_text")).get("enabled") is True,
        suggestions=as_object(told.get("suggested_questions_after_answer")).get("enabled") is True,
    )
