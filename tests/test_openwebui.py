from typing import Any

import pytest
from werkzeug.datastructures import Headers

from opendify import openwebui
from opendify.openai.requests import ChatRequest, parse_chat_request


def request(**fields: Any) -> ChatRequest:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], **fields}
    return parse_chat_request(body)


CHATS = [
    pytest.param({}, {}, "", id="told nowhere"),
    pytest.param({"X-OpenWebUI-Chat-Id": "h"}, {}, "h", id="in its header"),
    pytest.param({"x-openwebui-chat-id": "h"}, {}, "h", id="in lower case"),
    pytest.param({"X-OPENWEBUI-CHAT-ID": "h"}, {}, "h", id="in upper case"),
    pytest.param({"X-OpenWebUI-Chat-Id": " h "}, {}, "h", id="with blanks"),
    pytest.param({}, {"metadata": {"chat_id": "m"}}, "m", id="in metadata"),
    pytest.param({}, {"chat_id": "b"}, "b", id="in the body"),
    pytest.param(
        {"X-OpenWebUI-Chat-Id": "h"},
        {"metadata": {"chat_id": "m"}, "chat_id": "b"},
        "h",
        id="the header before the body",
    ),
    pytest.param({"X-OpenWebUI-Chat-Id": " "}, {"chat_id": "b"}, "b", id="an empty header is none"),
]


@pytest.mark.parametrize(("headers", "fields", "expected"), CHATS)
def test_the_chat_is_found(headers: dict[str, str], fields: dict[str, Any], expected: str) -> None:
    assert openwebui.chat_id(request(**fields), Headers(headers)) == expected


USERS = [
    pytest.param({}, {}, "", id="told nowhere"),
    pytest.param({}, {"user": "u"}, "u", id="user"),
    pytest.param({"X-OpenWebUI-User-Id": "h"}, {}, "h", id="the header"),
    pytest.param({"x-openwebui-USER-id": " h "}, {}, "h", id="the header in any case"),
    pytest.param({}, {"metadata": {"user_id": "m"}}, "m", id="metadata"),
    pytest.param({}, {"safety_identifier": "s"}, "s", id="safety_identifier"),
    pytest.param(
        {"X-OpenWebUI-User-Id": "h"},
        {"user": "u", "metadata": {"user_id": "m"}, "safety_identifier": "s"},
        "u",
        id="user before all",
    ),
    pytest.param(
        {"X-OpenWebUI-User-Id": "h"},
        {"metadata": {"user_id": "m"}, "safety_identifier": "s"},
        "h",
        id="then the header",
    ),
    pytest.param(
        {}, {"metadata": {"user_id": "m"}, "safety_identifier": "s"}, "m", id="then metadata"
    ),
    pytest.param(
        {"X-OpenWebUI-User-Id": ""},
        {"user": "", "metadata": {"user_id": " "}, "safety_identifier": "s"},
        "s",
        id="empty ones are none",
    ),
    pytest.param({}, {"metadata": {"user_id": 5}}, "", id="a user id that is no text"),
]


@pytest.mark.parametrize(("headers", "fields", "expected"), USERS)
def test_the_person_is_found(
    headers: dict[str, str], fields: dict[str, Any], expected: str
) -> None:
    assert openwebui.user_id(request(**fields), Headers(headers)) == expected


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
