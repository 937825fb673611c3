"""What Dify, or the way to it, does wrong, and the error that the caller gets."""

import json
import re
import socket
import ssl
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from time import sleep

import httpx
import pytest
import trustme

from tests.faults.calls import Answer, ask, asking, question
from tests.faults.chaos import BOMB, CUTS, PAGE_MARK, REFUSALS, STRANGE, Chaos, Fault, key_of
from tests.faults.conftest import started
from tests.support import service
from tests.support.fake_dify import Chat, FakeDify, Request, Steps, head
from tests.support.ports import free_port
from tests.support.waiting import wait_for

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
    assert answer.said().rstrip("x") == "Half an "
    assert len(answer.said()) < 1_200_000
    assert answer.finishes() == [], "a cut answer was called complete"
    assert [error["code"] for error in answer.stream_errors()] == [fault.code]
    assert "error" in json.loads(answer.events[-2])
    assert answer.events[-1] == "[DONE]"
    check_clean(answer.text)


def check_ended(chaos: Chaos, model: str, user: str, fault: Fault) -> None:
    """Asked once; stopped once where Dify may still be at work, with the same key and user."""
    assert len(chaos.asked(model, user)) == 1
    if fault.stops:
        wait_for(lambda: chaos.stopped(model, user), 3, "the stop")
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


AUTHORITY = trustme.CA()
LONG_AGO = datetime(2001, 1, 1, tzinfo=UTC)


def secure_dify(
    stack: ExitStack, authority: trustme.CA, name: str, not_after: datetime | None = None
) -> FakeDify:
    """A Dify with a certificate of this authority for this name."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    certificate = authority.issue_cert(name, not_before=LONG_AGO, not_after=not_after)
    certificate.configure_cert(context)
    fake = FakeDify(tls=context)
    stack.callback(fake.close)
    return fake


@dataclass(frozen=True)
class Way:
    """How it is reported: to the caller, and in the log as ``cause``."""

    says: str
    cause: str
    status: int = 502
    code: str = "upstream_unreachable"
    retry: str = "true"


WAYS = {
    "refused": Way("the connection was refused", "connection refused"),
    "unknown-name": Way("host name", "name server"),
    "untrusted": Way("not signed by a trusted authority", "name it in DIFY_CA_FILE"),
    "self-signed": Way("not signed by a trusted authority", "name it in DIFY_CA_FILE"),
    "wrong-name": Way("certificate is for another name", "certificate is for another name"),
    "expired": Way("certificate has expired", "certificate has expired"),
    "tls-to-plain": Way("speaks no TLS", "no TLS at this address"),
    "tls-to-silent": Way("speaks no TLS", "closed when TLS began"),
    "deaf": Way("not be reached in time", "not accepted in time", 504, "upstream_timeout", "false"),
}


@pytest.fixture(scope="module")
def lost(chaos: Chaos, tmp_path_factory: pytest.TempPathFactory) -> Iterator[service.Service]:
    """A service whose models cannot be reached, each in its way, but for ``trusted``."""
    folder = tmp_path_factory.mktemp("lost")
    AUTHORITY.cert_pem.write_to_path(str(folder / "ca.pem"))
    with ExitStack() as stack:
        self_signed = FakeDify(tls=self_signed_context(folder))
        stack.callback(self_signed.close)
        bases = {
            "refused": f"http://127.0.0.1:{free_port()}/v1",
            "unknown-name": "http://nobody.invalid/v1",
            "untrusted": secure_dify(stack, trustme.CA(), "127.0.0.1").base,
            "self-signed": self_signed.base,
            "wrong-name": secure_dify(stack, AUTHORITY, "dify.example.com").base,
            "expired": secure_dify(
                stack, AUTHORITY, "127.0.0.1", LONG_AGO + timedelta(days=1)
            ).base,
            "tls-to-plain": f"https://127.0.0.1:{plain_port(stack)}/v1",
            "tls-to-silent": chaos.dify.base.replace("http:", "https:"),
            "deaf": f"http://127.0.0.1:{deaf_port(stack)}/v1",
            "trusted": secure_dify(stack, AUTHORITY, "127.0.0.1").base,
        }
        models = {
            name: {"key": key_of(name), "base": base, "type": "chat"}
            for name, base in bases.items()
        }
        variables = {
            "MODEL_CONFIG": json.dumps(models),
            "GUNICORN_WORKERS": "1",
            "DIFY_CA_FILE": "ca.pem",
        }
        yield stack.enter_context(service.running(folder, variables))


def plain_port(stack: ExitStack) -> int:
    """A port of a server that answers in plain HTTP whatever it receives, as nginx does."""
    listener = stack.enter_context(socket.create_server(("127.0.0.1", 0)))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                connection.recv(65536)
                connection.sendall(head(400, "Content-Length: 0", "Connection: close"))

    threading.Thread(target=serve, daemon=True).start()
    stack.callback(listener.shutdown, socket.SHUT_RDWR)
    return int(listener.getsockname()[1])


def self_signed_context(folder: Path) -> ssl.SSLContext:
    """Of a certificate that is its own authority, as ``openssl req -x509`` makes it."""
    key, certificate = folder / "key.pem", folder / "certificate.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    command += ["-subj", "/CN=127.0.0.1"]
    name = ["-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run(
        [*command, *name, "-keyout", key, "-out", certificate], check=True, capture_output=True
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    return context


@STREAMED_OR_NOT
@pytest.mark.parametrize("name", WAYS)
def test_a_dify_that_cannot_be_reached(
    lost: service.Service, user: str, name: str, stream: bool
) -> None:
    way = WAYS[name]
    answer = ask(lost, question(name, user, stream=stream))
    fault = Fault(lambda request: [], way.status, way.code, retry=way.retry, says=way.says)
    check_told(answer, fault, name)
    for inside in ("127.0.0.1", "nobody.invalid", "dify.example.com"):
        assert inside not in answer.text, "an address of the inside was told"
    wait_for(lambda: logged(lost, f"model={name} ", "address=http", way.cause))
    assert "app-secret" not in lost.output()


def test_a_dify_of_an_authority_of_the_operator_is_trusted(
    lost: service.Service, user: str
) -> None:
    assert ask(lost, question("trusted", user)).said() == "Hello"


def test_another_bundle_of_authorities_can_replace_the_default_one(
    tmp_path: Path, user: str
) -> None:
    AUTHORITY.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with ExitStack() as stack:
        fake = secure_dify(stack, AUTHORITY, "127.0.0.1")
        more = {"GUNICORN_WORKERS": "1", "SSL_CERT_FILE": str(tmp_path / "ca.pem")}
        variables = {**service.free_variables(fake.base), **more}
        running = stack.enter_context(service.running(tmp_path, variables))
        assert ask(running, question("tiny", user)).said() == "Hello"


def test_a_dify_that_speaks_tls_where_none_is_expected(tmp_path: Path, user: str) -> None:
    """It depends on who is quicker whether the question or the answer breaks, and on the server
    whether it says anything."""
    with ExitStack() as stack:
        secure = secure_dify(stack, AUTHORITY, "127.0.0.1")
        variables = service.free_variables(secure.base.replace("https:", "http:"))
        running = stack.enter_context(
            service.running(tmp_path, {**variables, "GUNICORN_WORKERS": "1"})
        )
        answer = ask(running, question("tiny", user))
        lines = wait_for(lambda: logged(running, "ended=upstream"))
    assert answer.status == 502
    assert answer.error["code"] in ("upstream_unreachable", "upstream_error")
    assert "DIFY_API_BASE" in answer.error["message"]
    assert "https" in lines[-1]
    check_clean(answer.text)


def test_what_is_not_dify_is_in_the_log_with_status_type_and_model(
    shared: service.Service, user: str
) -> None:
    assert ask(shared, question("page-403", user)).status == 502
    wanted = 'cause="status 403, content type text/html"'
    wait_for(lambda: logged(shared, "model=page-403 ", "address=http://127.0.0.1:", wanted))


def logged(running: service.Service, *words: str) -> list[str]:
    """The lines of the log in which all of these words are."""
    return [line for line in running.output().splitlines() if all(word in line for word in words)]


# --- a Dify that restarts ----------------------------------------------------------------------


@STREAMED_OR_NOT
def test_a_dify_that_restarts_is_waited_for(tmp_path: Path, user: str, stream: bool) -> None:
    port = service.free_port()
    variables = service.free_variables(f"http://127.0.0.1:{port}/v1")
    with (
        service.running(tmp_path, {**variables, "GUNICORN_WORKERS": "1"}) as running,
        ThreadPoolExecutor(1) as pool,
    ):
        asked = pool.submit(ask, running, question("tiny", user, stream=stream))
        sleep(0.7)  # it is refused meanwhile
        fake = FakeDify(port=port)
        try:
            assert asked.result().said() == "Hello"
        finally:
            fake.close()
        assert len(fake.asked()) == 1


def test_a_dify_that_stays_away_is_not_waited_for_when_the_caller_leaves(
    tmp_path: Path, user: str
) -> None:
    variables = service.free_variables(f"http://127.0.0.1:{service.free_port()}/v1")
    models = {"MODEL_CONFIG": '{"tiny":{"key":"app-secret-key","type":"chat"}}'}
    with service.running(tmp_path, {**variables, **models, "GUNICORN_WORKERS": "1"}) as running:
        ask(running, question("tiny", user))  # by now the app is known to be unknown
        asking(running, question("tiny", user, stream=True)).close()
        wait_for(lambda: "499" in running.output(), 10, "the end of the request")


# --- answers without measure -------------------------------------------------------------------


def most_memory(running: service.Service) -> int:
    """The most that its only worker has used, in MB."""
    (worker,) = running.workers()
    status = Path(f"/proc/{worker}/status").read_text()
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) // 1024  # type: ignore[index]


@pytest.mark.parametrize("content_type", ["application/json", "text/html"])
@pytest.mark.parametrize("status", [200, 400, 500])
def test_a_call_that_is_answered_with_a_bomb_takes_no_memory(
    tmp_path: Path, user: str, status: int, content_type: str
) -> None:
    length = f"Content-Length: {len(BOMB)}"
    bomb = head(status, f"Content-Type: {content_type}", "Content-Encoding: gzip", length) + BOMB

    def answer(request: Request) -> Steps:
        return Chat().says("Hello") if request.path == "/v1/chat-messages" else [bomb]

    fake = FakeDify(answer=answer, tells_of_its_app=True)
    try:
        variables = service.free_variables(fake.base)
        with service.running(tmp_path, {**variables, "GUNICORN_WORKERS": "1"}) as running:
            assert ask(running, question("tiny", user)).status in (200, 502)
            assert most_memory(running) < 250
    finally:
        fake.close()


@STREAMED_OR_NOT
@pytest.mark.parametrize("name", ["packed-bomb", "page-of-gigabytes", "cut-endless"])
def test_an_answer_without_measure_takes_no_memory(
    tmp_path: Path, chaos: Chaos, user: str, name: str, stream: bool
) -> None:
    with started(tmp_path, chaos) as running:
        ask(running, question(name, user, stream=stream))
        assert most_memory(running) < 250


def test_health_and_models_do_not_depend_on_dify(lost: service.Service) -> None:
    for path in ("/healthz", "/v1/models"):
        answer = httpx.get(lost.url + path, timeout=5, trust_env=False)
        assert answer.status_code == 200
