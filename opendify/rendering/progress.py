"""Progress shown to the client: the steps of an agent and the nodes of a graph. No I/O."""

from opendify.config.models import Model
from opendify.dify.events import AgentStep
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
            if step.thought.strip() and step.thought.strip() not in transcript.full_text():
                deltas += self._agent_line(step.thought.strip())
            deltas += self._agent_line(f"{step.tool}({step.tool_input})")
        if step.observation and not known.observation:
            deltas += self._agent_line(f"→ {step.observation}")
        return deltas

    def last_thought(self) -> str:
        """The thought of the last step, if that step used no tool."""
        step = next(reversed(self._steps.values()), None)
        return step.thought if step is not None and not step.tool else ""

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

    def note_reasoning(self, thought: str) -> None:
        """Reasoning was shown; the next progress line starts on a new line."""
        self._is_mid_line = not thought.endswith("\n")

    def _agent_line(self, line: str) -> list[Rendered]:
        if self._model.agent_steps == "reasoning":
            return [self._reasoning_line(line)]
        return self.add_line(line) if self._model.agent_steps == "progress" else []

    def _reasoning_line(self, line: str) -> ReasoningDelta:
        start = "\n" if self._is_mid_line else ""
        self._is_mid_line = False
        return ReasoningDelta(f"{start}{line}\n")
