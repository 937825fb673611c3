"""Renders Dify events as deltas: text, reasoning and UI events.

Streamed and non-streamed answers use the same renderer, so that they cannot differ. No I/O.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from opendify.config.models import Model
from opendify.dify.events import (
    AgentStep,
    AgentThought,
    Event,
    FileGenerated,
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
from opendify.rendering import citations, workflow_outputs
from opendify.rendering.deltas import (
    Completion,
    Rendered,
    RenderedText,
    Reset,
    UiEvent,
)
from opendify.rendering.generated_files import GeneratedFiles
from opendify.rendering.progress import Progress
from opendify.rendering.reasoning import Piece, ReasoningParser, split
from opendify.rendering.separate_reasoning import SeparateReasoning
from opendify.rendering.surrogates import SurrogateJoiner
from opendify.rendering.text_output import TextOutput
from opendify.rendering.transcript import Source, Transcript
from opendify.rendering.usage import total_usage

# Nodes that every graph contains and that are not worth showing.
_SILENT_NODES = ("start", "end", "answer")

# Reasons for which Dify stops a run by itself: APP_MAX_EXECUTION_TIME and similar.
_LIMIT_REASON = re.compile(r"\bmax|exceed|time ?out", re.IGNORECASE)

# Dify 1.16 takes no answer to a question of an agent's: the next turn gets a new conversation, and
# the agent is told the chat so far.
_QUESTION_NOTE = (
    "(Dify cannot continue the agent with your answer: it will begin again, and know this chat. "
    "If it only repeats its question, its operator should remove the tool ask_human in Dify.)"
)

_NOTES = {
    "stopped": "(The run was stopped before its end.)",
    "partial-succeeded": "(The run ended with errors in some of its steps.)",
}


class ResponseRenderer:
    """Renders one answer. ``mode`` is the mode of the app, ``stops`` are the stop sequences of the
    request, and ``citation_form`` is a result of ``citations.choose_format``. ``completion`` is
    complete once ``has_ended``."""

    def __init__(self, model: Model, mode: str, stops: Sequence[str], citation_form: str) -> None:
        self.completion = Completion()
        self.has_ended = False
        self._model = model
        self._mode = mode
        self._citation_form = citation_form
        self._surrogates = SurrogateJoiner()
        self._source: Source = ("", "")
        self._parsers: dict[Source, ReasoningParser] = {self._source: ReasoningParser()}
        self._separate_reasoning = SeparateReasoning()
        self._text = TextOutput(stops)
        self._begins_paragraph = False
        self._transcript = Transcript()
        self._reasoned_nodes: set[str] = set()
        self._has_agent_message = False
        self._was_replaced = False
        self._has_form = False
        self._is_thinking_inline = False
        self._files = GeneratedFiles()
        self._progress = Progress(model)
        self._node_usage: list[Usage] = []
        self._run: RunFinished | None = None

    @property
    def hit_stop_sequence(self) -> bool:
        """Whether a stop sequence of the request has ended the answer."""
        return self._text.hit_stop_sequence

    def feed(self, event: Event) -> list[Rendered]:
        """Renders an event, in order. A MessageEnded or a stop sequence ends the answer; later
        events render nothing."""
        if self.has_ended:
            return []
        if isinstance(event, MessageEnded):
            return self._finish(event)
        deltas = self._render(event)
        return deltas + self._finish(MessageEnded()) if self.hit_stop_sequence else deltas

    def _render(self, event: Event) -> list[Rendered]:  # noqa: C901 one match over a closed set
        match event:
            case Text():
                return self._render_text(event)
            case Reasoning():
                return self._render_reasoning(event)
            case Replaced(text):
                return self._replace(text)
            case AgentStep():
                return self._render_step(event)
            case AgentThought():
                return self._interrupt(self._progress.add_thought(event, self._transcript))
            case FileGenerated():
                return [*self._files.add(event, self._text)]
            case NodeStarted(title, kind) if kind not in _SILENT_NODES:
                return self._interrupt(self._progress.add_line(title or kind))
            case NodeFinished():
                return self._finish_node(event)
            case HumanInputNeeded(form, actions):
                self._has_form = True
                choices = f"\n\n({' / '.join(actions)})" if actions else ""
                return self._add_paragraph(f"{form}{choices}".strip())
            case Paused():
                return self._add_paragraph("(waiting for human input in Dify)")
            case RunFinished():
                self._finish_run(event)
            case _:
                pass
        return []

    def _finish(self, event: MessageEnded) -> list[Rendered]:
        self.has_ended = True
        deltas = self._render_model_text(self._surrogates.flush() or self._last_thought())
        deltas += [
            delta
            for parser in self._parsers.values()
            for delta in self._render_pieces(parser.close())
        ]
        deltas += self._render_outputs()
        deltas += self._end_inline_thinking()
        deltas += self._emit(self._text.flush())
        for file in event.files:
            deltas += self._files.add(file, self._text)
        for link in self._files.unlinked(self._text):
            deltas += self._emit(self._text.add_file(link))
        if self._run is not None and self._mode == "workflow":
            deltas += self._add_paragraph(_NOTES.get(self._run.status, ""))
        if self._is_unanswered_question():
            deltas += self._add_paragraph(_QUESTION_NOTE)
        deltas += self._cite(event.resources)
        deltas += self._progress.finish()
        self.completion.stop_sequence = self._text.stop_sequence
        self.completion.usage = total_usage(event.usage, self._node_usage, self._run)
        return deltas

    def _last_thought(self) -> str:
        """The last thought of an agent that sent no text and used no tool after it: it is the
        answer then."""
        step = self._progress.last_step
        if step is None or step.tool or self._was_replaced or self.hit_stop_sequence:
            return ""
        return "" if self._transcript.full_text().strip() else step.thought

    def _is_unanswered_question(self) -> bool:
        step = self._progress.last_step
        return step is not None and step.waits_for_person and not self._has_form

    def _render_text(self, event: Text) -> list[Rendered]:
        source = (event.node, event.variable)
        deltas = self._switch_to(source) if source != self._source else []
        text = self._surrogates.feed(event.text)
        if event.event == "agent_message":
            self._has_agent_message = True
        elif self._has_agent_message and event.event == "message":
            # The mode ``agent`` (1.15 and later) ends with the whole text of its last round.
            new = self._transcript.new_text(text)
            if new is not None:
                text = new
            else:  # the previous text described its work
                self._has_agent_message = False
                deltas += self._start_section()
                self._begins_paragraph = True
        if text:
            self._transcript.add(source, text)
            deltas += self._render_model_text(text)
        return deltas

    def _switch_to(self, source: Source) -> list[Rendered]:
        """Switches to text of another source. Parallel nodes alternate in mid-sentence, so each has
        its own parser, and an open block of reasoning continues with the text of its node."""
        deltas = self._render_pieces(self._parser.pause())
        self._source = source
        self._parsers.setdefault(source, ReasoningParser())
        return deltas

    @property
    def _parser(self) -> ReasoningParser:
        return self._parsers[self._source]

    def _start_section(self) -> list[Rendered]:
        is_after_reasoning = self._mode == "agent"
        return self._render_pieces(
            self._parser.start_section(is_after_reasoning=is_after_reasoning)
        )

    def _render_model_text(self, text: str) -> list[Rendered]:
        if self._model.reasoning == "inline" and self._mode != "agent":
            return self._write(text)
        return self._render_pieces(self._parser.feed(text))

    def _render_pieces(self, pieces: Sequence[Piece]) -> list[Rendered]:
        deltas: list[Rendered] = []
        for piece in pieces:
            deltas += (
                self._add_reasoning(piece.text) if piece.is_reasoning else self._write(piece.text)
            )
        return deltas

    def _write(self, text: str) -> list[Rendered]:
        deltas = self._end_inline_thinking() if self._is_thinking_inline else []
        if self._begins_paragraph:
            self._begins_paragraph = False
            deltas += self._emit(self._text.begin_paragraph())
        return deltas + self._emit(self._text.feed(text))

    def _add_paragraph(self, paragraph: str) -> list[Rendered]:
        if not paragraph:
            return []
        deltas = self._start_section()
        deltas += self._end_inline_thinking()
        deltas += self._emit(self._text.begin_paragraph())
        return deltas + self._emit(self._text.insert(paragraph))

    def _emit(self, texts: Iterable[RenderedText]) -> list[Rendered]:
        deltas: list[Rendered] = [*texts]
        return [*self._progress.finish(), *deltas] if deltas and self._progress.is_open else deltas

    def _add_reasoning(self, text: str) -> list[Rendered]:
        if not text or self._model.reasoning == "drop":
            return []
        if self._model.reasoning == "split":
            return [self._progress.add_reasoning(text)]
        opening = "" if self._is_thinking_inline else "<think>\n"
        self._is_thinking_inline = True
        return self._emit(self._text.insert(opening + text))

    def _end_inline_thinking(self) -> list[Rendered]:
        if not self._is_thinking_inline:
            return []
        self._is_thinking_inline = False
        self._separate_reasoning.interrupt()
        return self._emit(self._text.insert("\n</think>\n\n"))

    def _replace(self, text: str) -> list[Rendered]:
        self.completion.finish_reason = "content_filter"
        self._was_replaced = True
        self._is_thinking_inline = False
        self._separate_reasoning.interrupt()
        self._begins_paragraph = False
        self._parsers = {self._source: ReasoningParser()}
        return [Reset(self._text.reset()), *self._write(text)]

    def _render_step(self, step: AgentStep) -> list[Rendered]:
        deltas = self._start_section() if self._progress.is_new(step) else []
        if self._mode == "agent":
            deltas += self._add_reasoning(self._separate_reasoning.update(step.id, step.thought))
            step = replace(step, thought="")
        if step.tool:
            self._transcript.begin_round()
            self._begins_paragraph = self._mode == "agent"
        return deltas + self._interrupt(self._progress.add_step(step, self._transcript))

    def _render_reasoning(self, reasoning: Reasoning) -> list[Rendered]:
        node = reasoning.node
        self._reasoned_nodes.add(node)
        text = self._separate_reasoning.add(node, reasoning.text)
        if reasoning.is_final:
            self._separate_reasoning.end(node)
        return self._add_reasoning(text)

    def _interrupt(self, deltas: list[Rendered]) -> list[Rendered]:
        """Notes that lines of progress stand between two texts of reasoning."""
        if deltas:
            self._separate_reasoning.interrupt()
        return deltas

    def _finish_node(self, node: NodeFinished) -> list[Rendered]:
        if node.usage is not None:
            self._node_usage.append(node.usage)
        if node.finish_reason and self.completion.finish_reason in ("stop", "length"):
            is_length = node.finish_reason == "length"
            self.completion.finish_reason = "length" if is_length else "stop"
        if node.node not in self._transcript:
            return []
        deltas: list[Rendered] = []
        for (name, _), parser in self._parsers.items():
            if name == node.node:
                deltas += self._render_pieces(parser.start_section())
        if node.node not in self._reasoned_nodes:
            deltas += self._add_reasoning(self._separate_reasoning.add(node.node, node.reasoning))
            self._separate_reasoning.end(node.node)
        return deltas

    def _finish_run(self, run: RunFinished) -> None:
        self._run = run
        self.completion.run_status = run.status
        if run.status == "stopped" and _LIMIT_REASON.search(run.reason):
            self.completion.finish_reason = "length"

    def _render_outputs(self) -> list[Rendered]:
        if self._run is None or self._was_replaced:
            return []
        deltas: list[Rendered] = []
        streamed = self._transcript.texts()
        if self._mode == "workflow" or not streamed:
            known = {
                *streamed,
                *(split(text)[0] for text in streamed),
                self._transcript.full_text(),
            }
            text = workflow_outputs.output_text(self._run.outputs, known, self._model.output)
            if text and streamed:
                deltas += self._emit(self._text.begin_paragraph())
            deltas += self._render_model_text(text) + self._render_pieces(self._parser.close())
        for file in workflow_outputs.output_files(self._run.outputs):
            if self._mode == "workflow" or not file.was_uploaded:
                deltas += self._files.add(file, self._text)
        return deltas

    def _cite(self, resources: Sequence[Mapping[str, Any]]) -> list[Rendered]:
        self.completion.resources = resources
        cited = citations.cite(resources, self._citation_form)
        self.completion.annotations = cited.annotations
        deltas: list[Rendered] = [UiEvent(event) for event in cited.events]
        return deltas + self._add_paragraph(cited.markdown)
