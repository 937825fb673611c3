"""Maps errors of httpx to our own: a message for the caller, a cause for the log."""

import httpx

from opendify import errors
from opendify.config.models import Model
from opendify.upstream import causes
from opendify.upstream.causes import Cause


def to_network_error(exc: httpx.HTTPError, model: Model) -> errors.OpenDifyError:
    """Our error for an error of httpx, whose own message must not reach callers."""
    if isinstance(exc, httpx.PoolTimeout):
        return errors.Overloaded(
            "All connections to Dify are in use; try again in a moment.", retry_after=2
        )
    if isinstance(exc, httpx.ConnectTimeout):
        return _with_cause(errors.UpstreamConnectTimeout, causes.CONNECT_TIMEOUT, model)
    if isinstance(exc, httpx.TimeoutException):
        return _with_cause(errors.UpstreamTimeout, causes.READ_TIMEOUT, model)
    if isinstance(exc, httpx.ProxyError):
        return _with_cause(errors.UpstreamUnreachable, causes.proxy_cause(str(exc)), model)
    cause = causes.find_cause(exc) or causes.CLOSED
    return _with_cause(errors.UpstreamUnreachable, cause, model)


def _with_cause(kind: type[errors.DifyError], cause: Cause, model: Model) -> errors.DifyError:
    error = kind(cause.message)
    error.details = causes.describe(model, cause.log)
    return error
