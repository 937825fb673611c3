"""Files on their way to callers: fetched from Dify, kept, linked and served."""

import logging
import os
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from opendify import errors
from opendify.config.models import Model
from opendify.files.file_cache import FileCache, FileTooLarge
from opendify.files.signed_links import VALID_SECONDS
from opendify.files.signing_key import SigningKey
from opendify.upstream import file_proxy as relays
from opendify.upstream.client import DifyClient
from opendify.upstream.file_proxy import FileProxy
from tests.support.application import components_of, make_settings, open_app
from tests.support.fake_dify import CLOSE, FakeDify, Request, Steps, head, refused
from tests.support.service import ROOT, environment

UUID = "0ccfe981-f968-4678-80ae-335266227dac"
OTHER = "1ccfe981-f968-4678-80ae-335266227dac"
SIGNED = "timestamp=1795460797&nonce=05d3&sign=a6CT%3D"
TOOL = f"/files/tools/{UUID}.png?{SIGNED}"
UPLOAD = f"/files/{UUID}/file-preview?{SIGNED}"
PNG = b"\x89PNG\r\n\x1a\n" + bytes(range(200))
PUBLIC = "https://ai.example.com"
SECRET = "a secret of the operator"


@dataclass
class Clock:
    now: float = 1_795_460_797.0

    def __call__(self) -> float:
        return self.now


@dataclass
class Files:
    """The files of a fake Dify, by path. Signed ones need a query, the API's a key."""

    content: dict[str, bytes | list[object]] = field(default_factory=dict)

    def answer(self, request: Request) -> Steps:
        path, _, query = request.path.partition("?")
        found = self.content.get(path)
        signed = "sign=a6CT%3D" in query or request.headers.get("authorization", "").startswith(
            "Bearer "
        )
        if found is None or not signed:
            return refused(404, {"code": "file_not_found", "message": "?", "status": 404})
        return refused(200, found, "image/png") if isinstance(found, bytes) else found


@pytest.fixture
def files(dify: FakeDify) -> Files:
    files = Files({f"/files/tools/{UUID}.png": PNG, f"/files/{UUID}/file-preview": PNG})
    dify.answer = files.answer
    return files


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tmp_path / "data"


@pytest.fixture
def app(http: httpx.Client, models: dict[str, Model], data: Path, clock: Clock) -> Iterator[Flask]:
    settings = make_settings(models, data, public_base_url=PUBLIC, file_cache_bytes=10_000)
    with open_app(settings, http, clock=clock) as app:
        yield app


@pytest.fixture
def relay(app: Flask) -> FileProxy:
    return components_of(app).file_proxy


@pytest.fixture
def tiny(models: dict[str, Model]) -> Model:
    return models["tiny"]


def get(api: FlaskClient, link: str, method: str = "GET", **headers: str) -> TestResponse:
    assert link.startswith(f"{PUBLIC}/v1/files/")
    path = link.removeprefix(PUBLIC)
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return api.open(path, method=method, headers=named, buffered=True)


def origin(dify: FakeDify) -> str:
    return dify.base.removesuffix("/v1")


def kept(data: Path) -> list[Path]:
    return sorted((data / "files").iterdir()) if (data / "files").exists() else []


# What is linked


def test_a_file_of_a_tool_outlives_its_link(
    relay: FileProxy, api: FlaskClient, tiny: Model, files: Files, dify: FakeDify, clock: Clock
) -> None:
    link = relay.link(tiny, TOOL, "cat.png", "image")
    [asked] = dify.requests
    assert (asked.method, asked.path) == ("GET", TOOL)
    assert "authorization" not in asked.headers
    files.content.clear()
    clock.now += VALID_SECONDS
    answer = get(api, link)
    assert answer.status_code == 200
    assert answer.data == PNG
    assert answer.headers["Content-Type"] == "image/png"
    assert answer.headers["Content-Disposition"] == "inline; filename=cat.png"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
    assert answer.headers["Content-Security-Policy"] == "sandbox; default-src 'none'"
    assert answer.headers["Cache-Control"].startswith("private, max-age=")
    assert len(dify.requests) == 1


def test_without_a_public_address_links_are_difys(
    http: httpx.Client, models: dict[str, Model], data: Path, dify: FakeDify, tiny: Model
) -> None:
    relay = FileProxy(
        DifyClient(http, 2.0),
        models,
        "",
        SigningKey("", data),
        FileCache(data / "files", 1, 1, time.time),
        time.time,
    )
    assert relay.link(tiny, TOOL, "cat.png", "image") == f"{origin(dify)}{TOOL}"
    assert relay.link(tiny, "https://cdn.example/a", "a", "image") == "https://cdn.example/a"
    assert relay.link(tiny, "javascript:alert(1)", "a", "document") == ""
    assert dify.requests == []
    assert not data.exists()


def test_a_file_is_kept_once_for_all_its_links(
    relay: FileProxy, models: dict[str, Model], files: Files, data: Path
) -> None:
    again = TOOL.replace("nonce=05d3", "nonce=77")
    first = relay.link(models["tiny"], TOOL, "cat.png", "image")
    assert relay.link(models["tiny"], again, "cat.png", "image") == first
    [file] = kept(data)
    written = file.stat().st_ino
    assert relay.link(models["org/model"], TOOL, "cat.png", "image") != first
    assert [file.stat().st_ino for file in kept(data)] == [written]


def test_a_link_that_somebody_made_up_opens_no_file_that_is_kept(
    relay: FileProxy, tiny: Model, files: Files, dify: FakeDify
) -> None:
    relay.link(tiny, TOOL, "cat.png", "image")
    relay.link(tiny, UPLOAD, "cat.png", "image")
    for url in (TOOL, UPLOAD):
        made_up = url.replace("a6CT", "b7DU")
        assert relay.link(tiny, made_up, "cat.png", "image") == f"{origin(dify)}{made_up}"


def test_a_public_address_of_dify_is_fetched_where_the_base_is(
    relay: FileProxy, api: FlaskClient, tiny: Model, files: Files, dify: FakeDify
) -> None:
    link = relay.link(tiny, f"https://files.dify.example{TOOL}", "cat.png", "image")
    assert [r.path for r in dify.requests] == [TOOL]
    assert get(api, link).data == PNG


@pytest.mark.parametrize(
    ("name", "kind", "url", "shown"),
    [
        ("", "image", TOOL, f"{UUID}.png"),
        ("", "document", UPLOAD, "document.png"),
        ("report", "image", TOOL, "report.png"),
        ("../../etc/passwd\r\nX: y", "image", TOOL, "passwd X_ y.png"),
        ('a";b.png', "image", TOOL, '"a_;b.png"'),
    ],
)
def test_names_are_safe_in_a_header(
    name: str,
    kind: str,
    url: str,
    shown: str,
    relay: FileProxy,
    api: FlaskClient,
    tiny: Model,
    files: Files,
) -> None:
    answer = get(api, relay.link(tiny, url, name, kind))
    assert answer.headers["Content-Disposition"].replace('"', "") == (
        f"inline; filename={shown}".replace('"', "")
    )
    assert "X" not in answer.headers


@pytest.mark.parametrize(
    ("name", "shown"),
    [("猫.png", "%E7%8C%AB.png"), ("é%.png", "%C3%A9%25.png"), ("\ud800猫.png", "%E7%8C%AB.png")],
)
def test_a_name_in_any_script_reaches_the_browser(
    name: str, shown: str, relay: FileProxy, api: FlaskClient, tiny: Model, files: Files
) -> None:
    answer = get(api, relay.link(tiny, TOOL, name, "image"))
    assert answer.headers["Content-Disposition"] == f"inline; filename*=UTF-8''{shown}"


@pytest.mark.parametrize(
    ("content", "name", "media_type", "shown"),
    [
        (b"GIF89a", "a.gif", "image/gif", True),
        (b"\xff\xd8\xff\xe0", "a.bin", "image/jpeg", True),
        (b"<svg onload='alert(1)'/>", "a.svg", "application/octet-stream", False),
        (b"<script>alert(1)</script>", "a.html", "application/octet-stream", False),
        (b"<script>alert(1)</script>", "a.png", "application/octet-stream", False),
        (b"%PDF-1.7", "a.pdf", "application/pdf", False),
        (b"words", "a.txt", "text/plain; charset=utf-8", False),
        (b"a,b", "a.csv", "text/csv; charset=utf-8", False),
        (b"", "a.png", "application/octet-stream", False),
        (b"\0", "a.xyz", "application/octet-stream", False),
    ],
)
def test_only_images_are_served_inline(
    content: bytes,
    name: str,
    media_type: str,
    shown: bool,
    relay: FileProxy,
    api: FlaskClient,
    tiny: Model,
    files: Files,
) -> None:
    files.content[f"/files/tools/{UUID}.png"] = content
    answer = get(api, relay.link(tiny, TOOL, name, "image"))
    assert answer.status_code == 200
    assert answer.data == content
    assert answer.headers["Content-Type"] == media_type
    assert answer.headers["Content-Disposition"].startswith("inline" if shown else "attachment")


@pytest.mark.parametrize(
    ("content", "name", "offered"),
    [
        (b"GIF89a/*", "poly.html", "poly.gif"),
        (b"GIF89a/*", "poly.svg", "poly.gif"),
        (b"GIF89a/*", "poly.GIF", "poly.GIF"),
        (b"\xff\xd8\xff\xe0", "photo.jpeg", "photo.jpeg"),
        (b"\xff\xd8\xff\xe0", "photo.html.js", "photo.html.jpg"),
        (b"\x89PNG\r\n\x1a\n", "picture", "picture.png"),
        (b"%PDF-1.7", "a.pdf", "a.pdf"),
        (b"a,b", "a.csv", "a.csv"),
        (b"\0", "a.xyz", "a.xyz"),
    ],
)
def test_the_name_that_is_offered_fits_the_type(
    content: bytes,
    name: str,
    offered: str,
    relay: FileProxy,
    api: FlaskClient,
    tiny: Model,
    files: Files,
) -> None:
    files.content[f"/files/tools/{UUID}.png"] = content
    answer = get(api, relay.link(tiny, TOOL, name, "image"))
    assert answer.headers["Content-Disposition"].partition("filename=")[2] == offered


# What is never fetched


@pytest.mark.parametrize(
    "url",
    [
        "http://169.254.169.254/latest/meta-data/",
        "//169.254.169.254/latest/",
        "http://127.0.0.1:1/console/api",
        "http://[::1]/x",
        "http://[::ffff:127.0.0.1]/files/x",
        "/console/api/setup",
        "/files/../console/api/setup?" + SIGNED,
        f"/files/tools/{UUID}.png",
        "\\\\evil.example\\files",
        "http://user@evil.example/",
        "ftp://evil.example/a",
        "http://[broken",
        "",
    ],
)
def test_what_is_no_file_of_dify_is_not_fetched(
    url: str, relay: FileProxy, tiny: Model, files: Files, dify: FakeDify
) -> None:
    address = relay.link(tiny, url, "a.png", "image")
    assert not address.startswith(PUBLIC)
    assert dify.requests == []


@pytest.mark.parametrize(
    "where",
    [
        "http://evil.example",
        "http://user:pw@evil.example",
        "http://{host}@evil.example",
        "http://evil.example#@{host}",
        "http://evil.example\\@{host}",
        "https://{host}",
        "http://[::ffff:127.0.0.1]:1",
        "http://evil.example//{host}",
        "//evil.example",
        "\\\\evil.example",
    ],
)
def test_whatever_host_an_address_names_only_the_models_own_is_asked(
    where: str, relay: FileProxy, tiny: Model, files: Files, dify: FakeDify
) -> None:
    """Nothing listens elsewhere, so that a link of ours means that our Dify gave the file."""
    host = urlsplit(dify.base).netloc
    address = relay.link(tiny, where.format(host=host) + TOOL, "a.png", "image")
    assert {r.path.partition("?")[0] for r in dify.requests} <= {f"/files/tools/{UUID}.png"}
    assert address.startswith(PUBLIC) == bool(dify.requests)


@pytest.mark.parametrize(
    "url",
    [
        "http://evil.example/a",
        "https://{host}/a",
        "http://{host}1/a",
        "http://user@{host}/a",
        "http://{host}@evil.example/a",
        "http://localhost:{port}/a",
        "http://[::ffff:127.0.0.1]:{port}/a",
        "http://[::1",
        "http://\0/",
        "//{host}/a",
        "/a",
        "",
    ],
)
def test_the_client_downloads_from_the_models_origin_only(
    url: str, http: httpx.Client, tiny: Model, dify: FakeDify
) -> None:
    host = urlsplit(dify.base).netloc
    address = url.format(host=host, port=host.rpartition(":")[2])
    with (
        pytest.raises(errors.BadUpstreamResponse, match="not Dify's"),
        DifyClient(http, 2.0).download(tiny, address, 5) as pieces,
    ):
        list(pieces)
    assert dify.requests == []


# What fails


def test_a_refused_download_is_logged_with_its_status_and_content_type(
    http: httpx.Client, tiny: Model, dify: FakeDify
) -> None:
    dify.answer = lambda request: refused(404, {"code": "not_found", "message": "?"})
    with (
        pytest.raises(errors.DifyError) as failure,
        DifyClient(http, 2.0).download(tiny, f"{dify.base}/a", 5) as pieces,
    ):
        list(pieces)
    cause = failure.value.details["cause"]
    assert cause == "status 404, content type application/json"


@contextmanager
def nothing_kept(data: Path) -> Iterator[None]:
    before = kept(data)
    yield
    assert kept(data) == before


@pytest.mark.parametrize(
    "steps",
    [
        refused(404, {"code": "not_found", "message": "?"}),
        refused(403, b"expired"),
        refused(500, b"<html>"),
        [head(302, "Location: http://169.254.169.254/", "Content-Length: 0")],
        [head(200, "Content-Length: 1000") + PNG, CLOSE],
        [head(200, "Content-Encoding: gzip", "Content-Length: 3") + b"abc"],
        [head(200, "Content-Length: 20000") + bytes(20_000)],
        [CLOSE],
        [head(204)],
        [head(206, "Content-Length: 3") + b"abc"],
    ],
)
def test_where_a_fetch_fails_the_link_stays_difys(
    steps: list[object],
    relay: FileProxy,
    tiny: Model,
    dify: FakeDify,
    data: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    dify.answer = lambda request: steps
    with nothing_kept(data), caplog.at_level(logging.DEBUG, "opendify"):
        assert relay.link(tiny, TOOL, "a.png", "image") == f"{origin(dify)}{TOOL}"
    assert "a file keeps Dify's link model=tiny" in caplog.text
    assert "sign=" not in caplog.text and tiny.key not in caplog.text
    assert [r.path for r in dify.requests] == [TOOL]


def test_a_dify_that_trickles_is_given_up(
    relay: FileProxy, tiny: Model, dify: FakeDify, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relays, "FETCH_SECONDS", 0.5)
    drops: list[object] = [step for _ in range(200) for step in (b"x", 0.05)]
    dify.answer = lambda request: [head(200, "Content-Length: 1000"), *drops]
    began = time.monotonic()
    with nothing_kept(data):
        assert relay.link(tiny, TOOL, "a.png", "image") == f"{origin(dify)}{TOOL}"
    assert time.monotonic() - began < 5


def test_where_nothing_can_be_written_the_link_stays_difys(
    relay: FileProxy, tiny: Model, files: Files, dify: FakeDify, data: Path
) -> None:
    data.write_text("no folder")
    assert relay.link(tiny, TOOL, "a.png", "image") == f"{origin(dify)}{TOOL}"


# What is served again


def test_an_upload_that_is_not_kept_any_more_is_had_again(
    relay: FileProxy, api: FlaskClient, tiny: Model, files: Files, dify: FakeDify, data: Path
) -> None:
    link = relay.link(tiny, UPLOAD, "a.png", "image")
    for path in kept(data):
        path.unlink()
    files.content = {f"/v1/files/{UUID}/preview": PNG}
    assert get(api, link).data == PNG
    assert dify.requests[-1].path == f"/v1/files/{UUID}/preview"
    assert dify.requests[-1].headers["authorization"] == f"Bearer {tiny.key}"
    assert get(api, link).data == PNG
    assert len(dify.requests) == 2


def test_a_file_that_nobody_has_any_more_is_gone(
    relay: FileProxy,
    api: FlaskClient,
    models: dict[str, Model],
    files: Files,
    data: Path,
    dify: FakeDify,
) -> None:
    links = [relay.link(models["tiny"], url, "a.png", "image") for url in (UPLOAD, TOOL)]
    for path in kept(data):
        path.unlink()
    files.content = {}
    for link in links:
        answer = get(api, link)
        assert answer.status_code == 410
        assert answer.json is not None and answer.json["error"]["code"] == "file_gone"
    dify.answer = lambda request: refused(503, b"")
    assert get(api, links[0]).status_code == 503
    models["tiny"] = replace(models["tiny"], base="http://127.0.0.1:1/v1")
    assert get(api, links[0]).status_code == 502


def test_a_file_of_a_model_that_is_gone_is_gone(
    relay: FileProxy, api: FlaskClient, models: dict[str, Model], files: Files
) -> None:
    link = relay.link(models["tiny"], TOOL, "a.png", "image")
    del models["tiny"]
    assert get(api, link).status_code == 410


def test_a_link_that_is_not_ours_is_refused(
    relay: FileProxy, api: FlaskClient, tiny: Model, files: Files, data: Path, clock: Clock
) -> None:
    link = relay.link(tiny, TOOL, "a.png", "image")
    token = urlsplit(link).path.split("/")[3]
    signature = parse_qs(urlsplit(link).query)["sig"][0]
    for url in (
        f"/v1/files/{token}/content",
        f"/v1/files/{token}/content?sig=",
        f"/v1/files/{token}/content?sig={signature[:-1]}",
        f"/v1/files/{token}x/content?sig={signature}",
        f"/v1/files/%00/content?sig={signature}",
        f"/v1/files/..%5c..%5csecret/content?sig={signature}",
        f"/v1/files/{UUID}/content?sig=%ff",
    ):
        answer = api.get(url)
        assert answer.status_code == 403, url
        assert answer.json is not None and answer.json["error"]["code"] == "link_refused"
    assert api.get(f"/v1/files/../secret/content?sig={signature}").status_code in (403, 404)
    assert api.post(f"/v1/files/{token}/content?sig={signature}").status_code == 405
    clock.now += VALID_SECONDS + 3600
    expired = get(api, link)
    assert expired.status_code == 410
    assert expired.json is not None and "expired" in expired.json["error"]["message"]


def test_a_link_of_another_secret_is_refused(
    relay: FileProxy, api: FlaskClient, tiny: Model, files: Files, data: Path
) -> None:
    link = relay.link(tiny, TOOL, "a.png", "image")
    relay._signing_key = SigningKey("another secret of another one", data)
    assert get(api, link).status_code == 403


def test_parts_heads_and_repeats_are_answered_as_browsers_ask(
    relay: FileProxy, api: FlaskClient, tiny: Model, files: Files
) -> None:
    link = relay.link(tiny, TOOL, "a.png", "image")
    whole = get(api, link)
    assert get(api, link, Range="bytes=2-5").data == PNG[2:6]
    assert get(api, link, Range="bytes=2-5").status_code == 206
    assert get(api, link, Range="bytes=-3").data == PNG[-3:]
    assert 400 <= get(api, link, Range="bytes=9999-").status_code < 500
    again = get(api, link, If_None_Match=whole.headers["ETag"], Range="items=0-4")
    assert (again.status_code, again.data) == (304, b"")
    asked = get(api, link, "HEAD")
    assert (asked.status_code, asked.data) == (200, b"")
    assert asked.headers["Content-Length"] == str(len(PNG))


@pytest.mark.parametrize(
    "ranges", ["items=0-4", "bytes=0-0,2-5", "bytes=5-2", "bytes=x", "bytes", "bytes=", ""]
)
def test_a_range_that_cannot_be_answered_is_ignored(
    relay: FileProxy, api: FlaskClient, tiny: Model, files: Files, ranges: str
) -> None:
    response = get(api, relay.link(tiny, TOOL, "a.png", "image"), Range=ranges)
    assert (response.status_code, response.data) == (200, PNG)
    assert response.headers["Accept-Ranges"] == "bytes"


def test_no_descriptor_is_left_open(
    relay: FileProxy, api: FlaskClient, tiny: Model, files: Files
) -> None:
    link = relay.link(tiny, TOOL, "a.png", "image")
    get(api, link)
    before = len(os.listdir("/proc/self/fd"))
    for headers in ({}, {"Range": "bytes=0-1"}, {"Range": "bytes=9999-"}, {"If-None-Match": "*"}):
        for method in ("GET", "HEAD"):
            get(api, link, method, **headers).close()
    assert len(os.listdir("/proc/self/fd")) <= before  # idle connections may have expired


# The shelf


def test_the_oldest_go_when_the_shelf_is_full(tmp_path: Path) -> None:
    clock = Clock(1000.0)
    shelf = FileCache(tmp_path / "files", 30, 1e9, clock)
    for key in ("a", "b", "c"):
        clock.now += 1
        shelf.put(key, [key.encode() * 10], 100)
    clock.now += 1
    assert shelf.touch("a")
    clock.now += 1
    shelf.put("d", [b"d" * 5, b"d" * 5], 100)
    assert names(tmp_path / "files") == ["a", "c", "d"]
    clock.now += 1
    shelf.put("e", [b"e" * 30], 100)
    assert names(tmp_path / "files") == ["e"]
    file = shelf.open("e")
    assert file is not None
    with file:
        shelf.put("f", [b"f" * 30], 100)
        assert file.read() == b"e" * 30
    assert shelf.open("e") is None
    assert not shelf.touch("e")


def test_what_is_too_old_goes_with_the_next_file(tmp_path: Path) -> None:
    clock = Clock(1000.0)
    shelf = FileCache(tmp_path / "files", 1000, 60, clock)
    shelf.put("old", [b"x"], 100)
    abandoned = tmp_path / "files" / ".x.part"
    abandoned.write_bytes(b"x")
    os.utime(abandoned, (1000, 1000))
    clock.now += 61
    shelf.put("new", [b"x"], 100)
    assert names(tmp_path / "files") == [".x.part", "new"]
    clock.now += 3600
    shelf.put("newer", [b"x"], 100)
    assert names(tmp_path / "files") == ["newer"]


def test_what_is_too_large_leaves_nothing_behind(tmp_path: Path) -> None:
    shelf = FileCache(tmp_path / "files", 30, 60, time.time)
    for most, pieces in ((10, [b"x" * 6] * 2), (100, [b"x" * 31])):
        with pytest.raises(FileTooLarge):
            shelf.put("a", pieces, most)
    assert names(tmp_path / "files") == []


def test_what_is_kept_is_its_owners_alone(tmp_path: Path) -> None:
    FileCache(tmp_path / "data" / "files", 30, 60, time.time).put("a", [b"x"], 100)
    modes = {p.name: stat.S_IMODE(p.stat().st_mode) for p in (tmp_path / "data").rglob("*")}
    assert modes == {"files": 0o700, "a": 0o600}
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700


def test_threads_that_fill_the_shelf_do_not_harm_each_other(tmp_path: Path) -> None:
    shelves = [FileCache(tmp_path / "files", 100, 60, time.time) for _ in range(4)]
    failures: list[Exception] = []

    def fill(number: int) -> None:
        try:
            for turn in range(25):
                shelves[number].put(f"{number}-{turn}", [b"x" * 10], 100)
        except Exception as exc:  # noqa: BLE001
            failures.append(exc)

    together([lambda number=number: fill(number) for number in range(4)])
    assert failures == []
    assert 1 <= len(names(tmp_path / "files")) <= 13


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def together(tasks: list[Callable[[], object]]) -> None:
    threads = [threading.Thread(target=task) for task in tasks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


# The secret

_TELL_SECRET = """
import sys, time
from pathlib import Path
from opendify.conversations.store.json_file import JsonFileStore
from opendify.files.signing_key import SigningKey
while time.time() < float(sys.argv[2]):
    pass
print(SigningKey("", Path(sys.argv[1])).key().decode())
"""


def test_processes_that_start_together_agree_on_a_secret(data: Path) -> None:
    at = str(time.time() + 2)
    command = [sys.executable, "-c", _TELL_SECRET, str(data), at]
    asked = [
        subprocess.Popen(command, stdout=subprocess.PIPE, env=environment(), cwd=ROOT)
        for _ in range(8)
    ]
    told = {process.communicate(timeout=60)[0] for process in asked}
    assert {process.returncode for process in asked} == {0}
    [secret] = told
    assert len(secret.strip()) == 64
    assert (data / "secret").read_bytes() == secret
    assert names(data) == ["secret", "secret.lock"]
    assert stat.S_IMODE((data / "secret").stat().st_mode) == 0o600
    assert stat.S_IMODE(data.stat().st_mode) == 0o700


def test_threads_agree_on_a_secret(data: Path) -> None:
    found: list[bytes] = []
    together([lambda: found.append(SigningKey("", data).key())] * 8)
    assert len(found) == 8 and len(set(found)) == 1


def test_a_secret_of_the_operator_needs_no_file(data: Path) -> None:
    assert SigningKey(SECRET, data).key() == SECRET.encode()
    assert not data.exists()


def test_a_secret_is_read_again_and_closed_to_others(
    data: Path, caplog: pytest.LogCaptureFixture
) -> None:
    secret = SigningKey("", data).key()
    (data / "secret").chmod(0o644)
    assert SigningKey("", data).key() == secret
    assert stat.S_IMODE((data / "secret").stat().st_mode) == 0o600
    assert "its permissions are corrected" in caplog.text and secret.decode() not in caplog.text


@pytest.mark.parametrize("damaged", [b"", b"\n", b"short"])
def test_a_damaged_secret_is_made_anew(damaged: bytes, data: Path) -> None:
    data.mkdir(0o700)
    (data / "secret").write_bytes(damaged)
    secret = SigningKey("", data).key()
    assert len(secret) == 64
    assert SigningKey("", data).key() == secret
