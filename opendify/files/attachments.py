"""What becomes of the files of a message: checked against what the app takes. No I/O.

Dify drops the files that an app has no use for without a word, and from 1.13 on a chatflow that
is given a bad one is silent for 300 s; so everything that can be known is checked here.
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

# Each can cost an upload; Dify's own limit is 10 where nobody has changed it.
MAX_FILES = 50

_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)

# What POST /audio-to-text takes, by the types that callers use: it knows MP3 by that name only.
_SPEECH_TYPES = {
    "mp3": "audio/mp3",
    "mpga": "audio/mp3",
    "m4a": "audio/m4a",
    "wav": "audio/wav",
    "amr": "audio/amr",
}
_MAX_SPEECH_BYTES = 30 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Ready:
    """A file object that Dify takes as it is: an address, or a file that it has."""

    file: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Upload:
    """Content to give to Dify first; ``kind`` is Dify's word for what it is."""

    kind: str
    content: Content


@dataclass(frozen=True, slots=True)
class Speech:
    """Speech to be written down, for an app that takes text only."""

    content: Content


Step = Ready | Upload | Speech


@dataclass(frozen=True, slots=True)
class Prepared:
    """The files of a message as Dify takes them, and what was spoken in its audio."""

    files: tuple[dict[str, Any], ...] = ()
    spoken: str = ""

    @property
    def ids(self) -> frozenset[str]:
        """Dify's ids of the uploads among the files."""
        return frozenset(f["upload_file_id"] for f in self.files if "upload_file_id" in f)


def plan(
    model: str, attachments: Sequence[Attachment], rules: FileRules | None, speech_to_text: bool
) -> list[Step]:
    """What to do with each attachment, in their order.

    ``rules`` is what the app takes, None where that is not known: nothing is checked then.
    ``model`` is for the messages. Raises InvalidRequest and RequestTooLarge.
    """
    if not attachments:
        return []
    if len(attachments) > MAX_FILES:
        raise InvalidRequest(
            f"The message has {len(attachments)} files; {MAX_FILES} are the most.", param="messages"
        )
    app = FilePolicy(model, rules, speech_to_text)
    steps = [_step(attachment, app) for attachment in attachments]
    app.check_count(sum(not isinstance(step, Speech) for step in steps))
    return steps


def _step(attachment: Attachment, app: FilePolicy) -> Step:
    path = attachment.path or "messages"
    if attachment.url:
        return _remote(attachment, app, path)
    if attachment.file_id:
        return _stored(attachment, app, path)
    content = read_content(attachment, path)
    extension = extension_of(content.name)
    natural = dify_kind(extension, content.media_type)
    kind = app.kind_for(natural, extension)
    if not kind and app.speech_to_text and content.media_type.startswith("audio/"):
        return Speech(_speech(content, app))
    if not kind:
        raise app.rejection(natural, content.name, path)
    app.check_method("local_file", path)
    app.check_size(content)
    return Upload(kind, content)


def _remote(attachment: Attachment, app: FilePolicy, path: str) -> Ready:
    name = _last_part(attachment.url)
    extension = extension_of(name) or extension_of(attachment.name)
    natural = kind_by_extension(extension)
    if not natural and attachment.kind in ("image", "audio", "video"):
        natural = attachment.kind
    kind = app.kind_for(natural, extension)
    if not kind:
        raise app.rejection(natural, attachment.name or name, path)
    app.check_method("remote_url", path)
    return Ready({"type": kind, "transfer_method": "remote_url", "url": attachment.url})


def _last_part(url: str) -> str:
    try:
        return urlsplit(url).path.rpartition("/")[2]
    except ValueError:
        return ""


def _stored(attachment: Attachment, app: FilePolicy, path: str) -> Ready:
    if not _ID.fullmatch(attachment.file_id):
        raise InvalidRequest(
            f"'{path}' must hold the id of a file that was uploaded to Dify "
            "(POST /files/upload), or the file itself as 'file_data'.",
            param=path,
        )
    extension = extension_of(attachment.name)
    natural = kind_by_extension(extension)
    kind = app.kind_for(natural, extension)
    if not kind:
        raise app.rejection(natural, attachment.name, path)
    app.check_method("local_file", path)
    return Ready(
        {"type": kind, "transfer_method": "local_file", "upload_file_id": attachment.file_id}
    )


def _speech(content: Content, app: FilePolicy) -> Content:
    media_type = _SPEECH_TYPES.get(extension_of(content.name))
    if media_type is None:
        raise InvalidRequest(
            f"The app of model '{app.model}' has speech written down by Dify, which reads "
            f"{', '.join(_SPEECH_TYPES)}; '{content.name}' is {content.media_type}.",
            param=content.path,
            code=UNSUPPORTED,
        )
    check_size_limit(content, _MAX_SPEECH_BYTES, "Dify takes speech")
    return replace(content, media_type=media_type)
