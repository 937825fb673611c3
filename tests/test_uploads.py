"""Files on their way into Dify, over real sockets."""

import base64
import io
import json
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest
from werkzeug.formparser import parse_form_data

from opendify import errors
from opendify.config.models import Model
from opendify.dify.apps import FileRules, parse_file_rules
from opendify.files.attachments import PreparedFiles
from opendify.files.single_flight import SingleFlightCache
from opendify.protocols.base import Attachment
from opendify.upstream.client import DifyClient
from opendify.upstream.uploads import CACHE_SECONDS, Uploads
from tests.support.fake_dify import FakeDify, Request, Steps, recording, refused

PNG = b"\x89PNG\r\n\x1a\n" + b"\0" * 20
MP3 = b"ID3\x04\0"
ANY_KIND = frozenset({"image", "document", "audio"})
ANY_FILE = FileRules(kinds=ANY_KIND, methods=frozenset({"local_file", "remote_url"}))
TEXT_ONLY = FileRules()


@dataclass
class Clock:
    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Disk:
    """What a fake Dify does with uploads: keeps them and numbers them."""

    files: list[dict[str, Any]] = field(default_factory=list)
    before: Callable[[], object] = lambda: None

    def answer(self, request: Request) -> Steps:
        self.before()
        parts = _parts(request) | {"path": request.path, "key": request.headers["authorization"]}
        self.files.append(parts)
        if request.path == "/v1/audio-to-text":
            return refused(200, {"text": f"spoken {len(self.files)}"})
        return refused(201, {"id": f"id-{len(self.files)}", "name": parts["name"]})


def _parts(request: Request) -> dict[str, Any]:
    _, form, files = parse_form_data(
        {
            "wsgi.input": io.BytesIO(request.body),
            "CONTENT_LENGTH": str(len(request.body)),
            "CONTENT_TYPE": request.headers["content-type"],
            "REQUEST_METHOD": "POST",
        }
    )
    file = files["file"]
    with file.stream as stream:
        data = stream.read()
    return {"user": form["user"], "name": file.filename, "type": file.mimetype, "data": data}


@pytest.fixture
def disk(dify: FakeDify) -> Disk:
    disk = Disk()
    dify.answer = disk.answer
    return disk


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def uploads(http: httpx.Client, clock: Clock) -> Uploads:
    return Uploads(DifyClient(http, read_timeout=2.0), clock)


@pytest.fixture
def tiny(models: dict[str, Model]) -> Model:
    return models["tiny"]


def file(content: bytes, kind: str = "image", **more: str) -> Attachment:
    return Attachment(
        kind, data=base64.b64encode(content).decode(), path="messages[0].content[1]", **more
    )


def local(file_id: str, kind: str = "image") -> dict[str, str]:
    return {"type": kind, "transfer_method": "local_file", "upload_file_id": file_id}


def test_a_picture_is_uploaded_with_its_name_type_and_user(
    uploads: Uploads, tiny: Model, disk: Disk
) -> None:
    prepared = uploads.prepare(tiny, "Ann 安", [file(PNG, media_type="image/png")], ANY_FILE)
    assert prepared == PreparedFiles((local("id-1"),))
    assert prepared.ids == {"id-1"}
    assert disk.files == [
        {
            "user": "Ann 安",
            "name": "image.png",
            "type": "image/png",
            "data": PNG,
            "path": "/v1/files/upload",
            "key": f"Bearer {tiny.key}",
        }
    ]


def test_a_name_in_any_script_arrives(uploads: Uploads, tiny: Model, disk: Disk) -> None:
    uploads.prepare(tiny, "u", [file(b"%PDF-1.7", "file", name='年度"报告;\r\n1.pdf')], ANY_FILE)
    assert [f["name"] for f in disk.files] == ["年度_报告; 1.pdf"]


def test_files_keep_their_order(uploads: Uploads, tiny: Model, disk: Disk) -> None:
    address = "https://x.example/cat.png"
    known = "37275685-e525-4380-a409-a4043514240d"
    attachments = [
        file(b"%PDF-1.7", "file"),
        Attachment("image", url=address),
        file(PNG),
        Attachment("file", file_id=known, name="b.txt"),
    ]
    prepared = uploads.prepare(tiny, "u", attachments, ANY_FILE)
    assert list(prepared.files) == [
        local("id-1", "document"),
        {"type": "image", "transfer_method": "remote_url", "url": address},
        local("id-2"),
        local(known, "document"),
    ]
    assert prepared.ids == {"id-1", "id-2", known}


def test_an_address_is_never_fetched(uploads: Uploads, tiny: Model, dify: FakeDify) -> None:
    uploads.prepare(tiny, "u", [Attachment("image", url=f"{dify.base}/a.png")], ANY_FILE)
    assert dify.requests == []


def test_the_same_content_is_uploaded_once_an_hour(
    uploads: Uploads, tiny: Model, disk: Disk, clock: Clock
) -> None:
    for _ in range(3):
        assert uploads.prepare(tiny, "u", [file(PNG), file(PNG)], ANY_FILE).files == (
            local("id-1"),
            local("id-1"),
        )
    clock.now = CACHE_SECONDS
    assert uploads.prepare(tiny, "u", [file(PNG)], ANY_FILE).files == (local("id-2"),)


def test_another_user_model_content_or_name_is_another_upload(
    uploads: Uploads, models: dict[str, Model], disk: Disk
) -> None:
    for model, user, content, name in [
        ("tiny", "u", PNG, "a.png"),
        ("tiny", "v", PNG, "a.png"),
        ("org/model", "u", PNG, "a.png"),
        ("tiny", "u", PNG + b"\0", "a.png"),
        ("tiny", "u", PNG, "b.png"),
    ]:
        uploads.prepare(models[model], user, [file(content, name=name)], ANY_FILE)
    assert len(disk.files) == 5


def test_threads_with_the_same_picture_upload_it_once(
    uploads: Uploads, tiny: Model, disk: Disk
) -> None:
    go_on = threading.Event()
    disk.before = lambda: go_on.wait(10)
    with ThreadPoolExecutor(8) as pool:
        asked = [pool.submit(uploads.prepare, tiny, "u", [file(PNG)], ANY_FILE) for _ in range(8)]
        threading.Timer(0.3, go_on.set).start()
        assert [a.result(20).files for a in asked] == [(local("id-1"),)] * 8
    assert len(disk.files) == 1


def test_what_dify_does_not_know_any_more_is_uploaded_anew(
    uploads: Uploads, models: dict[str, Model], disk: Disk
) -> None:
    tiny, other = models["tiny"], models["org/model"]
    first = uploads.prepare(tiny, "u", [file(PNG), file(b"%PDF-")], ANY_FILE)
    uploads.prepare(other, "u", [file(PNG)], ANY_FILE)
    uploads.forget(tiny, "u", {"id-1"})
    uploads.forget(other, "v", {"id-3"})
    again = uploads.prepare(tiny, "u", [file(PNG), file(b"%PDF-")], ANY_FILE)
    assert again.files == (local("id-4"), first.files[1])
    assert uploads.prepare(other, "u", [file(PNG)], ANY_FILE).files == (local("id-3"),)


def test_nothing_is_uploaded_when_one_file_cannot_be_taken(
    uploads: Uploads, tiny: Model, disk: Disk
) -> None:
    with pytest.raises(errors.InvalidRequest):
        uploads.prepare(tiny, "u", [file(PNG), file(b"\0", name="a.exe")], ANY_FILE)
    assert disk.files == []


def test_speech_is_written_down_for_an_app_that_takes_no_audio(
    uploads: Uploads, tiny: Model, disk: Disk
) -> None:
    said = [file(MP3, "audio", media_type="audio/mpeg"), file(MP3 + b"2", "audio")]
    prepared = uploads.prepare(tiny, "u", said, TEXT_ONLY, speech_to_text=True)
    assert prepared == PreparedFiles((), "spoken 1\nspoken 2")
    assert {(f["path"], f["type"], f["name"]) for f in disk.files} == {
        ("/v1/audio-to-text", "audio/mp3", "audio.mp3")
    }
    assert uploads.prepare(tiny, "u", said[:1], TEXT_ONLY, True).transcript == "spoken 1"


@pytest.mark.parametrize("version", ["1.11.4", "1.13.2"])
@pytest.mark.parametrize("name", ["png", "txt"])
def test_recorded_uploads_are_understood(
    version: str, name: str, uploads: Uploads, tiny: Model, dify: FakeDify
) -> None:
    answer = recording(f"{version}/chat/upload_{name}")
    dify.answer = lambda request: refused(answer.status, answer.body)
    [sent] = uploads.prepare(tiny, "u", [file(PNG)], None).files
    assert sent["upload_file_id"] == json.loads(answer.body)["id"]


@pytest.mark.parametrize("version", ["1.11.4", "1.13.2"])
def test_a_recorded_refusal_names_the_file_and_its_size(
    version: str, uploads: Uploads, tiny: Model, dify: FakeDify
) -> None:
    answer = recording(f"{version}/chat/upload_too_large_image")
    dify.answer = lambda request: refused(answer.status, answer.body)
    with pytest.raises(errors.FileTooLargeForDify) as raised:
        uploads.prepare(tiny, "u", [file(PNG + bytes(1024 * 1024))], None)
    assert raised.value.message == "Dify refused 'image.png' as too large (1.0 MB)."
    assert raised.value.param == "messages[0].content[1]"
    assert raised.value.status == 413


@pytest.mark.parametrize("version", ["1.11.4", "1.13.2"])
def test_the_recorded_rules_of_an_app_let_pass_what_it_takes(
    version: str, uploads: Uploads, tiny: Model, disk: Disk
) -> None:
    told = parse_file_rules(json.loads(recording(f"{version}/chat/parameters").body))
    uploads.prepare(tiny, "u", [file(PNG), file(b"words", "file")], told)
    with pytest.raises(errors.InvalidRequest, match="no audio files"):
        uploads.prepare(tiny, "u", [file(MP3, "audio")], told)
    with pytest.raises(errors.InvalidRequest, match="at most 3"):
        uploads.prepare(tiny, "u", [file(PNG)] * 4, told)
    with pytest.raises(errors.RequestTooLarge, match="up to 10 MB"):
        uploads.prepare(tiny, "u", [file(PNG + bytes(10 * 1024 * 1024))], told)
    assert [f["name"] for f in disk.files] == ["image.png", "file.txt"]


@pytest.mark.parametrize(
    ("answer", "error", "says"),
    [
        (refused(413, b"<html>nginx</html>", "text/html"), errors.FileTooLargeForDify, "too large"),
        (
            refused(415, {"code": "unsupported_file_type", "message": "no", "status": 415}),
            errors.FileTypeRefusedByDify,
            "image/png",
        ),
        (
            refused(400, {"code": "invalid_param", "message": "File type blocked", "status": 400}),
            errors.RejectedByDify,
            "'image.png': File type blocked",
        ),
        (refused(401, {"code": "unauthorized", "message": "x"}), errors.UpstreamAuthError, "key"),
        (refused(503, b""), errors.UpstreamUnavailable, "503"),
        (refused(201, {"name": "a"}), errors.BadUpstreamResponse, "holds no 'id'"),
        (refused(201, b"[]"), errors.BadUpstreamResponse, "holds no 'id'"),
        (refused(201, {"id": ""}), errors.BadUpstreamResponse, "holds no 'id'"),
        (refused(201, {"id": 7}), errors.BadUpstreamResponse, "holds no 'id'"),
        (refused(200, b"<html>"), errors.BadUpstreamResponse, "not JSON"),
    ],
)
def test_a_failed_upload_says_what_failed_and_is_not_kept(
    answer: Steps,
    error: type[errors.DifyError],
    says: str,
    uploads: Uploads,
    tiny: Model,
    dify: FakeDify,
) -> None:
    dify.answer = lambda request: answer
    with pytest.raises(error, match=says) as raised:
        uploads.prepare(tiny, "u", [file(PNG)], None)
    assert tiny.key not in raised.value.message
    dify.answer = Disk().answer
    assert uploads.prepare(tiny, "u", [file(PNG)], None).files == (local("id-1"),)


def test_an_upload_that_others_wait_for_and_that_fails_is_tried_by_each() -> None:
    once = SingleFlightCache(10, 60, lambda: 0.0)
    go_on, made = threading.Event(), []

    def fail() -> str:
        go_on.wait(10)
        raise errors.UpstreamUnreachable("gone")

    def succeed() -> str:
        made.append(1)
        return "id"

    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(once.get, "key", fail)
        while not once._entries:
            pass
        others = [pool.submit(once.get, "key", succeed) for _ in range(2)]
        go_on.set()
        assert isinstance(first.exception(10), errors.UpstreamUnreachable)
        assert [other.result(10) for other in others] == ["id", "id"]
    assert made


def test_who_waits_for_the_upload_of_another_may_leave() -> None:
    once = SingleFlightCache(10, 60, lambda: 0.0)
    begun, may_end = threading.Event(), threading.Event()

    def slow() -> str:
        begun.set()
        may_end.wait(10)
        return "a"

    def leave() -> None:
        raise errors.ClientDisconnected

    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(once.get, "key", slow)
        assert begun.wait(5)
        with pytest.raises(errors.ClientDisconnected):
            once.get("key", slow, leave)
        may_end.set()
        assert first.result(5) == "a"


def test_what_is_kept_is_bounded_and_the_least_used_goes_first() -> None:
    once = SingleFlightCache(2, 60, lambda: 0.0)
    for key in ("a", "b", "a", "c"):
        once.get(key, lambda: "old")
    assert [once.get(key, lambda: "new") for key in ("a", "c", "b")] == ["old", "old", "new"]
