"""CONVERSATION_STORE: what is understood, and that nothing secret is ever shown."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.connection import parse_url

from opendify.config.parsing import InvalidValue
from opendify.config.redis_url import parse_store_url, redact_url
from opendify.config.settings import ConfigError, load_settings

GOOD = {"DIFY_API_BASE": "https://dify.example.com/v1", "MODEL_CONFIG": '{"m":"app-k"}'}


@pytest.mark.parametrize("value", ["", "file"])
def test_the_file_is_the_default(value: str) -> None:
    assert parse_store_url(value) == ""
    assert redact_url("") == "file"


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("redis://localhost", "redis://localhost:6379/0"),
        ("redis://localhost/", "redis://localhost:6379/0"),
        ("redis://:secret@redis.example.com:6380/3", "redis://redis.example.com:6380/3"),
        ("rediss://user:secret@r:1/0", "rediss://r:1/0"),
        ("redis://user:se%2Fcret%40@[::1]:7", "redis://[::1]:7/0"),
        ("rediss://:secret@r?ssl_cert_reqs=none", "rediss://r:6379/0"),
        ("rediss://r/1?ssl_ca_certs=/etc/ca.pem&ssl_check_hostname=false", "rediss://r:6379/1"),
    ],
)
def test_an_address_is_understood_and_shown_without_secrets(address: str, shown: str) -> None:
    assert parse_store_url(address) == address
    assert redact_url(address) == shown
    assert parse_url(address)["host"]


@pytest.mark.parametrize(
    "value",
    [
        "files",
        "memory",
        "localhost:6379",
        "mysql://:secret@r",
        "http://secret@r",
        "unix:///tmp/secret",
        "redis://",
        "redis:secret",
        "redis://:secret@",
        "redis://:secret@r:port",
        "redis://:secret@r:0",
        "redis://:secret@r:65536",
        "redis://:secret@r /0",
        "redis://:sec/ret@r",
        "redis://:sec#ret@r",
        "redis://:sec?ret@r",
        "redis://:secret@r/db",
        "redis://:secret@r/0/1",
        "redis://:secret@r/0#x",
        "redis://:secret@r?password=secret",
        "redis://:secret@r?db",
        "redis://:secret@r?ssl_cert_reqs=none",
        "redis://[secret",
    ],
)
def test_anything_else_is_reported_at_the_start_without_a_part_of_it(value: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings({**GOOD, "CONVERSATION_STORE": value})
    (problem,) = caught.value.problems
    assert problem.startswith("CONVERSATION_STORE ")
    assert "redis" in problem or "known" in problem
    for secret in ("secret", "ret@", "sec"):
        assert secret not in problem


@given(st.text(), st.sampled_from(["", "redis://", "rediss://:p@", "redis://r:1/0?"]))
def test_any_text_is_an_address_or_is_reported(text: str, before: str) -> None:
    try:
        address = parse_store_url(before + text)
    except InvalidValue:
        return
    assert address == "" or parse_url(address)["host"]


def test_no_setting_shows_a_secret() -> None:
    variables = {
        "CONVERSATION_STORE": "redis://:the-password@r/0",
        "OPENDIFY_ADMIN_KEYS": "the-admin-key",
    }
    settings = load_settings({**GOOD, **variables})
    assert "the-password" not in repr(settings)
    assert "the-admin-key" not in repr(settings)


def test_a_wrong_admin_key_is_reported_at_the_start() -> None:
    with pytest.raises(ConfigError) as caught:
        load_settings({**GOOD, "OPENDIFY_ADMIN_KEYS": "good,sha256:secret"})
    assert caught.value.problems == [
        "OPENDIFY_ADMIN_KEYS: key 2: 'sha256:' must be followed by 64 hexadecimal digits."
    ]
