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
from typing import Any

import httpx

from opendify import errors
from opendify.config.models import Model
from opendify.dify.failures import parse_refusal, to_error
from opendify.request_ids import is_request_id
from opendify.upstream.kept import Kept, Loan
from opendify.upstream.question import Address, Content
from opendify.upstream.reply import Reply
from opendify.upstream.stream import EventStream
from opendify.upstream.watch import Watch
from opendify.upstream.watcher import Steps, Watcher
from opendify.upstream.wire import StaleConnection

log = logging.getLogger(__name__)

CONNECT_TIMEOUT = 5.0
CALL_TIMEOUT = 60.0
STOP_TIMEOUT = 2.0

_JSON = {"Content-Type": "application/json"}


class DifyClient:
    """Dify's app API. ``http`` is the pool; ``read_timeout`` is the silence, in seconds, after
    which a stream counts as dead (Dify pings every 10 s while it is alive); ``on_stop`` is told the
    name of the model whenever a run was stopped; ``watcher`` reads what nobody waits for."""

    def __init__(
        self,
        http: httpx.Client,
        read_timeout: float,
        on_stop: Callable[[str], None] = lambda model: None,
    ) -> None:
        self._http = http
        self._headers = {name: http.headers[name] for name in ("Connection", "User-Agent")}
        self._stream_timeout = httpx.Timeout(
            read_timeout, connect=CONNECT_TIMEOUT, pool=1.0
        ).as_dict()
        self.read_timeout = read_timeout
        self._on_stop = on_stop
        self.watcher = Watcher()
        self._kept = Kept()
        # Questions go to few addresses, but for workflows whose version the caller names.
        self._address = lru_cache(256)(self._new_address)
        self._versions: dict[str, tuple[int, int]] = {}

    def stream(
        self,
        model: Model,
        path: str,
        body: Mapping[str, Any],
        watch: Watch,
        trace_id: str = "",
    ) -> EventStream:
        """Asks a question; returns as soon as it is on its way.

        ``watch`` is what ends it before its time; ``trace_id`` names the question in Dify's
        traces. Raises DifyError when Dify cannot be reached.
        """
        content = _encoded(body)
        address = self._address(model.base, path, model.key)
        own = {"Content-Length": str(len(content))}
        if is_request_id(trace_id):
            own["X-Trace-Id"] = trace_id

        def send(is_repeat: bool) -> Loan:
            with _translated_errors():
                if address.takes_bytes and not is_repeat:
                    loan = self._kept.take(_base_origin(model.base))
                    if loan is not None:
                        loan.ask(address.question(own, content), self._stream_timeout["write"])
                        return loan
                body = Content(content)
                loan = self._lent(model, address.request(own, body, self._stream_timeout))
                body.forget()
                return loan

        return EventStream(send, model.name, self.read_timeout, watch)

    def _new_address(self, base: str, path: str, key: str) -> Address:
        headers = _headers_of_what_is_handed_over(key)
        return Address(f"{base}{path}", self._headers | headers | _JSON)

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
        headers = {"Authorization": f"Bearer {model.key}"}
        request = self._request(model, method, path, headers, timeout, **content)
        self._kept.give_one_back(_base_origin(model.base))
        with _translated_errors():
            response = self._send(request)
        return self._decoded(model, f"{method} {path}", response)

    def post(self, model: Model, path: str, watch: Watch, **content: Any) -> Any:
        """A POST that may take long, as ``call`` makes it, ended by what is in ``watch`` too."""
        headers = _headers_of_what_is_handed_over(model.key)
        request = self._request(model, "POST", path, headers, CALL_TIMEOUT, **content)
        until = time.monotonic() + CALL_TIMEOUT
        self._kept.give_one_back(_base_origin(model.base))
        with _translated_errors():
            reply = Reply(self._lent(model, request))
            try:
                response = reply.read(until, watch)
            except httpx.ReadError:
                if not reply.is_stale:
                    raise
                response = Reply(self._lent(model, request)).read(until, watch)
        return self._decoded(model, f"POST {path}", response)

    def _request(
        self,
        model: Model,
        method: str,
        path: str,
        headers: dict[str, str],
        seconds: float,
        **content: Any,
    ) -> httpx.Request:
        return self._http.build_request(
            method,
            f"{model.base}{path}",
            headers=headers,
            timeout=httpx.Timeout(seconds, connect=CONNECT_TIMEOUT, pool=1.0),
            **content,
        )

    def _decoded(self, model: Model, what: str, response: httpx.Response) -> Any:
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
            raise errors.DifyBroken(f"Dify's answer to {what} is not JSON.") from exc

    def _send(self, request: httpx.Request, stream: bool = False) -> httpx.Response:
        try:
            return self._http.send(request, stream=stream, follow_redirects=False)
        except httpx.ReadError as exc:
            if not isinstance(exc.__cause__, StaleConnection):
                raise
        return self._http.send(request, stream=stream, follow_redirects=False)

    def _lent(self, model: Model, request: httpx.Request) -> Loan:
        """The connection on which it was sent, to read its answer from."""
        return Loan(self._send(request, stream=True), _base_origin(model.base), self._kept)

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
        self._kept.give_one_back(_origin(url))
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

    def stop(
        self, model: Model, path: str, user: str, then: Callable[[], None] = lambda: None
    ) -> None:
        """Stops a running answer: returns as soon as Dify is told. ``then`` is called, on any
        thread, when Dify has answered, has not done so in time, or cannot be told: a failure is
        logged."""
        request = self._http.build_request(
            "POST",
            f"{model.base}{path}",
            json={"user": user},
            headers=_headers_of_what_is_handed_over(model.key),
            timeout=httpx.Timeout(STOP_TIMEOUT, pool=1.0),
        )
        self._kept.give_one_back(_base_origin(model.base))
        try:
            reply = self._sent(model, request)
        except BaseException as exc:
            then()
            if not isinstance(exc, errors.OpenDifyError):
                raise
            log.warning("could not stop a run model=%s code=%s", model.name, exc.code)
        else:
            self.watcher.watch(self._stopping(model, request, reply, then))

    def _stopping(
        self, model: Model, request: httpx.Request, reply: Reply, then: Callable[[], None]
    ) -> Steps:
        until = time.monotonic() + STOP_TIMEOUT
        try:
            status = yield from reply.steps(until)
            if not status and time.monotonic() < until:  # a kept connection that had ended
                status = yield from self._sent(model, request).steps(until)
        finally:
            then()
        if 200 <= status < 300:
            self._on_stop(model.name)
        else:
            log.warning("could not stop a run model=%s status=%d", model.name, status)

    def _sent(self, model: Model, request: httpx.Request) -> Reply:
        with _translated_errors():
            return Reply(self._lent(model, request))

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


def _within(until: float, pieces: Iterator[bytes]) -> Iterator[bytes]:
    for piece in pieces:
        if time.monotonic() > until:
            raise errors.DifyTimeout("Dify sent a file too slowly.")
        yield piece


_base_origin = lru_cache(256)(_origin)


def _headers_of_what_is_handed_over(key: str) -> dict[str, str]:
    return {
        "Accept": "text/event-stream",
        "Accept-Encoding": "identity",
        "Authorization": f"Bearer {key}",
    }


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
    except httpx.ConnectTimeout as exc:
        raise errors.DifyNotConnected("Dify could not be reached in time.") from exc
    except httpx.TimeoutException as exc:
        raise errors.DifyTimeout("Dify did not take or answer a request in time.") from exc
    except httpx.HTTPError as exc:
        raise errors.DifyUnreachable(
            "Dify cannot be reached. Its operator should check DIFY_API_BASE and that Dify runs."
        ) from exc
