from typing import Any

import pytest

from opendify.errors import InvalidRequest
from opendify.protocols.openai.messages import (
    ROLES,
    Attachment,
    Message,
    parse_messages,
)

PNG = "data:image/png;base64,iVBORw0KGgo="


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def text(value: str) -> dict[str, Any]:
    return {"type": "text", "text": value}


CONTENTS = [
    pytest.param("Hi", "Hi", id="a string"),
    pytest.param([text("Hi")], "Hi", id="one part"),
    pytest.param([text("a"), text("b")], "a\nb", id="parts are joined with line breaks"),
    pytest.param([{"type": "input_text", "text": "Hi"}], "Hi", id="the word of the other API"),
    pytest.param([text("a"), text(""), text("b")], "a\n\nb", id="an empty part"),
    pytest.param("a\0b", "ab", id="a NUL is dropped"),
    pytest.param("  Hi  ", "  Hi  ", id="blanks stay"),
    pytest.param("你好 \U0001f600 \u2028", "你好 \U0001f600 \u2028", id="any text"),
]


@pytest.mark.parametrize(("content", "expected"), CONTENTS)
def test_the_text_of_a_message_is_read(content: Any, expected: str) -> None:
    assert parse_messages([user(content)]) == (Message("user", expected),)


ATTACHMENTS = [
    pytest.param(
        {"type": "image_url", "image_url": {"url": "https://example.com/a.png", "detail": "low"}},
        Attachment("image", url="https://example.com/a.png"),
        id="an image's address",
    ),
    pytest.param(
        {"type": "image_url", "image_url": "http://example.com/a.png"},
        Attachment("image", url="http://example.com/a.png"),
        id="an image's address, bare",
    ),
    pytest.param(
        {"type": "image_url", "image_url": {"url": PNG}},
        Attachment("image", data="iVBORw0KGgo=", media_type="image/png"),
        id="an image",
    ),
    pytest.param(
        {"type": "image_url", "image_url": {"url": "data:IMAGE/PNG;x=y;base64,QQ=="}},
        Attachment("image", data="QQ==", media_type="image/png"),
        id="an image with more options",
    ),
    pytest.param(
        {"type": "image_url", "image_url": {"url": "data:;base64,QQ=="}},
        Attachment("image", data="QQ=="),
        id="an image without a type",
    ),
    pytest.param(
        {"type": "input_audio", "input_audio": {"data": "QQ==", "format": "mp3"}},
        Attachment("audio", data="QQ==", media_type="audio/mp3", name="audio.mp3"),
        id="audio",
    ),
    pytest.param(
        {"type": "file", "file": {"file_data": "data:application/pdf;base64,QQ=="}},
        Attachment("file", data="QQ==", media_type="application/pdf"),
        id="a file",
    ),
    pytest.param(
        {"type": "file", "file": {"file_data": "QQ==", "filename": "a.pdf"}},
        Attachment("file", data="QQ==", name="a.pdf"),
        id="a file in plain base64, with a name",
    ),
    pytest.param(
        {"type": "file", "file": {"file_url": "https://example.com/a.pdf"}},
        Attachment("file", url="https://example.com/a.pdf"),
        id="a file's address",
    ),
    pytest.param(
        {"type": "input_file", "file_data": "data:application/pdf;base64,QQ==", "filename": "a.b"},
        Attachment("file", data="QQ==", media_type="application/pdf", name="a.b"),
        id="a file of the Responses API",
    ),
    pytest.param(
        {"type": "input_file", "file_id": "f-1"},
        Attachment("file", file_id="f-1"),
        id="a file of the Responses API that was uploaded before",
    ),
    pytest.param(
        {"type": "file", "file": {"file_id": "f-1", "filename": 5}},
        Attachment("file", file_id="f-1"),
        id="a file that was uploaded before",
    ),
]


@pytest.mark.parametrize(("part", "attachment"), ATTACHMENTS)
def test_an_attachment_is_read(part: dict[str, Any], attachment: Attachment) -> None:
    (message,) = parse_messages([user([text("Look"), part])])
    assert message == Message("user", "Look", (attachment,))


@pytest.mark.parametrize("role", ROLES)
def test_every_role_of_openai_is_known(role: str) -> None:
    messages = parse_messages([{"role": role, "content": "x", "name": "n"}, user("Hi")])
    assert messages[0] == Message(role, "x", name="n")


@pytest.mark.parametrize("role", ["assistant", "tool", "function"])
@pytest.mark.parametrize("content", [{}, {"content": None}], ids=["absent", "null"])
def test_an_answer_that_only_called_tools_has_no_text(role: str, content: dict[str, Any]) -> None:
    message = {"role": role, "tool_calls": [{"id": "1"}], **content}
    assert parse_messages([message, user("Hi")])[0] == Message(role, "")


def test_an_answer_of_the_responses_api_is_text() -> None:
    answer = {"role": "assistant", "content": [{"type": "output_text", "text": "Yes."}]}
    assert parse_messages([answer, user("Hi")])[0].text == "Yes."


def test_the_refusal_of_an_assistant_is_text() -> None:
    refusal = {"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}
    assert parse_messages([refusal, user("Hi")])[0].text == "No."


def test_parts_of_an_answer_that_mean_nothing_here_are_left_out() -> None:
    parts = [{"type": "thinking", "thinking": "Hm"}, text("No."), {"type": ["?"]}, "odd"]
    answer = {"role": "assistant", "content": parts}
    assert parse_messages([answer, user("Hi")])[0].text == "No."


@pytest.mark.parametrize(
    ("part", "kind"),
    [
        ({"type": "image_url", "image_url": "HTTPS://a.example/b"}, "image"),
        ({"type": "input_image", "image_url": "https://a.example/b"}, "image"),
        ({"type": "video_url", "video_url": {"url": "https://a.example/b"}}, "video"),
    ],
)
def test_addresses_of_pictures_and_videos(part: dict[str, Any], kind: str) -> None:
    (message,) = parse_messages([user([part])])
    (attachment,) = message.attachments
    assert attachment.kind == kind
    assert attachment.url.lower() == "https://a.example/b"


def test_a_question_of_only_a_file_is_a_question() -> None:
    parts = [{"type": "image_url", "image_url": {"url": PNG}}]
    (message,) = parse_messages([user(parts)])
    assert (message.text, len(message.attachments)) == ("", 1)


def test_the_order_of_messages_stays() -> None:
    raw = [{"role": "system", "content": "s"}, user("a"), {"role": "assistant", "content": "b"}]
    assert [m.text for m in parse_messages([*raw, user("c")])] == ["s", "a", "b", "c"]


ANSWER = {"role": "assistant", "content": "b"}
RELATIVE = {"type": "image_url", "image_url": {"url": "/api/v1/files/x/content"}}
BLOB = {"type": "image_url", "image_url": {"url": "blob:http://x/y"}}

EARLIER = [
    pytest.param([text("see"), RELATIVE], "see", ("image",), id="a relative address"),
    pytest.param([text("see"), BLOB], "see", ("image",), id="a blob"),
    pytest.param(
        [{"type": "image_url", "image_url": {"url": "data:image/png,abc"}}],
        "",
        ("image",),
        id="data that is not base64",
    ),
    pytest.param([{"type": "input_image"}], "", ("image",), id="no address"),
    pytest.param([{"type": "input_audio", "input_audio": {}}], "", ("audio",), id="no audio"),
    pytest.param([{"type": "video_url", "video_url": "x"}], "", ("video",), id="no video"),
    pytest.param([{"type": "file", "file": {}}], "", ("file",), id="no file"),
    pytest.param([{"type": "image", "source": {}}], "", ("image",), id="a picture of another API"),
    pytest.param([text("see"), {"type": "document"}], "see", ("file",), id="an unknown type"),
    pytest.param([{"type": ["image"]}, {}], "", ("file", "file"), id="no type"),
    pytest.param([{"type": "memo", "text": "a"}, text("b")], "a\nb", (), id="an unknown text"),
    pytest.param(["a", text("b"), {"type": "text"}, None, 5], "a\nb", (), id="no parts"),
    pytest.param(None, "", (), id="null"),
    pytest.param({}, "", (), id="an object"),
]


@pytest.mark.parametrize("role", ["user", "tool"])
@pytest.mark.parametrize(("content", "expected", "unusable"), EARLIER)
def test_of_an_earlier_message_the_usable_part_is_enough(
    content: Any, expected: str, unusable: tuple[str, ...], role: str
) -> None:
    messages = parse_messages([{"role": role, "content": content}, ANSWER, user("next")])
    assert messages[0] == Message(role, expected, unusable=unusable)
    with pytest.raises(InvalidRequest):
        parse_messages([user("a"), ANSWER, user(content)])


def test_of_an_answer_and_of_a_tool_s_result_the_usable_part_is_always_enough() -> None:
    answer = {"role": "assistant", "content": [text("here"), RELATIVE]}
    assert parse_messages([user("a"), answer, user("b")])[1] == Message(
        "assistant", "here", unusable=("image",)
    )
    assert parse_messages([user("a"), answer])[1].text == "here"
    result = {"role": "tool", "content": [{"type": "resource", "x": 1}, {"type": "image_url"}]}
    assert parse_messages([user("a"), result, user("b")])[1] == Message(
        "tool", "", unusable=("file", "image")
    )


def test_a_large_file_of_an_earlier_message_is_not_decoded() -> None:
    broken = {"type": "image_url", "image_url": {"url": "data:image/png;base64," + "*" * 10_000}}
    earlier = parse_messages([user([broken]), ANSWER, user("next")])[0]
    assert earlier.attachments == (Attachment("image", data="*" * 10_000, media_type="image/png"),)


ASKING = [
    pytest.param([{"role": "system", "content": "x"}], id="an instruction"),
    pytest.param([{"role": "developer", "content": [text("x")]}], id="an instruction in parts"),
    pytest.param([user("a"), ANSWER, {"role": "system", "content": "x"}], id="one after an answer"),
    pytest.param([user("a"), user("")], id="an empty message after the question"),
    pytest.param([user(""), user("a")], id="an empty message before it"),
    pytest.param([user("a"), {"role": "assistant", "content": None}], id="an answer of null"),
    pytest.param([user("a"), {"role": "assistant", "content": []}], id="an answer of no parts"),
    pytest.param([user("a"), {"role": "assistant", "content": [text("")]}], id="of an empty part"),
    pytest.param([user("a"), {"role": "assistant"}], id="without content"),
    pytest.param([user("a"), ANSWER], id="an answer to be continued"),
]


@pytest.mark.parametrize("raw", ASKING)
def test_messages_that_ask_something_are_taken(raw: list[dict[str, Any]]) -> None:
    assert len(parse_messages(raw)) == len(raw)


REFUSED = [
    pytest.param(None, "messages", id="absent"),
    pytest.param([], "messages", id="empty"),
    pytest.param({}, "messages", id="an object"),
    pytest.param("Hi", "messages", id="a string"),
    pytest.param(["Hi"], "messages[0]", id="a message that is a string"),
    pytest.param([None], "messages[0]", id="a message that is null"),
    pytest.param([{}], "messages[0]", id="no role"),
    pytest.param([{"role": "robot", "content": "x"}], "messages[0]", id="an unknown role"),
    pytest.param([{"role": ["user"], "content": "x"}], "messages[0]", id="a role that is a list"),
    pytest.param([user("a"), {"role": "USER"}], "messages[1]", id="the second message"),
    pytest.param([user(5)], "messages[0].content", id="content that is a number"),
    pytest.param([user(None)], "messages[0].content", id="content that is null"),
    pytest.param([{"role": "user"}], "messages[0].content", id="no content"),
    pytest.param([user({})], "messages[0].content", id="content that is an object"),
    pytest.param([user(["a"])], "messages[0].content[0]", id="a part that is a string"),
    pytest.param([user([{}])], "messages[0].content[0]", id="a part without a type"),
    pytest.param([user([{"type": "video"}])], "messages[0].content[0]", id="an unknown part"),
    pytest.param([user([{"type": []}])], "messages[0].content[0]", id="a type that is a list"),
    pytest.param(
        [user([text("a"), {"type": "text"}])], "messages[0].content[1]", id="a part without text"
    ),
    pytest.param(
        [user([{"type": "image_url"}])], "messages[0].content[0].image_url", id="no address"
    ),
    pytest.param(
        [user([{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}])],
        "messages[0].content[0].image_url",
        id="an address of the server itself",
    ),
    pytest.param(
        [user([{"type": "image_url", "image_url": {"url": "data:image/png,abc"}}])],
        "messages[0].content[0].image_url",
        id="data that is not base64",
    ),
    pytest.param(
        [user([{"type": "image_url", "image_url": {"url": "data:image/png;base64,"}}])],
        "messages[0].content[0].image_url",
        id="data that is empty",
    ),
    pytest.param(
        [user([{"type": "input_audio", "input_audio": {"data": "QQ=="}}])],
        "messages[0].content[0]",
        id="audio without a format",
    ),
    pytest.param(
        [user([{"type": "input_audio", "input_audio": "QQ=="}])],
        "messages[0].content[0]",
        id="audio that is a string",
    ),
    pytest.param(
        [user([{"type": "file", "file": {}}])], "messages[0].content[0].file", id="no file"
    ),
    pytest.param(
        [user([{"type": "file", "file": []}])], "messages[0].content[0].file", id="a list of files"
    ),
    pytest.param([{"role": "system", "content": " "}], "messages", id="nobody asks"),
    pytest.param(
        [{"role": "system", "content": "x"}, {"role": "assistant", "content": "x"}],
        "messages",
        id="only an instruction and an answer",
    ),
    pytest.param([{"role": "assistant", "content": "x"}], "messages", id="only an answer"),
    pytest.param([user("")], "messages", id="an empty question"),
    pytest.param([user(" \n\t")], "messages", id="a question of blanks"),
    pytest.param([user("\0")], "messages", id="a question of NUL"),
    pytest.param([user([])], "messages", id="a question of no parts"),
    pytest.param([user(" "), user([])], "messages", id="all questions are empty"),
    pytest.param(
        [user("a"), ANSWER, user("")], "messages", id="the question after an answer is empty"
    ),
    pytest.param(
        [user("a"), {"role": "assistant", "content": ""}, user("")],
        "messages",
        id="the question after an empty answer is empty",
    ),
    pytest.param([{"role": "assistant", "content": ""}], "messages", id="only an empty answer"),
    pytest.param(
        [user("a"), ANSWER, user([RELATIVE]), user("b")],
        "messages[2].content[0].image_url",
        id="a picture of the turn, in a message of its own",
    ),
    pytest.param(
        [user("a"), ANSWER, user([{"type": "document"}]), {"role": "assistant", "content": ""}],
        "messages[2].content[0]",
        id="a part of the turn, before an empty answer",
    ),
    pytest.param(
        [{"role": "system", "content": None}, user("a"), ANSWER, user("b")],
        "messages[0].content",
        id="an instruction that is null",
    ),
    pytest.param(
        [{"role": "developer", "content": [{"type": "memo"}]}, user("a"), ANSWER, user("b")],
        "messages[0].content[0]",
        id="an instruction in an unknown part",
    ),
    pytest.param(
        [user("a"), ANSWER, {"role": "tool", "content": 4}],
        "messages[2].content",
        id="the result of a tool that is a number",
    ),
    pytest.param(
        [user("a"), ANSWER, {"role": "robot", "content": "x"}, ANSWER, user("b")],
        "messages[2]",
        id="an earlier message of an unknown role",
    ),
]


@pytest.mark.parametrize(("raw", "param"), REFUSED)
def test_messages_that_make_no_question_are_refused_by_the_name_of_the_field(
    raw: Any, param: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse_messages(raw)
    assert caught.value.param == param
    assert caught.value.message.endswith(".")
