"""File types: from the declared media type, the first bytes and the file name. No I/O."""

import codecs
import re

# Dify decides by the extension (FileService and file_factory, 1.13); the last six document types
# need ETL_TYPE=Unstructured.
_EXTENSIONS = {
    "image": "jpg jpeg png webp gif svg",
    "video": "mp4 mov mpeg webm",
    "audio": "mp3 m4a wav amr mpga",
    "document": (
        "txt md mdx markdown pdf html htm xlsx xls docx csv vtt properties "
        "doc eml msg pptx xml epub"
    ),
}
_KIND_BY_EXTENSION = {
    extension: kind for kind, names in _EXTENSIONS.items() for extension in names.split()
}

# The first media type of an extension is its default.
_TYPES = {
    "jpg": "image/jpeg",
    "png": "image/png",
    "gif": "image/gif",
    "webp": "image/webp",
    "svg": "image/svg+xml",
    "bmp": "image/bmp",
    "tiff": "image/tiff",
    "heic": "image/heic",
    "avif": "image/avif",
    "mp3": "audio/mpeg audio/mp3 audio/mpga audio/x-mpeg audio/x-mp3",
    "m4a": "audio/mp4 audio/m4a audio/x-m4a",
    "wav": "audio/wav audio/x-wav audio/wave audio/vnd.wave",
    "amr": "audio/amr",
    "ogg": "audio/ogg",
    "flac": "audio/flac audio/x-flac",
    "mp4": "video/mp4",
    "mov": "video/quicktime",
    "mpeg": "video/mpeg",
    "webm": "video/webm audio/webm",
    "txt": "text/plain",
    "md": "text/markdown text/x-markdown",
    "html": "text/html",
    "csv": "text/csv",
    "vtt": "text/vtt",
    "pdf": "application/pdf",
    "xml": "application/xml text/xml",
    "json": "application/json",
    "epub": "application/epub+zip",
    "eml": "message/rfc822",
    "msg": "application/vnd.ms-outlook",
    "doc": "application/msword",
    "xls": "application/vnd.ms-excel",
    "ppt": "application/vnd.ms-powerpoint",
    "docx": "application/vnd.openxmlformats-officedocument.wordprocessingml.document",
    "xlsx": "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
    "pptx": "application/vnd.openxmlformats-officedocument.presentationml.presentation",
    "zip": "application/zip application/x-zip-compressed",
}
_EXTENSION_BY_TYPE = {name: ext for ext, names in _TYPES.items() for name in names.split()}
_TYPE_BY_EXTENSION = {ext: names.split()[0] for ext, names in _TYPES.items()} | {
    "jpeg": "image/jpeg",
    "tif": "image/tiff",
    "mpga": "audio/mpeg",
    "htm": "text/html",
    "markdown": "text/markdown",
    "mdx": "text/markdown",
    "properties": "text/plain",
}

_SIGNATURES = (
    (b"\x89PNG\r\n\x1a\n", "image/png"),
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"GIF87a", "image/gif"),
    (b"GIF89a", "image/gif"),
    (b"%PDF-", "application/pdf"),
    (b"II*\0", "image/tiff"),
    (b"MM\0*", "image/tiff"),
    (b"#!AMR", "audio/amr"),
    (b"ID3", "audio/mpeg"),
    (b"OggS", "audio/ogg"),
    (b"fLaC", "audio/flac"),
    (b"\x1a\x45\xdf\xa3", "video/webm"),
)
_FTYP_BRANDS = {
    b"M4A ": "audio/mp4",
    b"M4B ": "audio/mp4",
    b"qt  ": "video/quicktime",
    b"heic": "image/heic",
    b"heix": "image/heic",
    b"mif1": "image/heic",
    b"avif": "image/avif",
}

# Unambiguous signatures: a declared type that differs is wrong, and models reject images whose
# declared type is wrong.
_CERTAIN = {"image/png", "image/jpeg", "image/gif", "image/webp", "application/pdf"}

# Types that a browser may display inline. Types that can contain scripts are downloaded as plain
# bytes instead.
_RASTER = {"image/png", "image/jpeg", "image/gif", "image/webp"}
_ACTIVE = {"text/html", "image/svg+xml", "application/xml", "message/rfc822"}

_ALIASES = {"image/jpg": "image/jpeg", "image/pjpeg": "image/jpeg", "image/x-png": "image/png"}
_MEDIA_TYPE = re.compile(r"[a-z]+/[a-z0-9][a-z0-9.+_-]{0,99}")
_UNINFORMATIVE = {"application/octet-stream", "binary/octet-stream", "application/x-download"}
_TEXT_PROBE = 4096
_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")


def kind_by_extension(extension: str) -> str:
    """Dify's file type for this extension (lower case, no dot); empty if it has none."""
    return _KIND_BY_EXTENSION.get(extension, "")


def dify_kind(extension: str, media_type: str) -> str:
    """How Dify classifies a file: by extension, else by media type, else ``custom``."""
    major = media_type.partition("/")[0]
    fallback = major if major in ("image", "audio", "video") else "custom"
    return _KIND_BY_EXTENSION.get(extension, fallback)


def extension_for(media_type: str) -> str:
    """The usual extension of a media type, without a dot; empty if unknown."""
    return _EXTENSION_BY_TYPE.get(media_type, "")


def type_of_extension(extension: str) -> str:
    """The default media type of an extension (lower case, no dot); empty if unknown."""
    return _TYPE_BY_EXTENSION.get(extension, "")


def media_type_for(declared: str, data: bytes, extension: str) -> str:
    """The media type of a file: as declared, else by its first bytes, extension or text content."""
    declared = declared.strip().lower()
    declared = _ALIASES.get(declared, declared)
    sniffed = sniff(data)
    if sniffed in _CERTAIN:
        return sniffed
    if _MEDIA_TYPE.fullmatch(declared) and declared not in _UNINFORMATIVE:
        return declared
    return sniffed or _TYPE_BY_EXTENSION.get(extension) or _guess_from_text(data)


def sniff(data: bytes) -> str:
    """The media type according to the first bytes; empty if they match none."""
    for signature, media_type in _SIGNATURES:
        if data.startswith(signature):
            return media_type
    if data[:4] == b"RIFF":
        return {b"WEBP": "image/webp", b"WAVE": "audio/wav"}.get(data[8:12], "")
    if data[4:8] == b"ftyp":
        return _FTYP_BRANDS.get(data[8:12], "video/mp4")
    if data[:2] == b"BM" and data[6:10] == b"\0\0\0\0":
        return "image/bmp"
    if len(data) > 2 and data[0] == 0xFF and data[1] & 0xE6 == 0xE2:  # MPEG audio, layer III
        return "audio/mpeg"
    return ""


def served_type(data: bytes, extension: str) -> tuple[str, bool]:
    """The media type to serve a Dify file with, and whether browsers may display it inline."""
    sniffed = sniff(data)
    if sniffed in _RASTER:
        return sniffed, True
    media_type = _TYPE_BY_EXTENSION.get(extension, "application/octet-stream")
    unsafe = media_type in _ACTIVE or media_type in _RASTER
    return "application/octet-stream" if unsafe else media_type, False


def _guess_from_text(data: bytes) -> str:
    """Distinguishes text from binary data."""
    try:
        text = codecs.getincrementaldecoder("utf-8-sig")().decode(data[:_TEXT_PROBE])
    except UnicodeDecodeError:
        return "application/octet-stream"
    if _CONTROL.search(text):
        return "application/octet-stream"
    opening = text.lstrip().lower()
    if opening.startswith(("<!doctype html", "<html")):
        return "text/html"
    if opening.startswith("<svg") or (opening.startswith("<?xml") and "<svg" in opening):
        return "image/svg+xml"
    return "text/plain"
