"""Event-stream framing, both ways (HTML standard, section 9.2). No I/O.

What an event says is not this room's business: payloads go in and out as bytes and JSON values.
"""

import json
from typing import Any

DONE = b"data: [DONE]\n\n"
KEEP_ALIVE = b": keep-alive\n\n"

# No real event comes near this; a broken peer must not fill the memory.
MAX_EVENT_BYTES = 32 * 1024 * 1024


class EventTooLarge(ValueError):
    """One event is longer than MAX_EVENT_BYTES."""


class Decoder:
    """Cuts a byte stream, fed in any pieces, into the payloads of its events.

    A line ends at LF, CRLF or CR and at nothing else: U+2028 and its like, which
    ``str.splitlines`` also takes for line ends, occur unescaped in Dify's JSON.
    An event without a data line (Dify's pings) has no payload. An event that the end of the
    stream cut off is not an event.
    """

    def __init__(self) -> None:
        self._pending = bytearray()
        self._searched = 0
        self._cr_seen = False

    def feed(self, data: bytes) -> list[bytes]:
        """Takes the next bytes; returns the payloads of the events that they complete.

        Raises EventTooLarge.
        """
        self._pending += self._with_plain_line_ends(data)
        payloads = []
        start = 0
        while (end := self._pending.find(b"\n\n", max(start, self._searched))) >= 0:
            payload = _payload(bytes(self._pending[start:end]))
            if payload is not None:
                payloads.append(payload)
            start = end + 2
        del self._pending[:start]
        self._searched = max(0, len(self._pending) - 1)
        if len(self._pending) > MAX_EVENT_BYTES:
            raise EventTooLarge(f"an event is longer than {MAX_EVENT_BYTES} bytes")
        return payloads

    def _with_plain_line_ends(self, data: bytes) -> bytes:
        if not self._cr_seen and b"\r" not in data:
            return data
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


def encode(value: Any) -> bytes:
    """One event that carries ``value`` as JSON; text stays readable, not escaped to ASCII."""
    return (
        b"data: " + json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode() + b"\n\n"
    )
