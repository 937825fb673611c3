"""How the events of an answer are told: what is said, what is thought, what is only shown.

The same telling serves streamed and gathered answers, so that they cannot differ. No I/O.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
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
    Texts,
    Usage,
)
from opendify.telling import citations, outputs
from opendify.telling.characters import CharacterJoiner
from opendify.telling.heard import Heard
from opendify.telling.made_files import MadeFiles
from opendify.telling.progress import Progress
from opendify.telling.reasoning import Piece, ReasoningSplitter, split
from opendify.telling.tellings import Ending, Said, SaidInTurn, Shown, Telling, Thought, Voided
from opendify.telling.tokens import total_usage
from opendify.telling.wording import Wording

# Nodes that every graph has and that do no work worth showing.
_SILENT_NODES = ("start", "end", "answer")

# Why Dify stops a run by itself: APP_MAX_EXECUTION_TIME and the like.
_LIMIT = re.compile(r"\bmax|exceed|time ?out", re.IGNORECASE)

_NOTES = {
    "stopped": "(The run was stopped before its end.)",
    "partial-succeeded": "(The run ended with errors in some of its steps.)",
}


class Narration:
    """Tells one answer. ``link`` gives the address under which callers reach a file of Dify's, from
    Dify's address, a name and Dify's word for its kind; ``mode`` is that of the app; ``stops`` are
    the caller's stop sequences; ``citation_form`` comes from ``citations.form_for``."""

    def __init__(
        self,
        model: Model,
        mode: str,
        link: Callable[[str, str, str], str],
        stops: Sequence[str],
        citation_form: str,
    ) -> None:
        self.ending = Ending()
        self.has_ended = False
        self._model = model
        self._mode = mode
        self._citation_form = citation_form
        self._characters = CharacterJoiner()
        self._splitters: dict[str, ReasoningSplitter] = {"": ReasoningSplitter()}
        self._wording = Wording(stops, link)
        self._node = ""
        self._heard = Heard()
        self._reasoned_nodes: set[str] = set()
        self._agent_spoke = False
        self._was_replaced = False
        self._is_thinking_inline = False
        self._files = MadeFiles(link)
        self._progress = Progress(model)
        self._node_usage: list[Usage] = []
        self._run: RunFinished | None = None
        self._passed_on: Text | Texts | None = None  # what was told last, where that was passed on

    @property
    def is_cut(self) -> bool:
        """Whether a stop sequence of the caller has ended the answer."""
        return self._wording.is_cut

    def is_told_at_once(self, events: Sequence[Event]) -> bool:
        """Whether ``tell_all`` of these calls no ``link``, which may have to wait for Dify: whether
        all of them are texts with which no link begins, goes on or ends."""
        if self._run is not None:
            return False
        text, name, is_whole = "", "", True
        for event in events:
            if isinstance(event, Text):
                text += event.text
            elif isinstance(event, Texts):
                text += "".join(event.texts)
            else:
                return False
            name = name or event.event
            is_whole = is_whole and event.event == name and self._is_told_whole(event)
        if not is_whole:  # what is apart here can be side by side when it is told
            text = "".join(splitter.held for splitter in self._splitters.values()) + text
        return (is_whole or "(" not in text) and self._wording.is_free_of_links(text)

    def tell_at_once(self, events: Sequence[Event]) -> list[Telling] | None:
        """What ``tell_all`` gives, where that calls no ``link``; else None, and nothing is told."""
        event = events[0] if len(events) == 1 else None
        if isinstance(event, Text) and self._goes_on(event):
            self._pass_on(event, event.text)
            return [Said(event.text)] if event.text else []
        return self.tell_all(events) if self.is_told_at_once(events) else None

    def tell_all(self, events: Iterable[Event]) -> list[Telling]:
        """What events that came together give the caller, in order, to the end of the answer: up to
        a MessageEnded, or to where a stop sequence cuts it."""
        told: list[Telling] = []
        for event in events:
            if isinstance(event, MessageEnded):
                return told + self.end(event)
            told += self.tell(event)
            if self.is_cut:
                return told + self.end(MessageEnded())
        return told

    def tell(self, event: Event) -> list[Telling]:  # noqa: C901 one match over a closed set
        """What this event gives the caller, in order."""
        self._passed_on = None
        match event:
            case Text():
                return self._tell_text(event)
            case Texts():
                return self._tell_texts(event)
            case Reasoning(text, node):
                self._reasoned_nodes.add(node)
                return self._think(text)
            case Replaced(text):
                return self._replace(text)
            case AgentStep():
                return self._tell_step(event)
            case FileMade():
                self._files.note(event, self._wording)
            case NodeStarted(title, kind) if kind not in _SILENT_NODES:
                return self._progress.line(title or kind)
            case NodeFinished():
                return self._note_node(event)
            case HumanInputNeeded(form, actions):
                choices = f"\n\n({' / '.join(actions)})" if actions else ""
                return self._add(f"{form}{choices}".strip())
            case Paused():
                return self._add("(waiting for human input in Dify)")
            case RunFinished():
                self._note_run(event)
            case _:
                pass
        return []

    def end(self, event: MessageEnded) -> list[Telling]:
        """What is told last; ``ending`` is complete afterwards."""
        self.has_ended = True
        told = self._tell_heard(self._characters.rest())
        told += [t for splitter in self._splitters.values() for t in self._pieces(splitter.close())]
        told += self._tell_outputs()
        told += self._end_inline_thinking()
        told += self._spoken(self._wording.rest())
        for file in event.files:
            self._files.note(file, self._wording)
        for shown in self._files.unsaid(self._wording):
            told += self._add(shown)
        if self._run is not None and self._mode == "workflow":
            told += self._add(_NOTES.get(self._run.status, ""))
        told += self._cite(event.resources)
        told += self._progress.over()
        self.ending.usage = total_usage(event.usage, self._node_usage, self._run)
        return told

    def _tell_texts(self, event: Texts) -> list[Telling]:
        text = "".join(event.texts)
        if self._is_passed_by(event, text):
            self._pass_on(event, text)
            return [SaidInTurn(tuple(filter(None, event.texts)))] if text else []
        told: list[Telling] = []
        for each in event.texts:
            told += self.tell(Text(each, event.node, event.event))
            if self.is_cut:
                break
        return told

    def _is_passed_by(self, event: Text | Texts, text: str) -> bool:
        """Whether the text of this event is said as it is, with nothing before it, in whatever
        pieces it came."""
        return (
            self._is_told_whole(event)
            and not (self._is_thinking_inline or self._progress.is_open)
            and self._characters.is_passed_by(text)
            and self._wording.is_passed_by(text)
        )

    def _goes_on(self, event: Text) -> bool:
        """Whether this is passed by: where the text before it was, the same is known of all but
        the text itself."""
        last, text = self._passed_on, event.text
        if last is None or last.node != event.node or last.event != event.event:
            return self._is_passed_by(event, text)
        return self._characters.is_passed_by(text) and self._wording.is_passed_by(text)

    def _is_told_whole(self, event: Text | Texts) -> bool:
        """Whether this is all for the answer, and cannot be a repetition."""
        return (
            event.node == self._node
            and (event.event == "agent_message" or not self._agent_spoke)
            and (self._model.reasoning == "inline" or self._splitter.is_in_answer)
        )

    def _pass_on(self, event: Text | Texts, text: str) -> None:
        self._passed_on = event
        self._agent_spoke = event.event == "agent_message"
        if text:
            self._heard.add(event.node, text)
            self._wording.pass_on(text)

    def _tell_text(self, event: Text) -> list[Telling]:
        if self._is_passed_by(event, event.text):
            self._pass_on(event, event.text)
            return [Said(event.text)] if event.text else []
        told = self._turn_to(event.node)
        text = self._characters.feed(event.text)
        if event.event == "agent_message":
            self._agent_spoke = True
        elif self._agent_spoke and event.event == "message":
            # The new agents of Dify 1.15 repeat the whole answer at its end.
            new = self._heard.new_in(text)
            if new is not None:
                text = new
            else:  # what they said before was about their work
                self._agent_spoke = False
                told += self._pieces(self._splitter.section())
                told += self._spoken(self._wording.begin_paragraph())
        if text:
            self._heard.add(event.node, text)
            told += self._tell_heard(text)
        return told

    def _turn_to(self, node: str) -> list[Telling]:
        """Another node speaks. Nodes that run side by side take turns in mid-sentence, and so a
        thought that one has begun goes on when it is heard again."""
        if node == self._node:
            return []
        told = self._pieces(self._splitter.pause())
        self._node = node
        self._splitters.setdefault(node, ReasoningSplitter())
        return told

    @property
    def _splitter(self) -> ReasoningSplitter:
        return self._splitters[self._node]

    def _tell_heard(self, text: str) -> list[Telling]:
        if self._model.reasoning == "inline":
            return self._say(text)
        return self._pieces(self._splitter.feed(text))

    def _pieces(self, pieces: Sequence[Piece]) -> list[Telling]:
        told: list[Telling] = []
        for piece in pieces:
            told += self._think(piece.text) if piece.is_reasoning else self._say(piece.text)
        return told

    def _say(self, text: str) -> list[Telling]:
        return [*self._end_inline_thinking(), *self._spoken(self._wording.feed(text))]

    def _add(self, paragraph: str) -> list[Telling]:
        if not paragraph:
            return []
        told = self._pieces(self._splitter.section())
        told += self._end_inline_thinking()
        return told + self._spoken(self._wording.add(paragraph))

    def _spoken(self, text: str) -> list[Telling]:
        if not text:
            return []
        return [*self._progress.over(), Said(text)]

    def _think(self, text: str) -> list[Telling]:
        if not text or self._model.reasoning == "drop":
            return []
        if self._model.reasoning == "split":
            self._progress.after(text)
            return [Thought(text)]
        opening = "" if self._is_thinking_inline else "<think>\n"
        self._is_thinking_inline = True
        return self._spoken(self._wording.insert(opening + text))

    def _end_inline_thinking(self) -> list[Telling]:
        if not self._is_thinking_inline:
            return []
        self._is_thinking_inline = False
        return self._spoken(self._wording.insert("\n</think>\n\n"))

    def _replace(self, text: str) -> list[Telling]:
        self.ending.finish_reason = "content_filter"
        self._was_replaced = True
        self._is_thinking_inline = False
        self._splitters = {self._node: ReasoningSplitter()}
        return [Voided(self._wording.void()), *self._say(text)]

    def _tell_step(self, step: AgentStep) -> list[Telling]:
        told = self._pieces(self._splitter.section()) if self._progress.is_new(step) else []
        return told + self._progress.step(step, self._heard)

    def _note_node(self, node: NodeFinished) -> list[Telling]:
        if node.usage is not None:
            self._node_usage.append(node.usage)
        if node.finish_reason and self.ending.finish_reason in ("stop", "length"):
            self.ending.finish_reason = "length" if node.finish_reason == "length" else "stop"
        if node.node not in self._heard:
            return []
        splitter = self._splitters.get(node.node)  # none where what it had said was replaced
        told = self._pieces(splitter.section()) if splitter else []
        return told if node.node in self._reasoned_nodes else told + self._think(node.reasoning)

    def _note_run(self, run: RunFinished) -> None:
        self._run = run
        self.ending.run_status = run.status
        if run.status == "stopped" and _LIMIT.search(run.reason):
            self.ending.finish_reason = "length"

    def _tell_outputs(self) -> list[Telling]:
        if self._run is None or self._was_replaced:
            return []
        told: list[Telling] = []
        heard = self._heard.of_each()
        if self._mode == "workflow" or not heard:
            known = {*heard, *(split(text)[0] for text in heard), self._heard.of_all()}
            text = outputs.text_of(self._run.outputs, known, self._model.output)
            if text and heard:
                told += self._spoken(self._wording.begin_paragraph())
            told += self._tell_heard(text) + self._pieces(self._splitter.close())
        for file in outputs.files_of(self._run.outputs):
            if self._mode == "workflow" or not file.was_uploaded:
                self._files.note(file, self._wording)
        return told

    def _cite(self, resources: Sequence[Mapping[str, Any]]) -> list[Telling]:
        self.ending.resources = resources
        cited = citations.cite(resources, self._citation_form)
        self.ending.annotations = cited.annotations
        told: list[Telling] = [Shown(event) for event in cited.events]
        return told + self._add(cited.markdown)
