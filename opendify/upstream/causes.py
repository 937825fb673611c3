"""Finds out why a connection failed, from the chain of exceptions behind the raised one.

httpx and httpcore keep the error of the system or OpenSSL as ``__cause__`` or ``__context__``: only
that one tells an operator what to do.
"""

import errno
import socket
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from urllib.parse import urlsplit

from opendify import errors
from opendify.config.models import Model
from opendify.upstream.transport.response_reader import TlsAlert

_CHECK_BASE = "Its operator should check DIFY_API_BASE and that Dify runs."


@dataclass(frozen=True, slots=True)
class Cause:
    """``log`` is for operators, ``message`` for callers: it names no host. ``is_refusal`` is true
    where nothing listened, so that Dify cannot have started anything."""

    log: str
    message: str
    is_refusal: bool = False


REFUSED = Cause(
    "connection refused: nothing listens at this address; does Dify run, is the port right? "
    "In a container, localhost is the container itself",
    f"Dify cannot be reached: the connection was refused. {_CHECK_BASE}",
    is_refusal=True,
)
UNKNOWN_HOST = Cause(
    "the host name is not known to the name server; check the name, and in a container its network",
    f"Dify cannot be reached: its host name is not known. {_CHECK_BASE}",
)
NO_NAME_SERVER = Cause(
    "the name server does not answer, so the host name cannot be looked up",
    "Dify cannot be reached: its host name cannot be looked up at the moment. Its operator should "
    "check the name server.",
)
NO_ROUTE = Cause(
    "no route to the host, or its network is unreachable",
    f"Dify cannot be reached: there is no way to its network. {_CHECK_BASE}",
)
CONNECT_TIMEOUT = Cause(
    "the connection was not accepted in time: a firewall drops it, or the host is down",
    "Dify could not be reached in time. Its operator should check DIFY_API_BASE, firewalls and "
    "that Dify runs.",
)
READ_TIMEOUT = Cause(
    "no answer came in time",
    "Dify did not take or answer a request in time.",
)
RESET = Cause(
    "the connection was reset before an answer; does DIFY_API_BASE begin with the right "
    "one of http:// and https://?",
    f"The connection to Dify was reset. {_CHECK_BASE}",
)
CLOSED = Cause(
    "the connection was closed without an answer; does DIFY_API_BASE begin with the right "
    "one of http:// and https://?",
    f"The connection to Dify was closed without an answer. {_CHECK_BASE}",
)
NO_TLS = Cause(
    "there is no TLS at this address: it speaks plain http, or another protocol. "
    "DIFY_API_BASE probably has to begin with http://",
    "Dify cannot be reached by https: its address speaks no TLS. Its operator should put http:// "
    "instead of https:// into DIFY_API_BASE, or the right port.",
)
NO_HANDSHAKE = Cause(
    "the connection was closed when TLS began: this address speaks plain http, and DIFY_API_BASE "
    "has to begin with http://, or a proxy or firewall does not let TLS through",
    "Dify cannot be reached by https: its address speaks no TLS, or something in between does not "
    "let it through. Its operator should check whether DIFY_API_BASE has to begin with http://.",
)
WANTS_TLS = Cause(
    "this address speaks TLS: DIFY_API_BASE has to begin with https://",
    "Dify cannot be reached by http: its address speaks TLS. Its operator should put https:// "
    "instead of http:// into DIFY_API_BASE.",
)
UNTRUSTED = Cause(
    "its certificate is not signed by a trusted authority (self-signed, or by a private one): put "
    "the certificate of that authority into a file and name it in DIFY_CA_FILE",
    "Dify cannot be reached: its certificate is not signed by a trusted authority. Its operator "
    "should set DIFY_CA_FILE.",
)
WRONG_NAME = Cause(
    "its certificate is for another name than that in DIFY_API_BASE: use a name that is in the "
    "certificate",
    "Dify cannot be reached: its certificate is for another name. Its operator should put a name "
    "that is in the certificate into DIFY_API_BASE.",
)
EXPIRED = Cause(
    "its certificate has expired: renew it, and check the clock of this machine",
    "Dify cannot be reached: its certificate has expired. Its operator should renew it.",
)
NOT_YET_VALID = Cause(
    "its certificate is not valid yet: check the clocks of both machines",
    "Dify cannot be reached: its certificate is not valid yet. Its operator should check the "
    "clocks of both machines.",
)
DISCONNECTED = Cause(
    "the connection broke in the middle",
    "The connection to Dify broke off.",
)

# By X509_V_ERR_*, x509_vfy.h of OpenSSL.
_BY_VERIFY_CODE = {
    9: NOT_YET_VALID,
    10: EXPIRED,
    18: UNTRUSTED,
    19: UNTRUSTED,
    20: UNTRUSTED,
    21: UNTRUSTED,
    27: UNTRUSTED,
    62: WRONG_NAME,
    64: WRONG_NAME,
}

# OpenSSL's reasons for bytes that are not TLS.
_NO_TLS = {"WRONG_VERSION_NUMBER", "HTTP_REQUEST", "PACKET_LENGTH_TOO_LONG", "RECORD_LAYER_FAILURE"}

_BY_NUMBER = {
    errno.ECONNREFUSED: REFUSED,
    errno.EHOSTUNREACH: NO_ROUTE,
    errno.ENETUNREACH: NO_ROUTE,
    errno.ENETDOWN: NO_ROUTE,
    errno.EHOSTDOWN: NO_ROUTE,
    errno.ETIMEDOUT: CONNECT_TIMEOUT,
    errno.ECONNRESET: RESET,
    errno.ECONNABORTED: RESET,
    errno.EPIPE: RESET,
}


def find_cause(exc: BaseException) -> Cause | None:
    """The cause of ``exc`` or of the first exception in its chain that has one, else None."""
    for link in _chain(exc):
        if (cause := _cause(link)) is not None:
            return cause
    return None


def describe(model: Model, cause: str) -> dict[str, str]:
    """Log fields: the address of the model's Dify without user and path, and the cause."""
    parts = urlsplit(model.base)
    port = parts.port or {"http": 80, "https": 443}.get(parts.scheme)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return {"address": f"{parts.scheme}://{host}:{port}", "cause": cause}


def with_response_details(
    error: errors.DifyError, model: Model, status: int, headers: Mapping[str, str]
) -> errors.DifyError:
    """The error with log fields for its response: one of an error, or one that is not Dify's."""
    content_type = headers.get("content-type", "")
    shown = "".join(c for c in content_type[:80] if c.isascii() and c.isprintable() and c != '"')
    error.details = describe(model, f"status {status}, content type {shown or 'none'}")
    return error


def proxy_cause(message: str) -> Cause:
    """The cause where a proxy (HTTP_PROXY and the like) failed with this message."""
    shown = "".join(c for c in message[:80] if c.isascii() and c.isprintable() and c != '"')
    return Cause(
        f"the proxy on the way to Dify made no connection ({shown}): check HTTP_PROXY, "
        "HTTPS_PROXY, ALL_PROXY and NO_PROXY, and the proxy's user and password",
        "Dify cannot be reached: the proxy on the way to it made no connection. Its operator "
        "finds why in the log.",
    )


def _chain(exc: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while exc is not None and id(exc) not in seen:
        seen.add(id(exc))
        yield exc
        exc = exc.__cause__ or exc.__context__  # httpcore raises "from None"


def _cause(exc: BaseException) -> Cause | None:
    match exc:
        case ssl.SSLCertVerificationError():
            return _BY_VERIFY_CODE.get(exc.verify_code) or _tls_cause(exc.verify_message)
        case ssl.SSLEOFError() | ssl.SSLZeroReturnError():
            return NO_HANDSHAKE
        case ssl.SSLError():
            return NO_TLS if exc.reason in _NO_TLS else _tls_cause(exc.reason or "")
        case socket.gaierror():
            return NO_NAME_SERVER if exc.errno == socket.EAI_AGAIN else UNKNOWN_HOST
        case OSError():
            return _BY_NUMBER.get(exc.errno or 0)
        case TlsAlert():
            return WANTS_TLS
    return None


def _tls_cause(reason: str) -> Cause:
    message = reason.replace("_", " ").lower() or "no reason given"
    return Cause(
        f"no TLS connection could be made ({message})",
        "Dify cannot be reached: no TLS connection to it could be made. Its operator finds why in "
        "the log.",
    )
