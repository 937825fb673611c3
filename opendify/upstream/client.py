"""The calls of Dify's app API, over one pooled httpx client.

Every failure of the way to Dify leaves this room as one of our errors.
"""

import json
import logging
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from types import MappingProxyType
from typing import Any, TypeVar

import httpx

from opendify import errors
from opendify.config.models import Model
from opendify.dify.decoding import decode_whole
from opendify.dify.error_mapping import (
    packed,
    parse_error_response,
    to_error,
    wrong_kind,
)
from opendify.observability.request_ids import is_request_id
from opendify.streaming import IMMEDIATELY, WaitFor
from opendify.upstream import causes
from opendify.upstream.background_reader import BackgroundReader, Steps
from opendify.upstream.cancellation import NEVER, Cancellation
from opendify.upstream.event_stream import EventStream
from opendify.upstream.network_errors import to_network_error
from opendify.upstream.transport.pending_response import PendingResponse
from opendify.upstream.transport.transport import PooledClient
from opendify.upstream.unpacking import BadPacking, UnknownCoding, new_unpacker

log = logging.getLogger(__name__)

CONNECT_TIMEOUT = 5.0
CALL_TIMEOUT = 60.0
STOP_TIMEOUT = 2.0

# A Dify that restarts refuses connections for a moment. Nothing can have been begun on one that was
# refused, so it is tried again for so long.
RESTART_SECONDS = 2.0
_SECONDS_BETWEEN_TRIES = 0.1

# No answer to a call comes near this, unpacked: the longest has one message of a conversation.
MAX_CALL_BYTES = 8 * 1024 * 1024

DEFAULT_MAX_ANSWER = 16 * 1024 * 1024

T = TypeVar("T")


class DifyClient:
    """Dify's app API. ``http`` is the pool; ``read_timeout`` is the silence, in seconds, after
    which a stream counts as dead (Dify pings every 10 s while it is alive); ``on_stop`` is told the
    name of the model whenever a run was stopped; ``max_answer`` is how long the text of an answer
    may be, in characters; ``watcher`` reads what nobody waits for."""

    def __init__(
        self,
        http: PooledClient,
        read_timeout: float,
        on_stop: Callable[[str], None] = lambda model: None,
        max_answer: int = DEFAULT_MAX_ANSWER,
    ) -> None:
        self._http = http
        self._stream_timeout = httpx.Timeout(read_timeout, connect=CONNECT_TIMEOUT, pool=1.0)
        self.read_timeout = read_timeout
        self.max_answer = max_answer
        self._on_stop = on_stop
        self.watcher = BackgroundReader()
        self._versions: dict[str, tuple[int, int]] = {}

    def stream(
        self,
        model: Model,
        path: str,
        body: Mapping[str, Any],
        watch: Cancellation,
        trace_id: str = "",
    ) -> EventStream:
        """Asks a question; returns as soon as it is on its way.

        ``watch`` is what ends it before its time; ``trace_id`` names the question in Dify's
        traces. Raises CallerGone, ServerStopping, and DifyError when Dify cannot be reached.
        """
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream"}
        if is_request_id(trace_id):
            headers["X-Trace-Id"] = trace_id
        request = self._request(
            model, "POST", path, self._stream_timeout, headers=headers, content=_encoded(body)
        )
        with _translated_errors(model):
            pending = _connected(lambda: self._http.begin(request, watch), watch)
        return EventStream(pending, model, self.read_timeout, watch)

    def version(self, base: str) -> tuple[int, int]:
        """Major and minor release of the Dify at this address, as its answers told (header
        X-Version); zeros where none has told yet."""
        return self._versions.get(base, (0, 0))

    def call(
        self,
        model: Model,
        method: str,
        path: str,
        timeout: float = CALL_TIMEOUT,
        patience: float = RESTART_SECONDS,
        **content: Any,
    ) -> Any:
        """One call that is no stream; returns the decoded JSON of its answer, None for no body.

        ``content`` is what httpx takes (``json``, ``params``, ``data``, ``files``); ``timeout``
        is in seconds, and so is ``patience``, with a Dify that refuses connections. Raises
        DifyError.
        """
        return self._call(model, method, path, timeout, patience, NEVER, **content)

    def post(self, model: Model, path: str, watch: Cancellation, **content: Any) -> Any:
        """A POST that may take long, as ``call`` makes it, ended by what is in ``watch`` too."""
        return self._call(model, "POST", path, CALL_TIMEOUT, RESTART_SECONDS, watch, **content)

    def _call(
        self,
        model: Model,
        method: str,
        path: str,
        seconds: float,
        patience: float,
        watch: Cancellation,
        **content: Any,
    ) -> Any:
        timeout = httpx.Timeout(seconds, connect=CONNECT_TIMEOUT, pool=1.0)
        request = self._request(model, method, path, timeout, **content)

        def send() -> httpx.Response:
            request.extensions |= {"cancellation": watch, "deadline": time.monotonic() + seconds}
            return self._http.send(request, stream=True, follow_redirects=False)

        with _translated_errors(model):
            response = _connected(send, watch, patience)
            try:
                body = self._whole_body(model, response)
            finally:
                response.close()
        return self._decoded(model, f"{method} {path}", response, body)

    def _request(
        self,
        model: Model,
        method: str,
        path: str,
        timeout: httpx.Timeout,
        headers: Mapping[str, str] = MappingProxyType({}),
        **content: Any,
    ) -> httpx.Request:
        own = {"Authorization": f"Bearer {model.key}", "Accept-Encoding": "identity"}
        return self._http.build_request(
            method,
            _parsed(f"{model.base}{path}"),
            headers={**own, **headers},
            timeout=timeout,
            **content,
        )

    def _whole_body(self, model: Model, response: httpx.Response) -> bytes:
        """The body of a short answer, unpacked. Raises DifyError and the errors of httpx."""
        body = bytearray()
        try:
            unpacker = new_unpacker(response.headers)
            for piece in response.iter_raw():
                if unpacker is None:
                    body += piece
                else:
                    unpacker.feed(piece)
                while unpacker is not None and unpacker.has_more and len(body) <= MAX_CALL_BYTES:
                    body += unpacker.take()
                if len(body) > MAX_CALL_BYTES:
                    raise errors.BadUpstreamResponse(
                        f"Dify's answer to a call of model '{model.name}' is larger than "
                        f"{MAX_CALL_BYTES // 1024**2} MB."
                    )
        except UnknownCoding as exc:
            raise packed(model.name, str(exc)) from exc
        except BadPacking as exc:
            raise errors.BadUpstreamResponse(f"Dify's answer is unreadable: {exc}.") from exc
        return bytes(body)

    def _decoded(self, model: Model, what: str, response: httpx.Response, body: bytes) -> Any:
        self._note_version(model.base, response.headers.get("x-version", ""))
        headers = {name.lower(): value for name, value in response.headers.items()}
        if not response.is_success:
            refusal = parse_error_response(response.status_code, headers, body)
            raise _about(to_error(refusal, model.name), model, response)
        if not body:
            return None
        try:
            return decode_whole(body)
        except ValueError as exc:
            raise _about(
                wrong_kind(model.name, headers, f"not JSON ({what})"), model, response
            ) from exc

    @contextmanager
    def download(
        self, model: Model, url: str, seconds: float, key: str = ""
    ) -> Iterator[Iterator[bytes]]:
        """The bytes of a file that lies at Dify, in pieces, within about so many seconds.

        ``url`` must be on the origin of the model's base: nothing else is ever fetched. ``key`` is
        sent where it is given; a signed link needs none. Raises DifyError, also in the pieces.
        """
        if _origin(url) != _origin(model.base):
            raise errors.BadUpstreamResponse("A file of Dify is at an address that is not Dify's.")
        headers = {"Accept-Encoding": "identity"}
        if key:
            headers["Authorization"] = f"Bearer {key}"
        with (
            _translated_errors(model),
            self._http.stream(
                "GET",
                url,
                headers=headers,
                timeout=httpx.Timeout(seconds, connect=CONNECT_TIMEOUT, pool=1.0),
                extensions={"deadline": time.monotonic() + seconds},
                follow_redirects=False,
            ) as response,
        ):
            if response.status_code != 200:
                refusal = parse_error_response(response.status_code, {}, b"")
                raise _about(to_error(refusal, model.name), model, response)
            if response.headers.get("content-encoding", "identity") != "identity":
                raise errors.BadUpstreamResponse("Dify packed a file that was asked for as it is.")
            yield response.iter_raw()

    def stop(
        self, model: Model, path: str, user: str, then: Callable[[], None] = lambda: None
    ) -> None:
        """Stops a running answer: returns as soon as Dify is told. ``then`` is called, on any
        thread, when Dify has answered, has not done so in time, or cannot be told: a failure is
        logged."""
        timeout = httpx.Timeout(STOP_TIMEOUT, pool=1.0)
        try:
            request = self._request(model, "POST", path, timeout, json={"user": user})
            with _translated_errors(model):
                pending = self._http.begin(request)
        except BaseException as exc:
            then()
            if not isinstance(exc, errors.OpenDifyError):
                raise
            log.warning("could not stop a run model=%s code=%s", model.name, exc.code)
        else:
            self.watcher.add(self._stopping(model, pending, then))

    def _stopping(self, model: Model, pending: PendingResponse, then: Callable[[], None]) -> Steps:
        until = time.monotonic() + STOP_TIMEOUT
        try:
            while not pending.is_complete and time.monotonic() < until:
                yield WaitFor(pending.fileno(), until)
                pending.read(IMMEDIATELY, NEVER)
        except httpx.HTTPError:
            log.debug("the answer to a stop is unreadable")
        finally:
            pending.close()
            then()
        if pending.is_complete and 200 <= pending.status < 300:
            self._on_stop(model.name)
        else:
            log.warning("could not stop a run model=%s status=%d", model.name, pending.status)

    def _note_version(self, base: str, told: str) -> None:
        match = re.match(r"(\d{1,4})\.(\d{1,4})", told)
        if match:
            self._versions[base] = (int(match[1]), int(match[2]))


def _origin(url: str) -> tuple[str, str, int | None]:
    """What httpx connects to for an address, which no user in it may blur."""
    try:
        parts = httpx.URL(url)
    except (httpx.InvalidURL, ValueError):
        return "", "", None
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, parts.userinfo.decode() + parts.host, port


# Addresses are few, and to parse one takes as long as all else of building a request.
_parsed = lru_cache(256)(httpx.URL)


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


def _connected(send: Callable[[], T], watch: Cancellation, patience: float = RESTART_SECONDS) -> T:
    """Does ``send``; again for so many seconds where the connection is refused. Raises CallerGone
    and ServerStopping meanwhile."""
    until = time.monotonic() + patience
    while True:
        try:
            return send()
        except httpx.ConnectError as exc:
            cause = causes.find_cause(exc)
            if cause is None or not cause.is_refusal or time.monotonic() >= until:
                raise
        watch.wait(_SECONDS_BETWEEN_TRIES)


def _about(error: errors.DifyError, model: Model, response: httpx.Response) -> errors.DifyError:
    """The error, with what the log is to say of the answer."""
    content_type = response.headers.get("content-type", "")
    error.details = causes.describe_answer(model, response.status_code, content_type)
    return error


@contextmanager
def _translated_errors(model: Model) -> Iterator[None]:
    try:
        yield
    except httpx.HTTPError as exc:
        raise to_network_error(exc, model) from exc
