"""The head of a request, as Gunicorn's parser reads it."""

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
    """A request before its body. ``body_bytes`` is the size of the body, None of a chunked one;
    ``awaits_continue``: it is sent after ``100 Continue`` only."""

    body_bytes: int | None
    awaits_continue: bool

    def set_body_reader(self) -> None:
        super().set_body_reader()
        codings = [value.lower() for name, value in self.headers if name == "TRANSFER-ENCODING"]
        if codings and codings != ["chunked"]:  # nothing here could decode the others
            raise UnsupportedTransferCoding("not chunked alone")
        assert self.body is not None
        self.body_bytes = None if codings else self.body.reader.length
        # else Gunicorn sends it, and in the thread
        self.awaits_continue, self._expected_100_continue = self._expected_100_continue, False
        # Gunicorn knows "close" where it is the only option (RFC 9112, section 9.3).
        options = ",".join(value for name, value in self.headers if name == "CONNECTION")
        if "close" in [option.strip(" \t").lower() for option in options.split(",")]:
            self.force_close()

    def replace_framing(self, body_bytes: int) -> None:
        """Lets it be a request with a plain body of this size (RFC 9112, section 7.1.3)."""
        framing = ("TRANSFER-ENCODING", "TRAILER")
        self.headers = [(name, value) for name, value in self.headers if name not in framing]
        self.headers.append(("CONTENT-LENGTH", str(body_bytes)))


def parse_head(cfg: Config, client: Any, head: bytes) -> RequestHead:
    """Reads a head, up to and with the empty line at its end. Raises Gunicorn's ParseException."""
    try:
        return RequestHead(cfg, IterUnreader([head]), client)
    except (NoMoreData, StopIteration) as exc:
        raise InvalidRequestLine("") from exc
