"""Where Gunicorn writes an answer: its pieces are held, so that what comes together leaves
together, its head included."""

import socket


class WriteBuffer:
    """Takes the place of a caller's socket in Gunicorn's response. ``held`` is what is not sent."""

    def __init__(self, sock: socket.socket) -> None:
        self.held = b""
        self._sock = sock

    def sendall(self, data: bytes) -> None:
        """Holds what is to be sent."""
        self.held += data

    def flush(self) -> None:
        """Sends all that is held, as long as the caller takes it. Raises OSError."""
        held, self.held = self.held, b""
        if held:
            self._sock.sendall(held)

    def offer(self, data: bytes) -> None:
        """Sends what the caller has place for, holds the rest, and never waits. Raises OSError."""
        data = self.held + data
        try:
            sent = self._sock.send(data, socket.MSG_DONTWAIT)
        except BlockingIOError:
            sent = 0
        self.held = data[sent:]
