from typing import Any

import jwt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from werkzeug.datastructures import EnvironHeaders, Headers

from opendify.errors import InvalidUserToken
from opendify.protocols import openwebui

CHATS = [
    pytest.param({}, "", id="told nowhere"),
    pytest.param({"X-OpenWebUI-Chat-Id": "h"}, "h", id="in its header"),
    pytest.param({"x-openwebui-chat-id": "h"}, "h", id="in lower case"),
    pytest.param({"X-OPENWEBUI-CHAT-ID": "h"}, "h", id="in upper case"),
    pytest.param({"X-OpenWebUI-Chat-Id": " h "}, "h", id="with blanks"),
    pytest.param({"X-OpenWebUI-Chat-Id": " "}, "", id="an empty header"),
    pytest.param({"X-OpenWebUI-Chat-Id": "{{CHAT_ID}}"}, "", id="a template"),
]


@pytest.mark.parametrize(("headers", "expected"), CHATS)
def test_the_chat_is_found(headers: dict[str, str], expected: str) -> None:
    assert openwebui.chat_id(Headers(headers)) == expected


def test_the_user_is_found() -> None:
    headers = Headers({"x-openwebui-USER-id": " h ", "X-OpenWebUI-User-Role": " admin "})
    assert (openwebui.user_id(headers), openwebui.role(headers)) == ("h", "admin")
    headers = Headers({"X-OpenWebUI-User-Id": "\xc3\xa0"})
    assert (openwebui.user_id(headers), openwebui.role(headers)) == ("\xc3\xa0", "")


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        pytest.param({}, "", id="no header"),
        pytest.param({"X-OpenWebUI-Task": ""}, "", id="a turn of the user"),
        pytest.param({"X-OpenWebUI-Task": " "}, "", id="blanks"),
        pytest.param({"x-openwebui-task": "title_generation"}, "title_generation", id="a task"),
    ],
)
def test_the_task_is_found(headers: dict[str, str], expected: str) -> None:
    assert openwebui.task(Headers(headers)) == expected


@pytest.mark.parametrize(
    ("chat_id", "expected"),
    [
        ("temporary:ElSHthyP8UPrB3UtAAAJ", True),
        ("local:ElSHthyP8UPrB3UtAAAJ", True),
        ("79d6c649-f362-421d-95c8-16fd2bb0c936", False),
        ("locale", False),
        ("temporary", False),
        ("", False),
    ],
)
def test_a_temporary_chat_is_recognised_by_its_id(chat_id: str, expected: bool) -> None:
    assert openwebui.is_temporary(chat_id) == expected


SECRET = "the secret that both sides know, "
NOW = 1_795_460_080
CLAIMS = {
    "sub": "ada",
    "email": "ada@example.com",
    "name": "Ada",
    "role": "user",
    "iss": "open-webui",
    "iat": NOW - 10,
    "exp": NOW + 290,
}


def token(secret: str = SECRET, algorithm: str = "HS256", **claims: Any) -> str:
    told = {name: value for name, value in {**CLAIMS, **claims}.items() if value is not None}
    return jwt.encode(told, secret, algorithm=algorithm)


def person(value: str) -> tuple[str, str]:
    headers = Headers({"x-openwebui-user-jwt": value, "X-OpenWebUI-User-Id": "eve"})
    headers["X-OpenWebUI-User-Role"] = "admin"
    return openwebui.verified_user(headers, SECRET, NOW)


BELIEVED = [
    pytest.param({}, ("ada", "user"), id="a token of Open WebUI"),
    pytest.param({"sub": " ada "}, ("ada", "user"), id="blanks around the id"),
    pytest.param({"role": None}, ("ada", ""), id="no role"),
    pytest.param({"role": 5}, ("ada", ""), id="a role that is no text"),
    pytest.param({"email": None, "name": None, "iat": None}, ("ada", "user"), id="no more claims"),
    pytest.param({"exp": NOW - 59}, ("ada", "user"), id="clocks that differ a little"),
    pytest.param({"iat": NOW + 3000}, ("ada", "user"), id="made by a clock that is ahead"),
    pytest.param({"sub": "会话"}, ("会话", "user"), id="any letters"),
]


@pytest.mark.parametrize(("claims", "expected"), BELIEVED)
def test_the_token_names_the_user(claims: dict[str, Any], expected: tuple[str, str]) -> None:
    assert person(token(**claims)) == expected


REFUSED = [
    pytest.param("", "has no header X-OpenWebUI-User-Jwt", id="no token"),
    pytest.param(" ", "has no header X-OpenWebUI-User-Jwt", id="a blank token"),
    pytest.param("ada", "must be the same", id="no token at all"),
    pytest.param(token("another secret, of somebody else!"), "must be the same", id="forged"),
    pytest.param(token(algorithm="HS512", secret=SECRET * 2), "must be the same", id="HS512"),
    pytest.param(
        jwt.encode(CLAIMS, None, algorithm="none"), "must be the same", id="not signed at all"
    ),
    pytest.param(token()[:-4], "must be the same", id="cut"),
    pytest.param(token(exp=NOW - 61), "has expired", id="expired"),
    pytest.param(token(exp=None), "must be the same", id="never expires"),
    pytest.param(token(exp="tomorrow"), "has expired", id="a time that is no number"),
    pytest.param(token(exp=True), "has expired", id="a time that is true"),
    pytest.param(token(exp=float("nan")), "has expired", id="a time that is none"),
    pytest.param(token(sub=None), "must be the same", id="of nobody"),
    pytest.param(token(sub=" "), "must be the same", id="of a blank"),
    pytest.param(token(iss="another"), "must be the same", id="of another service"),
    pytest.param(token(iss=None), "must be the same", id="of no service"),
    pytest.param(f"{'W1tb' * 1500}.e30.AAAA", "must be the same", id="a deep head"),
]


@pytest.mark.parametrize(("value", "message"), REFUSED)
def test_without_a_valid_token_nobody_is_believed(value: str, message: str) -> None:
    with pytest.raises(InvalidUserToken, match=message) as caught:
        person(value)
    assert caught.value.status == 401
    assert SECRET not in caught.value.message
    assert not value.strip() or value == "ada" or value not in caught.value.message


@given(st.text())
def test_any_text_that_is_no_token_is_refused(value: str) -> None:
    with pytest.raises(InvalidUserToken):
        openwebui.verified_user({"X-OpenWebUI-User-Jwt": value}, SECRET, NOW)


@given(st.lists(st.binary(max_size=60), min_size=1, max_size=4))
def test_any_bytes_in_the_form_of_a_token_are_refused(parts: list[bytes]) -> None:
    value = ".".join(jwt.utils.base64url_encode(part).decode() for part in parts)
    with pytest.raises(InvalidUserToken):
        openwebui.verified_user({"X-OpenWebUI-User-Jwt": value}, SECRET, NOW)


NAMES = [
    "X-OpenWebUI-Chat-Id",
    "X-OpenWebUI-Message-Id",
    "X-OpenWebUI-Task",
    "X-OpenWebUI-User-Id",
    "X-OpenWebUI-User-Message-Parent-Id",
]


@given(
    st.dictionaries(
        st.sampled_from([f"HTTP_{name.upper().replace('-', '_')}" for name in NAMES])
        | st.sampled_from(["HTTP_HOST", "HTTP_X_OPENWEBUI", "X_OPENWEBUI_TASK", "CONTENT_TYPE"])
        | st.text("HTPX_OENWBUI-").map("HTTP_X_OPENWEBUI_".__add__),
        st.text(),
    )
)
def test_the_headers_of_open_webui_are_read_as_werkzeug_reads_them(environ: dict[str, str]) -> None:
    told, headers = openwebui.OpenWebUiHeaders(environ), EnvironHeaders(environ)
    for name in NAMES:
        assert told.get(name, "none") == headers.get(name, "none")
        assert told.get(name.lower(), "none") == headers.get(name, "none")
    assert bool(told) == any(name.lower().startswith("x-openwebui-") for name, _ in headers)
