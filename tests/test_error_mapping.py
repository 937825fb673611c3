import json
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opendify import errors
from opendify.dify.error_mapping import (
    MAX_MESSAGE,
    OTHER,
    PAGE,
    ErrorResponse,
    parse_error_response,
    to_error,
)
from opendify.dify.events import Failed
from opendify.dify.parser import parse_event, parse_payload
from opendify.protocols.openai.chat_response import error_body
from tests.support import schemas
from tests.support.fake_dify import recorded_names, recorded_streams, recording

BUSY = (
    "Too many requests. Please try again later. The current maximum concurrent requests "
    "allowed for 11111111-1111-4111-8111-111111111111 is 1."
)
UNKNOWN = (
    "Conversation Not Exists. You have requested this URI [/v1/chat-messages] but did you mean "
    "/v1/chat-messages or /v1/audio-to-text ?"
)

# status, code and message of Dify; the error that they mean
ERRORS = [
    pytest.param(
        401, "unauthorized", "Access token is invalid", errors.UpstreamAuthError, id="a wrong key"
    ),
    pytest.param(401, "", "", errors.BadUpstreamResponse, id="401 without a code"),
    pytest.param(
        403, "forbidden", "The app no longer exists.", errors.UpstreamAuthError, id="a deleted app"
    ),
    pytest.param(
        403,
        "forbidden",
        "The app's API service has been disabled.",
        errors.UpstreamAuthError,
        id="a disabled API",
    ),
    pytest.param(403, "", "", errors.BadUpstreamResponse, id="403 without a code"),
    pytest.param(422, "unprocessable_entity", "query: too long", errors.RejectedByDify, id="a 422"),
    pytest.param(409, "conflict", "Already there", errors.RejectedByDify, id="a conflict"),
    pytest.param(412, "human_input_form_submitted", "x", errors.RejectedByDify, id="a 412"),
    pytest.param(422, "", "", errors.BadUpstreamResponse, id="422 of something that is not Dify"),
    pytest.param(404, "not_found", UNKNOWN, errors.ConversationNotFound, id="no conversation"),
    pytest.param(
        404, "not_found", "Conversation Not Exists.", errors.ConversationNotFound, id="as of 1.8"
    ),
    pytest.param(404, "", "", errors.BadUpstreamResponse, id="another 404"),
    pytest.param(
        404,
        "not_found",
        "Workflow not found with id: w",
        errors.RejectedByDify,
        id="no such version",
    ),
    pytest.param(400, "not_chat_app", "x", errors.UpstreamConfigError, id="not a chat app"),
    pytest.param(400, "not_workflow_app", "x", errors.UpstreamConfigError, id="not a workflow"),
    pytest.param(400, "not_completion_app", "x", errors.UpstreamConfigError, id="not completion"),
    pytest.param(400, "app_unavailable", "x", errors.UpstreamConfigError, id="app unavailable"),
    pytest.param(
        400,
        "invalid_param",
        "city is required in input form",
        errors.RejectedByDify,
        id="a missing input",
    ),
    pytest.param(400, "invalid_param", "Invalid upload file", errors.RejectedByDify, id="a file"),
    pytest.param(400, "bad_request", "x", errors.RejectedByDify, id="a bad request"),
    pytest.param(400, "invalid_param", "", errors.RejectedByDify, id="no reason"),
    pytest.param(400, "", "", errors.BadUpstreamResponse, id="400 of something that is not Dify"),
    pytest.param(400, "invalid_param", BUSY, errors.RateLimited, id="the app is busy, as 400"),
    pytest.param(429, "too_many_requests", BUSY, errors.RateLimited, id="the app is busy"),
    pytest.param(429, "rate_limit_error", "Rate Limit Error", errors.RateLimited, id="429"),
    pytest.param(429, "", "", errors.RateLimited, id="429 of a gateway"),
    pytest.param(
        400,
        "completion_request_error",
        "[openai] Rate Limit Error, Rate limit reached for gpt-4",
        errors.RateLimited,
        id="the provider's rate limit",
    ),
    pytest.param(
        400,
        "completion_request_error",
        "PluginInvokeError: status code 429",
        errors.RateLimited,
        id="the provider's 429",
    ),
    pytest.param(
        400,
        "invalid_param",
        "Run failed: [models] Rate Limit Error, slow down",
        errors.RateLimited,
        id="the rate limit of a node",
    ),
    pytest.param(
        400, "run_failed", "[models] Rate Limit Error, x", errors.RateLimited, id="in a stream"
    ),
    pytest.param(
        400,
        "completion_request_error",
        "[models] Connection Error, x",
        errors.RunFailed,
        id="the provider cannot be reached",
    ),
    pytest.param(
        400,
        "completion_request_error",
        "[models] Server Unavailable Error, x",
        errors.RunFailed,
        id="the provider is down",
    ),
    pytest.param(
        400, "completion_request_error", "Read timed out", errors.RunFailed, id="it timed out"
    ),
    pytest.param(
        400, "run_failed", "[models] Bad Request Error, x", errors.RunFailed, id="a failed run"
    ),
    pytest.param(400, "invalid_param", "Run failed: x", errors.RunFailed, id="a failed node"),
    pytest.param(
        400, "invalid_param", "model is required", errors.ModelNotReady, id="an agent without model"
    ),
    pytest.param(400, "run_failed", "", errors.RunFailed, id="a failed run without a reason"),
    pytest.param(
        400,
        "completion_request_error",
        "This model's maximum context length is 8192 tokens",
        errors.ContextTooLong,
        id="too long, as OpenAI says it",
    ),
    pytest.param(
        400,
        "completion_request_error",
        "error code context_length_exceeded",
        errors.ContextTooLong,
        id="too long, by its code",
    ),
    pytest.param(
        400, "run_failed", "prompt is too long: 9 > 8", errors.ContextTooLong, id="too long"
    ),
    pytest.param(
        400, "provider_quota_exceeded", "x", errors.QuotaExceeded, id="the quota is used up"
    ),
    pytest.param(400, "provider_not_initialize", "x", errors.ModelNotReady, id="no provider"),
    pytest.param(400, "model_currently_not_support", "x", errors.ModelNotReady, id="no model"),
    pytest.param(400, "agent_not_published", "x", errors.ModelNotReady, id="agent, unpublished"),
    pytest.param(
        400, "invalid_param", "Workflow not published", errors.ModelNotReady, id="unpublished"
    ),
    pytest.param(413, "file_too_large", "x", errors.FileTooLargeForDify, id="413"),
    pytest.param(413, "", "", errors.FileTooLargeForDify, id="413 of a gateway"),
    pytest.param(415, "unsupported_file_type", "x", errors.FileTypeRefusedByDify, id="415"),
    pytest.param(500, "internal_server_error", "x", errors.BadUpstreamResponse, id="500"),
    pytest.param(500, "", "", errors.BadUpstreamResponse, id="500 of a gateway"),
    pytest.param(502, "", "", errors.BadUpstreamResponse, id="502"),
    pytest.param(503, "", "", errors.UpstreamUnavailable, id="503"),
    pytest.param(504, "", "", errors.UpstreamTimeout, id="504"),
    pytest.param(524, "", "", errors.BadUpstreamResponse, id="524 of Cloudflare"),
    pytest.param(301, "", "", errors.BadUpstreamResponse, id="a redirect"),
    pytest.param(307, "", "", errors.BadUpstreamResponse, id="a redirect that keeps the method"),
    pytest.param(204, "", "", errors.BadUpstreamResponse, id="nothing"),
    pytest.param(200, "weird", "x", errors.BadUpstreamResponse, id="an error that is none"),
]


@pytest.mark.parametrize(("status", "code", "message", "kind"), ERRORS)
def test_a_failure_means_the_error_of_the_map(
    status: int, code: str, message: str, kind: type[errors.DifyError]
) -> None:
    error = to_error(ErrorResponse(status, code, message), "tiny")
    assert type(error) is kind
    schemas.assert_error(error_body(error))
    assert error.message.strip()


# What a caller sees of each of them: HTTP status, type, code.
WORDS = [
    (errors.UpstreamAuthError, 502, "api_error", "upstream_auth_error"),
    (errors.UpstreamConfigError, 502, "api_error", "upstream_config_error"),
    (errors.ModelNotReady, 502, "api_error", "model_not_ready"),
    (errors.RunFailed, 502, "api_error", "run_failed"),
    (errors.RateLimited, 429, "rate_limit_error", "rate_limit_exceeded"),
    (errors.QuotaExceeded, 429, "insufficient_quota", "insufficient_quota"),
    (errors.ContextTooLong, 400, "invalid_request_error", "context_length_exceeded"),
    (errors.RejectedByDify, 400, "invalid_request_error", "rejected_by_dify"),
    (errors.FileTooLargeForDify, 413, "invalid_request_error", "file_too_large"),
    (errors.FileTypeRefusedByDify, 415, "invalid_request_error", "unsupported_file_type"),
    (errors.ConversationNotFound, 404, "invalid_request_error", "conversation_not_found"),
    (errors.BadUpstreamResponse, 502, "api_error", "upstream_error"),
    (errors.UpstreamUnavailable, 503, "api_error", "upstream_unavailable"),
    (errors.UpstreamTimeout, 504, "api_error", "upstream_timeout"),
]


@pytest.mark.parametrize(("kind", "status", "type_", "code"), WORDS, ids=lambda v: str(v))
def test_an_error_has_the_type_and_code_of_openai(
    kind: type[errors.DifyError], status: int, type_: str, code: str
) -> None:
    error = kind("Why.")
    assert (error.status, error.type, error.code) == (status, type_, code)


def test_every_error_that_dify_can_mean_is_in_the_table() -> None:
    assert {row.values[3] for row in ERRORS} == {row[0] for row in WORDS}


@pytest.mark.parametrize(
    "kind", [errors.UpstreamAuthError, errors.UpstreamConfigError, errors.ModelNotReady]
)
def test_what_the_operator_has_to_mend_names_the_model(kind: type[errors.DifyError]) -> None:
    rows = [row.values for row in ERRORS if row.values[3] is kind]
    for status, code, message, _ in rows:
        assert "'tiny'" in to_error(ErrorResponse(status, code, message), "tiny").message


def test_the_reason_that_dify_gives_is_passed_on() -> None:
    refusal = ErrorResponse(400, "invalid_param", "city is required in input form")
    assert to_error(refusal, "tiny").message == "city is required in input form"


def test_a_redirect_says_what_to_do() -> None:
    assert "DIFY_API_BASE" in to_error(ErrorResponse(301, "", ""), "tiny").message


RETRY_AFTER = [
    pytest.param(429, {"retry-after": "7"}, 7, id="as Dify says"),
    pytest.param(503, {"retry-after": "7"}, 7, id="503 too"),
    pytest.param(429, {}, 2, id="soon, where nothing was said"),
    pytest.param(503, {}, 2, id="soon, after a 503 as well"),
    pytest.param(429, {"retry-after": "99999"}, 3600, id="an hour at most"),
    pytest.param(429, {"retry-after": "9" * 5000}, 3600, id="an endless number"),
    pytest.param(429, {"retry-after": "-1"}, 2, id="a negative number"),
    pytest.param(429, {"retry-after": "1.5"}, 2, id="half a second"),
    pytest.param(429, {"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}, 2, id="a date"),
    pytest.param(429, {"retry-after": "١"}, 2, id="a digit that is not ASCII"),
    pytest.param(500, {"retry-after": "7"}, None, id="not for other failures"),
    pytest.param(400, {"retry-after": "7"}, None, id="not for a refusal"),
]


@pytest.mark.parametrize(("status", "headers", "seconds"), RETRY_AFTER)
def test_the_time_to_retry_after_is_passed_on(
    status: int, headers: dict[str, str], seconds: int | None
) -> None:
    body = b'{"code":"x","message":"y"}'
    assert to_error(parse_error_response(status, headers, body), "tiny").retry_after == seconds


BODIES = [
    pytest.param(b"", ErrorResponse(400, "", "", foreign=OTHER), id="nothing"),
    pytest.param(b"<html>x</html>", ErrorResponse(400, "", "", foreign=PAGE), id="a page"),
    pytest.param(b"null", ErrorResponse(400, "", "", foreign=OTHER), id="null"),
    pytest.param(b"[]", ErrorResponse(400, "", "", foreign=OTHER), id="an array"),
    pytest.param(b'"text"', ErrorResponse(400, "", "", foreign=OTHER), id="a string"),
    pytest.param(b"\xff", ErrorResponse(400, "", "", foreign=OTHER), id="no text"),
    pytest.param(b"[" * 200_000, ErrorResponse(400, "", "", foreign=OTHER), id="endless nesting"),
    pytest.param(
        b'{"code":5,"message":{}}', ErrorResponse(400, "", "", foreign=OTHER), id="other types"
    ),
    pytest.param(
        b'{"code":"invalid_param","message":"no \xff city"}',
        ErrorResponse(400, "invalid_param", "no \ufffd city"),
        id="a broken character",
    ),
    pytest.param(
        b'{"code":"invalid_param","message":"no \\ud83d city"}',
        ErrorResponse(400, "invalid_param", "no \ufffd city"),
        id="half a character",
    ),
    pytest.param(b'{"code":"c"}', ErrorResponse(400, "c", ""), id="no message"),
    pytest.param(
        b'{"code":"invalid_param","message":"m","params":"inputs"}',
        ErrorResponse(400, "invalid_param", "m"),
        id="without a status, as before 1.8",
    ),
    pytest.param(
        b'{"code":"c","message":"m","status":404}',
        ErrorResponse(400, "c", "m"),
        id="HTTP's status wins",
    ),
]


@pytest.mark.parametrize(("body", "refusal"), BODIES)
def test_a_body_of_any_kind_is_read(body: bytes, refusal: ErrorResponse) -> None:
    assert parse_error_response(400, {}, body) == refusal


HTML = {"content-type": "text/html; charset=utf-8"}
JSON = {"content-type": "application/json"}
PAGE_BODY = b"<html><title>Attention Required! | Cloudflare</title></html>"

# status, headers and body of an answer that is not Dify's; words of the error
NOT_OF_DIFY = [
    pytest.param(403, HTML, PAGE_BODY, "front of Dify refused the request", id="a firewall"),
    pytest.param(401, HTML, b"", "a proxy that wants a password", id="a proxy's password"),
    pytest.param(401, {}, PAGE_BODY, "(401, a page)", id="a page without a type"),
    pytest.param(407, HTML, PAGE_BODY, "(407, a page)", id="a proxy's own status"),
    pytest.param(405, HTML, PAGE_BODY, "(405, a page)", id="a method"),
    pytest.param(403, JSON, b'{"message":"Forbidden"}', "front of Dify", id="JSON of a gateway"),
    pytest.param(401, JSON, b'{"code":401,"message":"no"}', "front of Dify", id="a number"),
    pytest.param(403, JSON, b'{"code":"AccessDenied"}', "front of Dify", id="a cloud's code"),
    pytest.param(403, {}, b"", "front of Dify", id="nothing"),
    pytest.param(400, HTML, PAGE_BODY, "(400, a page)", id="a page for a bad request"),
    pytest.param(415, HTML, PAGE_BODY, "(415, a page)", id="a page about a type"),
    pytest.param(421, HTML, PAGE_BODY, "(421, a page)", id="a misdirected request"),
    pytest.param(428, HTML, PAGE_BODY, "(428, a page)", id="a challenge"),
    pytest.param(495, HTML, PAGE_BODY, "(495, a page)", id="nginx wants a certificate"),
    pytest.param(404, HTML, PAGE_BODY, "ending in /v1", id="another path"),
    pytest.param(502, HTML, PAGE_BODY, "something in front of it, failed (502", id="502"),
    pytest.param(521, HTML, PAGE_BODY, "something in front of it, failed (521", id="521"),
    pytest.param(
        302, {"location": "https://login.example.com/x"}, b"", "a sign-in page (302)", id="login"
    ),
    pytest.param(307, {"location": "/oauth2/start?rd=/v1"}, b"", "a sign-in page", id="oauth"),
    pytest.param(301, {"location": "https://dify.example.com/v1"}, b"", "redirects", id="https"),
    pytest.param(
        400,
        HTML,
        b"<html>400 The plain HTTP request was sent to HTTPS port</html>",
        "https://",
        id="nginx wants https",
    ),
    pytest.param(
        400, {}, b"Client sent an HTTP request to an HTTPS server.\n", "https://", id="Go"
    ),
]


@pytest.mark.parametrize(("status", "headers", "body", "words"), NOT_OF_DIFY)
def test_what_is_not_of_dify_is_not_blamed_on_the_key(
    status: int, headers: dict[str, str], body: bytes, words: str
) -> None:
    error = to_error(parse_error_response(status, headers, body), "tiny")
    assert type(error) is errors.BadUpstreamResponse
    assert words in error.message
    assert "the key" not in error.message
    assert "example.com" not in error.message


INNER = [
    "HTTPConnectionPool(host='plugin_daemon', port=5002): Max retries exceeded",
    "Connection error to http://ollama:11434/api/chat",
    "no Route at http://10.2.3.4:8000/ matched",
    "http://user:word@192.168.3.4:9997/v1 is down",
    "dial tcp 172.18.0.5:6379: connect: connection refused",
    "https://[fd00::5]:8443/x failed",
    "redis://:word@redis:6379/1 is away",
    "https://gpu-7.corp:8000/v1/models timed out",
    "http://xinference.default.svc.cluster.local:9997 (500)",
    "Reached maximum retries (3) for URL http://localhost/x.png.",
]
HIDDEN = re.compile(
    r"plugin_daemon|5002|ollama|11434|10\.2|192\.168|9997|172\.18|6379|fd00|8443|word|redis:"
    r"|gpu-7|8000|xinference|cluster|localhost"
)


@pytest.mark.parametrize("message", INNER)
@pytest.mark.parametrize(
    ("status", "code"),
    [
        (400, "completion_request_error"),
        (400, "invalid_param"),
        (401, "unauthorized"),
        (404, "not_found"),
        (500, "internal_server_error"),
        (500, ""),
    ],
)
def test_errors_name_no_address_of_the_internal_network(
    status: int, code: str, message: str
) -> None:
    told = to_error(ErrorResponse(status, code, f"It failed: {message}"), "tiny").message
    assert not HIDDEN.search(told)
    assert "It failed: " in told


@pytest.mark.parametrize(
    "message",
    [
        "Find your key at https://platform.openai.com/account/api-keys.",
        "Reached maximum retries (3) for URL https://example.com:8443/cat.png",
        "Needs version 1.13.2, not 0.10.1.2.3 or v10.0.0.1",
        "It failed at 10:20:30, ratio 1.5",
    ],
)
def test_other_text_in_an_error_stays_as_it_is(message: str) -> None:
    assert to_error(ErrorResponse(400, "invalid_param", message), "tiny").message == message


def test_a_long_message_of_half_addresses_is_read_in_no_time() -> None:
    for piece in ("a.", "a://", "a://a@", "1.1.", "host='"):
        told = to_error(ErrorResponse(400, "invalid_param", piece * 200_000), "tiny").message
        assert len(told) <= MAX_MESSAGE


def test_an_ended_conversation_is_left_as_one_that_does_not_exist() -> None:
    said = "The conversation has ended. Please start a new conversation."
    error = to_error(ErrorResponse(400, "conversation_completed", said), "tiny")
    assert type(error) is errors.ConversationNotFound


PROVIDER_KEYS = [
    "Incorrect API key provided",
    "Incorrect model credentials provided, please check and try again. ",
    "[openai] Error: Error code: 401 - {'error': {'code': 'invalid_api_key'}}",
    "[models] Bad Request Error, PluginInvokeError: {'error_type': 'InvokeAuthorizationError'}",
    "[models] Error: Authentication Fails (governor)",
    "[models] Error: Invalid Authentication",
    "[models] Error: Api key is invalid",
]


@pytest.mark.parametrize("message", PROVIDER_KEYS)
@pytest.mark.parametrize(
    ("code", "prefix"),
    [("completion_request_error", ""), ("run_failed", ""), ("invalid_param", "Run failed: ")],
)
def test_a_wrong_key_of_a_model_provider_is_corrected_in_dify(
    message: str, code: str, prefix: str
) -> None:
    error = to_error(ErrorResponse(400, code, prefix + message), "tiny")
    assert type(error) is errors.ModelNotReady
    assert "Settings > Model Provider" in error.message
    assert message.strip() in error.message
    assert "MODEL_CONFIG" not in error.message


def test_an_agent_that_waits_for_a_person_is_left_as_a_conversation_that_has_ended() -> None:
    said = (
        "Cannot provide a new user prompt when the message history contains unprocessed tool calls."
        " (agent_run_id=3b9cae40)"
    )
    error = to_error(ErrorResponse(400, "completion_request_error", said), "tiny")
    assert type(error) is errors.ConversationNotFound
    assert "ask_human" in error.message
    assert "new conversation" in error.message


SECRETS = [
    "The key app-aBcDeFgHiJkLmNoPqRsTuVwX is wrong",
    "Incorrect API key provided: sk-proj-1234567890abcdef.",
    "key=app-1234567890",
    '{"api_key":"sk-ant-api03-abc_DEF-123"}',
]
PAGES = [
    "[models] Server Unavailable Error, <html>\r\n<head><title>502 Bad Gateway</title></head>",
    "[models] Connection Error, <!DOCTYPE html><p>nginx</p>",
    "<HTML><body>nginx",
]


@pytest.mark.parametrize("message", SECRETS)
@pytest.mark.parametrize("status", [400, 401, 404, 429, 500])
@pytest.mark.parametrize("code", ["invalid_param", "completion_request_error", "run_failed", ""])
def test_a_key_in_a_reason_is_not_shown(message: str, status: int, code: str) -> None:
    shown = to_error(ErrorResponse(status, code, message), "tiny").message
    for part in ("aBcDeF", "123456", "abc_DEF", "api03"):
        assert part not in shown


@pytest.mark.parametrize("message", PAGES)
@pytest.mark.parametrize("code", ["completion_request_error", "run_failed", "invalid_param", ""])
def test_a_page_in_a_reason_is_not_shown(message: str, code: str) -> None:
    shown = to_error(ErrorResponse(400, code, message), "tiny").message
    for part in ("<", "nginx", "Gateway"):
        assert part not in shown


def test_an_endless_reason_is_cut() -> None:
    error = to_error(ErrorResponse(400, "invalid_param", "x" * 100_000), "tiny")
    assert len(error.message) <= MAX_MESSAGE


TEXTS = st.text() | st.sampled_from([BUSY, UNKNOWN, *SECRETS, *PAGES, "Run failed: 429"])
CODES = st.text() | st.sampled_from(sorted({row.values[1] for row in ERRORS}))


@given(status=st.integers() | st.integers(100, 599), code=CODES, message=TEXTS)
def test_any_failure_gives_an_error_that_a_client_can_read(
    status: int, code: str, message: str
) -> None:
    error = to_error(ErrorResponse(status, code, message), "tiny")
    assert isinstance(error, errors.DifyError)
    assert 400 <= error.status < 600
    assert error.message.strip()
    schemas.assert_error(json.loads(json.dumps(error_body(error))))


@given(
    status=st.integers(100, 599),
    headers=st.dictionaries(st.sampled_from(["retry-after", "server"]), st.text()),
    body=st.binary(),
)
def test_any_answer_is_read(status: int, headers: dict[str, str], body: bytes) -> None:
    assert isinstance(
        to_error(parse_error_response(status, headers, body), "tiny"), errors.DifyError
    )


RECORDED = [n for n in recorded_names() if recording(n).status >= 400]
SOUNDS = ("mp3", "mpeg", "wav", "webm", "x_m4a")
RECORDED_REFUSALS: dict[str, type[errors.DifyError]] = {
    "file_too_many": errors.RejectedByDify,
    "file_unknown_id": errors.RejectedByDify,
    "missing_inputs": errors.RejectedByDify,
    "missing_query": errors.RejectedByDify,
    "missing_user": errors.RejectedByDify,
    "missing_required_input_stream": errors.RejectedByDify,
    "missing_required_input_block": errors.RejectedByDify,
    "stream_conv_not_uuid": errors.RejectedByDify,
    "empty_inputs": errors.RejectedByDify,
    "suggested": errors.RejectedByDify,
    "upload_too_large_image": errors.FileTooLargeForDify,
    "no_auth_header": errors.UpstreamAuthError,
    "wrong_key": errors.UpstreamAuthError,
    "stream_conv_deleted": errors.ConversationNotFound,
    "stream_conv_of_other_user": errors.ConversationNotFound,
    "stream_conv_unknown": errors.ConversationNotFound,
    "block_conv_unknown": errors.ConversationNotFound,
    "conversation_delete_unknown": errors.ConversationNotFound,
    "messages_unknown_conv": errors.ConversationNotFound,
    "messages": errors.UpstreamConfigError,  # a text generator has none
    "on_chat_messages": errors.UpstreamConfigError,
    "on_completion_endpoint": errors.UpstreamConfigError,
    "on_completion_messages": errors.UpstreamConfigError,
    "on_workflow_endpoint": errors.UpstreamConfigError,
    "conversations": errors.UpstreamConfigError,
    "llm_fail_start_block": errors.RunFailed,
    "llm_fail_mid_block": errors.RunFailed,
    "llm_fail_ratelimit_block": errors.RateLimited,
    "empty_query": errors.RejectedByDify,
    "feedback_unknown_message": errors.BadUpstreamResponse,  # asked of no model
    "stream_not_published": errors.ModelNotReady,
    "stream_no_model": errors.ModelNotReady,
    "agent-draft/stream_first": errors.ModelNotReady,
    "completion/suggested": errors.UpstreamConfigError,
    "flow-draft/parameters": errors.UpstreamConfigError,
    "audio_to_text_mpeg": errors.FileTypeRefusedByDify,
    "audio_to_text_webm": errors.FileTypeRefusedByDify,
    "audio_to_text_x_m4a": errors.FileTypeRefusedByDify,
    "text_to_audio": errors.RejectedByDify,
    "form_submit": errors.RejectedByDify,
    "form_submit_again": errors.RejectedByDify,
    "form_submit_bad_action": errors.RejectedByDify,
    "form_submit_bad_option": errors.RejectedByDify,
    "form_submit_missing_input": errors.RejectedByDify,
    "form_get_after_submit": errors.RejectedByDify,
    "form_get_unknown": errors.BadUpstreamResponse,
    "events_other_user": errors.BadUpstreamResponse,
    # An app without speech to text refuses all sounds alike.
    **{f"flow/audio_to_text_{kind}": errors.RejectedByDify for kind in SOUNDS},
}


def expected_refusal(name: str) -> type[errors.DifyError]:
    """By app and case, or by case."""
    _, case = name.split("/", 1)
    return RECORDED_REFUSALS.get(case) or RECORDED_REFUSALS[case.rpartition("/")[2]]


@pytest.mark.parametrize("name", RECORDED)
def test_a_recorded_refusal_means_what_the_table_says(name: str) -> None:
    answer = recording(name)
    headers = {key.lower(): value for key, value in answer.headers.items()}
    # So agents answer every call that does not stream.
    blocked = re.search(b"does not support blocking|only supports streaming", answer.body)
    kind = errors.RejectedByDify if blocked else expected_refusal(name)
    error = to_error(parse_error_response(answer.status, headers, answer.body), "tiny")
    assert type(error) is kind


RECORDED_FAILURES = {
    "llm_fail_mid_stream": errors.RunFailed,
    "llm_fail_start_stream": errors.RunFailed,
    "llm_fail_ratelimit_stream": errors.RateLimited,
    "stopped_stream": errors.RunFailed,  # one stopped before its second node "failed"
    "stream_backend_has_no_sandbox": errors.RunFailed,
    "stream_backend_refused": errors.RunFailed,
    "turn_while_asking": errors.ConversationNotFound,
    "empty_query": errors.RejectedByDify,
    "file_unknown_id": errors.RejectedByDify,
    "missing_required_input_stream": errors.RejectedByDify,
}


def first_failure(name: str) -> Failed | None:
    for block in recording(name).body.split(b"\n\n"):
        if block.startswith(b"data: "):
            event: Any = parse_event(parse_payload(block[6:]))
            if isinstance(event, Failed):
                return event
    return None


@pytest.mark.parametrize(
    "name", [n for n in recorded_streams() if recording(n).is_stream and first_failure(n)]
)
def test_a_recorded_failure_in_a_stream_means_what_the_table_says(name: str) -> None:
    failed = first_failure(name)
    assert failed is not None
    error = to_error(ErrorResponse(failed.status, failed.code, failed.message), "tiny")
    assert type(error) is RECORDED_FAILURES[name.rpartition("/")[2]]
