"""The demo's HTTP: bytes in, bytes out, as Dify frames them."""

import email.message
import email.parser
import json
import sys
from collections import deque
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain
from socketserver import TCPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from demo import api, asking
from demo.calls import Refusal, Reply, Request
from demo.events import paced
from demo.release import Release
from demo.shapes import PING, Event, Run
from demo.state import File, Memory, Pace

HOST = "127.0.0.1"
LARGEST_BODY = 110 * 2**20  # Dify's largest file, a video of 100 MB, and its form


class DemoServer(ThreadingHTTPServer):
    """The demo on a port of loopback; 0 takes a free one. Raises OSError when it is taken."""

    daemon_threads = True
    request_queue_size = 256

    def __init__(
        self, port: int = 0, pace: Pace | None = None, release: Release = Release.DIFY_1_16
    ) -> None:
        self.memory = Memory(release)
        self.pace = pace or Pace()
        super().__init__((HOST, port), _Handler)

    @property
    def base(self) -> str:
        """What DIFY_API_BASE is to be."""
        return f"http://{HOST}:{self.server_address[1]}/v1"

    def server_bind(self) -> None:
        TCPServer.server_bind(self)  # HTTPServer's would ask the DNS for a name of the host

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A caller that leaves is nothing to report."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 65  # of an idle connection, as Dify's nginx has it
    server: DemoServer

    def handle_one(self) -> None:
        try:
            outcome = api.answer(self._request(), self.server.memory, self.server.pace)
        except Refusal as refusal:
            outcome = Reply(refusal.status, refusal.body)
        if isinstance(outcome, Run):
            self._stream(outcome)
        else:
            self._reply(outcome)

    do_GET = do_POST = do_DELETE = handle_one

    def log_message(self, *arguments: Any) -> None:
        """Nothing: the proxy beside it has a log of its own."""

    def _request(self) -> Request:
        length = int(self.headers.get("Content-Length") or 0)
        if length > LARGEST_BODY or "Transfer-Encoding" in self.headers:
            self.close_connection = True
            raise Refusal(413, "file_too_large", "The demo needs a Content-Length it can hold.")
        body = self.rfile.read(length)
        address = urlsplit(self.path)
        fields, file = _parse(self.headers, body)
        return Request(
            self.command,
            address.path,
            dict(parse_qsl(address.query)),
            self.headers.get("Authorization", ""),
            fields,
            file,
        )

    def _reply(self, reply: Reply) -> None:
        body = reply.body
        if body is not None and not isinstance(body, bytes):
            is_answer = "charset" in reply.content_type
            spaced = is_answer or self.server.memory.release.spaces_json
            body = _encoded(body, spaced=spaced) + (b"" if is_answer else b"\n")
        self._start(reply.status, reply.content_type)
        if reply.status == 401:
            self.send_header("WWW-Authenticate", 'Bearer realm="api"')
        if body is not None:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body or b"")

    def _stream(self, run: Run) -> None:
        """One chunk an event; no header before the first, as in Dify."""
        frames = (_frame(event) for event in paced(run))
        first = next(frames)
        heard = True
        try:
            self._start(200, "text/event-stream; charset=utf-8")
            self.send_header("Transfer-Encoding", "chunked")
            self.end_headers()
            for frame in chain([first], frames):
                self.wfile.write(b"%x\r\n%b\r\n" % (len(frame), frame))
        except OSError:
            heard = False
            deque(frames, maxlen=0)  # Dify lets the model speak on when the caller has left
        asking.finish(run, heard=heard)
        self.wfile.write(b"0\r\n\r\n")

    def _start(self, status: int, content_type: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("X-Version", self.server.memory.release)


def _frame(event: Event) -> bytes:
    if event is PING:
        return b"event: ping\n\n"
    text = json.dumps(event, ensure_ascii=False, separators=(",", ":"))
    return f"data: {text}\n\n".encode(errors="replace")


def _encoded(body: Any, *, spaced: bool) -> bytes:
    """Plain ``json.dumps``, or compact with ``\\/``: all but blocking answers in Dify 1.13."""
    if spaced:
        return json.dumps(body).encode()
    return json.dumps(body, separators=(",", ":")).replace("/", "\\/").encode()


def _parse(headers: email.message.Message, body: bytes) -> tuple[dict[str, Any], File | None]:
    """The fields and the file of a body: JSON, a form, or nothing."""
    if headers.get_content_type() == "multipart/form-data":
        return _parse_form((headers.get_boundary() or "").encode(), body)
    try:
        fields = json.loads(body or b"{}")
    except ValueError:
        raise Refusal(400, "bad_request", "Failed to decode JSON object") from None
    if not isinstance(fields, dict):
        raise Refusal(400, "invalid_param", "Input should be a valid dictionary")
    return fields, None


def _parse_form(boundary: bytes, body: bytes) -> tuple[dict[str, Any], File | None]:
    fields: dict[str, Any] = {}
    file = None
    for part in (b"\r\n" + body).split(b"\r\n--" + boundary)[1:-1]:
        head, _, content = part.partition(b"\r\n\r\n")
        header = email.parser.HeaderParser().parsestr(head.decode(errors="replace").lstrip())
        if header.get_filename() is None:
            name = header.get_param("name", header="content-disposition")
            fields[str(name)] = content.decode(errors="replace")
        else:
            file = File(header.get_filename() or "", header.get_content_type(), content)
    return fields, file
