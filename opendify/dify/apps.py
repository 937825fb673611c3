"""An app as Dify describes it: its mode, its form, the files that it accepts. No I/O.

From ``GET /info`` (mode since Dify 1.4.0), ``GET /parameters`` (the same shape for all modes) and
``GET /site`` (since Dify 1.4.0).
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

# What of the responses is read here.
_INFO_FIELDS = ("mode", "name", "description")
_PARAMETER_FIELDS = (
    "opening_statement",
    "suggested_questions",
    "speech_to_text",
    "suggested_questions_after_answer",
    "user_input_form",
    "file_upload",
    "system_parameters",
)

_SIZE_LIMITS = {
    "image": "image_file_size_limit",
    "audio": "audio_file_size_limit",
    "video": "video_file_size_limit",
}


@dataclass(frozen=True, slots=True)
class FileRules:
    """Which files the app accepts with a message. ``kinds`` is empty where it accepts none;
    ``extensions`` are lower case without a dot and apply to the kind ``custom``; ``methods`` are
    ``local_file`` and ``remote_url``; ``max_bytes`` is by kind; 0 or a missing
    limit is no limit."""

    kinds: frozenset[str] = frozenset()
    extensions: frozenset[str] = frozenset()
    methods: frozenset[str] = frozenset()
    max_count: int = 0
    max_bytes: Mapping[str, int] = field(default_factory=dict)

    def union(self, other: "FileRules") -> "FileRules":
        """The files that either of the two accepts."""
        if not (self.kinds and other.kinds):
            rules = self if self.kinds else other
            return replace(rules, max_bytes=self.max_bytes or other.max_bytes)
        is_limited = self.max_count and other.max_count
        return FileRules(
            self.kinds | other.kinds,
            self.extensions | other.extensions,
            self.methods | other.methods if self.methods and other.methods else frozenset(),
            self.max_count + other.max_count if is_limited else 0,
            self.max_bytes or other.max_bytes,
        )


@dataclass(frozen=True, slots=True)
class FormField:
    """One input of the app's form. ``kind`` is Dify's type: ``text-input``, ``paragraph``,
    ``select``, ``number``, ``checkbox``, ``file``, ``file-list``, ``json_object`` ... ``files``
    are the files that a file input accepts; ``max_length`` counts characters, or files there."""

    name: str
    kind: str
    required: bool
    default: Any = None
    options: tuple[str, ...] = ()
    max_length: int = 0
    files: FileRules | None = None


@dataclass(frozen=True, slots=True)
class App:
    """What is known of a Dify app. ``mode`` is empty and ``form`` None where it is unknown;
    ``files`` are all files that a request can bring, ``message_files`` those of them that need no
    input of the form; ``icon`` is an address that clients can show."""

    mode: str = ""
    name: str = ""
    description: str = ""
    form: tuple[FormField, ...] | None = None
    files: FileRules | None = None
    message_files: FileRules | None = None
    speech_to_text: bool = False
    suggestions: bool = False
    opening_statement: str = ""
    suggested_questions: tuple[str, ...] = ()
    icon: str = ""


@dataclass(frozen=True, slots=True)
class AppIcon:
    """The icon of an app: an emoji and its colour, or an image. ``image_url`` is signed anew at
    each request, ``image_id`` stays."""

    emoji: str = ""
    background: str = ""
    image_id: str = ""
    image_url: str = ""


def parse_icon(raw: Any) -> AppIcon:
    """The icon in ``GET /site``."""
    site = as_object(raw)
    icon, url = as_string(site.get("icon")), as_string(site.get("icon_url"))
    if site.get("icon_type") == "image":
        return AppIcon(image_id=icon, image_url=url)
    return AppIcon(emoji=icon, background=as_string(site.get("icon_background")))


def relevant_info(raw: Any) -> dict[str, Any] | None:
    """What of ``GET /info`` this module reads; None for None."""
    return None if raw is None else _only(raw, _INFO_FIELDS)


def relevant_parameters(raw: Any) -> dict[str, Any] | None:
    """What of ``GET /parameters`` this module reads; None for None."""
    return None if raw is None else _only(raw, _PARAMETER_FIELDS)


def _only(raw: Any, names: tuple[str, ...]) -> dict[str, Any]:
    return {name: value for name, value in as_object(raw).items() if name in names}


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
    pairs = [pair for item in as_list(raw) for pair in as_object(item).items()]
    fields = (_form_field(kind, as_object(spec)) for kind, spec in pairs)
    return tuple(field for field in fields if field.name)


def _form_field(kind: str, spec: dict[str, Any]) -> FormField:
    if kind not in FIELD_KINDS:
        kind = as_string(spec.get("type")) or kind
    max_length = _limit(spec.get("max_length"))
    files = None
    if kind in ("file", "file-list"):
        count = 1 if kind == "file" else max_length
        rules = _file_rules(spec)
        files = replace(rules, kinds=rules.kinds or frozenset(FILE_KINDS), max_count=count)
    return FormField(
        name=as_string(spec.get("variable")),
        kind=kind,
        # The value of an external data tool does not come from the request.
        required=spec.get("required") is True and kind != "external_data_tool",
        default=spec.get("default"),
        options=tuple(as_strings(spec.get("options"))),
        max_length=max_length,
        files=files,
    )


def _limit(raw: Any) -> int:
    """A count; handwritten forms may have it as a string."""
    return int(raw) if isinstance(raw, str) and re.fullmatch("[0-9]{1,9}", raw) else as_count(raw)


def _file_rules(spec: dict[str, Any]) -> FileRules:
    extensions = as_strings(spec.get("allowed_file_extensions"))
    return FileRules(
        kinds=frozenset(as_strings(spec.get("allowed_file_types"))),
        extensions=frozenset(name.lower().lstrip(".") for name in extensions),
        methods=frozenset(as_strings(spec.get("allowed_file_upload_methods"))),
        max_count=_limit(spec.get("number_limits")),
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
    """The app from both responses; either may be None where Dify did not send it."""
    mode, name, description = parse_info(info)
    raw = as_object(parameters)
    app = App(
        mode=mode,
        name=name,
        description=description,
        speech_to_text=as_object(raw.get("speech_to_text")).get("enabled") is True,
        suggestions=as_object(raw.get("suggested_questions_after_answer")).get("enabled") is True,
        opening_statement=as_string(raw.get("opening_statement")),
        suggested_questions=tuple(as_strings(raw.get("suggested_questions"))),
    )
    if parameters is None:
        return app
    form, message_files = parse_form(raw.get("user_input_form")), parse_file_rules(raw)
    files = message_files
    for field_ in form:
        files = files.union(field_.files) if field_.files else files
    return replace(app, form=form, files=files, message_files=message_files)
