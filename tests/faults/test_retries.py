"""What is asked again, and what never is: a repeat may run a turn twice."""

import json
from collections.abc import Callable, Iterator

import openai
import pytest

from tests.faults.calls import ask, question
from tests.faults.chaos import Chaos
from tests.support import service
from tests.support.fake_dify import (
    CLOSE,
    PING,
    RESET,
    Chat,
    FakeDify,
    Request,
    Steps,
    refused,
    streamed,
)
from tests.support.talking_dify import TalkingDify

GOOD = Chat().says("All is well")


class KeptAlive:
    """A Dify whose first answer on a connection is good, and which then does what the test says."""

    def __init__(self, then: list[Steps]) -> None:
        self.then = then
        self.fake = FakeDify(answer=self._answer, tells_of_its_app=True)
        self._used: set[int] = set()

    def _answer(self, request: Request) -> Steps:
        if request.path != "/v1/chat-messages":  # on a connection that is not kept
            return [*refused(404, {"code": "not_found", "message": "", "status": 404}), CLOSE]
        if self.then and request.connection in self._used:
            return self.then.pop(0)
        self._used.add(request.connection)
        return GOOD


class Fresh(KeptAlive):
    """A Dify that does what the test says on new connections too."""

    def _answer(self, request: Request) -> Steps:
        self._used.add(request.connection)
        return super()._answer(request)


Difys = dict[str, KeptAlive]


@pytest.fixture(scope="module")
def difys() -> Iterator[Difys]:
    made: Difys = {
        "closed": KeptAlive([[CLOSE]]),
        "reset": KeptAlive([[RESET]]),
        "closed-late": KeptAlive([[1.3, CLOSE]]),
        "closed-after-a-ping": KeptAlive([[streamed(PING)[0], CLOSE]]),
        "fresh-closed": Fresh([[CLOSE], [CLOSE], [CLOSE]]),
        "fresh-reset": Fresh([[RESET], [RESET], [RESET]]),
    }
    yield made
    for one in made.values():
        one.fake.close()


@pytest.fixture(scope="module")
def before(difys: Difys, tmp_path_factory: pytest.TempPathFactory) -> Iterator[service.Service]:
    """A service with a model for each of them."""
    models = {
        name: {"key": f"app-{name}", "base": one.fake.base, "type": "chat"}
        for name, one in difys.items()
    }
    variables = {"MODEL_CONFIG": json.dumps(models), "GUNICORN_WORKERS": "1"}
    with service.running(tmp_path_factory.mktemp("retries"), variables) as running:
        yield running


@pytest.mark.parametrize("name", ["closed", "reset"])
def test_a_kept_connection_that_dify_has_closed_is_no_failure(
    before: service.Service, difys: Difys, name: str
) -> None:
    assert ask(before, question(name)).status == 200
    answer = ask(before, question(name))
    assert (answer.status, answer.said()) == (200, "All is well")
    asked = difys[name].fake.asked()
    assert len(asked) == 3
    assert asked[1].connection == asked[0].connection != asked[2].connection


@pytest.mark.parametrize("name", ["closed-late", "closed-after-a-ping"])
def test_a_dify_that_may_have_begun_is_not_asked_again(
    before: service.Service, difys: Difys, name: str
) -> None:
    assert ask(before, question(name)).status == 200
    answer = ask(before, question(name))
    assert (answer.status, answer.headers["x-should-retry"]) == (502, "false")
    assert len(difys[name].fake.asked()) == 2


@pytest.mark.parametrize("name", ["fresh-closed", "fresh-reset"])
def test_a_fresh_connection_that_fails_is_not_tried_again(
    before: service.Service, difys: Difys, name: str
) -> None:
    answer = ask(before, question(name))
    assert (answer.status, answer.headers["x-should-retry"]) == (502, "false")
    assert len(difys[name].fake.asked()) == 1


RUN_ONCE = ["closed-in-head", "told-500", "silent-after-ping", "limit-in-an-event", "error-event"]


@pytest.mark.parametrize("name", RUN_ONCE)
def test_a_real_client_does_not_run_a_turn_twice(
    shared: service.Service, chaos: Chaos, user: str, name: str
) -> None:
    """The libraries of OpenAI repeat 408, 409, 429 and 5xx by themselves."""
    url = f"{shared.url}/v1"
    with (
        openai.OpenAI(api_key="-", base_url=url, max_retries=2) as client,
        pytest.raises(openai.APIError),
    ):
        client.chat.completions.create(**question(name, user))
    assert len(chaos.asked(name, user)) == 1


def test_a_real_client_repeats_what_was_not_begun(
    shared: service.Service, chaos: Chaos, user: str
) -> None:
    url = f"{shared.url}/v1"
    with (
        openai.OpenAI(api_key="-", base_url=url, max_retries=1) as client,
        pytest.raises(openai.RateLimitError),
    ):
        client.chat.completions.create(**question("told-429", user))
    assert len(chaos.asked("told-429", user)) == 2


# --- conversations that Dify has lost ----------------------------------------------------------

Told = Callable[[str], list[dict[str, str]]]


@pytest.fixture(scope="module")
def talking() -> Iterator[tuple[FakeDify, TalkingDify]]:
    app = TalkingDify()
    fake = FakeDify(answer=app, tells_of_its_app=True)
    yield fake, app
    fake.close()


@pytest.fixture(scope="module")
def talked(
    talking: tuple[FakeDify, TalkingDify], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[service.Service]:
    variables = service.free_variables(talking[0].base, GUNICORN_WORKERS="1")
    with service.running(tmp_path_factory.mktemp("talked"), variables) as running:
        yield running


def turn(history: list[tuple[str, str]], text: str) -> dict[str, object]:
    messages = [{"role": role, "content": said} for role, said in [*history, ("user", text)]]
    return {"model": "tiny", "user": "ann", "messages": messages}


@pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])
def test_a_conversation_that_dify_has_lost_is_replaced_unnoticed(
    talked: service.Service, talking: tuple[FakeDify, TalkingDify], stream: bool
) -> None:
    fake, app = talking
    chat = {"X-OpenWebUI-Chat-Id": f"lost-{stream}"}
    history = [("user", "My name is Ann"), ("assistant", "Answer 1")]
    assert ask(talked, turn([], "My name is Ann"), chat).said() == "Answer 1"
    first = fake.asked()[-1]
    app.conversations.clear()
    answer = ask(talked, {**turn(history, "And now?"), "stream": stream}, chat)
    assert (answer.status, answer.said()) == (200, "Answer 1")
    lost, anew = fake.asked()[-2:]
    assert first.json["conversation_id"] == anew.json["conversation_id"] == ""
    assert lost.json["conversation_id"]
    assert "My name is Ann" in anew.json["query"], "what Dify has lost is told again"


def test_a_conversation_is_replaced_once(
    talked: service.Service, talking: tuple[FakeDify, TalkingDify]
) -> None:
    fake, _ = talking
    chat = {"X-OpenWebUI-Chat-Id": "lost-twice"}
    assert ask(talked, turn([], "Hi"), chat).status == 200
    unknown = refused(404, {"code": "not_found", "message": "Conversation Not Exists."})
    fake.answers = [unknown, unknown, unknown]
    asked = len(fake.asked())
    answer = ask(talked, turn([("user", "Hi"), ("assistant", "Answer 1")], "And now?"), chat)
    fake.answers.clear()
    assert (answer.status, answer.error["code"]) == (404, "conversation_not_found")
    assert len(fake.asked()) == asked + 2
