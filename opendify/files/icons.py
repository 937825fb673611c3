"""Icons of models as ``data:`` URLs, which clients show without asking anybody. No I/O."""

import base64
import re
from html import escape

from opendify.files.media import sniff

MAX_ICON_BYTES = 64 * 1024
MAX_EMOJI_CHARS = 16
DEFAULT_BACKGROUND = "#FFEAD5"  # Dify's own

_COLOR = re.compile(r"#[0-9A-Fa-f]{3,8}")
_IMAGE_TYPES = ("image/png", "image/jpeg", "image/gif", "image/webp")
_SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 64 64">'
    '<rect width="64" height="64" rx="12" fill="{background}"/>'
    '<text x="32" y="33" font-size="36" text-anchor="middle" dominant-baseline="central">'
    "{emoji}</text></svg>"
)


def emoji_icon(emoji: str, background: str = "") -> str:
    """A small SVG of the emoji. Empty for what is none, such as the names that old versions of Dify
    have for them (``robot_face``)."""
    if emoji.isascii() or len(emoji) > MAX_EMOJI_CHARS:
        return ""
    color = background if _COLOR.fullmatch(background) else DEFAULT_BACKGROUND
    text = escape("".join(char for char in emoji if char.isprintable() or char == "\u200d"))
    return _data_url("image/svg+xml", _SVG.format(background=color, emoji=text).encode())


def image_icon(data: bytes) -> str:
    """The image, whose type is that of its first bytes. Empty where it is too large or none of the
    types that browsers show without running anything."""
    media_type = sniff(data)
    if media_type not in _IMAGE_TYPES or len(data) > MAX_ICON_BYTES:
        return ""
    return _data_url(media_type, data)


def _data_url(media_type: str, data: bytes) -> str:
    return f"data:{media_type};base64,{base64.b64encode(data).decode()}"
