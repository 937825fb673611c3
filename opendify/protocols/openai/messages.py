"""The messages of a chat: roles, text and attachments, checked and flattened. No I/O."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from opendify.errors import InvalidRequest
from opendify.protocols.base import Attachment, Message
from opendify.protocols.message_checks import (
    Checked,
    check_message_list,
    located,
    usable_messages,
)
from opendify.protocols.turns import INSTRUCTION_ROLES

ROLES = (*INSTRUCTION_ROLES, "user", "assistant", "tool", "function")

# Their parts have the forms of many services and programs, and no person could correct them.
_UNCHECKED_ROLES = ("assistant", "tool", "function")
_MEDIA_KINDS = ("image", "audio", "video")
_TEXT_TYPES = ("text", "refusal", "input_text", "output_text")


def parse_messages(raw: Any) -> tuple[Message, ...]:
    """Checks the ``messages`` of a request. Raises InvalidRequest, which names the message."""
    items = check_message_list(raw)
    return usable_messages([_parse_message(item, index) for index, item in enumerate(items)])


def _parse_message(raw: Any, index: int) -> Checked:
    """A message, and what is wrong with its content. Raises InvalidRequest where it is none."""
    if not isinstance(raw, dict):
        path = f"messages[{index}]"
        raise InvalidRequest(f"'{path}' must be an object with 'role' and 'content'.", param=path)
    role, content, name = raw.get("role"), raw.get("content"), raw.get("name")
    if role not in ROLES:
        path = f"messages[{index}]"
        raise InvalidRequest(f"'{path}.role' must be one of {', '.join(ROLES)}.", param=path)
    name = name if isinstance(name, str) else ""
    if isinstance(content, str):
        return Message(role, content.replace("\0", ""), (), name), None
    parts = _parse_parts(content, f"messages[{index}].content", role)
    text = "\n".join(parts.texts).replace("\0", "")
    message = Message(role, text, tuple(parts.attachments), name, tuple(parts.unusable))
    return message, parts.problem


@dataclass(slots=True)
class _Parts:
    """The parts of a message; ``unusable`` are the kinds of files that cannot be used, and
    ``problem`` is the first thing that is wrong."""

    texts: list[str] = field(default_factory=list)
    attachments: list[Attachment] = field(default_factory=list)
    unusable: list[str] = field(default_factory=list)
    problem: InvalidRequest | None = None


def _parse_parts(raw: Any, path: str, role: str) -> _Parts:
    parts = _Parts()
    if not isinstance(raw, list):
        if raw is not None or role in ("user", *INSTRUCTION_ROLES):
            parts.problem = InvalidRequest(
                f"'{path}' must be a string or an array of parts.", param=path
            )
        return parts
    for index, part in enumerate(raw):
        if role == "assistant" and not _is_known(part):
            continue  # thoughts and tool calls of other services, which are not asked again
        try:
            parsed = _parse_part(part, f"{path}[{index}]")
        except InvalidRequest as exc:
            if role not in _UNCHECKED_ROLES:
                # With its traceback, it would hold on to the content of the request.
                parts.problem = parts.problem or exc.with_traceback(None)
            _keep_usable(part, parts)
            continue
        if isinstance(parsed, str):
            parts.texts.append(parsed)
        else:
            parts.attachments.append(parsed)
    return parts


def _keep_usable(raw: Any, parts: _Parts) -> None:
    """Adds the text of a part that is not valid, or the mention of its file."""
    text = raw.get("text") if isinstance(raw, dict) else raw
    if isinstance(text, str):
        parts.texts.append(text)
    elif isinstance(raw, dict) and raw.get("type") not in _TEXT_TYPES:
        parts.unusable.append(_kind(raw.get("type")))


def _kind(part_type: Any) -> str:
    """The kind of file that a type of part stands for, also one of another API."""
    name = part_type if isinstance(part_type, str) else ""
    return next((kind for kind in _MEDIA_KINDS if kind in name), "file")


def _parse_part(raw: Any, path: str) -> str | Attachment:
    if not isinstance(raw, dict):
        raise InvalidRequest(f"'{path}' must be an object with a 'type'.", param=path)
    kind = raw.get("type")
    parse = _PARTS.get(kind) if isinstance(kind, str) else None
    if parse is None:
        raise InvalidRequest(f"'{path}.type' must be one of {', '.join(_PARTS)}.", param=path)
    return parse(raw, path)


def _is_known(part: Any) -> bool:
    kind = part.get("type") if isinstance(part, dict) else None
    return isinstance(kind, str) and kind in _PARTS


def _text(raw: dict[str, Any], path: str) -> str:
    text = raw.get("text") if raw["type"] != "refusal" else raw.get("refusal")
    if not isinstance(text, str):
        raise InvalidRequest(f"'{path}' must hold its text as a string.", param=path)
    return text


def _image_url(raw: dict[str, Any], path: str) -> Attachment:
    image = raw.get("image_url")
    url = image.get("url") if isinstance(image, dict) else image
    return _located(url, "image", f"{path}.image_url", "")


def _video_url(raw: dict[str, Any], path: str) -> Attachment:
    video = raw.get("video_url")
    url = video.get("url") if isinstance(video, dict) else video
    return _located(url, "video", f"{path}.video_url", "")


def _input_audio(raw: dict[str, Any], path: str) -> Attachment:
    audio = raw.get("input_audio")
    data = audio.get("data") if isinstance(audio, dict) else None
    format_ = audio.get("format") if isinstance(audio, dict) else None
    if not isinstance(data, str) or not isinstance(format_, str) or not data:
        raise InvalidRequest(
            f"'{path}.input_audio' must hold 'data' in base64 and a 'format'.", param=path
        )
    return Attachment(
        "audio",
        data=data,
        media_type=f"audio/{format_}",
        name=f"audio.{format_}",
        path=f"{path}.input_audio",
    )


def _file(raw: dict[str, Any], path: str) -> Attachment:
    file = raw if raw["type"] == "input_file" else raw.get("file")
    file = file if isinstance(file, dict) else {}
    name = file.get("filename")
    name = name if isinstance(name, str) else ""
    if isinstance(file.get("file_id"), str) and file["file_id"]:
        return Attachment("file", file_id=file["file_id"], name=name, path=f"{path}.file")
    return _located(file.get("file_data") or file.get("file_url"), "file", f"{path}.file", name)


def _located(url: Any, kind: str, path: str, name: str) -> Attachment:
    if found := located(url, kind, path, name):
        return found
    if kind == "file" and isinstance(url, str) and url and url[:5].lower() != "data:":
        return Attachment(kind, data=url, name=name, path=path)
    raise InvalidRequest(
        f"'{path}' must hold an http(s) address or a 'data:<type>;base64,...' address.", param=path
    )


# The last four are those of the Responses API, whose histories some clients send here.
_PARTS: dict[str, Callable[[dict[str, Any], str], str | Attachment]] = {
    "text": _text,
    "refusal": _text,
    "image_url": _image_url,
    "video_url": _video_url,
    "input_audio": _input_audio,
    "file": _file,
    "input_text": _text,
    "output_text": _text,
    "input_image": _image_url,
    "input_file": _file,
}
