"""The endpoints of Dify's API by the mode of the app. No I/O."""


def has_conversations(mode: str) -> bool:
    """Whether apps of this mode have conversations; an unknown mode is treated as a chat."""
    return mode not in ("completion", "workflow")


def must_drain_after_stop(mode: str) -> bool:
    """Whether Dify stores the partial answer of a stopped run only if the stream is read to its
    end: Dify 1.13 in all modes without a graph. Dify 1.11 never stores it."""
    return mode not in ("advanced-chat", "workflow")


def run_path(mode: str, workflow_id: str = "") -> str:
    """The path that starts a run. ``workflow_id`` pins a published version of a workflow."""
    if mode == "workflow":
        return f"/workflows/{workflow_id}/run" if workflow_id else "/workflows/run"
    return "/completion-messages" if mode == "completion" else "/chat-messages"


def stop_path(mode: str, task_id: str) -> str:
    """The path that stops a run."""
    if mode == "workflow":
        return f"/workflows/tasks/{task_id}/stop"
    return f"{run_path(mode)}/{task_id}/stop"
