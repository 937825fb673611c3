"""The messages of a chat: roles, text and attachments, checked and flattened. No I/O."""

from collections.abc import Callable
from typing import Any

from opendify.errors import InvalidRequest
from opendify.protocols.base import Attachment, Message

ROLES = ("system", "developer", "user", "assistant", "tool", "function")


# Each is read several times; a longer chat would hold up everybody else.
MAX_MESSAGES = 10_000


def parse_messages(raw: Any) -> tuple[Message, ...]:
    """Checks the ``messages`` of a request. Raises InvalidRequest, which names the message."""
    if not isinstance(raw, list) or not raw:
        raise InvalidRequest("'messages' must be a non-empty array.", param="messages")
    if len(raw) > MAX_MESSAGES:
        raise InvalidRequest(
            f"'messages' may hold up to {MAX_MESSAGES} messages.", param="messages"
        )
    messages = tuple([_parse_message(item, index) for index, item in enumerate(raw)])
    asked = next((message for message in reversed(messages) if message.role == "user"), None)
    if asked is None:
        raise InvalidRequest(
            "'messages' must hold a message with the role 'user': Dify answers a question.",
            param="messages",
        )
    if not asked.text.strip() and not asked.attachments:
        raise InvalidRequest("The last message of the user is empty.", param="messages")
    return messages


def _parse_message(raw: Any, index: int) -> Message:
    if not isinstance(raw, dict):
        path = f"messages[{index}]"
        raise InvalidRequest(f"'{path}' must be an object with 'role' and 'content'.", param=path)
    role, content, name = raw.get("role"), raw.get("content"), raw.get("name")
    if role not in ROLES:
        path = f"messages[{index}]"
        raise InvalidRequest(f"'{path}.role' must be one of {', '.join(ROLES)}.", param=path)
    name = name if isinstance(name, str) else ""
    if isinstance(content, str):
        return Message(role, content.replace("\0", ""), (), name)
    texts, attachments = _parse_parts(content, f"messages[{index}].content", role)
    return Message(role, "\n".join(texts).replace("\0", ""), tuple(attachments), name)


def _parse_parts(raw: Any, path: str, role: str) -> tuple[list[str], list[Attachment]]:
    if raw is None and role not in ("user", "system", "developer"):
        return [], []
    if not isinstance(raw, list):
        raise InvalidRequest(f"'{path}' must be a string or an array of parts.", param=path)
    texts: list[str] = []
    attachments: list[Attachment] = []
    for index, part in enumerate(raw):
        if role == "assistant" and not _is_known(part):
            continue  # thoughts and tool calls of other services, which are not asked again
        parsed = _parse_part(part, f"{path}[{index}]")
        if isinstance(parsed, str):
            texts.append(parsed)
        else:
            attachments.append(parsed)
    return texts, attachments


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
    scheme = url[:8].lower() if isinstance(url, str) else ""
    if scheme.startswith(("http://", "https://")):
        return Attachment(kind, url=url, name=name, path=path)
    if scheme.startswith("data:"):
        comma = url.find(",", 5)  # what follows it can be tens of megabytes: it is copied once
        media_type, *options = url[5 : max(5, comma)].split(";")
        if "base64" in options and (data := url[comma + 1 :]):
            return Attachment(kind, data=data, media_type=media_type.lower(), name=name, path=path)
    elif isinstance(url, str) and url and kind == "file":
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
