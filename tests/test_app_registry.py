"""What is known of the apps behind the models: asked late, kept, refreshed, never in the way."""

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from flask.testing import FlaskClient

from opendify import errors
from opendify.config.models import Model
from opendify.upstream import app_registry as rooms
from opendify.upstream.app_registry import AppRegistry
from opendify.upstream.client import DifyClient
from tests.support.fake_dify import (
    CLOSE,
    Chat,
    FakeDify,
    Request,
    Steps,
    recorded_mode,
    recorded_names,
    recording,
    refused,
)
from tests.support.waiting import wait_for

INFOS = [name for name in recorded_names() if name.endswith("/info")]


@pytest.fixture
def model(dify: FakeDify) -> Model:
    dify.tells_of_its_app = True
    return Model("tiny", "app-x", dify.base)


@pytest.fixture
def directory(http: httpx.Client, model: Model) -> Iterator[AppRegistry]:
    made = AppRegistry(DifyClient(http, read_timeout=2), {model.name: model})
    yield made
    made.close()


def telling(**bodies: Any) -> Callable[[Request], Steps]:
    """Answers by the last part of the path; a number is the status of a refusal."""

    def answer(request: Request) -> Steps:
        body = bodies.get(request.path.partition("?")[0].rpartition("/")[2], 404)
        if isinstance(body, int):
            return refused(body, {"code": "not_found", "message": "", "status": body})
        return body if isinstance(body, list) else refused(200, body)

    return answer


def recorded_kinds(name: str) -> set[str]:
    """The kinds of files that the recorded app was made to accept."""
    version, app, _ = name.split("/")
    if version != "1.16.1":
        return {"image", "document"}
    if app.startswith(("workflow", "flow-")):
        return set()
    kinds = {"image", "document", "audio"}
    return kinds | {"video"} if recorded_mode(name) == "agent" else kinds


@pytest.mark.parametrize("name", INFOS)
def test_a_recorded_app_is_known(
    name: str, dify: FakeDify, model: Model, directory: AppRegistry
) -> None:
    info, parameters = recording(name), recording(name.replace("/info", "/parameters"))
    dify.answer = telling(info=json.loads(info.body), parameters=json.loads(parameters.body))
    app = directory.app(model)
    kind = name.split("/")[1]
    assert (app.mode, app.name) == (recorded_mode(name), json.loads(info.body)["name"])
    assert app.files is not None
    assert app.files == app.message_files
    assert app.files.kinds == recorded_kinds(name)
    assert app.files.methods == ({"local_file", "remote_url"} if app.files.kinds else set())
    assert (app.files.max_count, app.files.max_bytes["image"]) == (
        3 if app.files.kinds else 0,
        10 * 1024 * 1024,
    )
    with_suggestions = ("1.16.1/chat/info", "1.16.1/flow/info", "1.16.1/agent/info")
    assert app.suggestions is (kind == "chat-sq" or name in with_suggestions)
    fields = {(one.name, one.kind, one.required, one.max_length) for one in app.form or ()}
    forms = {
        "chat-inputs": {("name", "text-input", True, 48)},
        "1.16.1/completion": {("query", "paragraph", True, 0)},
        "completion": {("query", "paragraph", True, 4000)},
        "workflow": {("query", "paragraph", True, 4000)},
        "workflow-hitl": {("query", "paragraph", True, 4000)},
    }
    app_name = name.removesuffix("/info")
    assert fields == (forms.get(app_name) or forms.get(kind, set()))
    assert directory.app(model) is app
    assert [r.path for r in dify.requests].count("/v1/info") == 1


WRONG = {"not_chat_app": 400, "not_workflow_app": 400}
PROBED = [
    ("chat", {"chat-messages": "invalid_param"}),
    ("workflow", {"chat-messages": "not_chat_app", "run": "invalid_param"}),
    ("completion", {"chat-messages": "not_chat_app", "run": "not_workflow_app"}),
    ("", {"chat-messages": "unauthorized"}),
    ("", {"chat-messages": "not_chat_app", "run": "app_unavailable"}),
]


@pytest.mark.parametrize(("mode", "codes"), PROBED)
def test_the_mode_of_an_app_before_dify_1_4_is_probed(
    mode: str, codes: dict[str, str], dify: FakeDify, model: Model, directory: AppRegistry
) -> None:
    answers = {
        path: refused(401 if code == "unauthorized" else 400, {"code": code, "message": "m"})
        for path, code in codes.items()
    }
    dify.answer = telling(info={"name": "Old"}, parameters={"user_input_form": []}, **answers)
    assert directory.app(model).mode == mode
    probes = [r for r in dify.requests if r.method == "POST"]
    assert [r.json for r in probes] == [{"user": "probe"}] * len(codes)


def test_an_app_that_does_not_tell_of_itself_is_probed_where_dify_knows_its_form(
    dify: FakeDify, model: Model, directory: AppRegistry
) -> None:
    wrong = refused(400, {"code": "not_chat_app", "message": "m"})
    right = refused(400, {"code": "invalid_param", "message": "m"})
    dify.answer = telling(
        info=404, parameters={"user_input_form": []}, run=right, **{"chat-messages": wrong}
    )
    assert directory.app(model).mode == "workflow"


def test_the_operators_type_wins_and_is_not_probed(
    dify: FakeDify, model: Model, directory: AppRegistry
) -> None:
    dify.answer = telling(info={"mode": "chat"}, parameters={})
    assert directory.app(Model("tiny", "app-x", dify.base, type="workflow")).mode == "workflow"
    assert {r.method for r in dify.requests} == {"GET"}


def test_an_unpublished_app_is_known_by_its_mode(
    dify: FakeDify, model: Model, directory: AppRegistry
) -> None:
    unavailable = refused(400, {"code": "app_unavailable", "message": "m", "status": 400})
    dify.answer = telling(info={"mode": "advanced-chat"}, parameters=unavailable)
    app = directory.app(model)
    assert (app.mode, app.form, app.files) == ("advanced-chat", None, None)


def test_what_dify_does_not_tell_again_stays_known(
    dify: FakeDify, model: Model, directory: AppRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rooms, "FRESH_SECONDS", 0)
    dify.answer = telling(info={"mode": "workflow"}, parameters={"user_input_form": []})
    known = directory.app(model)
    dify.answer = telling(info=500, parameters=500)
    assert directory.refreshed(model) == known
    dify.answer = lambda request: [CLOSE]
    assert directory.refreshed(model) == known
    dify.answer = telling(info={"mode": "chat"}, parameters=500)
    assert directory.refreshed(model).mode == "chat"


def test_a_dify_that_is_not_there_is_an_error_only_where_nothing_is_known(
    dify: FakeDify, model: Model, directory: AppRegistry
) -> None:
    dify.answer = lambda request: [CLOSE]
    with pytest.raises(errors.UpstreamUnreachable):
        directory.app(model)
    assert directory.refreshed(model).mode == ""
    assert directory.known(model).mode == ""


def test_a_dify_that_accepts_no_connection_is_waited_for_once(model: Model) -> None:
    tried = []

    def fail(request: httpx.Request) -> httpx.Response:
        tried.append(request.url.path)
        raise httpx.ConnectTimeout("x", request=request)

    with httpx.Client(transport=httpx.MockTransport(fail)) as http:
        directory = AppRegistry(DifyClient(http, read_timeout=1), {})
        with pytest.raises(errors.UpstreamTimeout):
            directory.app(model)
        directory.close()
    assert tried == ["/v1/info"]


def test_an_app_that_was_just_asked_about_is_not_asked_about_again(
    dify: FakeDify, model: Model, directory: AppRegistry
) -> None:
    dify.answer = telling(info={"mode": "chat"}, parameters={})
    directory.app(model)
    directory.refreshed(model)
    directory.mark_stale(model)
    time.sleep(1.2)
    assert [r.path for r in dify.requests].count("/v1/info") == 1


def test_a_burst_of_first_requests_asks_once(
    dify: FakeDify, model: Model, directory: AppRegistry
) -> None:
    told = telling(info={"name": "Tiny", "mode": "chat"}, parameters={})
    dify.answer = lambda request: [0.3, *told(request)]
    with ThreadPoolExecutor(16) as pool:
        apps = list(pool.map(directory.app, [model] * 16))
    assert {app.mode for app in apps} == {"chat"}
    asked = [request.path for request in dify.requests if request.path == "/v1/info"]
    assert len(asked) == 1


def test_a_burst_of_first_requests_fails_as_one(
    dify: FakeDify, model: Model, directory: AppRegistry
) -> None:
    dify.answer = lambda request: [0.2, CLOSE]
    with ThreadPoolExecutor(8) as pool:
        outcomes = [pool.submit(directory.app, model) for _ in range(8)]
        assert all(isinstance(one.exception(), errors.UpstreamUnreachable) for one in outcomes)


def test_an_app_in_doubt_is_asked_about_in_the_background(
    dify: FakeDify, model: Model, directory: AppRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rooms, "FRESH_SECONDS", 0)
    dify.answer = telling(info={"mode": "chat"}, parameters={})
    directory.app(model)
    dify.answer = telling(info={"mode": "workflow"}, parameters={})
    directory.mark_stale(model)
    until = time.monotonic() + 10
    while directory.known(model).mode != "workflow":
        assert time.monotonic() < until
        time.sleep(0.05)


def test_a_form_that_was_changed_in_dify_does_not_refuse_for_long(
    dify: FakeDify, api: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rooms, "FRESH_SECONDS", 0)
    dify.tells_of_its_app = True
    form = [{"text-input": {"variable": "city", "required": True}}]
    parameters: dict[str, Any] = {"user_input_form": form}

    def answer(request: Request) -> Steps:
        if request.path == "/v1/chat-messages":
            return Chat().says("Hello")
        return telling(info={"mode": "chat"}, parameters=parameters)(request)

    dify.answer = answer
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
    refusal = api.post("/v1/chat/completions", json=body)
    assert (refusal.status_code, refusal.json["error"]["param"]) == (400, "inputs")
    assert "city" in refusal.json["error"]["message"]
    assert not dify.asked()
    form.clear()
    answered = api.post("/v1/chat/completions", json=body, buffered=True)
    assert answered.status_code == 200, answered.json


def test_the_list_of_models_has_what_is_known_and_never_waits(
    dify: FakeDify, api: FlaskClient
) -> None:
    dify.tells_of_its_app = True
    upload = {"enabled": True, "allowed_file_types": ["image", "document"]}
    dify.answer = telling(
        info={"mode": "chat", "name": "Helper", "description": "Knows all"},
        parameters={"file_upload": upload, "speech_to_text": {"enabled": True}},
    )
    bare = api.get("/v1/models").json["data"][0]
    assert set(bare) == {"id", "object", "created", "owned_by"}
    wait_for(lambda: all("mode" in entry for entry in api.get("/v1/models").json["data"]))
    told = api.get("/v1/models").json["data"][0]
    info = told.pop("info")
    assert info["meta"]["capabilities"]["vision"] is True
    assert told == bare | {
        "name": "Helper (tiny)",  # as the other model of the fixture
        "description": "Knows all",
        "mode": "chat",
        "capabilities": {
            "vision": True,
            "files": ["document", "image"],
            "speech_to_text": True,
        },
    }
    told["info"] = info
    assert api.get("/v1/models/tiny").json == told
