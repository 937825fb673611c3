"""Request ids, as used in logs, responses and Dify's traces. No I/O."""

import re

# The format of Dify's external trace ids.
_ID = re.compile(r"[A-Za-z0-9_-]{1,128}", re.ASCII)
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-[0-9a-f]{16}-[0-9a-f]{2}(?:-.*)?", re.ASCII)


def is_request_id(text: str) -> bool:
    """Whether the text may be used in a header and in the log unchanged."""
    return _ID.fullmatch(text) is not None


def parse_request_id(request_id: str, traceparent: str) -> str:
    """The request id from the caller: ``X-Request-Id``, else the trace id of ``traceparent`` (W3C
    Trace Context). Empty if neither is valid."""
    if is_request_id(request_id):
        return request_id
    trace = _TRACEPARENT.fullmatch(traceparent)
    return trace[1] if trace and trace[1].strip("0") else ""
