"""Progress shown to the client: the steps of an agent and the nodes of a graph. No I/O."""

from opendify.config.models import Model
from opendify.dify.events import AgentStep, AgentThought
from opendify.rendering.deltas import ReasoningDelta, Rendered, status
from opendify.rendering.transcript import Transcript


class Progress:
    """Shows progress as the model's settings say: as lines in the reasoning, or as a status line,
    which stays open (``is_open``) until there is text."""

    def __init__(self, model: Model) -> None:
        self.is_open = False
        self._model = model
        self._steps: dict[str, AgentStep] = {}
        self._is_mid_line = False
        self._open_call = ""  # the id of the tool call that ends the current line

    def is_new(self, step: AgentStep) -> bool:
        """Whether this step has not been added before."""
        return step.id not in self._steps

    def add_step(self, step: AgentStep, transcript: Transcript) -> list[Rendered]:
        """Renders what is new in a step, except a thought that the ``transcript`` already
        contains."""
        deltas: list[Rendered] = []
        known = self._steps.get(step.id) or AgentStep(step.id, "", "", "", "")
        self._steps[step.id] = step
        if step.tool and not known.tool:
            deltas += self.add_thought(AgentThought(step.thought), transcript)
            deltas += self._begin_call(step)
        elif step.tool_input and not known.tool_input:
            deltas += self._add_arguments(step)
        if step.observation and not known.observation:
            deltas += self._agent_line(f"→ {step.observation}")
        return deltas

    def add_thought(self, thought: AgentThought, transcript: Transcript) -> list[Rendered]:
        """Renders a thought, unless the ``transcript`` already contains it."""
        text = thought.text.strip()
        return self._agent_line(text) if text and text not in transcript.full_text() else []

    @property
    def last_step(self) -> AgentStep | None:
        """The last step that has begun."""
        return next(reversed(self._steps.values()), None)

    def add_line(self, line: str) -> list[Rendered]:
        """Renders a line of progress."""
        if self._model.progress == "reasoning":
            return [self._reasoning_line(line)]
        if self._model.progress == "status":
            self.is_open = True
            return [status(line, done=False)]
        return []

    def finish(self) -> list[Rendered]:
        """Closes the status line: there is text now, or the answer has ended."""
        was_open, self.is_open = self.is_open, False
        return [status("", done=True)] if was_open else []

    def add_reasoning(self, thought: str) -> ReasoningDelta:
        """Renders reasoning of the model; the next progress line starts on a new line."""
        start = "\n" if self._open_call else ""
        self._is_mid_line, self._open_call = not thought.endswith("\n"), ""
        return ReasoningDelta(start + thought)

    def _begin_call(self, step: AgentStep) -> list[Rendered]:
        if step.tool_input or self._model.agent_steps != "reasoning":
            return self._agent_line(_call(step))
        # An agent node sends the arguments with the result.
        start = self._line_start()
        self._is_mid_line, self._open_call = True, step.id
        return [ReasoningDelta(start + step.tool)]

    def _add_arguments(self, step: AgentStep) -> list[Rendered]:
        if self._open_call != step.id:
            return self._agent_line(_call(step))
        self._is_mid_line, self._open_call = False, ""
        return [ReasoningDelta(f"({step.tool_input})\n")]

    def _agent_line(self, line: str) -> list[Rendered]:
        if self._model.agent_steps == "reasoning":
            return [self._reasoning_line(line)]
        return self.add_line(line) if self._model.agent_steps == "progress" else []

    def _reasoning_line(self, line: str) -> ReasoningDelta:
        start = self._line_start()
        self._is_mid_line, self._open_call = False, ""
        return ReasoningDelta(f"{start}{line}\n")

    def _line_start(self) -> str:
        return "\n" if self._is_mid_line else ""


def _call(step: AgentStep) -> str:
    return f"{step.tool}({step.tool_input})" if step.tool_input else step.tool
