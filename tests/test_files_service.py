"""Files through the whole service: real Gunicorn, several workers, real sockets."""

import base64
import json
import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.support.fake_dify import Chat, FakeDify, Request, Steps, refused, streamed
from tests.support.service import Service, free_variables, running

PUBLIC = "https://ai.example.com"
UUID = "0ccfe981-f968-4678-80ae-335266227dac"
MADE = f"/files/tools/{UUID}.png"
PICTURE = b"\x89PNG\r\n\x1a\n" + os.urandom(300_000)
SENT = b"\x89PNG\r\n\x1a\n" + bytes(100)

PARAMETERS = {
    "user_input_form": [],
    "file_upload": {
        "enabled": True,
        "allowed_file_types": ["image", "document", "audio"],
        "allowed_file_upload_methods": ["local_file", "remote_url"],
        "number_limits": 5,
    },
}


def answer(request: Request) -> Steps:
    """A Dify whose app draws a picture whatever it is asked."""
    path = request.path.partition("?")[0]
    if path == MADE:
        return refused(200, PICTURE, "image/png")
    if path == "/v1/files/upload":
        return refused(201, {"id": f"id-{len(request.body)}"})
    if path == "/v1/info":
        return refused(200, {"name": "Painter", "mode": "advanced-chat"})
    if path == "/v1/parameters":
        return refused(200, PARAMETERS)
    chat = Chat()
    url = f"{MADE}?timestamp=1795460797&nonce=05d3&sign=x%3D"
    file = chat.event("message_file", id="f", type="image", belongs_to="assistant", url=url)
    return streamed(chat.text("Here"), file, chat.end())


@pytest.fixture
def service(dify: FakeDify, tmp_path: Path) -> Iterator[Service]:
    dify.tells_of_its_app = True
    dify.answer = answer
    variables = free_variables(dify.base, PUBLIC_BASE_URL=PUBLIC, GUNICORN_WORKERS="3")
    with running(tmp_path, variables) as service:
        yield service


def ask(service: Service, *parts: object) -> str:
    content = [{"type": "text", "text": "Draw a cat"}, *parts]
    body = {"model": "tiny", "messages": [{"role": "user", "content": content}]}
    response = httpx.post(
        f"{service.url}/v1/chat/completions", json=body, timeout=60, trust_env=False
    )
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])


def test_large_files_of_a_turn_are_uploaded(service: Service, dify: FakeDify) -> None:
    """Together larger than the text of a body may be, and each far larger than a block of it."""
    sizes = [20_000_000, 9_000_001, 70_002]
    parts = []
    for size in sizes:
        data = base64.b64encode(SENT + os.urandom(size - len(SENT))).decode()
        url = f"data:image/png;base64,{data}"
        parts.append({"type": "image_url", "image_url": {"url": url}})
    assert "Here" in ask(service, *parts)
    uploads = [one for one in dify.requests if one.path == "/v1/files/upload"]
    assert [len(one.body) // 1000 for one in uploads] == [size // 1000 for size in sizes]


def open_files(service: Service) -> list[str]:
    found = []
    for worker in service.workers():
        folder = Path(f"/proc/{worker}/fd")
        for name in os.listdir(folder):
            with suppress(FileNotFoundError):  # closed meanwhile
                found.append(os.readlink(folder / name))
    return [path for path in found if "/data/files/" in path]


def test_a_picture_that_an_app_made_reaches_a_browser(
    service: Service, dify: FakeDify, tmp_path: Path
) -> None:
    links = [found for _ in range(6) for found in re.findall(r"!\[.*\]\((.*)\)", ask(service))]
    assert len(links) == 6
    link = links[-1]
    assert link.startswith(f"{PUBLIC}/v1/files/")
    url = link.replace(PUBLIC, service.url)
    with httpx.Client(trust_env=False) as browser:
        for _ in range(9):
            got = browser.get(url)
            assert (got.status_code, got.headers["content-type"]) == (200, "image/png")
            assert got.content == PICTURE
        part = browser.get(url, headers={"Range": "bytes=5000-5009"})
        assert (part.status_code, part.content) == (206, PICTURE[5000:5010])
        asked = browser.head(url)
        assert (asked.status_code, asked.content) == (200, b"")
        assert asked.headers["content-length"] == str(len(PICTURE))
        again = browser.get(url, headers={"If-None-Match": got.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert browser.get(url + "x").status_code == 403
    leave_in_the_middle(url)
    deadline = time.monotonic() + 10
    while open_files(service) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert open_files(service) == []
    assert len([r for r in dify.requests if r.path.startswith(MADE)]) == 6
    assert len(list((tmp_path / "data" / "files").iterdir())) == 1
    signature = urlsplit(link).query.removeprefix("sig=")
    assert signature not in service.output()
    assert (tmp_path / "data" / "secret").read_text().strip() not in service.output()


def leave_in_the_middle(url: str) -> None:
    parts = urlsplit(url)
    for _ in range(5):
        with socket.create_connection((parts.hostname or "", parts.port or 0)) as caller:
            target = f"{parts.path}?{parts.query}"
            caller.sendall(f"GET {target} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
            caller.recv(1000)


def test_what_a_caller_sends_arrives_once_each(service: Service, dify: FakeDify) -> None:
    url = "data:image/png;base64," + base64.b64encode(SENT).decode()
    pdf = "data:application/pdf;base64," + base64.b64encode(b"%PDF-1.7").decode()
    wav = base64.b64encode(b"RIFF\0\0\0\0WAVE").decode()
    ask(
        service,
        {"type": "image_url", "image_url": {"url": url}},
        {"type": "file", "file": {"filename": "年度.pdf", "file_data": pdf}},
        {"type": "input_audio", "input_audio": {"data": wav, "format": "wav"}},
        {"type": "image_url", "image_url": {"url": "https://x.example/cat.png"}},
    )
    [question] = dify.asked()
    uploads = [r for r in dify.requests if r.path == "/v1/files/upload"]
    ids = [f"id-{len(upload.body)}" for upload in uploads]
    assert [(f["type"], f.get("upload_file_id", f.get("url"))) for f in question.json["files"]] == [
        ("image", ids[0]),
        ("document", ids[1]),
        ("audio", ids[2]),
        ("image", "https://x.example/cat.png"),
    ]
    assert [SENT in uploads[0].body, b"%PDF-1.7" in uploads[1].body] == [True, True]
    user = question.json["user"]
    assert all(user.encode() in upload.body for upload in uploads)
    assert "年度.pdf".encode() in uploads[1].body


def test_a_file_that_the_app_would_drop_is_an_error(service: Service, dify: FakeDify) -> None:
    part = {"type": "file", "file": {"filename": "a.mp4", "file_data": "AAAA"}}
    body = {"model": "tiny", "messages": [{"role": "user", "content": [part]}]}
    response = httpx.post(f"{service.url}/v1/chat/completions", json=body, trust_env=False)
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["code"] == "unsupported_content"
    assert error["param"] == "messages[0].content[0].file"
    assert "takes no video files ('a.mp4'), only image, document, audio." in error["message"]
    assert dify.asked() == []
    assert json.dumps(error).isascii()


def test_a_link_within_the_text_works_for_callers_and_shows_its_file_once(
    service: Service, dify: FakeDify
) -> None:
    link = f"{MADE}?timestamp=1795460797&nonce=05d3&sign=x%3D"
    chat = Chat()
    picture = {"id": "f", "type": "image", "belongs_to": "assistant", "url": link}
    steps = streamed(
        chat.event("message_file", **picture),
        *(chat.text(piece) for piece in re.findall(".{1,9}", f"Look: ![a cat]({link}) Nice?")),
        chat.event("message_end", files=[picture | {"transfer_method": "tool_file"}]),
    )
    dify.answer = lambda request: steps if request.path == "/v1/chat-messages" else answer(request)
    said = ask(service)
    match = re.fullmatch(rf"Look: !\[a cat\]\(({PUBLIC}/v1/files/[^)]*)\) Nice\?", said)
    assert match, said
    served = httpx.get(match[1].replace(PUBLIC, service.url), trust_env=False)
    assert served.content == PICTURE
