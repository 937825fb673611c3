"""What a failure told by Dify means for the caller. No I/O.

Dify's codes carry little: a provider's rate limit, lost connection and wrong key all arrive as
400 ``completion_request_error`` or as the text of a failed run, and the app's own concurrency
limit as 400 ``invalid_param``. So the text decides where the code does not.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from opendify import errors
from opendify.dify.addresses import is_inner_host
from opendify.dify.decoding import decode_whole

MAX_MESSAGE = 1000
_MAX_SEARCHED = 8 * MAX_MESSAGE

_NO_VERSION = "Workflow not found with id"
_APP_BUSY = "Too many requests. Please try again later"
_RATE_LIMIT = re.compile(r"rate[ _-]?limit|too many requests|\b429\b", re.IGNORECASE)
_TOO_LONG = re.compile(r"context[ _]length|maximum context|too long", re.IGNORECASE)
_APP_KEY = re.compile(r"\b(app|sk)-[\w.-]{4,}")
_ADDRESS = re.compile(
    r"(?P<scheme>\b[a-z][a-z0-9+.-]{0,20}://)(?:[^\s/@'\"<>]*@)?(?P<url_host>\[[0-9a-f:.]+\]|[^\s/:?#'\"<>()\[\],;]+)"
    r"(?::\d+)?[^\s'\"<>()\[\],;]*"
    r"|\bhost='(?P<host>[^']*)', port=\d+"
    r"|(?<![\w.])(?P<ip>(?:\d{1,3}\.){3}\d{1,3})(?!\.?\d)(?::\d+)?",
    re.IGNORECASE,
)
_PAGE = re.compile(r"<(!doctype|html|head|body)\b.*", re.IGNORECASE | re.DOTALL)

_AUTH = {"unauthorized", "forbidden"}
_WRONG_ROUTE = {"not_chat_app", "not_workflow_app", "not_completion_app", "app_unavailable"}
_NOT_READY = {"provider_not_initialize", "model_currently_not_support", "agent_not_published"}
_MODEL_FAILED = {"completion_request_error", "run_failed"}

# The form of Dify's own codes.
_CODE = re.compile(r"[a-z][a-z0-9_]*")

# What Dify refuses because of what the caller has sent: 422 where a body is not as it should be.
_OF_THE_CALLER = (400, 406, 409, 412, 422)

# What a firewall or a proxy refuses with, and what means the same from everybody: a wrong path, a
# request that is too large, too many of them.
_REFUSED_IN_FRONT = (401, 402, 403, 405, 406, 407, 418, 451)
_SAID_BY_ANY = (404, 413, 429)

# How servers say that they expect TLS where a request came without: nginx, Apache, Go.
_WANTS_TLS = re.compile(
    rb"plain HTTP request was sent to HTTPS port|speaking plain HTTP to an SSL-enabled"
    rb"|sent an HTTP request to an HTTPS server"
)
_SIGN_IN = re.compile(
    r"log-?in|sign-?in|\bsso\b|oauth|saml|authorize|/auth\b|\bauth\.|\bcas\b|openid|accounts\."
    r"|cloudflareaccess",
    re.IGNORECASE,
)

PAGE = "a page"
SIGN_IN_PAGE = "a sign-in page"
WANTS_TLS = "a demand for https"
OTHER = "no JSON of Dify's"


@dataclass(frozen=True, slots=True)
class ErrorResponse:
    """An answer of Dify that is no stream: HTTP status, and the code and message of its body.

    Both are empty where the body was not Dify's JSON; a page of some proxy is never quoted.
    ``foreign`` is then what came in its place, one of the constants above: Dify's own refusals
    have a ``code`` in all releases from 1.0 on (seen in 1.11.4, 1.13.2 and 1.16.1).
    """

    status: int
    code: str
    message: str
    retry_after: int | None = None
    foreign: str = ""


def parse_error_response(status: int, headers: Mapping[str, str], body: bytes) -> ErrorResponse:
    """Reads an error answer; the names in ``headers`` are lower case."""
    try:
        raw = decode_whole(body)
    except ValueError:
        raw = None
    raw = raw if isinstance(raw, dict) else {}
    code, message = raw.get("code"), raw.get("message")
    code = code if isinstance(code, str) else ""
    after = headers.get("retry-after", "")
    return ErrorResponse(
        status,
        code,
        message if isinstance(message, str) else "",
        min(int(after[:9]), 3600) if after.isascii() and after.isdigit() else None,
        "" if _CODE.fullmatch(code) else _foreign(status, headers, body),
    )


def wrong_kind(model: str, headers: Mapping[str, str], lack: str) -> errors.BadUpstreamResponse:
    """The error for an answer with status 200 that is not what was asked for, as ``lack`` says:
    "not JSON". The names in ``headers`` are lower case."""
    if _is_page(headers):
        return errors.BadUpstreamResponse(
            f"Dify's address answered model '{model}' with a page, which is {lack}: it is of "
            "something in front of Dify, such as a sign-in page or a firewall, or DIFY_API_BASE is "
            "not the address of Dify's API, ending in /v1."
        )
    return errors.BadUpstreamResponse(
        f"Dify answered model '{model}' with something that is {lack}. "
        "Is DIFY_API_BASE the address of its API, ending in /v1?"
    )


def packed(model: str, coding: str) -> errors.BadUpstreamResponse:
    """The error for an answer that came in a ``coding`` that cannot be undone."""
    return errors.BadUpstreamResponse(
        f"Dify's answer to model '{model}' came compressed ({coding}), which OpenDify had asked "
        "not to be done: a proxy in front of Dify does it. Its operator should switch compression "
        "off there for the paths of Dify's API."
    )


def _is_page(headers: Mapping[str, str]) -> bool:
    """Whether an answer is for people to look at, by its headers, whose names are lower case."""
    return headers.get("content-type", "").lower().startswith(("text/html", "application/xhtml"))


def _foreign(status: int, headers: Mapping[str, str], body: bytes) -> str:
    if _WANTS_TLS.search(body):
        return WANTS_TLS
    if 300 <= status < 400 and _SIGN_IN.search(headers.get("location", "")):
        return SIGN_IN_PAGE
    return PAGE if _is_page(headers) or _PAGE.search(body[:1000].decode("latin-1")) else OTHER


def to_error(refusal: ErrorResponse, model: str) -> errors.DifyError:
    """The error to answer with, naming ``model`` where its operator has something to mend."""
    reason = _presentable(refusal.message)
    error = (
        (_by_what_came(refusal, model) if refusal.foreign else None)
        or _by_code(refusal, model, reason)
        or _by_text(refusal, reason)
        or _by_status(refusal, model, reason)
    )
    error.dify_code = refusal.code
    if isinstance(error, errors.RateLimited | errors.UpstreamUnavailable):
        error.retry_after = refusal.retry_after or 2
    return error


def _by_code(refusal: ErrorResponse, model: str, reason: str) -> errors.DifyError | None:
    code, status = refusal.code, refusal.status
    if code == "workflow_version_execution_not_allowed" or refusal.message.startswith(_NO_VERSION):
        return errors.RejectedByDify(reason or "Dify does not run this version of the workflow.")
    if code in _AUTH or (code and status in (401, 403)):
        return errors.UpstreamAuthError(
            f"Dify rejected the key of model '{model}' ({reason or status}). "
            "Its operator should check the key in MODEL_CONFIG and the app's API access in Dify."
        )
    if code == "conversation_completed":
        return errors.ConversationNotFound("Dify has ended this conversation; begin a new one.")
    if refusal.message.startswith("Conversation Not Exists"):
        return errors.ConversationNotFound("Dify does not know this conversation.")
    if code in _WRONG_ROUTE:
        return errors.UpstreamConfigError(
            f"The Dify app of model '{model}' cannot be asked in this way ({code}): it is of "
            "another kind than 'type' in MODEL_CONFIG says, or has never been published."
        )
    if code in _NOT_READY or "not published" in refusal.message:
        return errors.ModelNotReady(f"The Dify app of model '{model}' is not ready: {reason}")
    if code == "provider_quota_exceeded":
        return errors.QuotaExceeded(f"The quota of model '{model}' in Dify is used up: {reason}")
    return None


def _by_text(refusal: ErrorResponse, reason: str) -> errors.DifyError | None:
    if refusal.status == 429 or refusal.message.startswith(_APP_BUSY):
        return errors.RateLimited(reason or "Dify asks to slow down.")
    model_failed = refusal.code in _MODEL_FAILED or refusal.message.startswith("Run failed")
    if not model_failed:
        return None
    if _RATE_LIMIT.search(refusal.message):
        return errors.RateLimited(reason)
    if _TOO_LONG.search(refusal.message):
        return errors.ContextTooLong(reason)
    return errors.RunFailed(reason or "The run failed, and Dify gave no reason.")


def _by_status(refusal: ErrorResponse, model: str, reason: str) -> errors.DifyError:
    status = refusal.status
    if status == 503:
        return errors.UpstreamUnavailable("Dify is not available at the moment (503).")
    if status == 504:
        return errors.UpstreamTimeout("A gateway in front of Dify gave up waiting for it (504).")
    if status >= 500:
        return errors.BadUpstreamResponse(
            f"Dify failed ({status}): {reason or 'it gave no reason'}"
        )
    if 300 <= status < 400:
        return _redirected(refusal)
    if status == 413:
        return errors.FileTooLargeForDify(reason or "Dify refused the request as too large.")
    if status == 415:
        return errors.FileTypeRefusedByDify(reason or "Dify refused this type of file.")
    if status in _OF_THE_CALLER and refusal.code:
        return errors.RejectedByDify(reason or "Dify refused the request without a reason.")
    return errors.BadUpstreamResponse(
        f"Dify answered model '{model}' with status {status}: "
        f"{reason or 'is DIFY_API_BASE the address of its API, ending in /v1?'}"
    )


def _by_what_came(refusal: ErrorResponse, model: str) -> errors.DifyError | None:
    """What something else than Dify has refused, where its status alone does not tell: a rate
    limit, a size, or that nothing is behind it at the moment mean the same from everybody."""
    what = f"{refusal.status}, {refusal.foreign}"
    if refusal.foreign == WANTS_TLS:
        return errors.BadUpstreamResponse(
            f"Dify's address wants https ({refusal.status}). The operator should put https:// "
            "instead of http:// into DIFY_API_BASE."
        )
    is_page = refusal.foreign == PAGE and 400 <= refusal.status < 500
    if refusal.status in _REFUSED_IN_FRONT or (is_page and refusal.status not in _SAID_BY_ANY):
        return errors.BadUpstreamResponse(
            f"Something in front of Dify refused the request of model '{model}' ({what}): a "
            "firewall or a proxy that wants a password, and not Dify's API. Its operator should "
            "check what DIFY_API_BASE leads through, and that it ends in /v1."
        )
    is_told_by_dify = refusal.foreign == OTHER and refusal.message
    if refusal.status >= 500 and refusal.status not in (503, 504) and not is_told_by_dify:
        return errors.BadUpstreamResponse(
            f"Dify, or something in front of it, failed ({what}): it is down, starting or broken."
        )
    return None


def _redirected(refusal: ErrorResponse) -> errors.DifyError:
    if refusal.foreign == SIGN_IN_PAGE:
        return errors.BadUpstreamResponse(
            f"Dify's address leads to a sign-in page ({refusal.status}): something in front of "
            "Dify wants people to sign in. Its operator should let OpenDify's requests to the API "
            "through, or give DIFY_API_BASE an address behind it."
        )
    return errors.BadUpstreamResponse(
        f"Dify's address redirects ({refusal.status}). The operator should put the final address "
        "into DIFY_API_BASE (often https instead of http)."
    )


def _presentable(message: str) -> str:
    """Without keys, without the page that a model's gateway answered Dify with, and without
    addresses inside the network."""
    text = _APP_KEY.sub(r"\1-…", _PAGE.sub("…", message[:_MAX_SEARCHED]))
    return _ADDRESS.sub(_without_inner_address, text)[:MAX_MESSAGE].strip()


def _without_inner_address(found: re.Match[str]) -> str:
    host = found["url_host"] or found["host"] or found["ip"]
    return "…" if is_inner_host(host) else found[0]
