"""The recorded sessions of Open WebUI in any order, one after the other and at once."""

import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import httpx
import pytest
from flask import Flask
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from opendify.chat import background_tasks
from opendify.config.models import Model
from opendify.protocols.openai.messages import parse_messages
from tests.support.application import make_settings, open_app
from tests.support.fake_dify import FakeDify
from tests.support.openwebui import Recorded, recorded
from tests.support.remembering_dify import Arrival, RememberingDify, Said

RECORDED = recorded()


def reply(query: str) -> list[str]:
    """What the server said when the sessions were recorded."""
    number = 2 if query == "More Concise" else 1
    return [f"Echo[{number}] ", f"imgs=0: {query}"]


@st.composite
def orders(draw: st.DrawFn) -> list[list[Recorded]]:
    """All the requests in any order, in groups of which each is sent at once."""
    shuffled = draw(st.permutations(RECORDED))
    cuts = draw(st.sets(st.integers(1, len(shuffled) - 1)))
    places = [0, *sorted(cuts), len(shuffled)]
    return [list(shuffled[a:b]) for a, b in pairwise(places)]


IN_TIME = [[one] for one in RECORDED]


def send(app: Flask, one: Recorded, with_headers: bool) -> None:
    headers = one.headers(with_headers)
    with app.test_client().post("/v1/chat/completions", json=one.body, headers=headers) as response:
        assert response.status_code == 200, response.text
        response.get_data()


def check(arrival: Arrival) -> None:
    """Each turn went to the conversation that has its history, and each task to one of its own."""
    if "<chat_history>" in arrival.query:
        assert arrival.is_new
        assert arrival.before == ()
        return
    fitting = [one for one in RECORDED if not one.task and history(one) == list(arrival.before)]
    assert any(asked(one) == arrival.query for one in fitting), arrival


def history(one: Recorded) -> list[Said]:
    said = [(message.role, message.text) for message in parse_messages(one.body["messages"])]
    return said if said[-1][0] == "assistant" else said[:-1]


def asked(one: Recorded) -> str:
    last = parse_messages(one.body["messages"])[-1]
    if last.role == "assistant":
        return "Please continue your last answer exactly where it stopped."
    return last.text


def play(
    http: httpx.Client, groups: Sequence[Sequence[Recorded]], mode: str, with_headers: bool
) -> list[Arrival]:
    memory = RememberingDify(reply, {"app": mode})
    dify = FakeDify(memory, tells_of_its_app=True)
    tasks = "throwaway" if mode == "chat" else ""
    models = {"tiny": Model("tiny", "app", dify.base, tasks=tasks)}
    with (
        tempfile.TemporaryDirectory() as place,
        ThreadPoolExecutor(len(RECORDED)) as pool,
        open_app(make_settings(models, Path(place)), http) as app,
    ):
        for group in groups:
            running = [pool.submit(send, app, one, with_headers) for one in group]
            for each in running:
                each.result(30)
    dify.close()
    return memory.arrivals


@pytest.mark.parametrize("examples", [6, pytest.param(60, marks=pytest.mark.long)])
@pytest.mark.parametrize("mode", ["chat", "advanced-chat"])
@pytest.mark.parametrize("with_headers", [True, False], ids=["by header", "by shape"])
def test_in_any_order_each_turn_goes_to_the_conversation_that_has_its_history(
    http: httpx.Client,
    mode: str,
    with_headers: bool,
    examples: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(background_tasks, "SECONDS_FOR_FIRST_TURN", 0.05)

    @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck))
    @given(orders())
    def any_order(groups: list[list[Recorded]]) -> None:
        arrivals = play(http, groups, mode, with_headers)
        for arrival in arrivals:
            check(arrival)
        turns = [one for one in RECORDED if not one.task]
        tasks = len(RECORDED) - len(turns) if mode == "chat" else 0
        assert len(arrivals) == len(turns) + tasks

    any_order()


@pytest.mark.parametrize("with_headers", [True, False], ids=["by header", "by shape"])
def test_in_the_order_of_time_an_ordinary_next_turn_stays_where_it_was(
    http: httpx.Client, with_headers: bool
) -> None:
    arrivals = play(http, IN_TIME, "chat", with_headers)
    first, second = (
        next(a for a in arrivals if a.query == text) for text in ("delta one", "delta two")
    )
    assert first.conversation_id == second.conversation_id
    edited = next(a for a in arrivals if a.query == "delta EDITED")
    assert edited.is_new
    assert edited.before == ()
