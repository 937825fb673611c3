"""How the events of an answer are told: what is said, what is thought, what is only shown.

The same telling serves streamed and gathered answers, so that they cannot differ. No I/O.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from opendify.config.models import Model
from opendify.dify.events import (
    AgentStep,
    Event,
    FileMade,
    HumanInputNeeded,
    MessageEnded,
    NodeFinished,
    NodeStarted,
    Paused,
    Reasoning,
    Replaced,
    RunFinished,
    Text,
    Usage,
)
from opendify.dify.payloads import file_from
from opendify.files import links
from opendify.telling import citations
from opendify.telling.reasoning import ReasoningSplitter
from opendify.telling.stopping import StopCutter

# Nodes that every graph has and that do no work worth showing.
_SILENT_NODES = ("start", "end", "answer")

# The outputs of a workflow that hold its text, by the names people give them.
_TEXT_OUTPUTS = ("text", "answer", "result", "output")


@dataclass(frozen=True, slots=True)
class Said:
    """The next piece of the answer's text."""

    text: str


@dataclass(frozen=True, slots=True)
class Thought:
    """The next piece of what is shown as reasoning."""

    text: str


@dataclass(frozen=True, slots=True)
class Shown:
    """Something that Open WebUI shows beside the answer: its ``status`` and ``source`` events."""

    event: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Voided:
    """All that was said is void; ``was`` is false when that was nothing."""

    was: bool


Telling = Said | Thought | Shown | Voided


@dataclass(slots=True)
class Ending:
    """How the answer ended, known after the last event."""

    finish_reason: str = "stop"
    usage: Usage | None = None
    annotations: list[dict[str, Any]] = field(default_factory=list)
    resources: Sequence[Mapping[str, Any]] = ()
    run_status: str = ""


class Narration:
    """Tells one answer. ``link`` gives the address under which callers reach a file of Dify's;
    ``mode`` is that of the app; ``stops`` are the caller's stop sequences; ``citation_form`` comes
    from ``citations.form_for``."""

    def __init__(
        self,
        model: Model,
        mode: str,
        link: Callable[[FileMade], str],
        stops: Sequence[str],
        citation_form: str,
    ) -> None:
        self.ending = Ending()
        self._model = model
        self._mode = mode
        self._link = link
        self._citation_form = citation_form
        self._splitter = ReasoningSplitter()
        self._cutter = StopCutter(stops)
        self._node = ""
        self._said: list[str] = []
        self._agent_spoke = False
        self._steps: dict[str, AgentStep] = {}
        self._files: set[str] = set()
        self._status_open = False
        self._node_usage: list[Usage] = []
        self._run: RunFinished | None = None

    @property
    def is_cut(self) -> bool:
        """Whether a stop sequence of the caller has ended the answer."""
        return self._cutter.hit

    def tell(self, event: Event) -> list[Telling]:  # noqa: C901 one match over a closed set
        """What this event gives the caller, in order."""
        match event:
            case Text():
                return self._tell_text(event)
            case Reasoning(text):
                return self._think(text)
            case Replaced(text):
                return self._replace(text)
            case AgentStep():
                return self._tell_step(event)
            case FileMade():
                return self._tell_file(event)
            case NodeStarted(title, kind) if kind not in _SILENT_NODES:
                return self._progress(f"{title or kind}")
            case NodeFinished(usage, finish_reason):
                self._note_node(usage, finish_reason)
            case HumanInputNeeded(form, actions):
                choices = f"\n\n({' / '.join(actions)})" if actions else ""
                return self._say(f"{self._gap()}{form}{choices}")
            case Paused():
                return self._say(f"{self._gap()}(waiting for human input in Dify)")
            case RunFinished():
                self._run = event
            case _:
                pass
        return []

    def end(self, event: MessageEnded) -> list[Telling]:
        """What is told last; ``ending`` is complete afterwards."""
        told = self._pieces(self._splitter.close())
        if not self._said and self._run is not None:
            told += self._say(self._output_text(self._run.outputs))
        for file in [*event.files, *self._output_files()]:
            told += self._tell_file(file)
        told += self._say_how_the_run_ended()
        told += self._cite(event.resources)
        if rest := self._cutter.close():
            told += self._spoken(rest)
        if self._status_open:
            told.append(Shown(_status("", done=True)))
        self.ending.usage = self._usage(event.usage)
        return told

    def _tell_text(self, event: Text) -> list[Telling]:
        told: list[Telling] = []
        if event.node != self._node:
            self._node = event.node
            told += self._pieces(self._splitter.section())
        if event.event == "agent_message":
            self._agent_spoke = True
        text = event.text
        if self._agent_spoke and event.event == "message":
            # The new agents of Dify 1.15 repeat the whole answer at its end.
            said = "".join(self._said)
            text = text.removeprefix(said) if text.startswith(said) else ""
        if not text:
            return told
        if self._model.reasoning == "inline":
            return told + self._say(text)
        return told + self._pieces(self._splitter.feed(text))

    def _pieces(self, pieces: Sequence[Any]) -> list[Telling]:
        told: list[Telling] = []
        for piece in pieces:
            told += self._think(piece.text) if piece.is_reasoning else self._say(piece.text)
        return told

    def _say(self, text: str) -> list[Telling]:
        text = self._cutter.feed(text)
        return self._spoken(text) if text else []

    def _spoken(self, text: str) -> list[Telling]:
        self._said.append(text)
        told: list[Telling] = [Said(text)]
        if self._status_open:
            self._status_open = False
            told.insert(0, Shown(_status("", done=True)))
        return told

    def _think(self, text: str) -> list[Telling]:
        return [Thought(text)] if text and self._model.reasoning != "drop" else []

    def _replace(self, text: str) -> list[Telling]:
        self.ending.finish_reason = "content_filter"
        self._splitter = ReasoningSplitter()
        voided = Voided(bool(self._said))
        self._said.clear()
        return [voided, *self._say(text)]

    def _tell_step(self, step: AgentStep) -> list[Telling]:
        told: list[Telling] = []
        if step.id not in self._steps:
            told += self._pieces(self._splitter.section())
        known = self._steps.get(step.id) or AgentStep(step.id, "", "", "", "")
        self._steps[step.id] = step
        if step.tool and not known.tool:
            if step.thought and step.thought.strip() not in "".join(self._said):
                told += self._show_step(step.thought.strip())
            told += self._show_step(f"{step.tool}({step.tool_input})")
        if step.observation and not known.observation:
            told += self._show_step(f"→ {step.observation}")
        return told

    def _show_step(self, line: str) -> list[Telling]:
        if self._model.agent_steps == "reasoning":
            return [Thought(f"{line}\n")]
        return self._progress(line) if self._model.agent_steps == "progress" else []

    def _progress(self, line: str) -> list[Telling]:
        if self._model.progress == "reasoning":
            return [Thought(f"{line}\n")]
        if self._model.progress == "status":
            self._status_open = True
            return [Shown(_status(line, done=False))]
        return []

    def _tell_file(self, file: FileMade) -> list[Telling]:
        names = {file.id or file.url, file.url.partition("?")[0]}
        said = "".join(self._said)
        if names & self._files or any(name and name in said for name in names):
            return []
        self._files |= names
        name = file.name or file.url.partition("?")[0].rpartition("/")[2]
        shown = links.markdown(name, self._link(file), file.kind == "image")
        return self._say(f"{self._gap()}{shown}\n")

    def _gap(self) -> str:
        return "\n\n" if self._said and not self._said[-1].endswith("\n") else ""

    def _note_node(self, usage: Usage | None, finish_reason: str) -> None:
        if usage is not None:
            self._node_usage.append(usage)
        if finish_reason and self.ending.finish_reason in ("stop", "length"):
            self.ending.finish_reason = "length" if finish_reason == "length" else "stop"

    def _output_text(self, outputs: Mapping[str, Any]) -> str:
        if self._model.output:
            return _as_text(outputs.get(self._model.output))
        told = {name: value for name, value in outputs.items() if not _is_file(value)}
        if len(told) == 1:
            return _as_text(next(iter(told.values())))
        for name in _TEXT_OUTPUTS:
            if isinstance(told.get(name), str) and all(
                not value for other, value in told.items() if other != name
            ):
                return str(told[name])
        return f"```json\n{_as_text(told)}\n```" if told else ""

    def _output_files(self) -> list[FileMade]:
        outputs = self._run.outputs.values() if self._run else ()
        items = [item for value in outputs for item in (value if _is_list(value) else [value])]
        return [file for item in items if (file := file_from(item))]

    def _say_how_the_run_ended(self) -> list[Telling]:
        if self._run is None:
            return []
        self.ending.run_status = self._run.status
        note = {
            "stopped": "(The run was stopped before its end.)",
            "partial-succeeded": "(The run ended with errors in some of its steps.)",
        }.get(self._run.status)
        if note is None or self._mode != "workflow":
            return []
        return self._say(f"{self._gap()}{note}")

    def _cite(self, resources: Sequence[Mapping[str, Any]]) -> list[Telling]:
        self.ending.resources = resources
        cited = citations.cite(resources, self._citation_form)
        self.ending.annotations = cited.annotations
        told: list[Telling] = [Shown(event) for event in cited.events]
        return told + (self._say(f"{self._gap()}{cited.markdown}") if cited.markdown else [])

    def _usage(self, told: Usage | None) -> Usage | None:
        """Dify's own sum, else that of the nodes, else the run's total."""
        if told is not None:
            return told
        total = self._run.total_tokens if self._run else 0
        prompt = sum(usage.prompt_tokens for usage in self._node_usage)
        total = max(total, sum(usage.total_tokens for usage in self._node_usage))
        return Usage(prompt, total - prompt, total) if total else None


def _status(description: str, done: bool) -> dict[str, Any]:
    return {"type": "status", "data": {"description": description, "done": done}}


def _as_text(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=2)


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _is_file(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(file_from(item) for item in value)
    return file_from(value) is not None
