import re
from typing import Any

import pytest

from opendify import errors
from opendify.protocols.openai.chat_response import error_body
from tests.support import schemas


def below(kind: type[Any]) -> list[type[Any]]:
    return [kind, *(found for child in kind.__subclasses__() for found in below(child))]


TREE = below(errors.OpenDifyError)
LEAVES = [kind for kind in TREE if not kind.__subclasses__()]
ROW = re.compile(
    r"^(?P<indent>[ │├└─]*)(?P<name>[A-Z]\w+)(?: +(?P<status>\d{3})(?:  (?P<code>\w+))?)?"
)


def drawing() -> list[tuple[int, re.Match[str]]]:
    """The rows of the docstring's drawing, each with its depth."""
    lines = (errors.__doc__ or "").splitlines()
    start = next(i for i, line in enumerate(lines) if line.strip() == "OpenDifyError")
    rows = []
    for line in lines[start:]:
        match = ROW.match(line)
        if not line.strip() or match is None:
            break
        rows.append(((len(match["indent"]) - 4) // 4, match))
    return rows


def test_the_drawing_is_the_tree() -> None:
    parents: list[str] = []
    drawn = {}
    for depth, row in drawing():
        del parents[depth:]
        drawn[row["name"]] = parents[-1] if parents else "Exception"
        parents.append(row["name"])
    assert drawn == {kind.__name__: kind.__bases__[0].__name__ for kind in TREE}


def test_the_drawing_has_the_status_and_code_of_every_leaf() -> None:
    drawn = {row["name"]: (int(row["status"] or 0), row["code"]) for _, row in drawing()}
    for kind in LEAVES:
        code = None if kind is errors.InvalidRequest else kind.default_code
        if kind is errors.BadUpstreamResponse:
            code = errors.DifyError.default_code
        assert drawn[kind.__name__] == (kind.status, code)


@pytest.mark.parametrize("kind", LEAVES, ids=lambda kind: kind.__name__)
def test_every_leaf_has_a_status_a_type_and_a_code(kind: type[errors.OpenDifyError]) -> None:
    assert 400 <= kind.status < 600
    assert kind.type in (
        "api_error",
        "invalid_request_error",
        "rate_limit_error",
        "insufficient_quota",
    )
    assert kind.default_code
    fault_of_the_caller = kind.status in (400, 401, 403, 404, 405, 410, 413, 415, 416)
    assert (kind.type == "invalid_request_error") == fault_of_the_caller


def test_no_two_leaves_share_a_code() -> None:
    """But for the two limits of rate, ours and Dify's, which a caller treats alike."""
    codes = [kind.default_code for kind in LEAVES if kind is not errors.CallerRateLimited]
    assert len(set(codes)) == len(codes)


@pytest.mark.parametrize("kind", TREE, ids=lambda kind: kind.__name__)
def test_every_error_has_a_body_as_openai_writes_it(kind: type[errors.OpenDifyError]) -> None:
    body = error_body(kind("Why it failed.", param="messages"))
    schemas.assert_error(body)
    assert body["error"] == {
        "message": "Why it failed.",
        "type": kind.type,
        "param": "messages",
        "code": kind.default_code,
    }
    schemas.assert_error(error_body(kind("Why it failed.")))


def test_a_code_of_its_own_wins() -> None:
    error = errors.InvalidRequest("x", code="unsupported")
    assert error_body(error)["error"]["code"] == "unsupported"


def test_only_what_ran_nothing_may_be_repeated_by_a_client_itself() -> None:
    assert {kind for kind in LEAVES if kind.retryable} == {
        errors.CallerRateLimited,
        errors.Overloaded,
        errors.StoreUnavailable,
        errors.UpstreamUnreachable,
        errors.UpstreamUnavailable,
        errors.RateLimited,
    }


def test_a_disconnected_caller_gets_no_error() -> None:
    assert not issubclass(errors.ClientDisconnected, errors.OpenDifyError)
