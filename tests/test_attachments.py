"""What becomes of the files of a message, by what the app takes."""

import base64
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from opendify.dify.apps import FileRules
from opendify.errors import CallerError, InvalidRequest, RequestTooLarge
from opendify.files.attachments import (
    ReadyFile,
    Speech,
    Step,
    Upload,
    plan,
)
from opendify.files.content import decode
from opendify.protocols.openai.messages import Attachment, parse_messages

PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 20
ID = "37275685-e525-4380-a409-a4043514240d"
BOTH = frozenset({"local_file", "remote_url"})
MEGABYTE = 1024 * 1024


def rules(*kinds: str, extensions: str = "", **more: Any) -> FileRules:
    return FileRules(
        kinds=frozenset(kinds),
        extensions=frozenset(extensions.split()),
        **{"methods": BOTH, **more},
    )


def data(content: bytes, kind: str = "file", **more: str) -> Attachment:
    return Attachment(kind, data=base64.b64encode(content).decode(), path="messages[0]", **more)


def url(address: str, kind: str = "file", **more: str) -> Attachment:
    return Attachment(kind, url=address, path="messages[0]", **more)


def one(attachment: Attachment, told: FileRules | None, speech: bool = False) -> Step:
    [step] = plan("tiny", [attachment], told, speech)
    return step


def refused(attachment: Attachment, told: FileRules | None, speech: bool = False) -> CallerError:
    with pytest.raises(CallerError) as raised:
        plan("tiny", [attachment], told, speech)
    assert raised.value.param == "messages[0]"
    return raised.value


@pytest.mark.parametrize(
    ("attachment", "told", "kind"),
    [
        (data(PNG, "image", media_type="image/png"), rules("image"), "image"),
        (data(PNG, "image"), None, "image"),
        (data(b"%PDF-1.7"), rules("document"), "document"),
        (data(b"words", name="a.md"), rules("document", "image"), "document"),
        (data(b"ID3", "audio", media_type="audio/mp3"), rules("audio"), "audio"),
        (data(b"x", name="a.mp4"), rules("video"), "video"),
        (data(b"x = 1", name="a.py"), rules("custom", extensions="py js"), "custom"),
        (data(b"x = 1", name="a.PY"), rules("custom", extensions="py js"), "custom"),
        (data(PNG, "image"), rules("custom", extensions="png"), "custom"),
        (data(PNG, "image"), rules("image", "custom", extensions="png"), "image"),
        (data(b"x = 1", name="a.py"), None, "custom"),
    ],
)
def test_content_is_uploaded_as_the_kind_that_the_app_takes(
    attachment: Attachment, told: FileRules | None, kind: str
) -> None:
    step = one(attachment, told)
    assert isinstance(step, Upload)
    assert step.kind == kind


@pytest.mark.parametrize(
    ("attachment", "told", "kind"),
    [
        (url("https://x.example/cat", "image"), rules("image"), "image"),
        (url("https://x.example/cat.jpg?size=3", "image"), None, "image"),
        (url("https://x.example/a.pdf", "image"), rules("document"), "document"),
        (url("https://x.example/a.mp3"), rules("audio"), "audio"),
        (url("https://x.example/get", name="a.pdf"), rules("document"), "document"),
        (url("https://x.example/get"), rules("document", "image"), "document"),
        (url("https://x.example/get"), rules("image"), "image"),
        (url("https://x.example/get.php?id=1"), None, "document"),
        (url("https://x.example/a.log"), rules("custom", extensions="log"), "custom"),
        (url("https://[x.example/a.png"), rules("document"), "document"),
    ],
)
def test_an_address_is_handed_to_dify(
    attachment: Attachment, told: FileRules | None, kind: str
) -> None:
    assert one(attachment, told) == ReadyFile(
        {"type": kind, "transfer_method": "remote_url", "url": attachment.url}
    )


@pytest.mark.parametrize(
    ("name", "told", "kind"),
    [
        ("a.png", rules("image", "document"), "image"),
        ("", rules("image"), "image"),
        ("", None, "document"),
        ("a.log", rules("custom", extensions="log"), "custom"),
    ],
)
def test_a_file_that_dify_has_is_named_by_its_id(
    name: str, told: FileRules | None, kind: str
) -> None:
    assert one(Attachment("file", file_id=ID, name=name), told) == ReadyFile(
        {"type": kind, "transfer_method": "local_file", "upload_file_id": ID}
    )


@pytest.mark.parametrize(
    ("attachment", "told", "says"),
    [
        (data(PNG, "image"), rules(), "takes no files.*drop them.*Features > File Upload"),
        (data(PNG, "image"), rules("document"), r"no image files \('image.png'\), only document"),
        (
            data(b"x = 1", name="a.py"),
            rules("image", "custom", extensions="js ts"),
            r"no files with the extension .py \('a.py'\), only image, .js, .ts",
        ),
        (data(b"\0\1"), rules("image"), "no files with the extension .bin"),
        (data(b"ID3", "audio"), rules("image"), "no audio files"),
        (url("https://x.example/a.png", "image"), rules("document"), "no image files"),
        (url("https://x.example/a"), rules(), "takes no files"),
        (
            url("https://x.example/a.png", "image"),
            rules("image", methods=frozenset({"local_file"})),
            "uploaded files only: send the file itself",
        ),
        (
            data(PNG, "image"),
            rules("image", methods=frozenset({"remote_url"})),
            "addresses of files only",
        ),
        (
            Attachment("file", file_id="file-abc", path="messages[0]"),
            None,
            "must hold the id of a file that was uploaded to Dify",
        ),
        (
            Attachment("file", file_id=ID, name="a.mp3", path="messages[0]"),
            rules("image"),
            "no audio files",
        ),
    ],
)
def test_what_the_app_would_drop_is_refused(
    attachment: Attachment, told: FileRules | None, says: str
) -> None:
    error = refused(attachment, told)
    assert error.status == 400
    assert re.search(says, error.message)
    assert "'tiny'" in error.message or attachment.file_id == "file-abc"


def test_a_file_beyond_the_limit_of_its_extension_is_refused() -> None:
    limited = rules("image", "document", max_bytes={"image": 10, "document": 1000, "custom": 1000})
    error = refused(data(PNG, "image"), limited)
    assert isinstance(error, RequestTooLarge)
    assert error.code == "file_too_large"
    one(data(b"w" * 1000, name="a.txt"), limited)
    refused(data(b"w" * 1001, name="a.txt"), limited)
    as_custom = rules("custom", extensions="png", max_bytes={"image": 10, "custom": 1000})
    refused(data(PNG), as_custom)


def test_more_files_than_the_app_takes_are_refused() -> None:
    picture, speech = data(PNG, "image"), data(b"ID3", "audio")
    told = rules("image", max_count=2)
    assert len(plan("tiny", [picture, speech, picture], told, True)) == 3
    with pytest.raises(InvalidRequest, match=r"has 3 files.* at most 2"):
        plan("tiny", [picture] * 3, told, True)


def test_no_message_has_more_files_than_any_app_takes() -> None:
    picture = data(PNG, "image")
    assert len(plan("tiny", [picture] * 50, None, False)) == 50
    with pytest.raises(InvalidRequest, match="at most 50 are allowed"):
        plan("tiny", [picture] * 51, None, False)


@pytest.mark.parametrize(
    ("content", "told", "media_type"),
    [
        (b"ID3", "audio/mp3", "audio/mp3"),
        (b"ID3", "audio/mpeg", "audio/mp3"),
        (b"RIFF\0\0\0\0WAVE", "", "audio/wav"),
        (b"\0", "audio/x-m4a", "audio/m4a"),
        (b"\0", "audio/amr", "audio/amr"),
    ],
)
def test_audio_is_written_down_where_the_app_takes_none(
    content: bytes, told: str, media_type: str
) -> None:
    step = one(data(content, "audio", media_type=told), rules("image"), speech=True)
    assert isinstance(step, Speech)
    assert step.content.media_type == media_type
    with_audio = one(data(content, "audio", media_type=told), rules("audio"), speech=True)
    assert isinstance(with_audio, Upload)


@pytest.mark.parametrize("told", ["audio/webm", "audio/ogg", "audio/flac"])
def test_speech_in_a_format_that_dify_cannot_read_is_refused(told: str) -> None:
    error = refused(data(b"\0", "audio", media_type=told), rules("image"), speech=True)
    assert "mp3, mpga, m4a, wav, amr" in error.message


def test_too_much_speech_is_refused() -> None:
    long = data(b"ID3" + bytes(30 * MEGABYTE), "audio", media_type="audio/mp3")
    assert refused(long, rules(), speech=True).status == 413


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("aGk=", b"hi"),
        ("aGk", b"hi"),
        (" aG\r\nk = ", b"hi"),
        ("-_-_", b"\xfb\xff\xbf"),
        ("+/+/", b"\xfb\xff\xbf"),
        ("%2B%2F%2B%2F", b"\xfb\xff\xbf"),
    ],
)
def test_base64_is_read_as_clients_write_it(text: str, content: bytes) -> None:
    assert decode(text, "x") == content


@pytest.mark.parametrize("text", ["a", "a===", "aG!k", "=", "   ", "文字", "aGk=aGk=", "%zz"])
def test_what_is_no_base64_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest) as raised:
        decode(text, "messages[3]")
    assert raised.value.param == "messages[3]"
    assert "messages[3]" in raised.value.message


@given(st.binary(min_size=1, max_size=200))
def test_any_bytes_come_back(content: bytes) -> None:
    assert decode(base64.b64encode(content).decode(), "x") == content
    assert decode(base64.urlsafe_b64encode(content).decode().rstrip("="), "x") == content
    assert decode(base64.encodebytes(content).decode(), "x") == content


_RULES = st.one_of(
    st.none(),
    st.builds(
        FileRules,
        kinds=st.frozensets(st.sampled_from(["image", "document", "audio", "video", "custom"])),
        extensions=st.frozensets(st.sampled_from(["py", "png"])),
        methods=st.frozensets(st.sampled_from(["local_file", "remote_url"])),
        max_count=st.integers(0, 2),
        max_bytes=st.just({"image": 10}),
    ),
)
_ATTACHMENTS = st.lists(
    st.builds(
        Attachment,
        kind=st.sampled_from(["image", "audio", "file"]),
        url=st.one_of(st.just(""), st.text(max_size=30).map("http://".__add__)),
        data=st.one_of(
            st.text(max_size=20), st.binary().map(lambda b: base64.b64encode(b).decode())
        ),
        media_type=st.text(max_size=20),
        name=st.text(max_size=20),
        file_id=st.one_of(st.just(""), st.just(ID), st.text(max_size=5)),
    ),
    max_size=3,
)


@given(_ATTACHMENTS, _RULES, st.booleans())
def test_anything_is_planned_within_the_rules_or_refused(
    attachments: list[Attachment], told: FileRules | None, speech: bool
) -> None:
    try:
        steps = plan("tiny", attachments, told, speech)
    except CallerError as exc:
        assert exc.message
        return
    assert len(steps) == len(attachments)
    for step in steps:
        if told is not None and isinstance(step, Upload):
            assert step.kind in told.kinds
        if told is not None and isinstance(step, ReadyFile):
            assert step.file["type"] in told.kinds


def test_an_error_names_the_part_of_the_request() -> None:
    body = [
        {"role": "user", "content": "first"},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "look"},
                {"type": "image_url", "image_url": {"url": "data:image/png;base64,a"}},
            ],
        },
    ]
    with pytest.raises(InvalidRequest) as raised:
        plan("tiny", parse_messages(body)[-1].attachments, None, False)
    assert raised.value.param == "messages[1].content[1].image_url"
