"""The content of a file in a request. No I/O."""

import base64
import binascii
from dataclasses import dataclass, field
from urllib.parse import unquote_to_bytes

from opendify.errors import InvalidRequest
from opendify.files.media import media_type_for
from opendify.files.names import extension_of, file_name
from opendify.protocols.base import Attachment

_WHITE_SPACE = b" \t\r\n\f\v"
_URL_SAFE = bytes.maketrans(b"-_", b"+/")


@dataclass(frozen=True, slots=True)
class Content:
    """A file in a request; ``path`` is its place in the request, for messages."""

    data: bytes = field(repr=False)
    name: str
    media_type: str
    path: str


def read_content(attachment: Attachment, path: str) -> Content:
    """Decodes the base64 content of an attachment. Raises InvalidRequest, naming ``path``."""
    data = decode(attachment.data, path)
    media_type = media_type_for(attachment.media_type, data, extension_of(attachment.name))
    return Content(data, file_name(attachment.name, media_type), media_type, path)


def decode(data: str, path: str) -> bytes:
    """Decodes base64, including the URL-safe variant, white space and missing padding.

    Raises InvalidRequest, naming ``path``.
    """
    raw = unquote_to_bytes(data) if "%" in data else data.encode("utf-8", "replace")
    raw = raw.translate(_URL_SAFE, delete=_WHITE_SPACE).rstrip(b"=")
    try:
        content = base64.b64decode(raw + b"=" * (-len(raw) % 4), validate=True)
    except binascii.Error as exc:
        raise InvalidRequest(f"'{path}' does not contain valid base64.", param=path) from exc
    if not content:
        raise InvalidRequest(f"'{path}' contains an empty file.", param=path)
    return content
