"""File names that are safe to pass on to Dify, in headers and to users. No I/O."""

import re
import unicodedata

from opendify.files.media import dify_kind, extension_for, type_of_extension

MAX_NAME = 120

# Dify rejects names with any of these ("Filename contains invalid characters", 1.13).
_FORBIDDEN = re.compile(r'[:*?"<>|]')
_EXTENSION = re.compile(r"(?=[0-9]*[a-z])[a-z0-9]{1,10}")


def extension_of(name: str) -> str:
    """The extension of a file name, lower case, without the dot; empty if it has none."""
    stem, dot, extension = name.rpartition(".")
    extension = extension.lower()
    return extension if dot and stem and _EXTENSION.fullmatch(extension) else ""


def clean_name(name: str) -> str:
    """The last part of a path without characters that file names must not have; may be empty.

    Control and format characters (line breaks, text direction marks) are removed. The length is
    limited, the extension preserved.
    """
    name = "".join(
        char
        for char in re.split(r"[/\\]", name)[-1]
        if char.isspace() or unicodedata.category(char)[0] != "C"
    )
    name = _FORBIDDEN.sub("_", " ".join(name.split())).strip(". ")
    extension = extension_of(name)
    if len(name) <= MAX_NAME:
        return name
    if not extension:
        return name[:MAX_NAME].rstrip(". ")
    return f"{name[: MAX_NAME - len(extension) - 1].rstrip('. ')}.{extension}"


def with_extension_for(name: str, media_type: str) -> str:
    """The name with an extension for this media type, replacing one of another type: a file offered
    as ``x.html`` is saved and opened as a page. Unchanged if the type has no extension."""
    expected, extension = extension_for(media_type), extension_of(name)
    if not expected or type_of_extension(extension) == media_type:
        return name
    return f"{name[: -len(extension) - 1] if extension else name}.{expected}"


def file_name(name: str, media_type: str) -> str:
    """A clean name with an extension that fits the media type.

    The caller's name is preserved. Its extension is replaced only if Dify would classify the file
    differently by it (``audio.mpeg`` would be a video).
    """
    name = clean_name(name)
    extension = extension_of(name)
    expected = extension_for(media_type)
    if not name:
        return f"{_default_stem(media_type)}.{expected or 'bin'}"
    if not extension:
        return clean_name(f"{name}.{expected or 'bin'}")
    major = media_type.partition("/")[0]
    if expected and major in ("image", "audio", "video") and dify_kind(extension, "") != major:
        return name if extension == expected else f"{name[: -len(extension) - 1]}.{expected}"
    return name


def _default_stem(media_type: str) -> str:
    major = media_type.partition("/")[0]
    return major if major in ("image", "audio", "video") else "file"
