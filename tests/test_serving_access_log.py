"""What callers may write into Gunicorn's access log."""

import pytest

from opendify.serving.access_log import escaped


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("/v1/models/中文", "/v1/models/中文"),
        ("/a\n2026 forged", "/a\\n2026 forged"),
        ("/a\r\x1b[2J\x85\u2028b", "/a\\r\\x1b[2J\\x85\\u2028b"),
        ("\ud800", "\\ud800"),
        (200, 200),
        (None, None),
    ],
)
def test_nobody_begins_a_line(value: object, written: object) -> None:
    assert escaped(value) == written
