"""Pages of other origins: which headers a browser gets."""

from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from opendify.api.middleware.cors import add_cors
from opendify.config.accounts import parse_origins
from opendify.config.parsing import InvalidValue
from tests.support.fake_dify import FakeDify, refused

CHAT = "/v1/chat/completions"
PAGE = "https://chat.example.com"
PREFLIGHT = {
    "Origin": PAGE,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang",
}
BODY = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture
def api_keys() -> str:
    return "key"


@pytest.fixture
def origins() -> str:
    return f"{PAGE}/, http://localhost:3000"


@pytest.fixture
def api(app: Flask, origins: str) -> Iterator[FlaskClient]:
    add_cors(app, parse_origins(origins))
    yield app.test_client()


def cors_of(response: Any) -> dict[str, str]:
    return {k: v for k, v in response.headers if k.lower().startswith("access-control")}


@pytest.mark.parametrize("path", [CHAT, "/v1/models", "/nowhere"])
def test_a_preflight_needs_no_key_and_lists_what_may_be_sent(api: FlaskClient, path: str) -> None:
    response = api.options(path, headers=PREFLIGHT)
    assert response.status_code == 204
    told = cors_of(response)
    assert told["Access-Control-Allow-Origin"] == PAGE
    assert "POST" in told["Access-Control-Allow-Methods"]
    assert told["Access-Control-Allow-Headers"] == PREFLIGHT["Access-Control-Request-Headers"]
    assert response.headers["Vary"] == "Origin"


@pytest.mark.parametrize("stream", [True, False])
def test_answers_and_errors_may_be_read(api: FlaskClient, dify: FakeDify, stream: bool) -> None:
    headers = {"Origin": PAGE, "Authorization": "Bearer key"}
    body = {**BODY, "stream": stream}
    fine = api.post(CHAT, json=body, headers=headers, buffered=True)
    dify.answers.append(refused(500, {}))
    failed = api.post(CHAT, json=body, headers=headers, buffered=True)
    unknown = api.get("/nowhere", headers=headers)
    turned_away = api.post(CHAT, json=body, headers={"Origin": PAGE})
    responses = [fine, failed, unknown, turned_away]
    assert [response.status_code for response in responses] == [200, 502, 404, 401]
    for response in responses:
        assert cors_of(response)["Access-Control-Allow-Origin"] == PAGE
        assert "Retry-After" in cors_of(response)["Access-Control-Expose-Headers"]


@pytest.mark.parametrize(
    "origin",
    ["https://evil.example", f"{PAGE}.evil.example", "null", "http://chat.example.com", ""],
)
def test_another_origin_gets_no_cors_headers(api: FlaskClient, origin: str) -> None:
    for response in (
        api.options(CHAT, headers={**PREFLIGHT, "Origin": origin}),
        api.get("/v1/models", headers={"Origin": origin, "Authorization": "Bearer key"}),
    ):
        assert cors_of(response) == {}
        assert response.headers["Vary"] == "Origin"


def test_options_that_are_no_preflight_need_a_key(api: FlaskClient) -> None:
    assert api.options(CHAT, headers={"Origin": PAGE}).status_code == 401


class TestOfAll:
    @pytest.fixture
    def origins(self) -> str:
        return "*"

    def test_every_page_may_call(self, api: FlaskClient) -> None:
        response = api.options(CHAT, headers={**PREFLIGHT, "Origin": "https://any.example"})
        assert cors_of(response)["Access-Control-Allow-Origin"] == "*"


class TestOfNone:
    @pytest.fixture
    def origins(self) -> str:
        return ""

    def test_nothing_is_sent(self, api: FlaskClient) -> None:
        headers = {"Origin": PAGE, "Authorization": "Bearer key"}
        for response in (
            api.options(CHAT, headers=PREFLIGHT),
            api.get("/v1/models", headers=headers),
        ):
            assert cors_of(response) == {}
            assert "Vary" not in response.headers


@pytest.mark.parametrize(
    "text",
    [
        "chat.example.com",
        "https://",
        "https://a/b",
        "https://a?b",
        "https://u@a",
        "ftp://a",
        "https://*.a",
        "https://a:99999",
        "https://a b",
        "null",
    ],
)
def test_what_is_no_origin_is_refused(text: str) -> None:
    with pytest.raises(InvalidValue):
        parse_origins(f"{PAGE},{text}")
