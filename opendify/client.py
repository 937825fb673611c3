"""The only network calls: Dify's app API over one pooled httpx client.

Every failure of the way to Dify leaves this room as one of our errors.
"""

import json
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import httpcore
import httpx

from opendify import errors, sse
from opendify.config.models import Model
from opendify.dify.events import NotAnEvent, Payload, parse_payload
from opendify.dify.failures import parse_refusal, to_error
from opendify.http1 import Answer, BadAnswer
from opendify.wire import Wire

log = logging.getLogger(__name__)

CONNECT_TIMEOUT = 5.0
CALL_TIMEOUT = 60.0
STOP_TIMEOUT = 5.0
MAX_REFUSAL_BYTES = 64 * 1024

# An answer that has said its last word is read on for this long, so that its connection can be
# used again; Dify 1.13 holds chatflow streams open for a second, which is not worth a thread.
DRAIN_SECONDS = 0.05

# How long after a question the end of a kept connection can still mean that Dify had closed it
# before the question came.
REUSE_RACE_SECONDS = 1.0


class DifyClient:
    """Dify's app API. ``http`` is the pool; ``read_timeout`` is the silence, in seconds, after
    which a stream counts as dead (Dify pings every 10 s while it is alive)."""

    def __init__(self, http: httpx.Client, read_timeout: float) -> None:
        self._http = http
        self.read_timeout = read_timeout
        self._versions: dict[str, tuple[int, int]] = {}

    def stream(
        self, model: Model, path: str, body: Mapping[str, Any], caller: int | None
    ) -> "EventStream":
        """Asks a question; returns as soon as it is on its way.

        ``caller`` is the descriptor of the caller's socket, watched for a hang-up. Raises
        DifyError when Dify cannot be reached.
        """
        content = _encoded(body)
        request = self._http.build_request(
            "POST",
            f"{model.base}{path}",
            content=content,
            headers={
                "Accept": "text/event-stream",
                "Accept-Encoding": "identity",
                "Authorization": f"Bearer {model.key}",
                "Content-Type": "application/json",
            },
            timeout=httpx.Timeout(self.read_timeout, connect=CONNECT_TIMEOUT, pool=1.0),
        )

        def send() -> httpx.Response:
            with _translated_errors():
                return self._http.send(request, stream=True, follow_redirects=False)

        return EventStream(send, model.name, self.read_timeout, caller)

    def version(self, base: str) -> tuple[int, int]:
        """Major and minor release of the Dify at this address, as its answers told (header
        X-Version); zeros where none has told yet."""
        return self._versions.get(base, (0, 0))

    def call(
        self, model: Model, method: str, path: str, timeout: float = CALL_TIMEOUT, **content: Any
    ) -> Any:
        """One call that is no stream; returns the decoded JSON of its answer, None for no body.

        ``content`` is what httpx takes (``json``, ``params``, ``data``, ``files``); ``timeout``
        is in seconds. Raises DifyError.
        """
        with _translated_errors():
            response = self._http.request(
                method,
                f"{model.base}{path}",
                headers={"Authorization": f"Bearer {model.key}"},
                timeout=httpx.Timeout(timeout, connect=CONNECT_TIMEOUT, pool=1.0),
                follow_redirects=False,
                **content,
            )
        self._note_version(model.base, response.headers.get("x-version", ""))
        if not response.is_success:
            headers = {name.lower(): value for name, value in response.headers.items()}
            raise to_error(
                parse_refusal(response.status_code, headers, response.content), model.name
            )
        if not response.content:
            return None
        try:
            return response.json()
        except (ValueError, RecursionError) as exc:
            raise errors.DifyBroken(f"Dify's answer to {method} {path} is not JSON.") from exc

    @contextmanager
    def download(
        self, model: Model, url: str, seconds: float, key: str = ""
    ) -> Iterator[Iterator[bytes]]:
        """The bytes of a file that lies at Dify, in pieces, within about so many seconds.

        ``url`` must be on the origin of the model's base: nothing else is ever fetched. ``key`` is
        sent where it is given; a signed link needs none. Raises DifyError, also in the pieces.
        """
        if _origin(url) != _origin(model.base):
            raise errors.DifyBroken("A file of Dify is at an address that is not Dify's.")
        headers = {"Accept-Encoding": "identity"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        until = time.monotonic() + seconds
        timeout = httpx.Timeout(seconds, connect=CONNECT_TIMEOUT, pool=1.0)
        with (
            _translated_errors(),
            self._http.stream(
                "GET", url, headers=headers, timeout=timeout, follow_redirects=False
            ) as response,
        ):
            if response.status_code != 200:
                raise to_error(parse_refusal(response.status_code, {}, b""), model.name)
            if response.headers.get("content-encoding", "identity") != "identity":
                raise errors.DifyBroken("Dify packed a file that was asked for as it is.")
            yield _within(until, response.iter_raw())

    def stop(self, model: Model, path: str, user: str) -> None:
        """Stops a running answer. A failure is logged: nobody waits for the outcome."""
        try:
            self.call(model, "POST", path, STOP_TIMEOUT, json={"user": user})
        except errors.OpenDifyError as exc:
            log.warning("could not stop a run model=%s code=%s", model.name, exc.code)

    def _note_version(self, base: str, told: str) -> None:
        match = re.match(r"(\d{1,4})\.(\d{1,4})", told)
        if match:
            self._versions[base] = (int(match[1]), int(match[2]))


class EventStream:
    """The events of one answer, read as long as ``caller`` is there, or in any case where that is
    None. Whoever gets one must close it."""

    def __init__(
        self,
        send: Callable[[], httpx.Response],
        model: str,
        read_timeout: float,
        caller: int | None,
    ) -> None:
        self._send = send
        self._model = model
        self._read_timeout = read_timeout
        self.caller = caller
        self._response: httpx.Response | None = None
        self._connect()

    def _connect(self) -> None:
        self._response = self._send()
        wire = self._response.extensions["network_stream"]
        assert isinstance(wire, Wire)
        self._wire = wire
        self._answer = Answer()
        self._decoder = sse.Decoder()
        self._refusal = b""
        self._may_reconnect = True
        self._silent_since = time.monotonic()

    def read(self, until: float) -> list[Payload] | None:
        """The events that arrive next, or an empty list when none came by ``until``.

        ``until`` is a time of ``time.monotonic``. None is the end of the stream. Raises
        CallerGone, and DifyError for every other way in which an answer can fail to come.
        """
        while not self._answer.complete:
            dead_at = self._silent_since + self._read_timeout
            data = self._receive(min(until, dead_at))
            if data is None:
                if time.monotonic() >= dead_at:
                    raise errors.DifyTimeout(
                        f"Dify has sent nothing for {self._read_timeout:g} seconds; "
                        "the answer was given up."
                    )
                return []
            self._silent_since = time.monotonic()
            payloads = self._events(data)
            if payloads:
                return payloads
            if self._silent_since >= until:
                return []
        return None

    def _receive(self, until: float) -> bytes | None:
        try:
            data = self._wire.receive(until, self.caller)
        except (httpcore.ReadError, OSError) as exc:
            if self._reconnect():
                return b""
            raise errors.DifyBroken("The connection to Dify broke in the answer.") from exc
        if data == b"":
            if self._reconnect():
                return b""
            with self._cut_answers_translated():
                self._answer.end()
        elif data is not None:
            self._may_reconnect = False
        return data

    def _reconnect(self) -> bool:
        """Sends the question again where a kept connection turned out to be closed.

        Dify (or a proxy before it) closes idle connections; when the question crosses that, no
        byte of an answer comes and nothing was begun. Only a connection that has carried an
        answer before can be in that state, and it shows at once: a Dify that dies later may have
        begun the run.
        """
        waited = time.monotonic() - self._silent_since
        if not (self._may_reconnect and self._wire.has_answered and waited < REUSE_RACE_SECONDS):
            return False
        self.close()
        self._connect()
        self._may_reconnect = False
        return True

    def _events(self, data: bytes) -> list[Payload]:
        if not data:
            return []
        with self._cut_answers_translated():
            body = self._answer.feed(data)
        if not self._answer.status:
            return []
        if not self._is_event_stream():
            self._refusal = (self._refusal + body)[:MAX_REFUSAL_BYTES]
            if self._answer.complete or len(self._refusal) == MAX_REFUSAL_BYTES:
                raise self._refused()
            return []
        try:
            return [parse_payload(raw) for raw in self._decoder.feed(body)]
        except (sse.EventTooLarge, NotAnEvent) as exc:
            raise errors.DifyBroken(f"Dify sent an event that is unreadable ({exc}).") from exc

    def _is_event_stream(self) -> bool:
        media_type = self._answer.headers.get("content-type", "")
        coding = self._answer.headers.get("content-encoding", "identity")
        return (
            self._answer.status == 200
            and media_type.lower().startswith("text/event-stream")
            and coding.strip().lower() == "identity"
        )

    def _refused(self) -> errors.DifyError:
        answer = self._answer
        if answer.status == 200:
            return errors.DifyBroken(
                f"Dify answered model '{self._model}' with something that is no event stream. "
                "Is DIFY_API_BASE the address of its API, ending in /v1?"
            )
        return to_error(parse_refusal(answer.status, answer.headers, self._refusal), self._model)

    @contextmanager
    def _cut_answers_translated(self) -> Iterator[None]:
        try:
            yield
        except BadAnswer as exc:
            if self._answer.status and not self._is_event_stream() and self._answer.status != 200:
                raise self._refused() from exc
            raise errors.DifyBroken(f"Dify's answer is broken: {exc}.") from exc

    def drain(self) -> None:
        """Reads a finished answer to the end of its body for a moment, then closes."""
        until = time.monotonic() + DRAIN_SECONDS
        self.caller = None
        try:
            while not self._answer.complete and self.read(until):
                pass
        except errors.OpenDifyError:
            log.debug("the rest of a finished answer was unreadable")
        self.close()

    def close(self) -> None:
        """Frees the connection: for reuse when the answer was read to its end, else for good."""
        response, self._response = self._response, None
        if response is None:
            return
        if self._answer.complete and self._answer.reusable:
            self._wire.give_back()
            with _closing_errors_logged():
                response.read()
        response.close()


@contextmanager
def _closing_errors_logged() -> Iterator[None]:
    try:
        yield
    except httpx.HTTPError as exc:
        log.debug("closing a connection failed: %s", type(exc).__name__)


def _origin(url: str) -> tuple[str, str, int | None]:
    """What httpx connects to for an address, which no user in it may blur."""
    try:
        parts = httpx.URL(url)
    except (httpx.InvalidURL, ValueError):
        return "", "", None
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, parts.userinfo.decode() + parts.host, port


def _within(until: float, pieces: Iterator[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        if time.monotonic() > until:
            raise errors.DifyTimeout("Dify sent a file too slowly.")
        yield piece


def _encoded(body: Mapping[str, Any]) -> bytes:
    try:
        text = json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode()
    except RecursionError as exc:
        raise errors.InvalidRequest("The request is nested too deeply.") from exc
    except ValueError as exc:
        raise errors.InvalidRequest(
            "The request holds a number or a text that JSON cannot carry (1e999, half a character)."
        ) from exc


@contextmanager
def _translated_errors() -> Iterator[None]:
    try:
        yield
    except httpx.PoolTimeout as exc:
        raise errors.Overloaded(
            "All connections to Dify are in use; try again in a moment.", retry_after=2
        ) from exc
    except httpx.TimeoutException as exc:
        raise errors.DifyTimeout("Dify could not be reached in time.") from exc
    except httpx.HTTPError as exc:
        raise errors.DifyUnreachable(
            "Dify cannot be reached. Its operator should check DIFY_API_BASE and that Dify runs."
        ) from exc
