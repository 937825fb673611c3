"""Which address of Dify's API an app of which mode answers at. No I/O."""


def has_conversations(mode: str) -> bool:
    """Whether apps of this mode keep conversations; an unknown mode is taken for a chat."""
    return mode not in ("completion", "workflow")


def keeps_only_what_is_read(mode: str) -> bool:
    """Whether the part of an answer that came before a stop is kept only where Dify's connection
    is read to its end then: so does Dify 1.13 with all but graphs, 1.11 keeps none."""
    return mode not in ("advanced-chat", "workflow")


def run_path(mode: str, workflow_id: str = "") -> str:
    """Where a question goes. ``workflow_id`` pins a published version of a workflow."""
    if mode == "workflow":
        return f"/workflows/{workflow_id}/run" if workflow_id else "/workflows/run"
    return "/completion-messages" if mode == "completion" else "/chat-messages"


def stop_path(mode: str, task_id: str) -> str:
    """Where a running answer is stopped."""
    if mode == "workflow":
        return f"/workflows/tasks/{task_id}/stop"
    return f"{run_path(mode)}/{task_id}/stop"
