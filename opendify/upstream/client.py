"""The client of Dify's app API, over one pooled httpx client.

All errors of the network and of httpx are raised as our own errors.
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
from opendify.dify.decoding import decode_valid_text
from opendify.dify.error_mapping import (
    compressed_response_error,
    parse_error_response,
    to_error,
    unexpected_content_error,
)
from opendify.observability.request_ids import is_request_id
from opendify.streaming import NO_WAIT, WaitFor
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

# While Dify restarts, connections are refused. A refused request cannot have started anything, so
# it is retried for this long.
RESTART_SECONDS = 2.0
_RETRY_INTERVAL_SECONDS = 0.1

# Limit for the decompressed response to a call; real ones, with a few messages, are far smaller.
MAX_CALL_BYTES = 8 * 1024 * 1024

DEFAULT_MAX_ANSWER = 16 * 1024 * 1024

T = TypeVar("T")


class DifyClient:
    """Dify's app API.

    ``http`` has the connection pool. ``read_timeout`` is the silence, in seconds, after which a
    stream counts as dead (Dify pings every 10 s). ``on_stop`` is called with the model's name after
    a run was stopped. ``max_answer`` limits the text of a response, in characters.
    ``background_reader`` reads responses that no caller waits for.
    """

    def __init__(
        self,
        http: PooledClient,
        read_timeout: float,
        on_stop: Callable[[str], None] = lambda model: None,
        max_answer: int = DEFAULT_MAX_ANSWER,
    ) -> None:
        self._http = http
        # httpx would merge them anew for each request, at the cost of all else that it does.
        self._headers = {**http.headers, "accept-encoding": "identity"}
        self._stream_timeout = httpx.Timeout(read_timeout, connect=CONNECT_TIMEOUT, pool=1.0)
        self.read_timeout = read_timeout
        self.max_answer = max_answer
        self._on_stop = on_stop
        self.background_reader = BackgroundReader()
        self._versions: dict[str, tuple[int, int]] = {}

    def stream(
        self,
        model: Model,
        path: str,
        body: Mapping[str, Any],
        cancellation: Cancellation,
        trace_id: str = "",
    ) -> EventStream:
        """Starts a run; returns as soon as the request is sent.

        ``cancellation`` also applies to reading the response; ``trace_id`` names the request in
        Dify's traces. Raises ClientDisconnected, ServerStopping, and DifyError when Dify cannot be
        reached.
        """
        headers = {"content-type": "application/json", "accept": "text/event-stream"}
        if is_request_id(trace_id):
            headers["x-trace-id"] = trace_id
        request = self._request(
            model, "POST", path, self._stream_timeout, headers=headers, content=_encode(body)
        )
        with _translated_errors(model):
            pending = _retry_while_refused(
                lambda: self._http.begin(request, cancellation), cancellation
            )
        return EventStream(pending, model, self.read_timeout, cancellation)

    def version(self, base: str) -> tuple[int, int]:
        """Major and minor version of the Dify at this address, from the header X-Version of its
        responses; zeros while unknown."""
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
        """One call without streaming; returns the decoded JSON of the response, None for no body.

        ``content`` is passed to httpx (``json``, ``params``, ``data``, ``files``). ``timeout`` is
        in seconds, and so is ``patience``, the time for which refused connections are retried.
        Raises DifyError.
        """
        return self._call(model, method, path, timeout, patience, NEVER, **content)

    def post(self, model: Model, path: str, cancellation: Cancellation, **content: Any) -> Any:
        """As ``call``, for a POST that may take long and can be cancelled. Raises
        ClientDisconnected, ServerStopping and DifyError."""
        return self._call(
            model, "POST", path, CALL_TIMEOUT, RESTART_SECONDS, cancellation, **content
        )

    def _call(
        self,
        model: Model,
        method: str,
        path: str,
        seconds: float,
        patience: float,
        cancellation: Cancellation,
        **content: Any,
    ) -> Any:
        timeout = httpx.Timeout(seconds, connect=CONNECT_TIMEOUT, pool=1.0)
        request = self._request(model, method, path, timeout, **content)

        def send() -> httpx.Response:
            request.extensions |= {
                "cancellation": cancellation,
                "deadline": time.monotonic() + seconds,
            }
            return self._http.send(request, stream=True, follow_redirects=False)

        with _translated_errors(model):
            response = _retry_while_refused(send, cancellation, patience)
            try:
                body = self._read_body(model, response)
            finally:
                response.close()
        return self._decode(model, f"{method} {path}", response, body)

    def _request(
        self,
        model: Model,
        method: str,
        path: str,
        timeout: httpx.Timeout,
        headers: Mapping[str, str] = MappingProxyType({}),
        **content: Any,
    ) -> httpx.Request:
        return httpx.Request(
            method,
            _parse_url(f"{model.base}{path}"),
            headers={**self._headers, "authorization": f"Bearer {model.key}", **headers},
            extensions={"timeout": timeout.as_dict()},
            **content,
        )

    def _read_body(self, model: Model, response: httpx.Response) -> bytes:
        """The decompressed body of a short response. Raises DifyError and the errors of httpx."""
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
            raise compressed_response_error(model.name, str(exc)) from exc
        except BadPacking as exc:
            raise errors.BadUpstreamResponse(f"Dify's answer is unreadable: {exc}.") from exc
        return bytes(body)

    def _decode(self, model: Model, what: str, response: httpx.Response, body: bytes) -> Any:
        self._note_version(model.base, response.headers.get("x-version", ""))
        headers = {name.lower(): value for name, value in response.headers.items()}
        if not response.is_success:
            refusal = parse_error_response(response.status_code, headers, body)
            raise causes.with_response_details(
                to_error(refusal, model.name), model, response.status_code, headers
            )
        if not body:
            return None
        try:
            return decode_valid_text(body)
        except ValueError as exc:
            error = unexpected_content_error(model.name, headers, f"not JSON ({what})")
            raise causes.with_response_details(error, model, response.status_code, headers) from exc

    @contextmanager
    def download(
        self, model: Model, url: str, seconds: float, key: str = ""
    ) -> Iterator[Iterator[bytes]]:
        """Downloads a file from Dify, in pieces, within about ``seconds``.

        ``url`` must have the origin of the model's base; nothing else is ever fetched. ``key`` is
        the API key, which a signed link does not need. Raises DifyError, also from the iterator.
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
                raise causes.with_response_details(
                    to_error(refusal, model.name), model, response.status_code, response.headers
                )
            if response.headers.get("content-encoding", "identity") != "identity":
                raise errors.BadUpstreamResponse(
                    "Dify compressed a file although no compression was requested."
                )
            yield response.iter_raw()

    def stop(
        self, model: Model, path: str, user: str, then: Callable[[], None] = lambda: None
    ) -> None:
        """Stops a run; returns once the request is sent. ``then`` is called, on any thread, when
        Dify has answered, has not answered in time, or cannot be reached. A failure is logged."""
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
            self.background_reader.add(self._read_stop_response(model, pending, then))

    def _read_stop_response(
        self, model: Model, pending: PendingResponse, then: Callable[[], None]
    ) -> Steps:
        deadline = time.monotonic() + STOP_TIMEOUT
        try:
            while not pending.is_complete and time.monotonic() < deadline:
                yield WaitFor(pending.fileno(), deadline)
                pending.read(NO_WAIT, NEVER)
        except httpx.HTTPError:
            log.debug("the response to a stop request is unreadable")
        finally:
            pending.close()
            then()
        if pending.is_complete and 200 <= pending.status < 300:
            self._on_stop(model.name)
        else:
            log.warning("could not stop a run model=%s status=%d", model.name, pending.status)

    def _note_version(self, base: str, header: str) -> None:
        match = re.match(r"(\d{1,4})\.(\d{1,4})", header)
        if match:
            self._versions[base] = (int(match[1]), int(match[2]))


def _origin(url: str) -> tuple[str, str, int | None]:
    """Scheme, host and port as httpx understands the URL; a user in it makes the host differ."""
    try:
        parts = httpx.URL(url)
    except (httpx.InvalidURL, ValueError):
        return "", "", None
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, parts.userinfo.decode() + parts.host, port


# There are few URLs, and parsing one takes as long as the rest of building a request.
_parse_url = lru_cache(256)(httpx.URL)


def _encode(body: Mapping[str, Any]) -> bytes:
    try:
        text = json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
        return text.encode()
    except RecursionError as exc:
        raise errors.InvalidRequest("The request is nested too deeply.") from exc
    except ValueError as exc:
        raise errors.InvalidRequest(
            "The request holds a number or a text that JSON cannot carry (1e999, half a character)."
        ) from exc


def _retry_while_refused(
    send: Callable[[], T], cancellation: Cancellation, patience: float = RESTART_SECONDS
) -> T:
    """Calls ``send``, again for ``patience`` seconds while the connection is refused. Raises
    ClientDisconnected and ServerStopping."""
    deadline = time.monotonic() + patience
    while True:
        try:
            return send()
        except httpx.ConnectError as exc:
            cause = causes.find_cause(exc)
            if cause is None or not cause.is_refusal or time.monotonic() >= deadline:
                raise
        cancellation.wait(_RETRY_INTERVAL_SECONDS)


@contextmanager
def _translated_errors(model: Model) -> Iterator[None]:
    try:
        yield
    except httpx.HTTPError as exc:
        raise to_network_error(exc, model) from exc
