"""A JSON object from a request, whose fields are decoded when they are read. No I/O.

Decoding can take twenty times the memory of the body, and blocks all threads meanwhile. So a scan
of the bytes limits the text and the number of values before any object is made, and a field that is
never read is skipped without being decoded.
"""

import codecs
import re
from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from opendify.errors import InvalidRequest, RequestTooLarge

# Nesting of arrays and objects; no client needs more.
MAX_DEPTH = 100
# An empty list takes two bytes of JSON and seventy of memory.
MAX_VALUES = 200_000

_MEGABYTE = 1024 * 1024
_MALFORMED = (msgspec.MsgspecError, UnicodeDecodeError)
_FIELDS = msgspec.json.Decoder(dict[str, msgspec.Raw])
_ANY = msgspec.json.Decoder()

# Bytes that one call scans: other threads can run between two calls.
_BLOCK = 16 * 1024
_PIECE = _MEGABYTE
# The alphabets of base64 and URL-safe base64, and '%' for percent-encoding.
_BASE64 = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/-_=%"
_PREFIX = re.compile(rb"data:(?:[ !#-+\--\[\]-~]|\\/){0,255},")
_MAX_PREFIX = 512
_NOT_STRUCTURE = bytes(set(range(256)) - set(b'",[{'))


class JsonObject(Mapping[str, Any]):
    """The fields of a JSON object; of two with the same name, the last. Reading a field decodes
    it, and raises InvalidRequest or RequestTooLarge, which name the field."""

    def __init__(
        self, fields: Mapping[str, msgspec.Raw], max_text_bytes: int, may_be_deep: bool
    ) -> None:
        self.max_text_bytes = max_text_bytes
        self._fields = fields
        self._may_be_deep = may_be_deep

    def __getitem__(self, name: str) -> Any:
        self.check_text(name, self.size(name))
        return self._decoded(name)

    def get(self, name: str, default: Any = None, /) -> Any:
        """As for any mapping, but without raising KeyError for each absent field."""
        return self[name] if name in self._fields else default

    def __contains__(self, name: object) -> bool:
        return name in self._fields

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def size(self, name: str) -> int:
        """The length of the field's JSON in bytes; 0 for an absent field."""
        raw = self._fields.get(name)
        return 0 if raw is None else memoryview(raw).nbytes

    def with_files(self, name: str) -> Any:
        """The value of a field that may hold files, and so may be larger than others; None if it
        is absent. Raises InvalidRequest."""
        return self._decoded(name) if name in self._fields else None

    def with_default(self, name: str, value: str) -> "JsonObject":
        """The same object; with this value where the field is absent, null or empty. Raises
        InvalidRequest and RequestTooLarge."""
        if self.get(name) not in (None, ""):
            return self
        fields = {**self._fields, name: msgspec.Raw(msgspec.json.encode(value))}
        return JsonObject(fields, self.max_text_bytes, self._may_be_deep)

    def check_text(self, name: str, size: int) -> None:
        """Raises RequestTooLarge if ``size``, in bytes or characters of the field's text, is over
        the limit."""
        if size > self.max_text_bytes:
            raise RequestTooLarge(
                f"'{name}' holds more text than {_megabytes(self.max_text_bytes)}.", param=name
            )

    def _decoded(self, name: str) -> Any:
        raw = self._fields[name]
        return _decoded(raw, f"'{name}'", name, MAX_DEPTH - 1, self._may_be_deep)


def parse_object(data: bytes, max_text_bytes: int) -> JsonObject:
    """Parses a body. ``max_text_bytes`` limits everything but the base64 content of files.

    Raises InvalidRequest, and RequestTooLarge if the body is over that limit.
    """
    data = data.removeprefix(codecs.BOM_UTF8)
    if len(data) > max_text_bytes:
        _check_text(data, max_text_bytes)
    _check_values(data, "The request body", None)
    try:
        fields = _FIELDS.decode(data)
    except RecursionError as exc:
        raise InvalidRequest("The request body is nested too deeply.") from exc
    except msgspec.ValidationError as exc:
        raise InvalidRequest("The request body must be a JSON object.") from exc
    except _MALFORMED as exc:
        kind = "JSON" if _is_utf8(data) else "UTF-8 text"
        raise InvalidRequest(f"The request body is not valid {kind}.") from exc
    return JsonObject(fields, max_text_bytes, _may_be_deep(data))


def parse_nested(text: str, name: str) -> Any:
    """Parses JSON that a field holds as text. ``name`` is the field, for errors.

    Raises InvalidRequest.
    """
    data = text.encode()
    _check_values(data, f"'{name}'", name)
    return _decoded(data, f"'{name}'", name, MAX_DEPTH, _may_be_deep(data))


def _decoded(
    data: bytes | msgspec.Raw, what: str, param: str, levels: int, may_be_deep: bool
) -> Any:
    try:
        value = _ANY.decode(data)
    except RecursionError as exc:
        raise InvalidRequest(f"{what} is nested too deeply.", param=param) from exc
    except msgspec.ValidationError as exc:
        raise InvalidRequest(f"{what} holds a number that is out of range.", param=param) from exc
    except _MALFORMED as exc:
        kind = "JSON" if _is_utf8(memoryview(data)) else "UTF-8 text"
        raise InvalidRequest(f"{what} is not valid {kind}.", param=param) from exc
    if may_be_deep and _is_deep(value, levels):
        raise InvalidRequest(f"{what} is nested too deeply.", param=param)
    return value


def _may_be_deep(data: bytes) -> bool:
    return data.count(b"[") + data.count(b"{") > MAX_DEPTH


def _is_deep(value: Any, levels: int) -> bool:
    level = [value]
    for _ in range(levels):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return False
    return True


def _inside(value: Any) -> Any:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def _is_utf8(data: bytes | memoryview) -> bool:
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        for start in range(0, len(data), _PIECE):
            decoder.decode(data[start : start + _PIECE])
        decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return False
    return True


def _check_values(data: bytes, what: str, param: str | None) -> None:
    if len(data) <= MAX_VALUES or _count(data) <= MAX_VALUES:
        return
    if _count_outside_strings(data) > MAX_VALUES:
        raise InvalidRequest(f"{what} holds more than {MAX_VALUES:,} values.", param=param)


def _count(data: bytes) -> int:
    """A count of structural characters: there is at most one value more."""
    return data.count(b",") + data.count(b"[") + data.count(b"{")


def _count_outside_strings(data: bytes) -> int:
    """The same count without the commas and brackets in strings, which is nearly exact."""
    plain = data.replace(b"\\\\", b"").replace(b'\\"', b"")
    structure = plain.translate(None, _NOT_STRUCTURE)
    count, is_inside = 0, False
    for start in range(0, len(structure), _PIECE):
        parts = structure[start : start + _PIECE].split(b'"')
        count += sum(map(len, parts[is_inside::2]))
        is_inside ^= len(parts) % 2 == 0
    return count


def _check_text(data: bytes, max_text_bytes: int) -> None:
    if len(data) - sum(_file_sizes(data)) > max_text_bytes:
        raise RequestTooLarge(
            "The request body, without the content of files, is larger than "
            f"{_megabytes(max_text_bytes)}."
        )


def _megabytes(limit: int) -> str:
    return f"{limit // _MEGABYTE} MB (MAX_TEXT_MB)"


def _file_sizes(data: bytes) -> Iterator[int]:
    """The lengths of long strings that hold base64 only, with or without the prefix of a data
    URL. Decoding such a string takes no more memory than its JSON: without a character beyond
    ASCII, Python stores one byte for each."""
    for start, end in _base64_runs(data):
        opening = data.rfind(b'"', max(0, start - _BLOCK - _MAX_PREFIX), start)
        closing = data.find(b'"', end, end + _BLOCK + 2)
        if opening < 0 or closing < 0 or data[opening - 1 : opening] == b"\\":
            continue
        head = data[opening + 1 : start]
        if prefix := _PREFIX.match(head):
            head = head[prefix.end() :]
        if _is_base64(head) and _is_base64(data[end:closing]):
            yield closing - opening


def _base64_runs(data: bytes) -> Iterator[tuple[int, int]]:
    """Start and end of each sequence of blocks that hold base64 only."""
    begun, position = -1, 0
    while position < len(data):
        end = position + _BLOCK
        if data[end - 1 : end] == b"\\":  # do not split an escape sequence
            end += 1
        if not _is_base64(data[position:end]):
            if begun >= 0:
                yield begun, position
            begun = -1
        elif begun < 0:
            begun = position
        position = end


def _is_base64(block: bytes) -> bool:
    """Whether a part of a JSON string is base64; slashes may be escaped, and line breaks are."""
    rest = block.translate(None, _BASE64)
    if not rest:
        return True
    escapes = sum(block.count(escape) for escape in (b"\\/", b"\\n", b"\\r"))
    return len(rest) == escapes and not rest.strip(b"\\")
