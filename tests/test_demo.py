"""The demo Dify says what the real one was recorded to say, in the same order and fields."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from demo.release import Release
from demo.server import DemoServer
from demo.state import Pace

ROOT = Path(__file__).parent.parent
RECORDINGS = ROOT / "tests" / "data" / "dify"
NEWEST = Release.DIFY_1_16
FOLDERS = {(NEWEST, "advanced-chat"): "flow"}
AT_ONCE = Pace(token=0, silence=0.3, ping=0.1, linger=0)
KEYS = {
    "chat": "app-demo-chat",
    "agent-chat": "app-demo-agent",
    "agent": "app-demo-new-agent",
    "advanced-chat": "app-demo-chatflow",
    "completion": "app-demo-completion",
    "workflow": "app-demo-workflow",
}
ROUTES = {"completion": "/completion-messages", "workflow": "/workflows/run"}
STOPS = {"completion": "/completion-messages", "workflow": "/workflows/tasks"}
TEXT = ("message", "agent_message", "text_chunk")
OPEN = ("inputs", "outputs", "process_data", "tool_labels")  # maps whose names are the app's
PNG = b"\x89PNG\r\n\x1a\n" + b"\r\n--not a boundary\r\n" + bytes(range(256))
UNKNOWN = "11111111-2222-4333-8444-555555555555"
IMAGE = {"type": "image", "transfer_method": "local_file", "upload_file_id": UNKNOWN}
Event = dict[str, Any]


class Client:
    """One app of a running demo, asked as one user."""

    def __init__(self, base: str, app: str, user: str = "u1") -> None:
        self.app, self.user = app, user
        headers = {"Authorization": f"Bearer {KEYS[app]}"}
        self.http = httpx.Client(base_url=base, headers=headers, trust_env=False, timeout=20)

    def body(self, query: str, **more: Any) -> Event:
        asked = (
            {"inputs": {"query": query}} if self.app in ROUTES else {"inputs": {}, "query": query}
        )
        return {**asked, "response_mode": "streaming", "user": self.user, **more}

    @property
    def route(self) -> str:
        return ROUTES.get(self.app, "/chat-messages")

    def stream(self, query: str, **more: Any) -> list[Event]:
        answer = self.http.post(self.route, json=self.body(query, **more))
        assert answer.status_code == 200, answer.text
        return parse(answer.text)

    def blocking(self, query: str, **more: Any) -> httpx.Response:
        return self.http.post(self.route, json=self.body(query, response_mode="blocking", **more))

    def upload(self, name: str, content: bytes, kind: str) -> httpx.Response:
        files = {"file": (name, content, kind)}
        return self.http.post("/files/upload", files=files, data={"user": self.user})


@contextmanager
def serving(pace: Pace, release: Release = NEWEST) -> Iterator[DemoServer]:
    server = DemoServer(pace=pace, release=release)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def bases() -> Iterator[dict[Release, str]]:
    with (
        serving(AT_ONCE, Release.DIFY_1_13) as older,
        serving(AT_ONCE, Release.DIFY_1_16) as newest,
    ):
        yield {Release.DIFY_1_13: older.base, Release.DIFY_1_16: newest.base}


@pytest.fixture
def base(bases: dict[Release, str]) -> str:
    return bases[NEWEST]


@pytest.fixture
def client(bases: dict[Release, str]) -> Iterator[Callable[..., Client]]:
    made: list[Client] = []

    def make(app: str, user: str = "u1", release: Release = NEWEST) -> Client:
        made.append(Client(bases[release], app, user))
        return made[-1]

    yield make
    for one in made:
        one.http.close()


def recording_path(release: Release, app: str, case: str) -> Path:
    return RECORDINGS / release / FOLDERS.get((release, app), app) / f"{case}.json"


def recording(release: Release, app: str, case: str) -> Any:
    return json.loads(recording_path(release, app, case).read_text())


def recorded(rows: list[Any]) -> list[Any]:
    """The rows, which begin with app and case, for each release that has a recording of them."""
    return [
        pytest.param(release, *row, id=f"{release}-{row[0]}-{row[1]}")
        for release in Release
        for row in rows
        if recording_path(release, row[0], row[1]).exists()
    ]


def each(apps: list[str], case: str) -> Any:
    """Parametrizes by release and app."""
    return pytest.mark.parametrize(
        ("release", "app", "case"), recorded([(app, case) for app in apps])
    )


def parse(text: str) -> list[Event]:
    """The events of a body, which must be framed exactly as Dify frames them."""
    assert text.endswith("\n\n")
    frames = text.removesuffix("\n\n").split("\n\n")
    return [
        {"event": "ping"} if frame == "event: ping" else json.loads(frame.removeprefix("data: "))
        for frame in frames
    ]


def collapsed(events: list[Event]) -> list[Event]:
    """The events with each run of text as its first piece."""
    kept: list[Event] = []
    for event in events:
        if not (kept and event["event"] in TEXT and kept[-1]["event"] == event["event"]):
            kept.append(event)
    return kept


def shape(value: Any) -> Any:
    """Names in their order and kinds of value, without the values."""
    if isinstance(value, dict):
        return [(key, "open" if key in OPEN else shape(inner)) for key, inner in value.items()]
    if isinstance(value, list):
        return ["list", *(shape(item) for item in value[:1])]
    return "number" if type(value) in (int, float) else type(value).__name__


def said(events: list[Event]) -> str:
    """The text; the last message of a new agent repeats it."""
    spoken = [event for event in events if event["event"] == "agent_message"] or events
    return "".join(
        event["data"]["text"] if event["event"] == "text_chunk" else event.get("answer", "")
        for event in spoken
    )


STREAMS = [
    ("chat", "stream_first", "Say hello"),
    ("chat", "think_stream", "/think"),
    ("chat", "llm_fail_mid_stream", "/error"),
    ("agent-chat", "stream_tool_call", "what time is it?"),
    ("agent-chat", "tool_stream", "what time is it?"),
    ("advanced-chat", "stream_first", "Say hello"),
    ("advanced-chat", "llm_fail_mid_stream", "/error"),
    ("completion", "stream_first", "Say hello"),
    ("completion", "llm_fail_mid_stream", "/error"),
    ("workflow", "stream_first", "Say hello"),
    ("workflow", "llm_fail_mid_stream", "/error"),
]


@pytest.mark.parametrize(("release", "app", "case", "query"), recorded(STREAMS))
def test_a_stream_has_the_events_and_fields_of_the_recording(
    client: Callable[..., Client], release: Release, app: str, case: str, query: str
) -> None:
    ours = collapsed(client(app, release=release).stream(query))
    theirs = collapsed(parse(recording(release, app, case)["response"]["body"]))
    assert [event["event"] for event in ours] == [event["event"] for event in theirs]
    for mine, real in zip(ours, theirs, strict=True):
        assert shape(mine) == shape(real)


FAILING = [("agent-chat", "llm_fail_mid_stream"), ("agent", "llm_fail_start_stream")]


@pytest.mark.parametrize(("release", "app", "case"), recorded(FAILING))
def test_a_failing_agent_ends_with_the_recorded_error_event(
    client: Callable[..., Client], release: Release, app: str, case: str
) -> None:
    theirs = parse(recording(release, app, case)["response"]["body"])
    assert shape(client(app, release=release).stream("/error")[-1]) == shape(theirs[-1])


def test_a_new_agent_sends_events_of_the_recorded_fields(client: Callable[..., Client]) -> None:
    """Its text comes in batches of half a second, whose number says nothing."""
    ours = client("agent").stream("/think")
    theirs = parse(recording(NEWEST, "agent", "think_stream")["response"]["body"])
    assert {event["event"]: shape(event) for event in ours if not event.get("tool")} == {
        event["event"]: shape(event) for event in theirs
    }
    last_round = ours[-2]["answer"]
    spoken = "".join(event["answer"] for event in ours if event["event"] == "agent_message")
    assert spoken == f"Let me look at the clock. {last_round}"
    thoughts = [event["thought"] for event in ours if event["event"] == "agent_thought"]
    assert max(thoughts, key=len) == ("\nThe question has 6 characters. I shall say it back.\n")


def test_dify_1_13_has_no_new_agents(client: Callable[..., Client]) -> None:
    assert client("agent", release=Release.DIFY_1_13).http.get("/info").status_code == 401


REFUSED: list[tuple[str, Event]] = [
    ("query is required", {"inputs": {}, "query": ""}),
    ("Invalid upload file", {"inputs": {}, "query": "hi", "files": [IMAGE]}),
]


@pytest.mark.parametrize(("reason", "fields"), REFUSED, ids=[row[0] for row in REFUSED])
def test_a_flow_that_cannot_begin_is_a_run_that_has_failed(
    client: Callable[..., Client], reason: str, fields: Event
) -> None:
    body = {**fields, "user": "u1", "response_mode": "streaming"}
    answer = client("advanced-chat").http.post("/chat-messages", json=body)
    theirs = parse(recording(NEWEST, "flow", "file_unknown_id")["response"]["body"])
    assert shape(parse(answer.text)) == shape(theirs)
    assert [shape(event) for event in parse(answer.text)] == [shape(event) for event in theirs]
    assert parse(answer.text)[-1]["data"]["error"] == reason
    before = client("advanced-chat", release=Release.DIFY_1_13)
    assert before.http.post("/chat-messages", json=body).status_code == 400
    blocking = client("advanced-chat").http.post(
        "/chat-messages", json={**body, "response_mode": "blocking"}
    )
    assert (blocking.status_code, blocking.json()["message"]) == (400, reason)


@each(["chat", "completion"], "file_local_image_stream")
def test_the_files_of_the_user_are_listed_at_the_end_of_a_basic_app(
    client: Callable[..., Client], release: Release, app: str, case: str
) -> None:
    one = client(app, release=release)
    uploaded = one.upload("red.png", PNG, "image/png").json()["id"]
    reference = {"type": "image", "transfer_method": "local_file", "upload_file_id": uploaded}
    ours = one.stream("see", files=[reference])
    theirs = parse(recording(release, app, case)["response"]["body"])
    assert shape(ours[-1]) == shape(theirs[-1])


def test_the_inputs_of_a_flow_show_its_files(client: Callable[..., Client]) -> None:
    one = client("workflow", release=Release.DIFY_1_13)
    uploaded = one.upload("red.png", PNG, "image/png").json()["id"]
    reference = {"type": "image", "transfer_method": "local_file", "upload_file_id": uploaded}
    ours = one.stream("see", files=[reference])[1]["data"]["inputs"]
    theirs = recording(Release.DIFY_1_13, "workflow", "file_local_image_stream")["response"]
    theirs = parse(theirs["body"])[1]["data"]["inputs"]
    assert list(ours) == list(theirs)
    assert shape(ours["sys.files"]) == shape(theirs["sys.files"])


@each(["chat", "advanced-chat", "completion", "workflow"], "block_first")
def test_a_blocking_answer_has_the_fields_and_spacing_of_the_recording(
    client: Callable[..., Client], release: Release, app: str, case: str
) -> None:
    theirs = recording(release, app, case)["response"]
    ours = client(app, release=release).blocking("Say hello")
    assert ours.headers["Content-Type"] == theirs["headers"]["Content-Type"]
    assert shape(ours.json()) == shape(json.loads(theirs["body"]))
    assert ours.text == json.dumps(ours.json())


@pytest.mark.parametrize(
    ("release", "app", "case"),
    recorded(
        [
            (app, case)
            for app in ("chat", "advanced-chat", "completion", "workflow")
            for case in ("llm_fail_mid_block", "llm_fail_start_block")
        ]
    ),
)
def test_a_blocking_failure_is_refused_as_recorded(
    client: Callable[..., Client], release: Release, app: str, case: str
) -> None:
    theirs = recording(release, app, case)["response"]
    ours = client(app, release=release).blocking("/error")
    assert ours.status_code == theirs["status"]
    assert shape(ours.json()) == shape(json.loads(theirs["body"]))
    assert ours.json().get("code") == json.loads(theirs["body"]).get("code")


CHAT = {"inputs": {}, "query": "hi", "user": "u1", "response_mode": "streaming"}
SHOWN = f"/messages?user=u1&conversation_id={UNKNOWN}"
EXACT: list[tuple[str, str, str, Event | None]] = [
    ("chat/missing_user", "POST", "/chat-messages", {"inputs": {}, "query": "hi"}),
    ("chat/on_completion_endpoint", "POST", "/completion-messages", CHAT),
    ("chat/on_workflow_endpoint", "POST", "/workflows/run", CHAT),
    ("chat/stream_conv_unknown", "POST", "/chat-messages", {**CHAT, "conversation_id": UNKNOWN}),
    ("chat/stream_conv_deleted", "POST", "/chat-messages", {**CHAT, "conversation_id": UNKNOWN}),
    ("agent/stream_conv_deleted", "POST", "/chat-messages", {**CHAT, "conversation_id": UNKNOWN}),
    (
        "advanced-chat/stream_conv_deleted",
        "POST",
        "/chat-messages",
        {**CHAT, "conversation_id": UNKNOWN},
    ),
    ("agent/block_first", "POST", "/chat-messages", {**CHAT, "response_mode": "blocking"}),
    ("agent/suggested", "GET", f"/messages/{UNKNOWN}/suggested?user=u1", None),
    ("chat/empty_query", "POST", "/chat-messages", {**CHAT, "query": ""}),
    ("chat/file_unknown_id", "POST", "/chat-messages", {**CHAT, "files": [IMAGE]}),
    ("chat/file_too_many", "POST", "/chat-messages", {**CHAT, "files": [IMAGE] * 4}),
    ("chat/conversation_delete_unknown", "DELETE", f"/conversations/{UNKNOWN}", {"user": "u1"}),
    ("chat/messages_unknown_conv", "GET", SHOWN, None),
    ("chat/meta", "GET", "/meta?user=u1", None),
    ("chat/stop_task", "POST", f"/chat-messages/{UNKNOWN}/stop", {"user": "u1"}),
    ("agent-chat/block_first", "POST", "/chat-messages", {**CHAT, "response_mode": "blocking"}),
    (
        "advanced-chat/block_conv_unknown",
        "POST",
        "/chat-messages",
        {**CHAT, "conversation_id": UNKNOWN, "response_mode": "blocking"},
    ),
    ("completion/on_chat_messages", "POST", "/chat-messages", CHAT),
    ("completion/empty_inputs", "POST", "/completion-messages", {"inputs": {}, "user": "u1"}),
    ("completion/conversations", "GET", "/conversations?user=u1", None),
    ("workflow/on_chat_messages", "POST", "/chat-messages", CHAT),
    ("workflow/on_completion_messages", "POST", "/completion-messages", CHAT),
    ("workflow/missing_user", "POST", "/workflows/run", {"inputs": {"query": "hi"}}),
    ("workflow/stop_task", "POST", f"/workflows/tasks/{UNKNOWN}/stop", {"user": "u1"}),
]


@pytest.mark.parametrize(
    ("release", "app", "case", "method", "path", "body"),
    recorded([(*row[0].split("/"), *row[1:]) for row in EXACT]),
)
def test_an_answer_is_the_recorded_one_to_the_letter(
    client: Callable[..., Client],
    release: Release,
    app: str,
    case: str,
    method: str,
    path: str,
    body: Event | None,
) -> None:
    theirs = recording(release, app, case)["response"]
    ours = client(app, release=release).http.request(method, path, json=body)
    assert (ours.status_code, ours.text) == (theirs["status"], theirs["body"])
    for header, value in theirs["headers"].items():
        assert ours.headers[header] == value


@pytest.mark.parametrize(
    ("release", "app", "case", "header"),
    recorded(
        [
            ("chat", "wrong_key", {"Authorization": "Bearer app-other"}),
            ("chat", "no_auth_header", {}),
        ]
    ),
)
def test_a_request_without_a_demo_key_is_refused_as_recorded(
    bases: dict[Release, str], release: Release, app: str, case: str, header: dict[str, str]
) -> None:
    theirs = recording(release, app, case)["response"]
    ours = httpx.get(f"{bases[release]}/info", headers=header, trust_env=False)
    assert (ours.status_code, ours.text) == (theirs["status"], theirs["body"])
    assert ours.headers["WWW-Authenticate"] == theirs["headers"]["WWW-Authenticate"]


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"query": "hi", "user": "u1"}, "inputs"),
        ({"inputs": {}, "user": "u1"}, "query"),
        ({"inputs": [], "query": "hi", "user": "u1"}, "inputs"),
        ({"inputs": {}, "query": "hi", "user": "u1", "conversation_id": "mine"}, "conversation_id"),
        ({"inputs": {}, "query": "hi", "user": "u1", "files": ["x"]}, "valid dictionary"),
        ({"inputs": {}, "query": "hi", "user": "u1", "response_mode": "later"}, "response_mode"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_wrong_body_is_refused(client: Callable[..., Client], body: Event, field: str) -> None:
    ours = client("chat").http.post("/chat-messages", json=body)
    assert (ours.status_code, ours.json()["code"]) == (400, "invalid_param")
    assert field in ours.json()["message"]


@each(list(KEYS), "info")
def test_info_and_parameters_have_the_recorded_fields(
    client: Callable[..., Client], release: Release, app: str, case: str
) -> None:
    one = client(app, release=release)
    info = one.http.get("/info").json()
    real = json.loads(recording(release, app, case)["response"]["body"])
    assert (shape(info), info["mode"]) == (shape(real), real["mode"])
    ours = one.http.get("/parameters").json()
    theirs = json.loads(recording(release, app, "parameters")["response"]["body"])
    assert set(ours) == set(theirs)
    if theirs["file_upload"]["enabled"]:
        assert set(ours["file_upload"]) == set(theirs["file_upload"])
    assert set(ours["sensitive_word_avoidance"]) == set(theirs["sensitive_word_avoidance"])
    assert ours["system_parameters"] == theirs["system_parameters"]
    assert ours["file_upload"]["allowed_file_types"] == ["image", "document", "audio", "video"]


def test_an_answer_comes_in_one_chunk_an_event(base: str) -> None:
    port = int(base.rpartition(":")[2].removesuffix("/v1"))
    body = json.dumps({"inputs": {}, "query": "hi", "response_mode": "streaming", "user": "u1"})
    head = f"POST /v1/chat-messages HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        key = "Authorization: Bearer app-demo-chatflow\r\nConnection: close\r\n\r\n"
        connection.sendall((head + key + body).encode())
        raw = b"".join(iter(lambda: connection.recv(65536), b""))
    headers, _, chunks = raw.partition(b"\r\n\r\n")
    assert b"Transfer-Encoding: chunked" in headers
    assert b"X-Version: 1.16.1" in headers
    count = 0
    while True:
        size, _, chunks = chunks.partition(b"\r\n")
        chunk, chunks = chunks[: int(size, 16)], chunks[int(size, 16) + 2 :]
        if not chunk:
            break
        assert chunk.endswith(b"\n\n")
        assert chunk.count(b"\n\n") == 1
        count += 1
    assert count > 10


@pytest.mark.parametrize("app", ["chat", "agent-chat", "agent", "advanced-chat"])
def test_a_conversation_is_remembered(client: Callable[..., Client], app: str) -> None:
    one = client(app)
    first = one.stream("My name is Ada")
    conversation = first[-1]["conversation_id"]
    second = said(one.stream("And now?", conversation_id=conversation))
    assert "turn 1" in said(first)
    assert "turn 2" in second
    assert 'began with: "My name is Ada"' in second


def test_a_conversation_is_not_shown_to_others(client: Callable[..., Client]) -> None:
    conversation = client("chat").stream("mine")[-1]["conversation_id"]
    for other in (client("chat", "u2"), client("agent-chat")):
        body = other.body("hi", conversation_id=conversation)
        assert other.http.post("/chat-messages", json=body).status_code == 404


def test_a_conversation_is_listed_renamed_and_deleted(client: Callable[..., Client]) -> None:
    one = client("chat", "lister")
    events = one.stream("First")
    one.stream("Second", conversation_id=events[-1]["conversation_id"])
    other = one.stream("Another")[-1]["conversation_id"]
    wanted = events[-1]["conversation_id"]
    query = {"user": "lister", "conversation_id": wanted}

    messages = one.http.get("/messages", params=query).json()
    theirs = json.loads(recording(NEWEST, "chat", "messages")["response"]["body"])
    assert shape(messages) == shape(theirs)
    assert [item["query"] for item in messages["data"]] == ["First", "Second"]
    assert messages["data"][0]["answer"] == said(events)
    newest = one.http.get("/messages", params={**query, "limit": 1}).json()
    assert ([item["query"] for item in newest["data"]], newest["has_more"]) == (["Second"], True)
    before = {**query, "first_id": messages["data"][1]["id"]}
    assert [m["query"] for m in one.http.get("/messages", params=before).json()["data"]] == [
        "First"
    ]

    renamed = one.http.post(f"/conversations/{wanted}/name", json={"name": "N", "user": "lister"})
    assert shape(renamed.json()) == shape(
        json.loads(recording(Release.DIFY_1_13, "chat", "rename")["response"]["body"])
    )
    listed = one.http.get("/conversations", params={"user": "lister", "limit": 20}).json()
    assert shape(listed) == shape(
        json.loads(recording(NEWEST, "chat", "conversations")["response"]["body"])
    )
    assert {item["id"]: item["name"] for item in listed["data"]} == {wanted: "N", other: "Another"}

    gone = one.http.request("DELETE", f"/conversations/{wanted}", json={"user": "lister"})
    assert (gone.status_code, gone.content) == (204, b"")
    assert one.http.get("/messages", params=query).status_code == 404


@each(["chat"], "upload_png")
def test_an_upload_is_described_as_recorded(
    client: Callable[..., Client], release: Release, app: str, case: str
) -> None:
    ours = client(app, release=release).upload("red.png", PNG, "image/png")
    theirs = recording(release, app, case)["response"]
    assert ours.status_code == theirs["status"]
    assert shape(ours.json()) == shape(json.loads(theirs["body"]))
    assert (ours.json()["size"], ours.json()["extension"]) == (len(PNG), "png")


def test_a_picture_that_is_too_large_is_refused_as_recorded(client: Callable[..., Client]) -> None:
    older = Release.DIFY_1_13
    theirs = recording(older, "chat", "upload_too_large_image")["response"]
    ours = client("chat", release=older).upload("a.png", bytes(10 * 2**20 + 1), "image/png")
    assert (ours.status_code, ours.text) == (theirs["status"], theirs["body"])


@pytest.mark.parametrize("app", list(KEYS))
def test_every_file_is_named_once_with_type_and_size(
    client: Callable[..., Client], app: str
) -> None:
    one = client(app)
    sent = [
        ("猫.png", PNG, "image/png", "image"),
        ("report.pdf", b"%PDF-1.7", "application/pdf", "document"),
        ("voice.mp3", b"ID3", "audio/mpeg", "audio"),
    ]
    references = []
    for name, content, mime_type, kind in sent:
        uploaded = one.upload(name, content, mime_type).json()["id"]
        reference = {"type": kind, "transfer_method": "local_file", "upload_file_id": uploaded}
        references.append(reference)
    remote = {"type": "image", "transfer_method": "remote_url", "url": "https://x.example/a/b.png"}
    answer = said(one.stream("look", files=[*references, remote]))
    assert "Files received: 4" in answer
    for name, content, mime_type, kind in sent:
        assert answer.count(f"{name}: {kind}, {mime_type}, {len(content)} bytes") == 1
    assert answer.count("b.png: image, image/png, not fetched: https://x.example/a/b.png") == 1


def test_a_workflow_takes_files_among_its_inputs(client: Callable[..., Client]) -> None:
    one = client("workflow")
    uploaded = one.upload("a.txt", b"hello", "text/plain").json()["id"]
    file = {"type": "document", "transfer_method": "local_file", "upload_file_id": uploaded}
    answer = said(one.stream("", inputs={"query": "read", "attachments": [file]}))
    assert "a.txt: document, text/plain, 5 bytes" in answer


def test_the_inputs_of_a_form_are_echoed_and_others_dropped(
    client: Callable[..., Client],
) -> None:
    answer = said(client("advanced-chat").stream("hi", inputs={"city": "Paris", "other": "x"}))
    assert "Inputs: city=Paris" in answer
    assert "other" not in answer


def picture_addresses(app: str, events: list[Event]) -> list[str]:
    if app in ("chat", "agent-chat", "agent", "completion"):
        return [event["url"] for event in events if "url" in event]
    return [file["url"] for file in events[-1]["data"]["files"]]


@pytest.mark.parametrize("app", list(KEYS))
def test_a_generated_picture_can_be_fetched_by_its_signed_address(
    client: Callable[..., Client], base: str, app: str
) -> None:
    (address,) = picture_addresses(app, client(app).stream("/image"))
    origin = base.removesuffix("/v1")
    fetched = httpx.get(origin + address, trust_env=False)
    assert (fetched.status_code, fetched.headers["Content-Type"]) == (200, "image/png")
    assert fetched.content.startswith(b"\x89PNG")
    assert httpx.get(f"{origin}{address}x", trust_env=False).status_code == 403
    assert httpx.get(origin + address.partition("?")[0], trust_env=False).status_code == 403


@pytest.mark.parametrize("app", ["chat", "agent-chat", "agent", "advanced-chat", "completion"])
def test_sources_come_with_the_end_of_the_message(client: Callable[..., Client], app: str) -> None:
    events = client(app).stream("prove it /sources")
    (end,) = [event for event in events if event["event"] == "message_end"]
    found = end["metadata"]["retriever_resources"]
    assert [source["document_name"] for source in found] == ["Handbook.md", "Notes.txt"]


def test_a_magic_word_in_an_earlier_line_does_nothing(client: Callable[..., Client]) -> None:
    events = client("chat").stream("Assistant: try /error or /image\nUser: hello")
    assert events[-1]["event"] == "message_end"
    assert not [event for event in events if "url" in event]


@pytest.mark.parametrize("app", list(KEYS))
def test_a_silence_is_filled_with_pings(client: Callable[..., Client], app: str) -> None:
    names = [event["event"] for event in client(app).stream("/slow")]
    first_word = next(number for number, name in enumerate(names) if name in TEXT)
    assert names[1:first_word].count("ping") >= 2 or names[:first_word].count("ping") >= 2


@each([app for app in KEYS if app != "agent"], "stopped_stream")
def test_a_stopped_stream_ends_as_recorded(release: Release, app: str, case: str) -> None:
    with serving(Pace(token=0.05, silence=60, ping=10, linger=0), release) as server:
        one = Client(server.base, app)
        events: list[Event] = []
        with one.http.stream("POST", one.route, json=one.body("hi")) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: "):
                    events.append(json.loads(line.removeprefix("data: ")))
                if [event["event"] in TEXT for event in events].count(True) == 2:
                    stop(one, events[-1]["task_id"])
        one.http.close()
    theirs = parse(recording(release, app, case)["response"]["body"])
    expected = [event for event in collapsed(theirs) if event["event"] != "ping"]
    assert [shape(event) for event in collapsed(events)] == [shape(event) for event in expected]


def stop(one: Client, task_id: str) -> None:
    route = STOPS.get(one.app, "/chat-messages")
    answer = one.http.post(f"{route}/{task_id}/stop", json={"user": one.user})
    assert answer.json() == {"result": "success"}


def test_another_user_cannot_stop_a_chat() -> None:
    with serving(Pace(token=0.01, silence=60, ping=10, linger=0)) as server:
        one, other = Client(server.base, "chat"), Client(server.base, "chat", "u2")
        with one.http.stream("POST", one.route, json=one.body("hi")) as answer:
            lines = answer.iter_lines()
            stop(other, json.loads(next(lines).removeprefix("data: "))["task_id"])
            events = parse("\n".join(["", *lines, "", ""]).lstrip())
        one.http.close()
        other.http.close()
    assert events[-1]["metadata"]["usage"]["total_tokens"] > 0


def test_an_answer_whose_caller_left_is_finished_without_a_text() -> None:
    with serving(Pace(token=0.02, silence=60, ping=10, linger=0)) as server:
        one = Client(server.base, "chat")
        with one.http.stream("POST", one.route, json=one.body("hi")) as answer:
            first = json.loads(next(answer.iter_lines()).removeprefix("data: "))
        deadline = time.monotonic() + 20
        while server.memory.tasks and time.monotonic() < deadline:
            time.sleep(0.05)
        query = {"user": "u1", "conversation_id": first["conversation_id"]}
        (turn,) = one.http.get("/messages", params=query).json()["data"]
        one.http.close()
    assert not server.memory.tasks
    assert turn["answer"] == ""


def test_audio_is_transcribed_by_the_chat_app_only(client: Callable[..., Client]) -> None:
    def hear(app: str, mime_type: str) -> httpx.Response:
        files = {"file": ("voice.mp3", b"ID3", mime_type)}
        return client(app).http.post("/audio-to-text", files=files, data={"user": "u1"})

    assert hear("chat", "audio/mp3").json() == {
        "text": "These are the words of voice.mp3, 3 bytes."
    }
    assert hear("chat", "audio/mpeg").status_code == 415
    assert hear("completion", "audio/mp3").json()["message"] == "Speech to text is not enabled"


def test_the_chat_app_suggests_questions(client: Callable[..., Client]) -> None:
    one = client("chat")
    message = one.stream("hi")[-1]["message_id"]
    suggested = one.http.get(f"/messages/{message}/suggested", params={"user": "u1"}).json()
    assert suggested["result"] == "success"
    assert suggested["data"]


def start_demo(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "demo", *arguments]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, **options)


def is_served(base: str) -> bool:
    try:
        return httpx.get(f"{base}/", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def test_the_command_prints_its_address_and_nothing_else() -> None:
    process = start_demo()
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    assert is_served(address)
    process.send_signal(signal.SIGINT)
    rest, _ = process.communicate(timeout=20)
    assert rest == ""
    assert process.returncode == 130


def test_a_taken_port_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        process = start_demo("--port", port, stderr=subprocess.PIPE)
        _, errors = process.communicate(timeout=20)
    assert process.returncode == 1
    assert f"port {port}" in errors


def test_the_demo_ends_when_its_parent_is_killed() -> None:
    program = (
        "import os, subprocess, sys\n"
        "me = str(os.getpid())\n"
        "subprocess.run([sys.executable, '-m', 'demo', '--parent', me])\n"
    )
    parent = subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert parent.stdout is not None
    address = parent.stdout.readline().strip()
    assert is_served(address)
    parent.kill()
    rest, _ = parent.communicate(timeout=20)  # to the end of the pipe, which the demo holds too
    assert rest == ""
    assert not is_served(address)


def test_the_demo_ends_with_a_process_that_is_not_its_parent() -> None:
    with subprocess.Popen(["sleep", "60"]) as other:
        process = start_demo("--parent", str(other.pid))
        assert process.stdout is not None
        assert is_served(process.stdout.readline().strip())
        process.send_signal(signal.SIGINT)  # Ctrl-C is the parent's to handle
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
        os.kill(other.pid, signal.SIGKILL)
    assert process.wait(20) == 0
    process.stdout.close()
