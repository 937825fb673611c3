"""The head of a request, parsed by Gunicorn."""

from typing import Any

from opendify.worker.gunicorn_api import (
    Config,
    InvalidRequestLine,
    IterUnreader,
    NoMoreData,
    Request,
    UnsupportedTransferCoding,
)


class RequestHead(Request):
    """A request before its body. ``body_bytes`` is the size of the body, None for a chunked one;
    ``awaits_continue``: the client sends the body only after ``100 Continue``."""

    body_bytes: int | None
    awaits_continue: bool

    def set_body_reader(self) -> None:
        super().set_body_reader()
        codings = [value.lower() for name, value in self.headers if name == "TRANSFER-ENCODING"]
        if codings and codings != ["chunked"]:  # no other coding can be decoded here
            raise UnsupportedTransferCoding("not chunked alone")
        assert self.body is not None
        self.body_bytes = None if codings else self.body.reader.length
        # Gunicorn would send "100 Continue" from the thread, after the body has arrived.
        self.awaits_continue, self._expected_100_continue = self._expected_100_continue, False
        # Gunicorn recognises "close" only where it is the only option (RFC 9112, section 9.3).
        options = ",".join(value for name, value in self.headers if name == "CONNECTION")
        if "close" in [option.strip(" \t").lower() for option in options.split(",")]:
            self.force_close()

    def replace_framing(self, body_bytes: int) -> None:
        """Turns a chunked request into one with a Content-Length (RFC 9112, section 7.1.3)."""
        framing = ("TRANSFER-ENCODING", "TRAILER")
        self.headers = [(name, value) for name, value in self.headers if name not in framing]
        self.headers.append(("CONTENT-LENGTH", str(body_bytes)))


def parse_head(cfg: Config, client: Any, head: bytes) -> RequestHead:
    """Parses a head, including the empty line at its end. Raises Gunicorn's ParseException."""
    try:
        return RequestHead(cfg, IterUnreader([head]), client)
    except (NoMoreData, StopIteration) as exc:
        raise InvalidRequestLine("") from exc
