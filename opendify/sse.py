"""Server-sent events, encoding and decoding (HTML standard, section 9.2). No I/O.

Knows nothing about the content of events: decodes payloads as bytes, encodes JSON values.
"""

import json
from typing import Any

import msgspec

_JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))

# For strings only: produces the same bytes in a fraction of the time.
_STRINGS = msgspec.json.Encoder()

# The placeholder for the text of a Template. It is searched for in the template only, never in the
# text of an answer.
PLACEHOLDER = "\0text\0"

KEEP_ALIVE = b": keep-alive\n\n"

# Far larger than any real event; keeps a faulty peer from exhausting memory.
MAX_EVENT_BYTES = 32 * 1024 * 1024


class EventTooLarge(ValueError):
    """One event is longer than MAX_EVENT_BYTES."""


class Decoder:
    """Splits a byte stream, fed in chunks of any size, into the payloads of its events.

    A line ends at LF, CRLF or CR only: Dify's JSON contains unescaped U+2028 and similar
    characters, which ``str.splitlines`` also treats as line ends. An event without a data line
    (Dify's pings) has no payload. An event that is incomplete at the end of the stream is dropped.
    """

    def __init__(self) -> None:
        self._pending = bytearray()
        self._searched = 0
        self._cr_seen = False

    def feed(self, data: bytes) -> list[bytes]:
        """Adds bytes; returns the payloads of the events that they complete.

        Raises EventTooLarge.
        """
        if self._cr_seen or b"\r" in data:
            data = self._with_plain_line_ends(data)
        if self._pending:
            self._pending += data
            if self._pending.find(b"\n\n", self._searched) < 0:
                self._check_size()
                return []
            data = bytes(self._pending)
        end = data.rfind(b"\n\n")
        payloads = data[6:end].split(b"\n\ndata: ")
        if end >= 6 and data.startswith(b"data: ") and b"\n" not in b"".join(payloads):
            rest = data[end + 2 :]  # fast path: each event is a single data line, as Dify sends it
        else:
            *blocks, rest = data.split(b"\n\n")
            payloads = [payload for block in blocks if (payload := _payload(block)) is not None]
        if rest or self._pending:
            self._pending[:] = rest
            self._check_size()
        return payloads

    def _check_size(self) -> None:
        self._searched = max(0, len(self._pending) - 1)
        if len(self._pending) > MAX_EVENT_BYTES:
            raise EventTooLarge(f"an event is longer than {MAX_EVENT_BYTES} bytes")

    def _with_plain_line_ends(self, data: bytes) -> bytes:
        if self._cr_seen and data.startswith(b"\n"):
            data = data[1:]
        elif not data:
            return data
        self._cr_seen = data.endswith(b"\r")
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")


def _payload(block: bytes) -> bytes | None:
    if block.startswith(b"data: ") and b"\n" not in block:
        return block[6:]
    lines = []
    for line in block.removeprefix(b"\xef\xbb\xbf").split(b"\n"):
        name, _, value = line.partition(b":")
        if name == b"data":
            lines.append(value.removeprefix(b" "))
    return b"\n".join(lines) if lines else None


def encode(value: Any, name: str = "") -> bytes:
    """One event with ``value`` as JSON, and with its ``name`` if it has one; non-ASCII text is not
    escaped."""
    named = f"event: {name}\n".encode() if name else b""
    return named + b"data: " + _JSON.encode(value).encode() + b"\n\n"


class Template:
    """Encodes events that differ in a single text, whose place in ``value`` is marked with
    PLACEHOLDER.

    ``fill`` returns what ``encode`` would return for the whole value, at a fraction of the cost.
    """

    def __init__(self, value: Any, name: str = "") -> None:
        self._before, _, self._after = encode(value, name).rpartition(
            _JSON.encode(PLACEHOLDER).encode()
        )

    def fill(self, text: str) -> bytes:
        """The event with this text."""
        return self._before + _STRINGS.encode(text) + self._after
