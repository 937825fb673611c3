"""Errors of httpx on the way to Dify, as ours: a message for the caller, a cause for the log."""

import httpx

from opendify import errors
from opendify.config.models import Model
from opendify.upstream import causes
from opendify.upstream.causes import Cause


def to_network_error(exc: httpx.HTTPError, model: Model) -> errors.OpenDifyError:
    """One of our errors for one of httpx, whose own words are not for callers."""
    if isinstance(exc, httpx.PoolTimeout):
        return errors.Overloaded(
            "All connections to Dify are in use; try again in a moment.", retry_after=2
        )
    if isinstance(exc, httpx.ConnectTimeout):
        return _caused(errors.UpstreamConnectTimeout, causes.CONNECT_TIMEOUT, model)
    if isinstance(exc, httpx.TimeoutException):
        return _caused(errors.UpstreamTimeout, causes.READ_TIMEOUT, model)
    if isinstance(exc, httpx.ProxyError):
        return _caused(errors.UpstreamUnreachable, causes.of_proxy(str(exc)), model)
    cause = causes.find_cause(exc) or causes.CLOSED
    return _caused(errors.UpstreamUnreachable, cause, model)


def _caused(kind: type[errors.DifyError], cause: Cause, model: Model) -> errors.DifyError:
    error = kind(cause.message)
    error.details = causes.describe(model, cause.log)
    return error
