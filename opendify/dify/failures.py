"""What a failure told by Dify means for the caller. No I/O.

Dify's codes carry little: a provider's rate limit, lost connection and wrong key all arrive as
400 ``completion_request_error`` or as the text of a failed run, and the app's own concurrency
limit as 400 ``invalid_param``. So the text decides where the code does not.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass

from opendify import errors

MAX_MESSAGE = 1000

_NO_VERSION = "Workflow not found with id"
_APP_BUSY = "Too many requests. Please try again later"
_RATE_LIMIT = re.compile(r"rate[ _-]?limit|too many requests|\b429\b", re.IGNORECASE)
_TOO_LONG = re.compile(r"context[ _]length|maximum context|too long", re.IGNORECASE)
_APP_KEY = re.compile(r"\b(app|sk)-[\w.-]{4,}")
_PAGE = re.compile(r"<(!doctype|html|head|body)\b.*", re.IGNORECASE | re.DOTALL)

_AUTH = {"unauthorized", "forbidden"}
_WRONG_ROUTE = {"not_chat_app", "not_workflow_app", "not_completion_app", "app_unavailable"}
_NOT_READY = {"provider_not_initialize", "model_currently_not_support", "agent_not_published"}
_MODEL_FAILED = {"completion_request_error", "run_failed"}


@dataclass(frozen=True, slots=True)
class Refusal:
    """An answer of Dify that is no stream: HTTP status, and the code and message of its body.

    Both are empty where the body was not Dify's JSON; a page of some proxy is never quoted.
    """

    status: int
    code: str
    message: str
    retry_after: int | None = None


def parse_refusal(status: int, headers: Mapping[str, str], body: bytes) -> Refusal:
    """Reads an error answer; the names in ``headers`` are lower case."""
    try:
        raw = json.loads(body)
    except (ValueError, RecursionError):
        raw = None
    raw = raw if isinstance(raw, dict) else {}
    code, message = raw.get("code"), raw.get("message")
    after = headers.get("retry-after", "")
    return Refusal(
        status,
        code if isinstance(code, str) else "",
        message if isinstance(message, str) else "",
        min(int(after[:9]), 3600) if after.isascii() and after.isdigit() else None,
    )


def to_error(refusal: Refusal, model: str) -> errors.DifyError:
    """The error to answer with, naming ``model`` where its operator has something to mend."""
    reason = _presentable(refusal.message)
    error = (
        _by_code(refusal, model, reason)
        or _by_text(refusal, reason)
        or _by_status(refusal, model, reason)
    )
    error.dify_code = refusal.code
    if isinstance(error, errors.RateLimited | errors.DifyUnavailable):
        error.retry_after = refusal.retry_after or 2
    return error


def _by_code(refusal: Refusal, model: str, reason: str) -> errors.DifyError | None:
    code, status = refusal.code, refusal.status
    if code == "workflow_version_execution_not_allowed" or refusal.message.startswith(_NO_VERSION):
        return errors.RejectedByDify(reason or "Dify does not run this version of the workflow.")
    if status in (401, 403) or code in _AUTH:
        return errors.DifyAuthFailed(
            f"Dify rejected the key of model '{model}' ({reason or status}). "
            "Its operator should check the key in MODEL_CONFIG and the app's API access in Dify."
        )
    if refusal.message.startswith("Conversation Not Exists"):
        return errors.ConversationUnknown("Dify does not know this conversation.")
    if code in _WRONG_ROUTE:
        return errors.DifyMisconfigured(
            f"The Dify app of model '{model}' cannot be asked in this way ({code}): it is of "
            "another kind than 'type' in MODEL_CONFIG says, or has never been published."
        )
    if code in _NOT_READY or "not published" in refusal.message:
        return errors.ModelNotReady(f"The Dify app of model '{model}' is not ready: {reason}")
    if code == "provider_quota_exceeded":
        return errors.QuotaExceeded(f"The quota of model '{model}' in Dify is used up: {reason}")
    return None


def _by_text(refusal: Refusal, reason: str) -> errors.DifyError | None:
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


def _by_status(refusal: Refusal, model: str, reason: str) -> errors.DifyError:
    status = refusal.status
    if status == 503:
        return errors.DifyUnavailable("Dify is not available at the moment (503).")
    if status == 504:
        return errors.DifyTimeout("A gateway in front of Dify gave up waiting for it (504).")
    if status >= 500:
        return errors.DifyBroken(f"Dify failed ({status}): {reason or 'it gave no reason'}")
    if 300 <= status < 400:
        return errors.DifyBroken(
            f"Dify's address redirects ({status}). The operator should put the final address "
            "into DIFY_API_BASE (often https instead of http)."
        )
    if status == 413:
        return errors.FileTooLargeForDify(reason or "Dify refused the request as too large.")
    if status == 415:
        return errors.FileTypeRefusedByDify(reason or "Dify refused this type of file.")
    if status == 400 and refusal.code:
        return errors.RejectedByDify(reason or "Dify refused the request without a reason.")
    return errors.DifyBroken(
        f"Dify answered model '{model}' with status {status}: "
        f"{reason or 'is DIFY_API_BASE the address of its API, ending in /v1?'}"
    )


def _presentable(message: str) -> str:
    """Without keys, and without the page that a model's gateway answered Dify with."""
    return _APP_KEY.sub(r"\1-…", _PAGE.sub("…", message))[:MAX_MESSAGE].strip()
