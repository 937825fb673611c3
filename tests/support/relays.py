"""Small forward proxies on loopback, of the kinds that stand between a server and the world."""

import base64
import socket
import ssl
import struct
import threading
import time
from contextlib import suppress
from typing import BinaryIO

from tests.support.fake_dify import Request, read_request


class Relay:
    """Notes in ``targets`` where it was asked to connect to, as ``host:port``.

    With ``piece`` set, what comes back is handed on in pieces of so many bytes. With
    ``credentials`` set (``user:password``), nothing is relayed without them.
    """

    scheme = ""

    def __init__(self, piece: int = 65536, credentials: str = "") -> None:
        self.targets: list[str] = []
        self._piece = piece
        self._credentials = credentials
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
            told = request.headers.pop("proxy-authorization", "")
            if self._credentials and told != f"Basic {_base64(self._credentials)}":
                client.sendall(b"HTTP/1.1 407 Who are you\r\nContent-Length: 4\r\n\r\nwho?")
                continue
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
    """SOCKS 5 (RFC 1928), with a password where there are credentials (RFC 1929)."""

    scheme = "socks5"
    bound = b"\x05\x00\x00\x01\0\0\0\0\0\0"

    def _relay(self, client: socket.socket, reader: BinaryIO) -> None:
        _, methods = reader.read(2)
        offered, method = reader.read(methods), 2 if self._credentials else 0
        if method not in offered:
            client.sendall(b"\x05\xff")
            return
        self._send_slowly(client, bytes((5, method)))
        if method:
            reader.read(1)
            told = b":".join(reader.read(reader.read(1)[0]) for _ in range(2))
            is_known = told == self._credentials.encode()
            self._send_slowly(client, b"\x01\x00" if is_known else b"\x01\x01")
            if not is_known:
                return
        kind = reader.read(4)[3]
        if kind == 1:
            host = socket.inet_ntoa(reader.read(4))
        else:
            host = reader.read(reader.read(1)[0]).decode()
        (port,) = struct.unpack("!H", reader.read(2))
        try:
            upstream = self._connect(host, port)
        except OSError:
            client.sendall(b"\x05\x05\x00\x01\0\0\0\0\0\0")
            return
        self._send_slowly(client, self.bound)
        self._tunnel(client, reader, upstream)

    def _send_slowly(self, client: socket.socket, reply: bytes) -> None:
        """In the pieces in which the relay hands on all else."""
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for start in range(0, len(reply), self._piece):
            client.sendall(reply[start : start + self._piece])
            time.sleep(0.001)


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def _in_origin_form(request: Request, path: str) -> bytes:
    headers = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    return f"{request.method} /{path} HTTP/1.1\r\n{headers}\r\n".encode() + request.body
