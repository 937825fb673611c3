"""Pages of other sites, where no keys are set: a browser sends whatever they want."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx
import pytest
from flask.testing import FlaskClient

from opendify.config.accounts import parse_origins
from opendify.config.models import Model
from tests.support import schemas
from tests.support.application import make_settings, open_app
from tests.support.fake_dify import FakeDify
from tests.support.service import free_variables, running

CHAT = "/v1/chat/completions"
CLEANUP = "/v1/conversation/cleanup"
MAPPINGS = "/v1/conversation/mappings"
QUESTION = b'{"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}'
JSON = {"Content-Type": "application/json"}
PAGE = "https://chat.example.com"
PUBLIC = "https://ai.example.com"


@pytest.fixture
def new_api(http: httpx.Client, models: dict[str, Model], tmp_path: Path) -> Iterator[Any]:
    with ExitStack() as stack:

        def new(host: str = "0.0.0.0", public_base: str = "", **keys: str) -> FlaskClient:
            settings = make_settings(
                models,
                tmp_path,
                server_host=host,
                public_base_url=public_base,
                cors_origins=parse_origins(keys.pop("origins", "")),
                **keys,
            )
            return stack.enter_context(open_app(settings, http)).test_client()

        yield new


@pytest.fixture
def api(new_api: Any) -> FlaskClient:
    client: FlaskClient = new_api()
    return client


def outcome(response: Any) -> tuple[int, str]:
    if response.status_code < 400:
        return response.status_code, ""
    schemas.assert_error(response.json)
    return response.status_code, response.json["error"]["code"]


FOREIGN = [
    {"Origin": "https://evil.example"},
    {"Origin": "https://evil.example", "Sec-Fetch-Site": "same-origin"},
    {"Origin": "null"},
    {"Origin": "null", "Sec-Fetch-Site": "cross-site"},
    {"Origin": "http://localhost:3000"},
    {"Origin": "http://localhost.evil.example"},
    {"Origin": "https://evil.example/localhost"},
    {"Origin": "http://"},
    {"Origin": "://localhost"},
    {"Origin": "x://"},
    {"Sec-Fetch-Site": "cross-site"},
    {"Sec-Fetch-Site": "same-site"},
    {"Sec-Fetch-Site": "CROSS-SITE", "Sec-Fetch-Mode": "no-cors"},
]


@pytest.mark.parametrize("signs", FOREIGN)
@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", CHAT), ("POST", CLEANUP), ("POST", "/v1/nowhere"), ("DELETE", f"{MAPPINGS}/x")],
)
@pytest.mark.parametrize("kind", [{}, {"Content-Type": "text/plain"}, JSON])
def test_a_page_of_another_site_gets_nothing_done(
    api: FlaskClient,
    dify: FakeDify,
    method: str,
    path: str,
    signs: dict[str, str],
    kind: dict[str, str],
) -> None:
    response = api.open(path, method=method, data=QUESTION, headers={**signs, **kind})
    assert outcome(response) == (403, "origin_not_allowed")
    assert "CORS_ORIGINS" in response.json["error"]["message"]
    assert "OPENDIFY_API_KEYS" in response.json["error"]["message"]
    assert dify.asked() == []


def test_what_a_page_wants_cleaned_up_stays(api: FlaskClient, dify: FakeDify) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}]}
    assert api.post(CHAT, json={**body, "metadata": {"chat_id": "1"}}).status_code == 200
    asked = api.post(CLEANUP, data=b'{"max_age_days":0}', headers={"Origin": "null"})
    assert asked.status_code == 403
    assert api.get(MAPPINGS).json["mapping_count"] == 1


OURS = [
    {},
    {"Origin": "http://localhost"},
    {"Origin": "https://localhost"},
    {"Origin": "http://localhost", "Sec-Fetch-Site": "same-origin"},
    {"Sec-Fetch-Site": "same-origin"},
    {"Sec-Fetch-Site": "none"},
    {"Origin": PAGE, "Sec-Fetch-Site": "cross-site"},
    {"Origin": PAGE.upper()},
    {"Origin": PUBLIC},
    {"Origin": "app://obsidian.md", "Sec-Fetch-Site": "cross-site"},
    {"Origin": "chrome-extension://abc", "Sec-Fetch-Site": "cross-site"},
    {"Origin": "file://"},
]


@pytest.mark.parametrize("signs", OURS)
def test_others_are_served(new_api: Any, signs: dict[str, str]) -> None:
    api = new_api(public_base=PUBLIC, origins=f"{PAGE},http://localhost:3000")
    response = api.post(CHAT, data=QUESTION, headers={**signs, **JSON})
    assert outcome(response) == (200, "")
    assert outcome(api.post(CLEANUP, headers=signs)) == (200, "")


def test_all_pages_are_served_where_all_are_listed(new_api: Any) -> None:
    headers = {"Origin": "https://any.example", "Sec-Fetch-Site": "cross-site"}
    response = new_api(origins="*").post(CHAT, data=QUESTION, headers={**headers, **JSON})
    assert outcome(response) == (200, "")


@pytest.mark.parametrize("kind", ["", "text/plain", "application/x-www-form-urlencoded"])
@pytest.mark.parametrize("signs", [{"Sec-Fetch-Site": "none"}, {"Origin": "http://localhost"}])
def test_what_a_browser_sends_has_the_type_of_json(
    api: FlaskClient, signs: dict[str, str], kind: str
) -> None:
    for path in (CHAT, CLEANUP):
        response = api.post(path, data=QUESTION, headers={**signs, "Content-Type": kind})
        assert outcome(response) == (415, "unsupported_media_type")


def test_what_is_no_browser_needs_no_type(api: FlaskClient) -> None:
    assert outcome(api.post(CHAT, data=QUESTION)) == (200, "")


@pytest.mark.parametrize("signs", FOREIGN)
def test_with_keys_nothing_changes(new_api: Any, signs: dict[str, str]) -> None:
    api = new_api(host="127.0.0.1", api_keys="key")
    headers = {**signs, "Host": "evil.example"}
    keyed = {**headers, "Authorization": "Bearer key"}
    assert outcome(api.post(CHAT, data=QUESTION, headers=keyed)) == (200, "")
    assert outcome(api.post(CHAT, data=QUESTION, headers=headers)) == (401, "invalid_api_key")


def test_an_admin_key_is_known_to_no_page(new_api: Any) -> None:
    api = new_api(host="127.0.0.1", admin_keys="admin")
    headers = {"Origin": "https://evil.example", "Host": "evil.example"}
    admin = {**headers, "Authorization": "Bearer admin"}
    assert outcome(api.post(CLEANUP, headers=admin)) == (200, "")
    assert outcome(api.post(CLEANUP, headers=headers))[0] == 403


@pytest.mark.parametrize("signs", FOREIGN)
def test_reading_is_left_to_the_rules_of_browsers(api: FlaskClient, signs: dict[str, str]) -> None:
    assert api.get("/v1/models", headers=signs).status_code == 200


# Names that lead to this machine, and may be anybody's

HOSTS = [
    "localhost",
    "LOCALHOST:5000",
    "localhost.",
    "tiny.localhost:5000",
    "127.0.0.1",
    "127.0.0.1:5000",
    "127.8.9.1:5000",
    "[::1]:5000",
    "[::1]",
    "host.docker.internal:5000",
    "opendify:5000",
    "ai.example.com",
    "AI.example.com:8443",
]
FOREIGN_HOSTS = [
    "evil.example",
    "evil.example:5000",
    "127.0.0.1.evil.example:5000",
    "127.0.0.1.nip.io",
    "localhost.evil.example",
    "evil.example.",
    "localhost.localdomain.example",
    "evil.example@127.0.0.1",
    "[::1].evil.example",
    "[2001:db8::1]:5000",
    "203.0.113.7",
    "0.0.0.0:5000",
    ":5000",
    "[",
    "x.ai.example.com",
    "printer.local",
    "evil%2eexample",
    "\xe9vil",
]


@pytest.mark.parametrize("server_host", ["127.0.0.1", "::1", "localhost", "127.0.0.2"])
@pytest.mark.parametrize("host", HOSTS)
def test_the_names_of_this_machine_are_answered_to(
    new_api: Any, host: str, server_host: str
) -> None:
    api = new_api(host=server_host, public_base=PUBLIC)
    assert api.get("/v1/models", headers={"Host": host}).status_code == 200
    headers = {"Host": host, **JSON}
    assert outcome(api.post(CHAT, data=QUESTION, headers=headers)) == (200, "")


@pytest.mark.parametrize("host", FOREIGN_HOSTS)
@pytest.mark.parametrize("path", ["/v1/models", MAPPINGS, "/metrics", "/v1/nowhere", "/"])
def test_a_name_that_may_be_anybody_s_is_not(new_api: Any, host: str, path: str) -> None:
    api = new_api(host="127.0.0.1", public_base=PUBLIC)
    response = api.get(path, headers={"Host": host})
    assert response.status_code in (403, 400), response.data
    if path == "/v1/models" and response.status_code == 403:
        assert outcome(response) == (403, "host_not_allowed")
        for name in ("PUBLIC_BASE_URL", "OPENDIFY_API_KEYS", "127.0.0.1"):
            assert name in response.json["error"]["message"]


@pytest.mark.parametrize("host", FOREIGN_HOSTS)
def test_a_question_under_such_a_name_is_not_asked(new_api: Any, dify: FakeDify, host: str) -> None:
    api = new_api(host="127.0.0.1", public_base=PUBLIC)
    origin = f"http://{host}"
    response = api.post(CHAT, data=QUESTION, headers={"Host": host, "Origin": origin, **JSON})
    assert response.status_code in (403, 400)
    assert dify.asked() == []


@pytest.mark.parametrize(
    ("host", "may_ask"),
    [
        ("evil.example", False),
        ("evil.example:5000", False),
        ("127.0.0.1.nip.io:5000", False),
        ("192.0.2.7:5000", True),
        ("[2001:db8::1]:5000", True),
        ("opendify:5000", True),
        ("ai.example.com", True),
    ],
)
def test_a_page_may_ask_where_it_is_from_unless_its_name_may_be_led_here(
    new_api: Any, host: str, may_ask: bool
) -> None:
    """As in a container, whose address says nothing of who reaches it."""
    api = new_api(host="0.0.0.0", public_base=PUBLIC)
    origin = f"https://{host}" if host in PUBLIC else f"http://{host}"
    response = api.post(CHAT, data=QUESTION, headers={"Host": host, "Origin": origin, **JSON})
    assert outcome(response) == ((200, "") if may_ask else (403, "origin_not_allowed"))


def test_probes_are_answered_under_any_name(new_api: Any) -> None:
    api = new_api(host="127.0.0.1")
    assert api.get("/healthz", headers={"Host": "evil.example"}).status_code == 200


def test_an_instance_for_others_has_names_that_it_does_not_know(api: FlaskClient) -> None:
    assert api.get("/v1/models", headers={"Host": "ai.example.com"}).status_code == 200
    headers = {"Host": "ai.example.com", **JSON}
    assert outcome(api.post(CHAT, data=QUESTION, headers=headers)) == (200, "")


def test_one_that_compose_publishes_on_this_machine_only_is_as_closed(
    dify: FakeDify, tmp_path: Path
) -> None:
    """Within its container it listens at all addresses."""
    variables = free_variables(dify.base, GUNICORN_WORKERS="1", PUBLISH_ADDRESS="127.0.0.1")
    with running(tmp_path, variables, host="0.0.0.0") as service:
        found = httpx.get(f"{service.url}/v1/models", trust_env=False)
        assert found.status_code == 200
        for name, status in (("opendify:5000", 200), ("evil.example:5000", 403)):
            answer = httpx.get(f"{service.url}/v1/models", headers={"Host": name}, trust_env=False)
            assert answer.status_code == status
        assert "OPENDIFY_API_KEYS is not set" not in service.output()
