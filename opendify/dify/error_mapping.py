"""Maps Dify's error responses to errors for the caller. No I/O.

Dify's error codes are coarse: a provider's rate limit, lost connection and wrong key all arrive as
400 ``completion_request_error`` or as the text of a failed run, and the app's own concurrency
limit as 400 ``invalid_param``. So the message text decides where the code is not specific.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from opendify import errors
from opendify.dify.addresses import is_internal_host
from opendify.dify.decoding import decode_valid_text

MAX_MESSAGE = 1000
_MAX_SEARCHED = 8 * MAX_MESSAGE

_NO_VERSION = "Workflow not found with id"
_APP_BUSY = "Too many requests. Please try again later"
_RATE_LIMIT = re.compile(r"rate[ _-]?limit|too many requests|\b429\b", re.IGNORECASE)
_TOO_LONG = re.compile(r"context[ _]length|maximum context|too long", re.IGNORECASE)
_PROVIDER_KEY = re.compile(
    r"incorrect (api[ _-]?key|model credentials)|invalid (api[ _-]?key|authentication|token)"
    r"|invalid_api_key|api[ _-]?key\b[^.,]{0,40} (invalid|incorrect|expired|doesn't exist)"
    r"|InvokeAuthorizationError|AuthenticationError|authentication fails|error code: 401",
    re.IGNORECASE,
)
_UNANSWERED_QUESTION = "message history contains unprocessed tool calls"
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

# What a Dify app of the mode "agent" answers before it has a model and has been published (1.16).
_NO_MODEL = "model is required"

# The format of Dify's own codes.
_CODE = re.compile(r"[a-z][a-z0-9_]*")

# Statuses of Dify for which the caller's request is to blame; 422 is an invalid body.
_CALLER_STATUSES = (400, 406, 409, 412, 422)

# Statuses with which a firewall or a proxy rejects requests, and those that mean the same from any
# server: a wrong path, a request that is too large, too many requests.
_PROXY_STATUSES = (401, 402, 403, 405, 406, 407, 418, 451)
_UNIVERSAL_STATUSES = (404, 413, 429)

# The error pages of servers that expect TLS and got plain HTTP: nginx, Apache, Go.
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
    """An error response: the HTTP status, and ``code`` and ``message`` of the JSON body.

    Both are empty where the body is not Dify's JSON; pages of proxies are never quoted. ``foreign``
    then says what the body is, one of the constants above: Dify's own error responses have a
    ``code`` in all releases from 1.0 on (seen in 1.11.4, 1.13.2 and 1.16.1). ``retry_after`` is in
    seconds.
    """

    status: int
    code: str
    message: str
    retry_after: int | None = None
    foreign: str = ""


def parse_error_response(status: int, headers: Mapping[str, str], body: bytes) -> ErrorResponse:
    """Parses an error response; the names in ``headers`` are lower case."""
    try:
        raw = decode_valid_text(body)
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


def unexpected_content_error(
    model: str, headers: Mapping[str, str], problem: str
) -> errors.BadUpstreamResponse:
    """The error for a response with status 200 and unexpected content; ``problem`` completes "it
    is": "not JSON". The names in ``headers`` are lower case."""
    if _is_page(headers):
        return errors.BadUpstreamResponse(
            f"Dify's address answered model '{model}' with a page, which is {problem}: the page is "
            "from something in front of Dify, such as a sign-in page or a firewall, or "
            "DIFY_API_BASE is not the address of Dify's API, ending in /v1."
        )
    return errors.BadUpstreamResponse(
        f"Dify answered model '{model}' with something that is {problem}. "
        "Is DIFY_API_BASE the address of its API, ending in /v1?"
    )


def compressed_response_error(model: str, coding: str) -> errors.BadUpstreamResponse:
    """The error for a response with a content coding that cannot be decoded."""
    return errors.BadUpstreamResponse(
        f"Dify's answer to model '{model}' is compressed ({coding}) although OpenDify requested it "
        "uncompressed: a proxy in front of Dify compresses it. Its operator should switch "
        "compression off there for the paths of Dify's API."
    )


def _is_page(headers: Mapping[str, str]) -> bool:
    """Whether the response is an HTML page; the names in ``headers`` are lower case."""
    return headers.get("content-type", "").lower().startswith(("text/html", "application/xhtml"))


def _foreign(status: int, headers: Mapping[str, str], body: bytes) -> str:
    if _WANTS_TLS.search(body):
        return WANTS_TLS
    if 300 <= status < 400 and _SIGN_IN.search(headers.get("location", "")):
        return SIGN_IN_PAGE
    return PAGE if _is_page(headers) or _PAGE.search(body[:1000].decode("latin-1")) else OTHER


def to_error(response: ErrorResponse, model: str) -> errors.DifyError:
    """The error for the caller; it names ``model`` where its operator has something to fix."""
    reason = _sanitized(response.message)
    error = (
        (_by_foreign_response(response, model) if response.foreign else None)
        or _by_code(response, model, reason)
        or _not_ready(response, model, reason)
        or _by_text(response, model, reason)
        or _by_status(response, model, reason)
    )
    error.dify_code = response.code
    if isinstance(error, errors.RateLimited | errors.UpstreamUnavailable):
        error.retry_after = response.retry_after or 2
    return error


def _by_code(response: ErrorResponse, model: str, reason: str) -> errors.DifyError | None:
    code, status = response.code, response.status
    if code == "workflow_version_execution_not_allowed" or response.message.startswith(_NO_VERSION):
        return errors.RejectedByDify(reason or "Dify does not run this version of the workflow.")
    if code in _AUTH or (code and status in (401, 403)):
        return errors.UpstreamAuthError(
            f"Dify rejected the key of model '{model}' ({reason or status}). "
            "Its operator should check the key in MODEL_CONFIG and the app's API access in Dify."
        )
    if code == "conversation_completed":
        return errors.ConversationNotFound("Dify has ended this conversation; begin a new one.")
    if response.message.startswith("Conversation Not Exists"):
        return errors.ConversationNotFound("Dify does not know this conversation.")
    if code in _WRONG_ROUTE:
        return errors.UpstreamConfigError(
            f"The Dify app of model '{model}' does not support this endpoint ({code}): its type "
            "differs from 'type' in MODEL_CONFIG, or it has never been published."
        )
    if code == "provider_quota_exceeded":
        return errors.QuotaExceeded(f"The quota of model '{model}' in Dify is used up: {reason}")
    return None


def _not_ready(response: ErrorResponse, model: str, reason: str) -> errors.DifyError | None:
    if response.message == _NO_MODEL:
        reason = "it has no model, or it has never been published."
    elif response.code not in _NOT_READY and "not published" not in response.message:
        return None
    return errors.ModelNotReady(f"The Dify app of model '{model}' is not ready: {reason}")


def _by_text(response: ErrorResponse, model: str, reason: str) -> errors.DifyError | None:
    if response.status == 429 or response.message.startswith(_APP_BUSY):
        return errors.RateLimited(reason or "Dify asks to slow down.")
    model_failed = response.code in _MODEL_FAILED or response.message.startswith("Run failed")
    if not model_failed:
        return None
    if _RATE_LIMIT.search(response.message):
        return errors.RateLimited(reason)
    if _TOO_LONG.search(response.message):
        return errors.ContextTooLong(reason)
    if _UNANSWERED_QUESTION in response.message:
        return errors.ConversationNotFound(
            f"This conversation with model '{model}' cannot go on: its agent has asked a person "
            "(the tool ask_human) and waits for the answer, which Dify does not take from a chat. "
            "Begin a new conversation. The operator of the app can take the tool from the agent."
        )
    if _PROVIDER_KEY.search(response.message):
        return errors.ModelNotReady(
            f"The provider of the language model of '{model}' rejected the key that Dify has for "
            f"it ({reason}). The operator of Dify should correct it there, in Settings > Model "
            "Provider; it is none of OpenDify's keys."
        )
    return errors.RunFailed(reason or "The run failed, and Dify gave no reason.")


def _by_status(response: ErrorResponse, model: str, reason: str) -> errors.DifyError:
    status = response.status
    if status == 503:
        return errors.UpstreamUnavailable("Dify is not available at the moment (503).")
    if status == 504:
        return errors.UpstreamTimeout("A gateway in front of Dify gave up waiting for it (504).")
    if status >= 500:
        return errors.BadUpstreamResponse(
            f"Dify failed ({status}): {reason or 'it gave no reason'}"
        )
    if 300 <= status < 400:
        return _redirected(response)
    if status == 413:
        return errors.FileTooLargeForDify(reason or "Dify refused the request as too large.")
    if status == 415:
        return errors.FileTypeRefusedByDify(reason or "Dify refused this type of file.")
    if status in _CALLER_STATUSES and response.code:
        return errors.RejectedByDify(reason or "Dify refused the request without a reason.")
    return errors.BadUpstreamResponse(
        f"Dify answered model '{model}' with status {status}: "
        f"{reason or 'is DIFY_API_BASE the address of its API, ending in /v1?'}"
    )


def _by_foreign_response(response: ErrorResponse, model: str) -> errors.DifyError | None:
    """The error for a response of something other than Dify, where its status alone is ambiguous.
    A rate limit, a size limit and an unavailable backend mean the same from any server."""
    what = f"{response.status}, {response.foreign}"
    if response.foreign == WANTS_TLS:
        return errors.BadUpstreamResponse(
            f"Dify's address wants https ({response.status}). The operator should put https:// "
            "instead of http:// into DIFY_API_BASE."
        )
    is_page = response.foreign == PAGE and 400 <= response.status < 500
    if response.status in _PROXY_STATUSES or (
        is_page and response.status not in _UNIVERSAL_STATUSES
    ):
        return errors.BadUpstreamResponse(
            f"Something in front of Dify refused the request of model '{model}' ({what}): a "
            "firewall or a proxy that wants a password, and not Dify's API. Its operator should "
            "check what DIFY_API_BASE leads through, and that it ends in /v1."
        )
    is_dify_message = response.foreign == OTHER and response.message
    if response.status >= 500 and response.status not in (503, 504) and not is_dify_message:
        return errors.BadUpstreamResponse(
            f"Dify, or something in front of it, failed ({what}): it is down, starting or broken."
        )
    return None


def _redirected(response: ErrorResponse) -> errors.DifyError:
    if response.foreign == SIGN_IN_PAGE:
        return errors.BadUpstreamResponse(
            f"Dify's address leads to a sign-in page ({response.status}): something in front of "
            "Dify wants people to sign in. Its operator should let OpenDify's requests to the API "
            "through, or give DIFY_API_BASE an address behind it."
        )
    return errors.BadUpstreamResponse(
        f"Dify's address redirects ({response.status}). The operator should put the final address "
        "into DIFY_API_BASE (often https instead of http)."
    )


def _sanitized(message: str) -> str:
    """The message without keys, without an HTML page that a model's gateway sent to Dify, and
    without internal addresses."""
    text = _APP_KEY.sub(r"\1-…", _PAGE.sub("…", message[:_MAX_SEARCHED]))
    return _ADDRESS.sub(_without_internal_address, text)[:MAX_MESSAGE].strip()


def _without_internal_address(match: re.Match[str]) -> str:
    host = match["url_host"] or match["host"] or match["ip"]
    return "…" if is_internal_host(host) else match[0]
