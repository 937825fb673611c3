"""The order of events in an answer of Dify, for each mode.

A sequence is an iterator of events and of pauses (numbers, in seconds). Whoever sends it does the
waiting (:func:`paced`), so a sequence can be read without any.
"""

import json
import time
from collections.abc import Callable, Iterator
from itertools import islice

from demo import apps, shapes
from demo.release import Release
from demo.shapes import PING, Event, Node, Run

FAILURE = "[models] Server Unavailable Error, the demo was asked for a model error"
STOPPED = {
    Release.DIFY_1_13: "Stopped by user.",
    Release.DIFY_1_16: "Aborted: User requested stop",
}
BATCH = 16  # tokens
TOOL_LABELS = {"current_time": {"en_US": "Current Time", "zh_Hans": "获取当前时间"}}


def paced(run: Run) -> Iterator[Event]:
    """The events of the run, each in its time, with a ping every ``run.pace.ping`` of run time."""
    next_ping = time.monotonic() + run.pace.ping
    for step in _sequence(run):
        due = time.monotonic() + (0 if isinstance(step, dict) else step)
        while (left := due - time.monotonic()) > 0 and not run.stopped:
            run.task.stopped.wait(min(left, next_ping - time.monotonic()))
            if time.monotonic() >= next_ping:
                next_ping += run.pace.ping
                yield PING
        if isinstance(step, dict):
            yield step


def _sequence(run: Run) -> Iterator[Event | float]:
    if run.was_refused:
        return _refused(run)
    sequences = {"agent-chat": _agent, "agent": _new_agent}
    return _flow(run) if run.app.is_flow else sequences.get(run.app.mode, _plain)(run)


def _refused(run: Run) -> Iterator[Event]:
    """A flow whose worker refuses the request (1.16)."""
    yield PING
    yield from shapes.refusal(run)


def _plain(run: Run) -> Iterator[Event | float]:
    """chat and completion."""
    name = "message"
    yield from _silence(run)
    if run.turn.asks_for("/image"):
        yield shapes.message_file(run, shapes.draw(run))
        name = "message_file"  # after a file of the assistant 1.13 sends text under this name
    yield from _answer(run, lambda token: shapes.text(run, token, name))
    yield from _plain_end(run, shapes.text(run, "", name))


def _agent(run: Run) -> Iterator[Event | float]:
    first, second = shapes.thought(run, 1), shapes.thought(run, 2)
    yield dict(first)
    yield from _silence(run)
    yield from _spoken(run, "Let me look at the clock. ", lambda t: shapes.agent_text(run, t))
    if not run.stopped:
        yield shapes.agent_text(run, "")
        yield shapes.agent_text(run, "")
        yield from _tool_call(run, first, run.text)
        yield dict(second)
        before = len(run.said)
        yield from _answer(run, lambda token: shapes.agent_text(run, token))
        second["thought"] = "".join(run.said[before:])
    yield from _plain_end(run, shapes.agent_text(run, ""), second)


def _new_agent(run: Run) -> Iterator[Event | float]:
    """The mode ``agent`` (1.16): thoughts grow, and the last message has the last round only."""
    before = "Let me look at the clock. "
    yield shapes.thought(run, 1)
    yield from _silence(run)
    yield from _batches(run, 1, iter([before]))
    yield from _tool_call(run, shapes.thought(run, 2), "")
    run.said.clear()
    text = apps.compose(run.app, run.turn, run.conversation)
    thought, _, rest = text.removeprefix("<think>").partition("</think>")
    if rest:
        text = rest
        yield from _growing(run, thought)
    yield from _batches(run, 4, _spoken_tokens(run, text))
    answer = run.text
    run.said.insert(0, before)
    yield from _plain_end(run, shapes.text(run, answer))


def _growing(run: Run, thought: str) -> Iterator[Event | float]:
    step = shapes.thought(run, 3)
    for token in apps.tokens(thought):
        yield run.pace.token
        step["thought"] += token
        yield dict(step)


def _batches(run: Run, position: int, tokens: Iterator[str]) -> Iterator[Event | float]:
    """Text in batches, as many tokens as come in half a second; a thought without content comes
    before each."""
    step = shapes.thought(run, position)
    while not run.stopped and (batch := list(islice(tokens, BATCH))):
        yield run.pace.token * len(batch)
        run.said += batch
        yield dict(step)
        yield shapes.agent_text(run, "".join(batch))


def _spoken_tokens(run: Run, text: str) -> Iterator[str]:
    """As ``_answer``: with /error only the beginning, and the error is noted."""
    run.turn.sources = apps.sources() if run.turn.asks_for("/sources") else []
    fails = run.turn.asks_for("/error")
    yield from apps.tokens(text[: len(text) // 3] if fails else text)
    run.turn.error = FAILURE if fails else None


def _tool_call(run: Run, thought: Event, said: str) -> Iterator[Event]:
    arguments = json.dumps({"current_time": {"timezone": "UTC"}})
    thought |= {"thought": said, "tool": "current_time"}
    thought |= {"tool_labels": TOOL_LABELS, "tool_input": arguments}
    yield dict(thought)
    clock = time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime())
    thought["observation"] = json.dumps({"current_time": clock})
    if run.turn.asks_for("/image"):
        picture = shapes.draw(run)
        thought["message_files"] = [picture.id]
        yield shapes.message_file(run, picture)
    yield dict(thought)


def _plain_end(run: Run, *last: Event) -> Iterator[Event]:
    if run.turn.error and not run.stopped:
        yield shapes.error(run, run.turn.error)
        return
    if not run.stopped:
        yield from last
    yield shapes.message_end(run, [])


def _flow(run: Run) -> Iterator[Event | float]:
    """advanced-chat and workflow."""
    yield PING
    yield shapes.workflow_started(run)
    start, model = Node(run, "start", "Start"), Node(run, "llm", "LLM")
    yield start.started()
    given = shapes.inputs(run)
    if run.conversation is not None:
        given["sys.conversation_id"] = run.conversation.id
    else:
        given["sys.timestamp"] = run.turn.created_at
    yield start.finished(inputs=given, outputs=given)
    yield model.started()
    yield from _silence(run)
    event = shapes.text_chunk if run.conversation is None else shapes.text
    yield from _answer(run, lambda token: event(run, token))
    if run.stopped:
        run.turn.error = STOPPED[run.memory.release]
        yield shapes.workflow_finished(run, "stopped", {}, [])
    elif run.turn.error:
        yield model.finished(error=run.turn.error)
        yield shapes.workflow_finished(run, "failed", {}, [])
    else:
        yield event(run, "")
        yield event(run, "")
        yield from _flow_end(run, model)
    if run.memory.release.lingers:
        yield run.pace.linger


def _flow_end(run: Run, model: Node) -> Iterator[Event]:
    usage = shapes.usage(run)
    totals = {key: usage[key] for key in ("total_tokens", "total_price", "currency")}
    said = {"text": run.text, "reasoning_content": "", "usage": usage, "finish_reason": "stop"}
    process = {"model_mode": "chat", "prompts": [], "usage": usage, "finish_reason": "stop"}
    process |= {"model_provider": "demo", "model_name": "demo"}
    yield model.finished(outputs=said, process_data=process, execution_metadata=totals)
    asked = run.turn.asks_for("/image")
    drawn = [shapes.file_value(run, shapes.draw(run))] if asked else []
    if run.conversation is not None:
        last = Node(run, "answer", "Answer")
        outputs: Event = {"answer": run.text, "files": drawn}
    else:
        last = Node(run, "end", "End")
        outputs = {"text": run.text} | ({"picture": drawn[0]} if drawn else {})
    yield last.started()
    given = {} if run.conversation is not None else outputs
    yield last.finished(inputs=given, outputs=outputs, files=drawn)
    if run.conversation is not None:
        yield shapes.message_end(run, drawn)
    yield shapes.workflow_finished(run, "succeeded", outputs, drawn)


def _silence(run: Run) -> Iterator[float]:
    if run.turn.asks_for("/slow"):
        yield run.pace.silence


def _answer(run: Run, event: Callable[[str], Event]) -> Iterator[Event | float]:
    """The composed text; with /error only its beginning, and the error is noted."""
    text = apps.compose(run.app, run.turn, run.conversation)
    run.turn.sources = apps.sources() if run.turn.asks_for("/sources") else []
    fails = run.turn.asks_for("/error")
    yield from _spoken(run, text[: len(text) // 3] if fails else text, event)
    run.turn.error = FAILURE if fails else None


def _spoken(run: Run, text: str, event: Callable[[str], Event]) -> Iterator[Event | float]:
    for token in apps.tokens(text):
        yield run.pace.token
        if run.stopped:
            return
        run.said.append(token)
        yield event(token)
