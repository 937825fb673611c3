"""What Dify tells of an app: its mode, its form, what files it takes. No I/O.

From ``GET /info`` (mode since Dify 1.4.0) and ``GET /parameters`` (the same shape for all modes).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from opendify.dify.fields import (
    as_count,
    as_list,
    as_object,
    as_string,
    as_strings,
)

FILE_KINDS = ("image", "document", "audio", "video", "custom")

FIELD_KINDS = (
    "text-input",
    "paragraph",
    "select",
    "number",
    "checkbox",
    "file",
    "file-list",
    "json_object",
    "external_data_tool",
)

_SIZE_LIMITS = {
    "image": "image_file_size_limit",
    "audio": "audio_file_size_limit",
    "video": "video_file_size_limit",
}


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

    def joined(self, other: "FileRules") -> "FileRules":
        """What is taken here or there."""
        if not (self.kinds and other.kinds):
            one = self if self.kinds else other
            return replace(one, max_bytes=self.max_bytes or other.max_bytes)
        counted = self.max_count and other.max_count
        return FileRules(
            self.kinds | other.kinds,
            self.extensions | other.extensions,
            self.methods | other.methods if self.methods and other.methods else frozenset(),
            self.max_count + other.max_count if counted else 0,
            self.max_bytes or other.max_bytes,
        )


@dataclass(frozen=True, slots=True)
class FormField:
    """One input of the app's form. ``kind`` is Dify's word: ``text-input``, ``paragraph``,
    ``select``, ``number``, ``checkbox``, ``file``, ``file-list``, ``json_object`` ...; ``files``
    is what an input for files takes; ``max_length`` counts its files, or characters."""

    name: str
    kind: str
    required: bool
    default: Any = None
    options: tuple[str, ...] = ()
    max_length: int = 0
    files: FileRules | None = None


@dataclass(frozen=True, slots=True)
class App:
    """A Dify app as far as it is known. ``mode`` is empty where nothing has told it; ``files`` are
    those that a message can bring, ``beside`` those of them that the form has no part in."""

    mode: str = ""
    name: str = ""
    description: str = ""
    form: tuple[FormField, ...] | None = None
    files: FileRules | None = None
    beside: FileRules | None = None
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
    told = [pair for item in as_list(raw) for pair in as_object(item).items()]
    fields = (_form_field(kind, as_object(one)) for kind, one in told)
    return tuple(field for field in fields if field.name)


def _form_field(kind: str, told: dict[str, Any]) -> FormField:
    if kind not in FIELD_KINDS:
        kind = as_string(told.get("type")) or kind
    max_length = _limit(told.get("max_length"))
    files = None
    if kind in ("file", "file-list"):
        count = 1 if kind == "file" else max_length
        rules = _file_rules(told)
        files = replace(rules, kinds=rules.kinds or frozenset(FILE_KINDS), max_count=count)
    return FormField(
        name=as_string(told.get("variable")),
        kind=kind,
        # What a tool fetches is asked of nobody.
        required=told.get("required") is True and kind != "external_data_tool",
        default=told.get("default"),
        options=tuple(as_strings(told.get("options"))),
        max_length=max_length,
        files=files,
    )


def _limit(raw: Any) -> int:
    """A count; forms that were written by hand have some as text."""
    return int(raw) if isinstance(raw, str) and re.fullmatch("[0-9]{1,9}", raw) else as_count(raw)


def _file_rules(told: dict[str, Any]) -> FileRules:
    extensions = as_strings(told.get("allowed_file_extensions"))
    return FileRules(
        kinds=frozenset(as_strings(told.get("allowed_file_types"))),
        extensions=frozenset(name.lower().lstrip(".") for name in extensions),
        methods=frozenset(as_strings(told.get("allowed_file_upload_methods"))),
        max_count=_limit(told.get("number_limits")),
    )


def parse_file_rules(raw: Any) -> FileRules:
    """``file_upload`` and ``system_parameters`` of ``GET /parameters``."""
    parameters = as_object(raw)
    upload = as_object(parameters.get("file_upload"))
    image = as_object(upload.get("image"))
    rules = _file_rules(upload)
    kinds = rules.kinds if upload.get("enabled") else frozenset()
    limits = as_object(parameters.get("system_parameters"))
    return replace(
        rules,
        kinds=kinds | {"image"} if image.get("enabled") else kinds,
        methods=rules.methods or frozenset(as_strings(image.get("transfer_methods"))),
        max_count=rules.max_count or _limit(image.get("number_limits")),
        max_bytes={
            kind: megabytes * 1024 * 1024
            for kind in FILE_KINDS
            if (megabytes := _limit(limits.get(_SIZE_LIMITS.get(kind, "file_size_limit"))))
        },
    )


def parse_app(info: Any, parameters: Any) -> App:
    """Both answers together; either may be None where Dify did not give it."""
    mode, name, description = parse_info(info)
    told = as_object(parameters)
    app = App(
        mode=mode,
        name=name,
        description=description,
        speech_to_text=as_object(told.get("speech_to_text")).get("enabled") is True,
        suggestions=as_object(told.get("suggested_questions_after_answer")).get("enabled") is True,
    )
    if parameters is None:
        return app
    form, beside = parse_form(told.get("user_input_form")), parse_file_rules(told)
    files = beside
    for one in form:
        files = files.joined(one.files) if one.files else files
    return replace(app, form=form, files=files, beside=beside)
