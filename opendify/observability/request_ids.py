"""The name that a request has in logs, in answers and in Dify's traces. No I/O."""

import re

# What Dify takes as an external trace id.
_ID = re.compile(r"[A-Za-z0-9_-]{1,128}", re.ASCII)
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?", re.ASCII)


def is_request_id(text: str) -> bool:
    """Whether it may go into a header and a log as it is."""
    return _ID.fullmatch(text) is not None


def parse_request_id(request_id: str, traceparent: str) -> str:
    """The name that the caller gave its request: ``X-Request-Id``, else the trace of a
    ``traceparent`` (W3C Trace Context). "" where neither is sound."""
    if is_request_id(request_id):
        return request_id
    trace = _TRACEPARENT.fullmatch(traceparent)
    return trace[1] if trace and trace[1].strip("0") else ""
