"""What Dify, or the way to it, does wrong, and what the caller is told."""

import json
import socket
import ssl
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
import trustme

from tests import service
from tests.fake_dify import FakeDify
from tests.faults.calls import Answer, ask, question, until
from tests.faults.chaos import CUTS, PAGE_MARK, REFUSALS, STRANGE, Chaos, Fault, key_of

SLOW = ("many-pings", "slow-head")

STREAMED_OR_NOT = pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])


def check_told(answer: Answer, fault: Fault, model: str) -> None:
    """One error of OpenAI's form, with the right words, headers and nothing secret in it."""
    assert answer.status == fault.status, answer.text
    assert answer.headers["content-type"].startswith("application/json")
    error = answer.error
    assert (error["code"], error["type"]) == (fault.code, fault.type), error
    assert fault.says.format(model=model) in error["message"]
    assert answer.headers.get("x-should-retry") == fault.retry
    assert answer.headers.get("retry-after") == fault.after
    check_clean(answer.text)


def check_clean(text: str) -> None:
    for secret in (PAGE_MARK, "<html", "nginx", "app-secret-of", "ThisIsASecret", "Traceback"):
        assert secret not in text, text


@pytest.fixture(scope="module")
def answers(
    request: pytest.FixtureRequest, shared: service.Service
) -> Iterator[dict[str, Future[Answer]]]:
    """What came of the questions of all cases that ask one. They are asked side by side: most of
    them wait."""
    wanted = [
        item.callspec.id
        for item in request.session.items
        if isinstance(item, pytest.Function) and "answers" in item.fixturenames
    ]
    with ThreadPoolExecutor(24) as pool:
        yield {id_: pool.submit(_ask, shared, id_) for id_ in dict.fromkeys(wanted)}


def _ask(shared: service.Service, id_: str) -> Answer:
    name, _, way = id_.rpartition("-")
    return ask(shared, question(name, f"by-{id_}", stream=way == "streamed"))


def asked_of(*names: str) -> pytest.MarkDecorator:
    """A case for each, streamed and whole; its id is ``<name>-streamed`` or ``<name>-whole``."""
    ids = [f"{name}-{way}" for name in names for way in ("streamed", "whole")]
    return pytest.mark.parametrize("id_", ids, ids=ids)


@asked_of(*REFUSALS)
def test_a_failure_before_the_first_byte_is_a_status(
    answers: dict[str, Future[Answer]], chaos: Chaos, id_: str
) -> None:
    name = id_.rpartition("-")[0]
    check_told(answers[id_].result(), REFUSALS[name], name)
    # A kept connection that ends at once was closed before the question came: that is asked again.
    most = 2 if name.endswith("-at-once") else 1
    asked = chaos.asked(name, f"by-{id_}")
    assert 1 <= len(asked) <= most, "what may have had effect was repeated"
    assert not chaos.stopped(name, f"by-{id_}")


@asked_of(*(f"cut-{name}" for name in CUTS))
def test_an_answer_that_is_cut_is_an_error(
    answers: dict[str, Future[Answer]], chaos: Chaos, id_: str
) -> None:
    name, _, way = id_.rpartition("-")
    fault, answer = CUTS[name.removeprefix("cut-")], answers[id_].result()
    if way == "streamed":
        check_stream(answer, fault)
    else:
        check_told(answer, fault, name)
        assert "Half an" not in answer.text
    check_ended(chaos, name, f"by-{id_}", fault)


def check_stream(answer: Answer, fault: Fault) -> None:
    """The text that came, one error without choices, and the end; never a finish."""
    assert answer.status == 200
    assert answer.said() == "Half an "
    assert answer.finishes() == [], "a cut answer was called complete"
    assert [error["code"] for error in answer.stream_errors()] == [fault.code]
    assert "error" in json.loads(answer.events[-2])
    assert answer.events[-1] == "[DONE]"
    check_clean(answer.text)


def check_ended(chaos: Chaos, model: str, user: str, fault: Fault) -> None:
    """Asked once; stopped once where Dify may still be at work, with the same key and user."""
    assert len(chaos.asked(model, user)) == 1
    if fault.stops:
        until(lambda: chaos.stopped(model, user), 3, "the stop")
    stops = chaos.stopped(model, user)
    assert [stop.path for stop in stops] == [
        f"/v1/chat-messages/task-of-{user}/stop" for _ in range(fault.stops)
    ]


@STREAMED_OR_NOT
@pytest.mark.parametrize("name", STRANGE)
def test_what_is_strange_is_an_answer_all_the_same(
    shared: service.Service, chaos: Chaos, user: str, name: str, stream: bool
) -> None:
    # The second question finds the connections as the first has left them.
    for turn in (1,) if name in SLOW else (1, 2):
        answer = ask(shared, question(name, user, stream=stream))
        assert answer.status == 200, answer.text
        assert answer.said() == "All is well"
        assert not stream or (answer.finishes(), answer.events[-1]) == (["stop"], "[DONE]")
        assert len(chaos.asked(name, user)) == turn
    assert not chaos.stopped(name, user), "a run that had ended was stopped"


# --- the way to Dify ---------------------------------------------------------------------------


def deaf_port(stack: ExitStack) -> int:
    """A port that neither accepts nor refuses: its queue is full, and nobody empties it."""
    listener = stack.enter_context(socket.socket())
    listener.bind(("127.0.0.1", 0))
    listener.listen(0)
    port = int(listener.getsockname()[1])
    for _ in range(3):
        waiting = stack.enter_context(socket.socket())
        waiting.setblocking(False)
        waiting.connect_ex(("127.0.0.1", port))
    return port


@pytest.fixture(scope="module")
def secure() -> Iterator[FakeDify]:
    """A Dify with a certificate that nobody vouches for."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("127.0.0.1").configure_cert(context)
    fake = FakeDify(tls=context)
    yield fake
    fake.close()


WAYS = {
    "refused": (502, "upstream_unreachable", "true"),
    "unknown-name": (502, "upstream_unreachable", "true"),
    "untrusted": (502, "upstream_unreachable", "true"),
    "tls-to-plain": (502, "upstream_unreachable", "true"),
    "deaf": (504, "upstream_timeout", "false"),
}


@pytest.fixture(scope="module")
def lost(
    chaos: Chaos, secure: FakeDify, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[service.Service]:
    """A service whose models cannot be reached, each in its way."""
    with ExitStack() as stack:
        bases = {
            "refused": f"http://127.0.0.1:{service.free_port()}/v1",
            "unknown-name": "http://nobody.invalid/v1",
            "untrusted": secure.base,
            "tls-to-plain": chaos.dify.base.replace("http:", "https:"),
            "deaf": f"http://127.0.0.1:{deaf_port(stack)}/v1",
        }
        models = {
            name: {"key": key_of(name), "base": base, "type": "chat"}
            for name, base in bases.items()
        }
        variables = {"MODEL_CONFIG": json.dumps(models), "GUNICORN_WORKERS": "1"}
        folder = tmp_path_factory.mktemp("lost")
        yield stack.enter_context(service.running(folder, variables))


@STREAMED_OR_NOT
@pytest.mark.parametrize("name", WAYS)
def test_a_dify_that_cannot_be_reached(
    lost: service.Service, user: str, name: str, stream: bool
) -> None:
    status, code, retry = WAYS[name]
    answer = ask(lost, question(name, user, stream=stream))
    check_told(answer, Fault(lambda request: [], status, code, retry=retry), name)


def test_a_dify_that_speaks_tls_where_none_is_expected(
    secure: FakeDify, tmp_path: Path, user: str
) -> None:
    """It depends on who is quicker whether the question or the answer breaks."""
    variables = service.free_variables(secure.base.replace("https:", "http:"))
    with service.running(tmp_path, {**variables, "GUNICORN_WORKERS": "1"}) as running:
        answer = ask(running, question("tiny", user))
    assert answer.status == 502
    assert answer.error["code"] in ("upstream_unreachable", "upstream_error")
    check_clean(answer.text)


def test_health_and_models_do_not_depend_on_dify(lost: service.Service) -> None:
    for path in ("/healthz", "/v1/models"):
        answer = httpx.get(lost.url + path, timeout=5, trust_env=False)
        assert answer.status_code == 200
