"""Buffers a response, so that pieces written together, the head included, are sent together."""

import socket


class WriteBuffer:
    """Takes the place of the client's socket in Gunicorn's response. ``pending`` is what is not
    sent yet."""

    def __init__(self, sock: socket.socket) -> None:
        self.pending = b""
        self._sock = sock

    def sendall(self, data: bytes) -> None:
        """Buffers the data."""
        self.pending += data

    def flush(self) -> None:
        """Sends everything; blocks while the client does not read. Raises OSError."""
        pending, self.pending = self.pending, b""
        if pending:
            self._sock.sendall(pending)

    def try_send(self, data: bytes) -> None:
        """Sends what the socket accepts at once, buffers the rest; never blocks. Raises OSError."""
        data = self.pending + data
        try:
            sent = self._sock.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            sent = 0
        self.pending = data[sent:]
