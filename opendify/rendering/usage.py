"""The tokens of an answer, from the places in which Dify tells them. No I/O."""

from collections.abc import Sequence

from opendify.dify.events import RunFinished, Usage


def total_usage(
    told: Usage | None, of_nodes: Sequence[Usage], run: RunFinished | None
) -> Usage | None:
    """Dify's own sum as ``told``, else that of the nodes, else the run's total; None for none."""
    if told is not None and told.total_tokens:
        return told
    total = run.total_tokens if run else 0
    prompt = sum(usage.prompt_tokens for usage in of_nodes)
    total = max(total, sum(usage.total_tokens for usage in of_nodes))
    return Usage(prompt, total - prompt, total) if total else told
