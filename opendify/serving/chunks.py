"""Finds where a chunked body ends (RFC 9112, section 7.1). No I/O."""

# Gunicorn refuses longer ones, so there is nothing to wait for.
_MAX_LINE = 16 * 1024


class ChunkScanner:
    """Looks through a body as it comes in; ``ended`` is also true of one that is malformed."""

    def __init__(self) -> None:
        self.ended = False
        self._data_left = 0
        self._line = bytearray()
        self._in_trailers = False

    def feed(self, data: bytes) -> None:
        position = 0
        while position < len(data) and not self.ended:
            if self._data_left:
                step = min(self._data_left, len(data) - position)
                self._data_left -= step
                position += step
                continue
            end = data.find(b"\n", position)
            self._line += data[position : end if end >= 0 else len(data)]
            if end < 0:
                self.ended = len(self._line) > _MAX_LINE
                return
            position = end + 1
            self._end_line(bytes(self._line).removesuffix(b"\r"))
            self._line.clear()

    def _end_line(self, line: bytes) -> None:
        if self._in_trailers:
            self.ended = not line
            return
        try:
            size = int(line.partition(b";")[0], 16)
        except ValueError:
            size = -1
        if size > 0:
            self._data_left = size + len(b"\r\n")
        elif size == 0:
            self._in_trailers = True
        else:
            self.ended = True
