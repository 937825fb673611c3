"""Small forward proxies on loopback, of the kinds that stand between a server and the world."""

import socket
import ssl
import struct
import threading
from contextlib import suppress
from typing import BinaryIO

from tests.fake_dify import Request, read_request


class Relay:
    """Notes in ``targets`` where it was asked to connect to, as ``host:port``.

    With ``piece`` set, what comes back is handed on in pieces of so many bytes.
    """

    scheme = ""

    def __init__(self, piece: int = 65536) -> None:
        self.targets: list[str] = []
        self._piece = piece
        self._server = socket.create_server(("127.0.0.1", 0))
        self._open: set[socket.socket] = set()
        self.url = f"{self.scheme}://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
            connection.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            self._open.add(client)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with suppress(OSError), client, client.makefile("rb") as reader:
            self._relay(client, reader)

    def _relay(self, client: socket.socket, reader: BinaryIO) -> None:
        raise NotImplementedError

    def _connect(self, host: str, port: int) -> socket.socket:
        self.targets.append(f"{host}:{port}")
        upstream = socket.create_connection((host, port))
        self._open.add(upstream)
        return upstream

    def _hand_back(self, upstream: socket.socket, client: socket.socket) -> None:
        def pump() -> None:
            with suppress(OSError):
                while data := upstream.recv(65536):
                    for start in range(0, len(data), self._piece):
                        client.sendall(data[start : start + self._piece])
            with suppress(OSError):
                client.shutdown(socket.SHUT_RDWR)

        threading.Thread(target=pump, daemon=True).start()

    def _tunnel(self, client: socket.socket, reader: BinaryIO, upstream: socket.socket) -> None:
        self._hand_back(upstream, client)
        with upstream:
            while data := reader.read1(65536):  # type: ignore[attr-defined]
                upstream.sendall(data)
            upstream.shutdown(socket.SHUT_RDWR)


class HttpRelay(Relay):
    """Forwards requests in absolute form, and tunnels for CONNECT."""

    scheme = "http"

    def _relay(self, client: socket.socket, reader: BinaryIO) -> None:
        upstream: socket.socket | None = None
        while (request := read_request(reader, 0)) is not None:
            if request.method == "CONNECT":
                host, _, port = request.path.rpartition(":")
                upstream = self._connect(host, int(port))
                client.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
                self._tunnel(client, reader, upstream)
                return
            scheme, _, rest = request.path.partition("://")
            assert scheme == "http", "a forward proxy is asked with whole addresses"
            netloc, _, path = rest.partition("/")
            if upstream is None:
                host, _, port = netloc.rpartition(":")
                upstream = self._connect(host, int(port))
                self._hand_back(upstream, client)
            upstream.sendall(_in_origin_form(request, path))
        if upstream is not None:
            upstream.shutdown(socket.SHUT_RDWR)


class SecureRelay(HttpRelay):
    """The same, itself spoken to over TLS."""

    def __init__(self, context: ssl.SSLContext) -> None:
        super().__init__()
        self.url = self.url.replace("http:", "https:")
        self._context = context

    def _relay(self, client: socket.socket, reader: BinaryIO) -> None:
        with (
            self._context.wrap_socket(client, server_side=True) as secure,
            secure.makefile("rb") as decrypted,
        ):
            super()._relay(secure, decrypted)


class Socks5Relay(Relay):
    """SOCKS 5 without a password (RFC 1928)."""

    scheme = "socks5"

    def _relay(self, client: socket.socket, reader: BinaryIO) -> None:
        _, methods = reader.read(2)
        reader.read(methods)
        client.sendall(b"\x05\x00")
        kind = reader.read(4)[3]
        if kind == 1:
            host = socket.inet_ntoa(reader.read(4))
        else:
            host = reader.read(reader.read(1)[0]).decode()
        (port,) = struct.unpack("!H", reader.read(2))
        upstream = self._connect(host, port)
        client.sendall(b"\x05\x00\x00\x01\0\0\0\0\0\0")
        self._tunnel(client, reader, upstream)


def _in_origin_form(request: Request, path: str) -> bytes:
    headers = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    return f"{request.method} /{path} HTTP/1.1\r\n{headers}\r\n".encode() + request.body
