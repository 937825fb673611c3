import pytest
from hypothesis import given
from hypothesis import strategies as st

from opendify.observability.request_ids import is_request_id, parse_request_id

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"
PARENT = f"00-{TRACE}-00f067aa0ba902b7-01"

ROWS = [
    ("abc-DEF_123", "", "abc-DEF_123"),
    ("a" * 128, "", "a" * 128),
    ("a" * 129, "", ""),
    ("", "", ""),
    ("with blank", "", ""),
    ("new\nline", "", ""),
    ("new-line-at-end\n", "", ""),
    ("\u0661\u0662", "", ""),
    ("umlaut-ä", "", ""),
    ("abc", PARENT, "abc"),
    ("", PARENT, TRACE),
    ("not sound", PARENT, TRACE),
    ("", f"01-{TRACE}-00f067aa0ba902b7-01-of-the-future", TRACE),
    ("", PARENT.upper(), ""),
    ("", f"00-{'0' * 32}-00f067aa0ba902b7-01", ""),
    ("", f"{PARENT}\n", ""),
    ("", "00-abc", ""),
]


@pytest.mark.parametrize(("request_id", "traceparent", "name"), ROWS)
def test_a_request_has_the_name_that_its_caller_gave_it(
    request_id: str, traceparent: str, name: str
) -> None:
    assert parse_request_id(request_id, traceparent) == name


@given(st.text(), st.text())
def test_whatever_comes_a_name_may_go_into_a_header(request_id: str, traceparent: str) -> None:
    name = parse_request_id(request_id, traceparent)
    assert name == "" or is_request_id(name)
