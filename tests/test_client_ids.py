"""Who sends a request and in which chat, by the names of all clients."""

import hashlib
from typing import Any

import jwt
import pytest

from opendify.config.id_headers import IdHeaders, load_id_headers
from opendify.errors import InvalidUserToken
from opendify.protocols import client_ids
from opendify.protocols.client_ids import ClientIds
from tests.support.bodies import to_prompt, to_request

USUAL = load_id_headers({}, [])
PARENTS = load_id_headers({"PARENT_ID_HEADERS": "X-Parent-Message-Id"}, [])


def identify(
    headers: dict[str, str], names: IdHeaders = USUAL, secret: str = "", **fields: Any
) -> ClientIds:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], **fields}
    environ = {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in headers.items()}
    return client_ids.identify(to_prompt(body), environ, names, secret, 0)


OPEN_WEBUI = {"X-OpenWebUI-Chat-Id": "o"}
CHATS = [
    pytest.param({}, {}, "", id="told nowhere"),
    pytest.param(OPEN_WEBUI, {}, "o", id="Open WebUI"),
    pytest.param({}, {"metadata": {"chat_id": "m"}}, "m", id="in metadata"),
    pytest.param({}, {"chat_id": "b"}, "b", id="in the body"),
    pytest.param({}, {"chat_id": 5}, "5", id="a number"),
    pytest.param({}, {"chatId": "b"}, "b", id="chatId"),
    pytest.param({}, {"conversationId": " b "}, "b", id="conversationId"),
    pytest.param({}, {"conversation": "conv_1"}, "conv_1", id="a conversation of OpenAI's"),
    pytest.param({}, {"conversation": {"id": "conv_1"}}, "conv_1", id="one as an object"),
    pytest.param({}, {"session_id": "s"}, "s", id="a session of OpenRouter's"),
    pytest.param({"X-Chat-Id": "h"}, {}, "h", id="X-Chat-Id"),
    pytest.param({"X-Conversation-Id": "h"}, {}, "h", id="X-Conversation-Id, as for LibreChat"),
    pytest.param({"x-session-id": " h "}, {}, "h", id="X-Session-Id"),
    pytest.param({"X-Thread-Id": "h"}, {}, "h", id="X-Thread-Id"),
    pytest.param({**OPEN_WEBUI, "X-Chat-Id": "h"}, {"chat_id": "b"}, "o", id="Open WebUI first"),
    pytest.param({"X-Chat-Id": "h"}, {"chat_id": "b"}, "b", id="the body before other headers"),
    pytest.param(
        {}, {"metadata": {"chat_id": "m"}, "chat_id": "b", "chatId": "c"}, "m", id="metadata first"
    ),
    pytest.param({}, {"chat_id": "b", "session_id": "s"}, "b", id="chat_id before others"),
    pytest.param(
        {"X-Session-Id": "s", "X-Chat-Id": "h"}, {}, "h", id="the order of the list decides"
    ),
    pytest.param({"X-OpenWebUI-Chat-Id": " "}, {"chat_id": "b"}, "b", id="an empty header"),
    pytest.param({"X-Chat-Id": "", "X-Session-Id": "s"}, {}, "s", id="an empty one before"),
    pytest.param(
        {"X-Conversation-Id": "{{LIBRECHAT_BODY_CONVERSATIONID}}"}, {}, "", id="a template"
    ),
    pytest.param({"X-Chat-Id": "{{CHAT_ID}}", "X-Session-Id": "s"}, {}, "s", id="one before"),
    pytest.param({}, {"chatId": "{{chat}}"}, "", id="a template in the body"),
    pytest.param({}, {"metadata": {"conversation_id": "d"}}, "", id="Dify's conversation"),
    pytest.param({}, {"conversation_id": "d"}, "", id="Dify's conversation in the body"),
]


@pytest.mark.parametrize(("headers", "fields", "expected"), CHATS)
def test_the_chat_is_found(headers: dict[str, str], fields: dict[str, Any], expected: str) -> None:
    assert identify(headers, **fields).chat_id == expected


@pytest.mark.parametrize(
    "value", [True, False, [], ["c"], {}, {"id": 5.5}, {"id": None}, {"name": "c"}, 1.5, None, ""]
)
@pytest.mark.parametrize("name", client_ids.OTHER_CHAT_FIELDS)
def test_a_value_that_is_no_id_is_no_error(name: str, value: Any) -> None:
    """These names are not ours: other services give them another meaning."""
    assert identify({}, **{name: value}).chat_id == ""
    assert identify({}, **{name: value}, chat_id="c").chat_id == "c"


def test_the_names_of_chats_are_not_named_as_ignored() -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
    fields = dict.fromkeys(client_ids.OTHER_CHAT_FIELDS, "c")
    assert to_request({**body, **fields, "foo": 1}).ignored == ("foo",)


USERS = [
    pytest.param({}, {}, "default_user", id="told nowhere"),
    pytest.param({}, {"user": "u"}, "u", id="user"),
    pytest.param({"X-OpenWebUI-User-Id": "o"}, {}, "o", id="Open WebUI"),
    pytest.param({"X-User-Id": " h "}, {}, "h", id="another header"),
    pytest.param({"X-User-Id": "{{LIBRECHAT_USER_ID}}"}, {}, "default_user", id="a template"),
    pytest.param({"X-OpenWebUI-User-Id": "o", "X-User-Id": "h"}, {}, "o", id="Open WebUI first"),
    pytest.param({"X-User-Id": "h"}, {"metadata": {"user_id": "m"}}, "h", id="before metadata"),
    pytest.param({"X-User-Id": "h"}, {"user": "u"}, "u", id="user before all"),
    pytest.param({}, {"metadata": {"user_id": "m"}, "safety_identifier": "s"}, "m", id="metadata"),
    pytest.param({}, {"safety_identifier": "s"}, "s", id="safety_identifier"),
    pytest.param({}, {"metadata": {"user_id": 5}}, "5", id="a number"),
    pytest.param({}, {"metadata": {"user_id": {}}}, "default_user", id="no name"),
    pytest.param({"X-User-Id": "\xc3\xa0"}, {}, "\xc3\xa0", id="UTF-8 as Latin-1"),
    pytest.param(
        {"X-OpenWebUI-User-Id": "", "X-User-Id": " "},
        {"user": "", "metadata": {"user_id": " "}, "safety_identifier": "s"},
        "s",
        id="empty ones are none",
    ),
]


@pytest.mark.parametrize(("headers", "fields", "expected"), USERS)
def test_the_user_is_found(headers: dict[str, str], fields: dict[str, Any], expected: str) -> None:
    ids = identify(headers, **fields)
    assert (ids.user, ids.is_named_user) == (expected, expected != "default_user")


SECRET = "the secret that both sides know, "


def test_with_a_secret_only_the_token_names_the_user() -> None:
    claims = {"sub": "ada", "role": "user", "iss": "open-webui", "exp": 300}
    others = {"X-OpenWebUI-User-Id": "eve", "X-User-Id": "eve", "X-OpenWebUI-User-Role": "admin"}
    headers = {"X-OpenWebUI-User-Jwt": jwt.encode(claims, SECRET), **others}
    ids = identify(headers, secret=SECRET, user="eve", metadata={"user_id": "eve"})
    assert (ids.user, ids.role) == ("ada", "user")
    with pytest.raises(InvalidUserToken):
        identify(others, secret=SECRET, user="eve")


def test_the_role_is_that_of_open_webui() -> None:
    assert identify({"X-OpenWebUI-User-Role": " admin "}).role == "admin"
    assert identify({}).role == ""


NAMED = {"X-Chat-Id": "c", "X-Message-Id": "answer-2", "X-Parent-Message-Id": "answer-1"}
POSITIONS = [
    pytest.param({}, ("", None), id="told nowhere"),
    pytest.param(NAMED, ("answer-2", "answer-1"), id="another client"),
    pytest.param({**NAMED, "X-Parent-Message-Id": ""}, ("answer-2", None), id="an empty header"),
    pytest.param({"X-Message-Id": "a"}, ("a", None), id="an answer without the one before"),
    pytest.param({"X-Parent-Message-Id": "a"}, ("", None), id="the one before alone"),
    pytest.param(
        {"X-Message-Id": "{{LIBRECHAT_BODY_MESSAGEID}}", "X-Parent-Message-Id": "a"},
        ("", None),
        id="a template",
    ),
    pytest.param(
        {"X-Message-Id": "a", "X-Parent-Message-Id": "{{LIBRECHAT_BODY_PARENTMESSAGEID}}"},
        ("a", None),
        id="a template before",
    ),
    pytest.param(
        {"X-OpenWebUI-Chat-Id": "c", "X-OpenWebUI-Message-Id": "a"}, ("a", ""), id="Open WebUI"
    ),
    pytest.param(
        {
            "X-OpenWebUI-Chat-Id": "c",
            "X-OpenWebUI-Message-Id": "a",
            "X-OpenWebUI-User-Message-Parent-Id": "b",
            **NAMED,
        },
        ("a", "b"),
        id="Open WebUI first",
    ),
    pytest.param({**OPEN_WEBUI, **NAMED}, ("", None), id="no ids of others in its chat"),
]


@pytest.mark.parametrize(("headers", "expected"), POSITIONS)
def test_the_place_in_the_chat_is_found(
    headers: dict[str, str], expected: tuple[str, str | None]
) -> None:
    ids = identify(headers, PARENTS)
    assert (ids.answer_id, ids.parent_answer_id) == expected


def test_the_parent_of_librechat_is_no_answer() -> None:
    """Its template is the user's message: where it counted, no turn would continue another."""
    ids = identify(NAMED)
    assert (ids.answer_id, ids.parent_answer_id) == ("answer-2", None)


@pytest.mark.parametrize(
    ("headers", "fields", "expected"),
    [
        pytest.param(OPEN_WEBUI, {}, True, id="Open WebUI"),
        pytest.param({"X-OpenWebUI-User-Id": "o"}, {"chat_id": "b"}, False, id="only its user"),
        pytest.param({"X-OpenWebUI-Chat-Id": "{{CHAT_ID}}"}, {}, False, id="a template"),
        pytest.param({"X-Chat-Id": "h"}, {}, False, id="another header"),
        pytest.param({}, {"chat_id": "b"}, False, id="the body"),
        pytest.param({}, {}, False, id="no chat"),
    ],
)
def test_only_open_webui_is_known_to_send_everything(
    headers: dict[str, str], fields: dict[str, Any], expected: bool
) -> None:
    assert identify(headers, **fields).sends_whole_history is expected


@pytest.mark.parametrize(
    ("headers", "fields", "expected"),
    [
        ({"X-OpenWebUI-Chat-Id": "temporary:x"}, {}, True),
        ({}, {"chat_id": "local:x"}, True),
        ({"X-Chat-Id": "local:x"}, {}, False),
        (OPEN_WEBUI, {}, False),
    ],
)
def test_a_temporary_chat_is_one_of_open_webui(
    headers: dict[str, str], fields: dict[str, Any], expected: bool
) -> None:
    assert identify(headers, **fields).is_temporary_chat is expected


def test_the_headers_are_those_that_are_configured() -> None:
    names = load_id_headers({"CHAT_ID_HEADERS": "X-Talk", "USER_ID_HEADERS": "none"}, [])
    ids = identify({"X-Talk": "t", "X-Chat-Id": "h", "X-User-Id": "u"}, names)
    assert (ids.chat_id, ids.user) == ("t", "default_user")


def test_a_long_id_is_replaced_by_its_digest() -> None:
    long = "x" * 256
    digest = hashlib.sha256(long.encode()).hexdigest()
    names = ["X-Chat-Id", "X-User-Id", "X-Message-Id", "X-Parent-Message-Id"]
    ids = identify(dict.fromkeys(names, long), PARENTS)
    assert (ids.chat_id, ids.user, ids.answer_id, ids.parent_answer_id) == (digest,) * 4
    assert identify({}, chat_id=long, user=long).chat_id == digest
    assert identify({"X-Chat-Id": "x" * 255}).chat_id == "x" * 255


def test_no_id_holds_a_zero_byte() -> None:
    ids = identify({}, user="a\0b", chatId="c\0d")
    assert (ids.user, ids.chat_id) == ("ab", "cd")
