"""Token usage of an answer, from the places where Dify reports it. No I/O."""

from collections.abc import Sequence

from opendify.dify.events import RunFinished, Usage


def total_usage(
    reported: Usage | None, node_usages: Sequence[Usage], run: RunFinished | None
) -> Usage | None:
    """Dify's own total (``reported``) if it has one, else the sum over the nodes, else the total of
    the run. None if there is none."""
    if reported is not None and reported.total_tokens:
        return reported
    total = run.total_tokens if run else 0
    prompt = sum(usage.prompt_tokens for usage in node_usages)
    total = max(total, sum(usage.total_tokens for usage in node_usages))
    return Usage(prompt, total - prompt, total) if total else reported
