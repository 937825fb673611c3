"""The work behind an answer, as far as its caller is shown it: an agent's steps, a graph's nodes.
No I/O.
"""

from opendify.config.models import Model
from opendify.dify.events import AgentStep
from opendify.rendering.deltas import ReasoningDelta, Rendered, status
from opendify.rendering.transcript import Transcript


class Progress:
    """Shows it as the model's settings say: as lines among the thoughts, or as a status line,
    which ``is_open`` until there is text."""

    def __init__(self, model: Model) -> None:
        self.is_open = False
        self._model = model
        self._steps: dict[str, AgentStep] = {}
        self._is_mid_line = False

    def is_new(self, step: AgentStep) -> bool:
        """Whether this step was not seen before."""
        return step.id not in self._steps

    def add_step(self, step: AgentStep, transcript: Transcript) -> list[Rendered]:
        """What is new in a step; not a thought that is in the ``transcript`` already."""
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
        """The thought of the last step, where that used no tool."""
        step = next(reversed(self._steps.values()), None)
        return step.thought if step is not None and not step.tool else ""

    def add_line(self, line: str) -> list[Rendered]:
        """A line about what is done."""
        if self._model.progress == "reasoning":
            return [self._reasoning_line(line)]
        if self._model.progress == "status":
            self.is_open = True
            return [status(line, done=False)]
        return []

    def finish(self) -> list[Rendered]:
        """There is text now, or the end."""
        was_open, self.is_open = self.is_open, False
        return [status("", done=True)] if was_open else []

    def note_reasoning(self, thought: str) -> None:
        """Lines among the thoughts come after this one."""
        self._is_mid_line = not thought.endswith("\n")

    def _agent_line(self, line: str) -> list[Rendered]:
        if self._model.agent_steps == "reasoning":
            return [self._reasoning_line(line)]
        return self.add_line(line) if self._model.agent_steps == "progress" else []

    def _reasoning_line(self, line: str) -> ReasoningDelta:
        start = "\n" if self._is_mid_line else ""
        self._is_mid_line = False
        return ReasoningDelta(f"{start}{line}\n")
