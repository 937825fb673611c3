"""All errors, with their HTTP status and OpenAI error code. No I/O.

    OpenDifyError
    ├── CallerError                 the request cannot be served as it is
    │   ├── InvalidRequest          400
    │   ├── InvalidUserToken        401  invalid_user_token
    │   ├── ModelNotFound           404  model_not_found
    │   ├── InvalidApiKey           401  invalid_api_key
    │   │   └── InvalidAdminKey     401  invalid_api_key
    │   ├── AdminKeyRequired        403  admin_key_needed      the key is not an admin key
    │   ├── AdminKeysNotSet         403  admin_keys_not_set
    │   ├── RouteNotFound           404  not_found
    │   ├── MappingNotFound         404  mapping_not_found
    │   ├── MethodNotAllowed        405  method_not_allowed
    │   ├── OriginNotAllowed        403  origin_not_allowed    another site's page, no keys set
    │   ├── HostNotAllowed          403  host_not_allowed      a Host that anybody may have chosen
    │   ├── InvalidSignature        403  link_refused          of a file link
    │   ├── FileExpired             410  file_gone
    │   ├── RequestTooLarge         413  request_too_large
    │   ├── UnsupportedMediaType    415  unsupported_media_type
    │   └── RangeNotSatisfiable     416  range_not_satisfiable
    ├── CallerRateLimited           429  rate_limit_exceeded   OpenDify's limit for this caller
    ├── Overloaded                  503  overloaded            OpenDify's limit for all callers
    ├── ServerStopping              503  server_stopping       the server stopped during an answer
    ├── StoreUnavailable            503  store_unavailable     the conversation store is unreachable
    ├── InternalError               500  internal_error        details in the log only
    └── DifyError                   Dify, or the connection to it, failed
        ├── UpstreamUnreachable     502  upstream_unreachable
        ├── BadUpstreamResponse     502  upstream_error        cut off, not JSON, a redirect, HTML
        │   └── AnswerTooLong       502  answer_too_long       exceeds the operator's limit
        ├── UpstreamTimeout         504  upstream_timeout
        │   └── UpstreamConnectTimeout  504  upstream_timeout  no request was sent
        ├── UpstreamUnavailable     503  upstream_unavailable
        ├── UpstreamAuthError       502  upstream_auth_error   the app's key, not the caller's
        ├── UpstreamConfigError     502  upstream_config_error
        ├── ModelNotReady           502  model_not_ready
        ├── RunFailed               502  run_failed            the app or its model failed
        ├── RateLimited             429  rate_limit_exceeded
        ├── QuotaExceeded           429  insufficient_quota
        ├── ContextTooLong          400  context_length_exceeded
        ├── RejectedByDify          400  rejected_by_dify
        │   ├── FileTooLargeForDify   413  file_too_large
        │   └── FileTypeRefusedByDify 415  unsupported_file_type
        └── ConversationNotFound    404  conversation_not_found

Outside the tree: ClientDisconnected, for which there is no response.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import ClassVar

# Their messages contain the name of the file.
_CODES_WITH_FILE_NAMES = ("file_too_large", "unsupported_file_type")


class OpenDifyError(Exception):
    """An error that is reported to the client.

    ``message`` is for people and contains no secrets. ``param`` names the field of the request.
    ``retry_after`` is in whole seconds. ``retryable`` says whether a client may repeat the request
    automatically: false if that is useless or would run a turn twice. ``dify_code`` is Dify's error
    code. ``details`` are fields for the log only, because they contain host names. ``quotes`` says
    whether the message may contain text from Dify or the request, which must not be logged.
    """

    status: ClassVar[int] = 500
    type: ClassVar[str] = "api_error"
    default_code: ClassVar[str | None] = None
    retryable = False
    quotes: ClassVar[bool] = False
    dify_code = ""
    details: Mapping[str, str] = MappingProxyType({})

    def __init__(
        self,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.param = param
        self.code = code or self.default_code
        self.retry_after = retry_after

    @property
    def log_message(self) -> str:
        """The message, or an empty string if it must not be logged."""
        return "" if self.quotes or self.code in _CODES_WITH_FILE_NAMES else self.message


class CallerError(OpenDifyError):
    status = 400
    type = "invalid_request_error"


class InvalidRequest(CallerError):
    default_code = "invalid_request"


class InvalidUserToken(CallerError):
    status = 401
    default_code = "invalid_user_token"


class ModelNotFound(CallerError):
    quotes = True
    status = 404
    default_code = "model_not_found"


class InvalidApiKey(CallerError):
    status = 401
    default_code = "invalid_api_key"


class InvalidAdminKey(InvalidApiKey):
    pass


class AdminKeyRequired(CallerError):
    status = 403
    default_code = "admin_key_needed"


class AdminKeysNotSet(CallerError):
    status = 403
    default_code = "admin_keys_not_set"


class RouteNotFound(CallerError):
    quotes = True
    status = 404
    default_code = "not_found"


class MappingNotFound(CallerError):
    quotes = True
    status = 404
    default_code = "mapping_not_found"


class MethodNotAllowed(CallerError):
    quotes = True
    status = 405
    default_code = "method_not_allowed"


class OriginNotAllowed(CallerError):
    quotes = True
    status = 403
    default_code = "origin_not_allowed"


class HostNotAllowed(CallerError):
    quotes = True
    status = 403
    default_code = "host_not_allowed"


class InvalidSignature(CallerError):
    status = 403
    default_code = "link_refused"


class FileExpired(CallerError):
    status = 410
    default_code = "file_gone"


class RequestTooLarge(CallerError):
    status = 413
    default_code = "request_too_large"


class UnsupportedMediaType(CallerError):
    status = 415
    default_code = "unsupported_media_type"


class RangeNotSatisfiable(CallerError):
    status = 416
    default_code = "range_not_satisfiable"


class CallerRateLimited(OpenDifyError):
    status = 429
    type = "rate_limit_error"
    default_code = "rate_limit_exceeded"
    retryable = True


class Overloaded(OpenDifyError):
    status = 503
    default_code = "overloaded"
    retryable = True


class ServerStopping(OpenDifyError):
    """Not retryable: Dify may have started the run."""

    status = 503
    default_code = "server_stopping"


class StoreUnavailable(OpenDifyError):
    status = 503
    default_code = "store_unavailable"
    retryable = True


class InternalError(OpenDifyError):
    default_code = "internal_error"


class DifyError(OpenDifyError):
    quotes = True
    status = 502
    default_code = "upstream_error"


class UpstreamUnreachable(DifyError):
    quotes = False
    default_code = "upstream_unreachable"
    retryable = True


class BadUpstreamResponse(DifyError):
    pass


class AnswerTooLong(BadUpstreamResponse):
    default_code = "answer_too_long"


class UpstreamTimeout(DifyError):
    quotes = False
    status = 504
    default_code = "upstream_timeout"


class UpstreamConnectTimeout(UpstreamTimeout):
    pass


class UpstreamUnavailable(DifyError):
    quotes = False
    status = 503
    default_code = "upstream_unavailable"
    retryable = True


class UpstreamAuthError(DifyError):
    default_code = "upstream_auth_error"


class UpstreamConfigError(DifyError):
    default_code = "upstream_config_error"


class ModelNotReady(DifyError):
    default_code = "model_not_ready"


class RunFailed(DifyError):
    default_code = "run_failed"


class RateLimited(DifyError):
    status = 429
    type = "rate_limit_error"
    default_code = "rate_limit_exceeded"
    retryable = True


class QuotaExceeded(DifyError):
    status = 429
    type = "insufficient_quota"
    default_code = "insufficient_quota"


class ContextTooLong(DifyError):
    status = 400
    type = "invalid_request_error"
    default_code = "context_length_exceeded"


class RejectedByDify(DifyError):
    status = 400
    type = "invalid_request_error"
    default_code = "rejected_by_dify"


class FileTooLargeForDify(RejectedByDify):
    status = 413
    default_code = "file_too_large"


class FileTypeRefusedByDify(RejectedByDify):
    status = 415
    default_code = "unsupported_file_type"


class ConversationNotFound(DifyError):
    status = 404
    type = "invalid_request_error"
    default_code = "conversation_not_found"


class ClientDisconnected(Exception):
    """The client has closed the connection."""
