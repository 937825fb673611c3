"""Validates the files of a message against what the app accepts. No I/O.

Dify silently drops files that an app does not accept, and since 1.13 a chatflow that receives an
invalid one hangs for 300 s. So everything that can be known in advance is checked here.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urlsplit

from opendify.dify.apps import FileRules
from opendify.errors import InvalidRequest
from opendify.files.content import Content, read_content
from opendify.files.file_rules import UNSUPPORTED, FilePolicy, check_size_limit
from opendify.files.media import dify_kind, kind_by_extension
from opendify.files.names import extension_of
from opendify.protocols.base import Attachment

# Each may need an upload; Dify's own default limit is 10.
MAX_FILES = 50

_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)

# Formats of POST /audio-to-text, with the media types to send: it knows MP3 by this name only.
_SPEECH_TYPES = {
    "mp3": "audio/mp3",
    "mpga": "audio/mp3",
    "m4a": "audio/m4a",
    "wav": "audio/wav",
    "amr": "audio/amr",
}
_MAX_SPEECH_BYTES = 30 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class ReadyFile:
    """A Dify file object that needs no upload: a URL, or a file that Dify already has."""

    file: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Upload:
    """Content to upload to Dify first; ``kind`` is Dify's file type."""

    kind: str
    content: Content


@dataclass(frozen=True, slots=True)
class Speech:
    """Audio to transcribe, for an app that accepts text only."""

    content: Content


Step = ReadyFile | Upload | Speech


@dataclass(frozen=True, slots=True)
class PreparedFiles:
    """The files of a message as Dify file objects, and the transcript of its audio."""

    files: tuple[dict[str, Any], ...] = ()
    transcript: str = ""

    @property
    def ids(self) -> frozenset[str]:
        """The Dify ids of the uploaded files."""
        return frozenset(f["upload_file_id"] for f in self.files if "upload_file_id" in f)


def plan(
    model: str, attachments: Sequence[Attachment], rules: FileRules | None, speech_to_text: bool
) -> list[Step]:
    """What to do with each attachment, in order.

    ``rules`` is what the app accepts; None if that is unknown, in which case nothing is checked.
    ``model`` is used in messages. Raises InvalidRequest and RequestTooLarge.
    """
    if not attachments:
        return []
    if len(attachments) > MAX_FILES:
        raise InvalidRequest(
            f"The message has {len(attachments)} files; at most {MAX_FILES} are allowed.",
            param="messages",
        )
    policy = FilePolicy(model, rules, speech_to_text)
    steps = [_step(attachment, policy) for attachment in attachments]
    policy.check_count(sum(not isinstance(step, Speech) for step in steps))
    return steps


def _step(attachment: Attachment, policy: FilePolicy) -> Step:
    path = attachment.path or "messages"
    if attachment.url:
        return _remote(attachment, policy, path)
    if attachment.file_id:
        return _stored(attachment, policy, path)
    content = read_content(attachment, path)
    extension = extension_of(content.name)
    detected = dify_kind(extension, content.media_type)
    kind = policy.kind_for(detected, extension)
    if not kind and policy.speech_to_text and content.media_type.startswith("audio/"):
        return Speech(_speech(content, policy))
    if not kind:
        raise policy.rejection(detected, content.name, path)
    policy.check_method("local_file", path)
    policy.check_size(content)
    return Upload(kind, content)


def _remote(attachment: Attachment, policy: FilePolicy, path: str) -> ReadyFile:
    name = _last_part(attachment.url)
    extension = extension_of(name) or extension_of(attachment.name)
    detected = kind_by_extension(extension)
    if not detected and attachment.kind in ("image", "audio", "video"):
        detected = attachment.kind
    kind = policy.kind_for(detected, extension)
    if not kind:
        raise policy.rejection(detected, attachment.name or name, path)
    policy.check_method("remote_url", path)
    return ReadyFile({"type": kind, "transfer_method": "remote_url", "url": attachment.url})


def _last_part(url: str) -> str:
    try:
        return urlsplit(url).path.rpartition("/")[2]
    except ValueError:
        return ""


def _stored(attachment: Attachment, policy: FilePolicy, path: str) -> ReadyFile:
    if not _ID.fullmatch(attachment.file_id):
        raise InvalidRequest(
            f"'{path}' must hold the id of a file that was uploaded to Dify "
            "(POST /files/upload), or the file itself as 'file_data'.",
            param=path,
        )
    extension = extension_of(attachment.name)
    detected = kind_by_extension(extension)
    kind = policy.kind_for(detected, extension)
    if not kind:
        raise policy.rejection(detected, attachment.name, path)
    policy.check_method("local_file", path)
    return ReadyFile(
        {"type": kind, "transfer_method": "local_file", "upload_file_id": attachment.file_id}
    )


def _speech(content: Content, policy: FilePolicy) -> Content:
    media_type = _SPEECH_TYPES.get(extension_of(content.name))
    if media_type is None:
        raise InvalidRequest(
            f"The app of model '{policy.model}' has Dify transcribe speech, which supports "
            f"{', '.join(_SPEECH_TYPES)}; '{content.name}' is {content.media_type}.",
            param=content.path,
            code=UNSUPPORTED,
        )
    check_size_limit(content, _MAX_SPEECH_BYTES, "Dify takes speech")
    return replace(content, media_type=media_type)
