"""The messages of a request and their content blocks, checked and flattened. No I/O.

Calls of tools and their results are told as text: an app knows the tools that are set in Dify.
"""

import base64
import json
from collections.abc import Callable, Mapping
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

# Claude Code sends messages of the role ``system`` after the user's.
ROLES = ("user", "assistant", "system")

_DEFAULT_TYPES = {"image": "image/png", "document": "application/pdf"}


@dataclass(slots=True)
class _Content:
    """The blocks of a message so far. ``text`` is what the message says, and ``results`` are the
    results of tools, which are messages of their own. ``unusable`` are the kinds of files that
    cannot be used, and ``problem`` is the first thing that is wrong."""

    texts: list[str] = field(default_factory=list)
    attachments: list[Attachment] = field(default_factory=list)
    results: list[Message] = field(default_factory=list)
    unusable: list[str] = field(default_factory=list)
    problem: InvalidRequest | None = None


def parse_messages(raw: Any, system: Any) -> tuple[Message, ...]:
    """Checks ``messages`` and ``system`` of a request. Raises InvalidRequest, which names the
    message."""
    items = check_message_list(raw)
    tools = _tool_names(items)
    parsed = _parse_system(system)
    for index, item in enumerate(items):
        parsed += _parse_message(item, f"messages[{index}]", tools)
    return usable_messages(parsed)


def _tool_names(messages: list[Any]) -> Mapping[str, str]:
    """The names of the tools that were called, by the ids of the calls."""
    blocks = (
        block
        for message in messages
        if isinstance(message, dict) and isinstance(message.get("content"), list)
        for block in message["content"]
        if isinstance(block, dict) and block.get("type") == "tool_use"
    )
    pairs = ((block.get("id"), block.get("name")) for block in blocks)
    return {id_: name for id_, name in pairs if isinstance(id_, str) and isinstance(name, str)}


def _parse_system(raw: Any) -> list[Checked]:
    if raw is None:
        return []
    return _checked("system", _parse_content(raw, "system", "system", {}))


def _parse_message(raw: Any, path: str, tools: Mapping[str, str]) -> list[Checked]:
    if not isinstance(raw, dict):
        raise InvalidRequest(f"'{path}' must be an object with 'role' and 'content'.", param=path)
    role = raw.get("role")
    if role not in ROLES:
        raise InvalidRequest(f"'{path}.role' must be one of {', '.join(ROLES)}.", param=path)
    return _checked(role, _parse_content(raw.get("content"), f"{path}.content", role, tools))


def _checked(role: str, content: _Content) -> list[Checked]:
    """The messages of one: the results of tools come before what is said with them."""
    messages = list(content.results)
    text = "\n".join(content.texts).replace("\0", "")
    said = Message(role, text, tuple(content.attachments), "", tuple(content.unusable))
    if not messages or not said.is_blank:
        messages.append(said)
    *before, last = messages
    return [*((message, None) for message in before), (last, content.problem)]


def _parse_content(raw: Any, path: str, role: str, tools: Mapping[str, str]) -> _Content:
    content = _Content()
    if isinstance(raw, str):
        content.texts.append(raw)
    elif isinstance(raw, list):
        for index, block in enumerate(raw):
            _add_block(content, block, f"{path}[{index}]", role, tools)
    else:
        content.problem = InvalidRequest(
            f"'{path}' must be a string or an array of content blocks.", param=path
        )
    return content


def _add_block(
    content: _Content, block: Any, path: str, role: str, tools: Mapping[str, str]
) -> None:
    """Adds a block. Blocks of an answer that are not known are thoughts and what Anthropic's own
    tools do: they are not asked again."""
    kind = block.get("type") if isinstance(block, dict) else None
    add = _BLOCKS.get(kind) if isinstance(kind, str) else None
    try:
        if add is not None:
            add(content, block, path, tools)
        elif role != "assistant":
            raise InvalidRequest(f"'{path}.type' must be one of {', '.join(_BLOCKS)}.", param=path)
    except InvalidRequest as exc:
        # With its traceback, it would hold on to the content of the request.
        content.problem = content.problem or exc.with_traceback(None)
        content.unusable.append("image" if kind == "image" else "file")


def _add_text(content: _Content, block: Any, path: str, tools: Mapping[str, str]) -> None:
    content.texts.append(_text_of(block, path))


def _add_image(content: _Content, block: Any, path: str, tools: Mapping[str, str]) -> None:
    content.attachments.append(_file(block, "image", path))


def _add_document(content: _Content, block: Any, path: str, tools: Mapping[str, str]) -> None:
    source = block.get("source")
    if isinstance(source, dict) and source.get("type") == "content":
        _add_inner(content, source.get("content"), f"{path}.source.content")
    else:
        content.attachments.append(_file(block, "document", path))


def _add_search_result(content: _Content, block: Any, path: str, tools: Mapping[str, str]) -> None:
    content.texts += [value for name in ("title", "source") if (value := _string(block, name))]
    _add_inner(content, block.get("content"), f"{path}.content")


def _add_call(content: _Content, block: Any, path: str, tools: Mapping[str, str]) -> None:
    arguments = json.dumps(block.get("input"), ensure_ascii=False)
    content.texts.append(f"[{_string(block, 'name') or 'tool'}({arguments})]")


def _add_result(content: _Content, block: Any, path: str, tools: Mapping[str, str]) -> None:
    inner = _Content()
    if block.get("content") is not None:
        _add_inner(inner, block["content"], f"{path}.content")
    if block.get("is_error") is True:
        inner.texts.insert(0, "Error:")
    text = "\n".join(inner.texts).replace("\0", "")
    name = tools.get(_string(block, "tool_use_id"), "")
    files = tuple(inner.attachments)
    content.results.append(Message("tool", text, files, name, tuple(inner.unusable)))


def _add_inner(content: _Content, raw: Any, path: str) -> None:
    """Adds the text and the images in a block that holds blocks. Nobody could correct what a
    program has made of them, so what cannot be read is left out."""
    if isinstance(raw, str):
        content.texts.append(raw)
    for index, block in enumerate(raw if isinstance(raw, list) else ()):
        kind = block.get("type") if isinstance(block, dict) else None
        if kind in ("text", "image", "document", "search_result"):
            inner = _Content()
            _add_block(inner, block, f"{path}[{index}]", "tool", {})
            content.texts += inner.texts
            content.attachments += inner.attachments
            content.unusable += inner.unusable


def _file(block: dict[str, Any], block_type: str, path: str) -> Attachment:
    source, path = block.get("source"), f"{path}.source"
    kind = "image" if block_type == "image" else "file"
    name = _string(block, "title")
    if isinstance(source, dict) and (found := _from_source(source, kind, path, name)):
        if not found.data or found.media_type:
            return found
        return Attachment(kind, "", found.data, _DEFAULT_TYPES[block_type], name, path=path)
    raise InvalidRequest(
        f"'{path}' must hold 'data' in base64 with its 'media_type', an http(s) 'url', or a "
        "'file_id'.",
        param=path,
    )


def _from_source(source: dict[str, Any], kind: str, path: str, name: str) -> Attachment | None:
    data, media_type = _string(source, "data"), _string(source, "media_type").lower()
    match source.get("type"):
        case "base64" if data:
            return Attachment(kind, data=data, media_type=media_type, name=name, path=path)
        case "url":
            return located(source.get("url"), kind, path, name)
        case "file" if file_id := _string(source, "file_id"):
            return Attachment(kind, file_id=file_id, name=name, path=path)
        case "text" if data:
            encoded = base64.b64encode(data.encode("utf-8", "replace")).decode()
            media_type = media_type or "text/plain"
            return Attachment(kind, data=encoded, media_type=media_type, name=name, path=path)
    return None


def _text_of(block: dict[str, Any], path: str) -> str:
    text = block.get("text")
    if not isinstance(text, str):
        raise InvalidRequest(f"'{path}.text' must be a string.", param=path)
    return text


def _string(holder: Mapping[str, Any], name: str) -> str:
    value = holder.get(name)
    return value if isinstance(value, str) else ""


_BLOCKS: dict[str, Callable[[_Content, Any, str, Mapping[str, str]], None]] = {
    "text": _add_text,
    "image": _add_image,
    "document": _add_document,
    "search_result": _add_search_result,
    "tool_use": _add_call,
    "tool_result": _add_result,
}
