"""Random chats of several people and clients, compared with what Dify's conversations contain.

The history that a client sends is the truth. So whatever happens, a person's turn arrives in a
conversation that contains exactly that, or in a new one that is sent it; no task ever does; and a
turn whose history some branch of its chat contains arrives there, in no new conversation.
"""

import json
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import count, groupby
from operator import itemgetter
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
from flask import Flask
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    initialize,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from werkzeug.test import TestResponse

from opendify.chat import background_tasks
from opendify.config.models import Model
from opendify.conversations import ConversationStore, JsonFileStore, Update
from opendify.conversations.store.records import MAX_BRANCHES
from opendify.conversations.store.redis import RedisStore
from opendify.storage.redis_connection import RedisConnection
from opendify.upstream import conversation_probe
from tests.support.application import make_settings, open_app
from tests.support.fake_dify import FakeDify
from tests.support.openwebui import task_prompt
from tests.support.redis_server import RedisServer
from tests.support.remembering_dify import NOT_TAKEN, Arrival, RememberingDify, Said

WORDS = ["a", "b", "go on", "think", "new"]
STAMP, FOOTER = "[12:00] ", "\n\n-- the assistant"
KEYS = {"tiny": "app-1", "org/model": "app-2"}
MODES = {"app-2": "advanced-chat"}  # its tasks are answered without a run


def reply(query: str) -> list[str]:
    """Few answers, many of them alike, so that chats resemble one another."""
    word = query.rpartition("\n")[2]
    if word == "new":
        return ["It is ", uuid.uuid4().hex]
    if word == "think":
        return ["<think>hm</think>", "well ", "[1] "]
    return ["o", "k"] if word in ("go on", "b") else ["re ", word]


@dataclass
class Talk:
    """A chat as its client has it. ``window`` is how many messages of it are sent, 0 for all.
    ``answers`` are the client's names of the answers in it. Before a question that it sends, a
    filter puts ``stamp``, and below an answer that it shows, ``footer``. ``left`` are the branches
    of the chat that it has left: their messages, and the names of their answers."""

    user: str
    model: str
    chat_id: str
    window: int
    names_answers: bool
    said: list[Said] = field(default_factory=list)
    answers: list[str] = field(default_factory=list)
    stamp: str = ""
    footer: str = ""
    left: list[tuple[list[Said], list[str]]] = field(default_factory=list)

    def take_back(self) -> None:
        """Removes the last exchange."""
        self.said.pop()
        self.answers.pop()
        while self.said and self.said[-1][0] == "user":
            self.said.pop()

    def history(self) -> list[Said]:
        return self.said[-self.window :] if self.window else list(self.said)

    def headers(self, answer_id: str) -> dict[str, str]:
        headers = {"X-OpenWebUI-User-Id": self.user}
        if self.chat_id:
            headers["X-OpenWebUI-Chat-Id"] = self.chat_id
        if self.names_answers:
            parent = self.answers[-1] if self.answers else ""
            headers |= {
                "X-OpenWebUI-Message-Id": answer_id,
                "X-OpenWebUI-User-Message-Parent-Id": parent,
                "X-OpenWebUI-Task": "",
            }
        return headers


@dataclass(frozen=True)
class Expected:
    """What a turn was sent with."""

    talk: Talk
    history: tuple[Said, ...]
    text: str


class Talks(RuleBasedStateMachine):
    """Two workers on one store serve everybody; ``http`` is set by the tests, and ``redis`` to the
    server that keeps the chats, where that is not the file."""

    http: ClassVar[httpx.Client]
    redis: ClassVar[RedisServer | None] = None
    talks: Bundle[Talk] = Bundle("talks")

    def __init__(self) -> None:
        super().__init__()
        if self.redis is not None:
            self.redis.empty()
        self.folder = Path(tempfile.mkdtemp(prefix="opendify-"))
        # One second a message: Dify's times are whole seconds, and people are not that quick.
        seconds = count(int(time.time()))
        self.memory = RememberingDify(reply, MODES, clock=lambda: next(seconds))
        self.dify = FakeDify(self.memory, tells_of_its_app=True)
        self.expected: dict[str, Expected] = {}
        self.seen = 0
        self.unsure: set[str] = set()  # conversations in which a turn has not come to its end
        self.last_names: dict[str, str] = {}  # the client's name of the last answer of each
        self.stack = ExitStack()
        self.workers = [self.worker(), self.worker()]

    def worker(self) -> Flask:
        models = {
            name: Model(name, key, self.dify.base, tasks="" if key in MODES else "throwaway")
            for name, key in KEYS.items()
        }
        address = self.redis.url if self.redis is not None else ""
        settings = make_settings(models, self.folder / "data", conversation_store=address)
        return self.stack.enter_context(open_app(settings, self.http))

    def store(self) -> ConversationStore:
        """The conversations of the workers, as another process has them."""
        options: dict[str, Any] = {"clock": time.time, "max_age_days": None, "max_entries": 1000}
        if self.redis is not None:
            return RedisStore(RedisConnection(self.redis.url, "Redis"), **options)
        return JsonFileStore(self.folder / "data", **options)

    def teardown(self) -> None:
        self.stack.close()
        self.dify.close()
        shutil.rmtree(self.folder, ignore_errors=True)

    # --- what clients do -----------------------------------------------------------------------

    @initialize(target=talks)
    def begin(self) -> Any:
        return multiple(
            Talk("ada", "tiny", "first", 0, False),
            Talk("ada", "tiny", "second", 0, True, stamp=STAMP, footer=FOOTER),
            Talk("ada", "tiny", "", 0, False),
        )

    @rule(
        target=talks,
        user=st.sampled_from(["ada", "bob"]),
        model=st.sampled_from(sorted(KEYS)),
        chat_id=st.sampled_from(["chat", "other", "other", ""]),
        window=st.sampled_from([0, 0, 4]),
        names_answers=st.booleans(),
        stamp=st.sampled_from(["", "", STAMP]),
        footer=st.sampled_from(["", "", FOOTER]),
    )
    def new_talk(
        self,
        user: str,
        model: str,
        chat_id: str,
        window: int,
        names_answers: bool,
        stamp: str,
        footer: str,
    ) -> Talk:
        # A client names each of its chats anew; the same name for two would be one chat.
        number = f"-{uuid.uuid4().hex}" if chat_id == "other" else ""
        name = chat_id and f"{chat_id}{number}"
        return Talk(user, model, name, window, names_answers, stamp=stamp, footer=footer)

    @rule(talk=talks, text=st.sampled_from(WORDS), stream=st.booleans(), who=st.integers(0, 1))
    def turn(self, talk: Talk, text: str, stream: bool, who: int) -> None:
        self.say(talk, text, stream, who)

    @rule(talk=talks, stream=st.booleans(), who=st.integers(0, 1))
    def regenerate(self, talk: Talk, stream: bool, who: int) -> None:
        if talk.said:
            self.edit(talk, talk.said[-2][1], 1, stream, who)

    @rule(
        talk=talks,
        text=st.sampled_from(WORDS),
        back=st.sampled_from([1, 2]),
        stream=st.booleans(),
        who=st.integers(0, 1),
    )
    def edit(self, talk: Talk, text: str, back: int, stream: bool, who: int) -> None:
        """Takes back as many exchanges."""
        if len(talk.answers) >= back:
            talk.left.append((list(talk.said), list(talk.answers)))
            for _ in range(back):
                talk.take_back()
            self.say(talk, text, stream, who)

    @rule(
        talk=talks,
        which=st.integers(0, 3),
        text=st.sampled_from(WORDS),
        stream=st.booleans(),
        who=st.integers(0, 1),
    )
    def go_back(self, talk: Talk, which: int, text: str, stream: bool, who: int) -> None:
        """Goes on in a branch that was left."""
        if talk.left:
            now = talk.said, talk.answers
            talk.said, talk.answers = talk.left.pop(-1 - which % len(talk.left))
            talk.left.append((list(now[0]), list(now[1])))
            self.say(talk, text, stream, who)

    @rule(
        talk=talks,
        texts=st.lists(st.sampled_from(WORDS), min_size=2, max_size=3),
        keeps=st.booleans(),
        who=st.integers(0, 1),
    )
    def turn_in_parts(self, talk: Talk, texts: list[str], keeps: bool, who: int) -> None:
        """Several messages in a row; some clients show them as one afterwards."""
        name, fitting = uuid.uuid4().hex, self.fitting(talk)
        history = talk.history()
        stamped = [f"{talk.stamp}{text}" for text in texts]
        body = self.body(talk, history, "\n\n".join(stamped), stream=True)
        body["messages"][-1:] = [{"role": "user", "content": text} for text in stamped]
        body["messages"].append({"role": "assistant", "content": ""})  # the place of the answer
        content = text_of(self.post(body, talk.headers(name), who).data).strip()
        arrival = self.memory.arrivals[-1]
        assert arrival.conversation_id in fitting or not fitting
        shown = texts if keeps else ["\n\n".join(texts)]
        talk.said += [("user", text) for text in shown]
        talk.said.append(("assistant", self.shown(talk, content)))
        talk.answers.append(name)
        self.last_names[arrival.conversation_id] = name

    @rule(talk=talks, who=st.integers(0, 1))
    def instruct(self, talk: Talk, who: int) -> None:
        """An instruction behind the last answer, whose answer the client does not keep."""
        if talk.said and talk.chat_id:
            trace = uuid.uuid4().hex
            history = talk.history()
            messages = [{"role": role, "content": text} for role, text in history]
            messages.append({"role": "system", "content": "Summarize it"})
            body = {"model": talk.model, "messages": messages, "trace_id": trace}
            self.expected[trace] = Expected(talk, tuple(history), "Summarize it")
            assert self.post(body, talk.headers(uuid.uuid4().hex), who).status_code == 200
            assert self.memory.arrivals[-1].is_new

    @rule(talk=talks, text=st.sampled_from(WORDS), who=st.integers(0, 1))
    def ask_beside(self, talk: Talk, text: str, who: int) -> None:
        """A request of the client's own, in the name of the chat, that no rule recognizes."""
        if talk.chat_id and talk.said:
            beside = Talk(talk.user, talk.model, talk.chat_id, 0, False)
            assert self.say(beside, f"Name this: {text}", False, who).is_new

    @rule(talk=talks, stream=st.booleans(), who=st.integers(0, 1))
    def more_concise(self, talk: Talk, stream: bool, who: int) -> None:
        """The old answer and the wish for a shorter one go, the shorter one stays."""
        if talk.said and talk.said[-1][1]:
            self.say(talk, "More Concise", stream, who)
            shorter, name = talk.said[-1], talk.answers[-1]
            talk.take_back()
            talk.said[-1], talk.answers[-1] = shorter, name

    @rule(talk=talks, stream=st.booleans(), who=st.integers(0, 1))
    def continue_answer(self, talk: Talk, stream: bool, who: int) -> None:
        if talk.said and talk.said[-1][1]:
            history = talk.history()
            name = talk.answers[-1]
            content = self.ask(talk, history, "", talk.headers(name), stream, who)
            talk.said[-1] = ("assistant", talk.said[-1][1] + content)

    @rule(talk=talks, text=st.sampled_from(WORDS))
    def change_an_answer(self, talk: Talk, text: str) -> None:
        """An answer with a name may be shown as anything: no filter is told from an edit."""
        is_recognized = talk.names_answers and talk.chat_id
        if talk.said and talk.said[-1] != ("assistant", text) and not is_recognized:
            talk.said[-1] = ("assistant", text)

    @rule(talk=talks, text=st.sampled_from(WORDS), who=st.integers(0, 1), keeps=st.booleans())
    def stop(self, talk: Talk, text: str, who: int, keeps: bool) -> None:
        """Leaves in the middle of the answer; some clients keep its beginning."""
        history, name = talk.history(), uuid.uuid4().hex
        body = self.body(talk, history, text, stream=True)
        client = self.workers[who].test_client()
        response = client.post(
            "/v1/chat/completions", json=body, headers=talk.headers(name), buffered=False
        )
        assert response.status_code == 200
        events = iter(response.response)
        next(events)
        content = text_of(bytes(next(events))).strip()
        response.close()
        talk.said += [("user", text), ("assistant", content)] if keeps else []
        talk.answers += [name] if keeps else []
        self.unsure.add(self.memory.arrivals[-1].conversation_id)

    @rule(talk=talks, text=st.sampled_from(WORDS), who=st.integers(0, 1), trouble=st.just("cut"))
    def break_off(self, talk: Talk, text: str, who: int, trouble: str) -> None:
        self.fail(talk, text, who, trouble)
        self.unsure.add(self.memory.arrivals[-1].conversation_id)

    @rule(talk=talks, text=st.sampled_from(WORDS), who=st.integers(0, 1))
    def refuse(self, talk: Talk, text: str, who: int) -> None:
        """Nothing has run, so the chat goes on where it was."""
        self.fail(talk, text, who, "busy")

    @rule(
        talk=talks,
        text=st.sampled_from(WORDS),
        who=st.integers(0, 1),
        page=st.sampled_from(sorted(NOT_TAKEN)),
        has_run=st.booleans(),
        is_killed=st.booleans(),
    )
    def restart_dify(
        self, talk: Talk, text: str, who: int, page: str, has_run: bool, is_killed: bool
    ) -> None:
        """A page of a gateway in the place of the answer; where the question did not reach Dify,
        the chat goes on where it was."""
        self.fail(talk, text, who, f"run {page}" if has_run else page)
        if is_killed:
            self.forget_how_turns_ended()
        if has_run:
            self.unsure.add(self.memory.arrivals[-1].conversation_id)

    def forget_how_turns_ended(self) -> None:
        """As a worker leaves them that is killed in the middle of turns."""
        store = self.store()
        for key, chat in list(store.entries()):
            for branch in reversed(chat.branches):
                id_ = uuid.uuid4().hex[:16]
                update = Update(branch.history_digest.replace("-failed/", f"-{id_}/"))
                store.put(key, branch.conversation_id, update)
        store.close()

    @rule(talk=talks, words=st.tuples(st.sampled_from(WORDS), st.sampled_from(WORDS)))
    def twice_at_once(self, talk: Talk, words: tuple[str, str]) -> None:
        """Two turns of one chat; the client keeps the second."""
        history = talk.history()
        contents = ["", ""]
        names = [uuid.uuid4().hex, uuid.uuid4().hex]

        def ask(which: int) -> None:
            headers = talk.headers(names[which])
            contents[which] = self.ask(talk, history, words[which], headers, True, which)

        at_once([lambda: ask(0), lambda: ask(1)])
        talk.said += [("user", words[1]), ("assistant", self.shown(talk, contents[1]))]
        talk.answers.append(names[1])

    @rule(
        talk=talks,
        text=st.sampled_from(WORDS),
        who=st.integers(0, 1),
        kinds=st.sets(st.sampled_from(["title_generation", "tags_generation"]), min_size=1),
        first=st.booleans(),
    )
    def turn_beside_tasks(
        self, talk: Talk, text: str, who: int, kinds: set[str], first: bool
    ) -> None:
        tasks = [lambda kind=kind: self.task(talk, kind, 1 - who) for kind in sorted(kinds)]
        if first:
            tasks.pop()()
        at_once([lambda: self.turn(talk, text, True, who), *tasks])

    @rule(talk=talks, text=st.sampled_from(WORDS), who=st.integers(0, 1))
    def temporary(self, talk: Talk, text: str, who: int) -> None:
        beside = Talk(talk.user, talk.model, "temporary:x", 0, False, list(talk.said))
        kept = self.kept()
        assert self.say(beside, text, False, who).is_new
        assert self.kept() == kept

    # --- what befalls the service --------------------------------------------------------------

    @rule(who=st.integers(0, 1))
    def replace_a_worker(self, who: int) -> None:
        """The old one is killed: it says no last word."""
        self.workers[who] = self.worker()

    @rule()
    def restart(self) -> None:
        self.stack.close()
        self.workers = [self.worker(), self.worker()]

    @rule(talk=consumes(talks))
    def lose(self, talk: Talk) -> None:
        """A conversation is deleted in Dify, and the chat goes on all the same."""
        for id_ in self.branches(talk)[:1]:
            self.memory.conversations.pop(id_, None)
        self.say(talk, "a", True, 0)

    @invariant()
    def every_turn_went_to_the_conversation_that_has_its_history(self) -> None:
        for arrival in self.memory.arrivals[self.seen :]:
            expected = self.expected.get(arrival.trace)
            if expected is None:
                assert arrival.is_new
                assert arrival.before == ()
                assert "<chat_history>" in arrival.query
                continue
            talk, history, before = expected.talk, heard(expected.history), heard(arrival.before)
            assert arrival.owner == (f"Bearer {KEYS[talk.model]}", talk.user)
            assert plain(arrival.query) == plain(expected.text)
            is_window = not talk.chat_id and len(expected.history) >= 4
            if not arrival.is_new and is_window:
                before = before[-len(history) :]
            assert before == history, (before, history)
        self.seen = len(self.memory.arrivals)

    # --- the requests --------------------------------------------------------------------------

    def say(self, talk: Talk, text: str, stream: bool, who: int) -> Arrival:
        name = uuid.uuid4().hex
        fitting = self.fitting(talk)
        content = self.ask(talk, talk.history(), text, talk.headers(name), stream, who)
        talk.said += [("user", text), ("assistant", self.shown(talk, content))]
        talk.answers.append(name)
        trace = next(trace for trace, sent in reversed(self.expected.items()) if sent.talk is talk)
        arrival = next(a for a in reversed(self.memory.arrivals) if a.trace == trace)
        assert arrival.conversation_id in fitting or not fitting
        self.last_names[arrival.conversation_id] = name
        return arrival

    def shown(self, talk: Talk, content: str) -> str:
        return f"{content}{talk.footer}"

    def branches(self, talk: Talk) -> list[str]:
        """The conversations of a chat with an id that are remembered, most recently used first."""
        used: dict[str, None] = {}
        for arrival in reversed(self.memory.arrivals):
            expected = self.expected.get(arrival.trace)
            if expected and chat_of(expected.talk) == chat_of(talk):
                used[arrival.conversation_id] = None
        return [id_ for id_ in list(used)[:MAX_BRANCHES] if id_ in self.memory.conversations]

    def fitting(self, talk: Talk) -> list[str]:
        """The branches that have heard exactly what the client's history holds. Where filters
        change the words and answers have names, those tell whether it is the same answer."""
        history = heard(talk.history())
        if not history or not talk.chat_id or talk.window:
            return []
        is_filtered = bool(talk.stamp or talk.footer)
        by_name = is_filtered and talk.names_answers
        branches = self.branches(talk)
        if is_filtered and not talk.names_answers and len(branches) > 1:
            return []  # many have the same answers
        return [
            id_
            for id_ in branches
            if id_ not in self.unsure
            and heard(self.memory.conversations[id_].said) == history
            and (not by_name or self.last_names.get(id_) == talk.answers[-1])
        ]

    def body(self, talk: Talk, history: list[Said], text: str, stream: bool) -> dict[str, Any]:
        trace = uuid.uuid4().hex
        stamped = text if text.startswith(talk.stamp) else f"{talk.stamp}{text}"
        said = [*history, ("user", stamped)] if text else history
        asked = text or "Please continue your last answer exactly where it stopped."
        self.expected[trace] = Expected(talk, tuple(history), asked)
        messages = [{"role": role, "content": content} for role, content in said]
        return {"model": talk.model, "messages": messages, "stream": stream, "trace_id": trace}

    def ask(
        self,
        talk: Talk,
        history: list[Said],
        text: str,
        headers: dict[str, str],
        stream: bool,
        who: int,
    ) -> str:
        body = self.body(talk, history, text, stream)
        response = self.post(body, headers, who)
        assert response.status_code == 200, response.text
        if stream:
            assert '"error"' not in response.text
            return text_of(response.data).strip()
        return str(response.get_json()["choices"][0]["message"]["content"]).strip()

    def fail(self, talk: Talk, text: str, who: int, trouble: str) -> None:
        self.memory.trouble.append(trouble)
        body = self.body(talk, talk.history(), text, stream=False)
        response = self.post(body, talk.headers("failed"), who)
        assert response.status_code in (429, 502, 503, 504), response.text

    def task(self, talk: Talk, kind: str, who: int) -> None:
        history = "\n".join(f"{role.upper()}: {text}" for role, text in talk.said)
        messages = [{"role": "user", "content": task_prompt(kind, history)}]
        headers = talk.headers("")
        if talk.names_answers:
            headers["X-OpenWebUI-Task"] = kind
        body = {"model": talk.model, "messages": messages, "stream": False}
        assert self.post(body, headers, who).status_code == 200

    def post(self, body: dict[str, Any], headers: dict[str, str], who: int) -> TestResponse:
        client = self.workers[who].test_client()
        response = client.post("/v1/chat/completions", json=body, headers=headers)
        response.get_data()
        response.close()
        return response

    def kept(self) -> int:
        return int(
            self.workers[0]
            .test_client()
            .get("/v1/conversation/mappings")
            .get_json()["mapping_count"]
        )


def text_of(stream: bytes) -> str:
    """The text in a streamed answer, or in a piece of it that ends with a whole event."""
    events = [event.removeprefix(b"data: ") for event in stream.split(b"\n\n")]
    chunks = [json.loads(event) for event in events if event.startswith(b"{")]
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)


def chat_of(talk: Talk) -> tuple[str, str, str]:
    return talk.user, talk.model, talk.chat_id


def plain(text: str) -> str:
    """A text without what clients leave out and filters add."""
    for part in ("[1]", STAMP, FOOTER):
        text = text.replace(part, "")
    return "".join(text.split())


def heard(said: Sequence[Said]) -> list[Said]:
    """What was said; messages of one role in a row are one."""
    found = [(role, plain(text)) for role, text in said if plain(text)]
    groups = groupby(found, key=itemgetter(0))
    return [(role, "".join(text for _, text in messages)) for role, messages in groups]


def at_once(actions: list[Callable[[], object]]) -> None:
    """Runs them all at the same time; raises the first of their errors."""
    with ThreadPoolExecutor(len(actions)) as pool:
        for running in [pool.submit(action) for action in actions]:
            running.result(30)


@pytest.mark.parametrize(
    ("kind", "examples", "steps"),
    [
        ("file", 15, 25),
        ("redis", 5, 25),
        pytest.param("file", 150, 50, marks=pytest.mark.long),
        pytest.param("redis", 50, 50, marks=pytest.mark.long),
    ],
)
def test_every_turn_goes_to_the_conversation_that_has_its_history(
    http: httpx.Client,
    kind: str,
    examples: int,
    steps: int,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if kind == "redis":
        monkeypatch.setattr(Talks, "redis", request.getfixturevalue("redis_server"))
    monkeypatch.setattr(Talks, "http", http, raising=False)
    monkeypatch.setattr(background_tasks, "SECONDS_FOR_FIRST_TURN", 0.1)
    monkeypatch.setattr(conversation_probe, "ARRIVAL_TIMEOUT", 0.1)
    run_state_machine_as_test(
        Talks,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
