"""What becomes of the files of a message: checked against what the app takes. No I/O.

Dify drops the files that an app has no use for without a word, and from 1.13 on a chatflow that
is given a bad one is silent for 300 s; so everything that can be known is checked here.
"""

import base64
import binascii
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote_to_bytes, urlsplit

from opendify.dify.apps import FILE_KINDS, FileRules
from opendify.errors import InvalidRequest, RequestTooLarge
from opendify.files.media import dify_kind, kind_by_extension, media_type_for
from opendify.files.names import extension_of, file_name
from opendify.openai.messages import Attachment

UNSUPPORTED = "unsupported_content"

_WHERE = (
    "In Dify this is switched on where the app is edited: 'Vision', 'Document' or 'Audio' for a "
    "chatbot, agent or text generator, 'Features > File Upload' for a chatflow or workflow."
)
_BLANKS = b" \t\r\n\f\v"
_URL_SAFE = bytes.maketrans(b"-_", b"+/")
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)

# What POST /audio-to-text takes, by the types that callers use: it knows MP3 by that name only.
_SPEECH_TYPES = {"mp3": "audio/mp3", "m4a": "audio/m4a", "wav": "audio/wav", "amr": "audio/amr"}
_MAX_SPEECH_BYTES = 30 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Content:
    """A file that came with a request; ``path`` is where in the request it stood."""

    data: bytes = field(repr=False)
    name: str
    media_type: str
    path: str


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
    app = _App(model, rules, speech_to_text)
    steps = [_step(attachment, app) for attachment in attachments]
    files = [step for step in steps if not isinstance(step, Speech)]
    if rules is not None and 0 < rules.max_count < len(files):
        raise InvalidRequest(
            f"The message has {len(files)} files; the app of model '{model}' takes at most "
            f"{rules.max_count}. The number is set in Dify with the app's file upload.",
            param="messages",
        )
    return steps


def decode(data: str, path: str) -> bytes:
    """The bytes of base64, also of the URL-safe kind, with blanks in it or without its padding.

    Raises InvalidRequest, naming ``path``.
    """
    raw = unquote_to_bytes(data) if "%" in data else data.encode("utf-8", "replace")
    raw = raw.translate(_URL_SAFE, delete=_BLANKS).rstrip(b"=")
    try:
        content = base64.b64decode(raw + b"=" * (-len(raw) % 4), validate=True)
    except binascii.Error as exc:
        raise InvalidRequest(f"'{path}' does not hold valid base64.", param=path) from exc
    if not content:
        raise InvalidRequest(f"'{path}' holds an empty file.", param=path)
    return content


@dataclass(frozen=True, slots=True)
class _App:
    model: str
    rules: FileRules | None
    speech_to_text: bool

    def kind_for(self, kind: str, extension: str) -> str:
        """The kind to send a file as; empty where the app takes no such file.

        An empty ``kind`` is a file of which nothing is known: Dify looks at it and decides.
        """
        if self.rules is None:
            return kind or "document"
        if kind not in ("", "custom") and kind in self.rules.kinds:
            return kind
        if "custom" in self.rules.kinds and extension in self.rules.extensions:
            return "custom"
        any_kind = next((k for k in ("document", *FILE_KINDS) if k in self.rules.kinds), "")
        return "" if kind else any_kind

    def check_method(self, method: str, path: str) -> None:
        if self.rules is None or not self.rules.methods or method in self.rules.methods:
            return
        wanted = (
            "uploaded files only: send the file itself, as 'data:<type>;base64,...'"
            if method == "remote_url"
            else "addresses of files only: send an http(s) address that Dify can reach"
        )
        raise InvalidRequest(
            f"The app of model '{self.model}' takes {wanted}. "
            "Dify calls this setting 'Upload Method'.",
            param=path,
            code=UNSUPPORTED,
        )

    def refuse(self, what: str, path: str) -> InvalidRequest:
        return InvalidRequest(
            f"The app of model '{self.model}' takes {what}. {_WHERE}", param=path, code=UNSUPPORTED
        )

    def taken(self) -> str:
        """What the app takes, in words, to follow 'it takes no such file'."""
        assert self.rules is not None
        kinds = [kind for kind in FILE_KINDS if kind in self.rules.kinds and kind != "custom"]
        if "custom" in self.rules.kinds and self.rules.extensions:
            kinds += [f".{name}" for name in sorted(self.rules.extensions)]
        return f"only {', '.join(kinds)}" if kinds else "and no other files"


def _step(attachment: Attachment, app: _App) -> Step:
    path = attachment.path or "messages"
    if attachment.url:
        return _remote(attachment, app, path)
    if attachment.file_id:
        return _stored(attachment, app, path)
    content = _content(attachment, path)
    extension = extension_of(content.name)
    natural = dify_kind(extension, content.media_type)
    kind = app.kind_for(natural, extension)
    if not kind and app.speech_to_text and content.media_type.startswith("audio/"):
        return Speech(_speech(content, app))
    if not kind:
        raise _unwanted(natural, content.name, app, path)
    app.check_method("local_file", path)
    _check_size(content, extension, app)
    return Upload(kind, content)


def _remote(attachment: Attachment, app: _App, path: str) -> Ready:
    extension = extension_of(_last_part(attachment.url)) or extension_of(attachment.name)
    natural = kind_by_extension(extension)
    if not natural and attachment.kind in ("image", "audio"):
        natural = attachment.kind
    kind = app.kind_for(natural, extension)
    if not kind:
        raise _unwanted(natural, attachment.name or _last_part(attachment.url), app, path)
    app.check_method("remote_url", path)
    return Ready({"type": kind, "transfer_method": "remote_url", "url": attachment.url})


def _stored(attachment: Attachment, app: _App, path: str) -> Ready:
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
        raise _unwanted(natural, attachment.name, app, path)
    app.check_method("local_file", path)
    return Ready(
        {"type": kind, "transfer_method": "local_file", "upload_file_id": attachment.file_id}
    )


def _content(attachment: Attachment, path: str) -> Content:
    data = decode(attachment.data, path)
    media_type = media_type_for(attachment.media_type, data, extension_of(attachment.name))
    return Content(data, file_name(attachment.name, media_type), media_type, path)


def _last_part(url: str) -> str:
    try:
        return urlsplit(url).path.rpartition("/")[2]
    except ValueError:
        return ""


def _unwanted(kind: str, name: str, app: _App, path: str) -> InvalidRequest:
    rules = app.rules
    shown = f" ('{name[:100]}')" if name else ""
    if rules is None or not rules.kinds:
        return app.refuse(f"no files{shown}, and Dify would drop them without a word", path)
    if kind in ("", "custom"):
        extension = extension_of(name)
        what = f"files with the extension .{extension}" if extension else "files of this type"
        return app.refuse(f"no {what}{shown}, {app.taken()}", path)
    return app.refuse(f"no {kind} files{shown}, {app.taken()}", path)


def _check_size(content: Content, extension: str, app: _App) -> None:
    """Dify's limits go by the extension, also where the app lists it as ``custom``."""
    kind = kind_by_extension(extension) or "custom"
    limit = app.rules.max_bytes.get(kind, 0) if app.rules else 0
    if limit and len(content.data) > limit:
        raise _too_large(content, limit, "Dify takes such files")


def _speech(content: Content, app: _App) -> Content:
    extension = extension_of(content.name)
    media_type = _SPEECH_TYPES.get("mp3" if extension == "mpga" else extension)
    if media_type is None:
        raise InvalidRequest(
            f"The app of model '{app.model}' has speech written down by Dify, which reads "
            f"{', '.join(_SPEECH_TYPES)}; '{content.name}' is {content.media_type}.",
            param=content.path,
            code=UNSUPPORTED,
        )
    if len(content.data) > _MAX_SPEECH_BYTES:
        raise _too_large(content, _MAX_SPEECH_BYTES, "Dify takes speech")
    return Content(content.data, content.name, media_type, content.path)


def _too_large(content: Content, limit: int, who: str) -> RequestTooLarge:
    megabyte = 1024 * 1024
    return RequestTooLarge(
        f"'{content.name}' has {len(content.data) / megabyte:.1f} MB; "
        f"{who} up to {limit / megabyte:g} MB.",
        param=content.path,
        code="file_too_large",
    )
