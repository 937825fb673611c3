"""Readiness: whether the conversation store and Dify are available."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from opendify.conversations.store.base import ConversationStore
from opendify.observability.metrics import Reading
from opendify.upstream.app_registry import AppRegistry

# Seconds that a worker waits for its first answer from Dify.
PROBE_TIMEOUT = 2.0

UNKNOWN = "unknown"

PARTS = ("store", "dify")


@dataclass(frozen=True, slots=True)
class ReadinessReport:
    """``models`` maps each model to "ok", "unknown", or an error code."""

    store_kind: str
    is_store_ok: bool
    models: dict[str, str]

    @property
    def is_dify_ok(self) -> bool:
        """One failing app is no reason to reject the callers of all others. If only callers have
        keys, Dify cannot be checked."""
        return not self.models or "ok" in self.models.values()

    def is_ready(self, excluded: Collection[str] = ()) -> bool:
        """Whether all parts are ok, except ``excluded`` ones (of ``PARTS``). Excluding makes sense
        for a part that all instances share: if it fails, taking instances out of service does not
        help."""
        found = {"store": self.is_store_ok, "dify": self.is_dify_ok}
        return all(is_fine for part, is_fine in found.items() if part not in excluded)

    def details(self) -> dict[str, Any]:
        """For operators. The configuration is always ok, or the service would not have started."""
        store = {"status": _status(self.is_store_ok), "kind": self.store_kind}
        dify = {"status": _status(self.is_dify_ok), "models": self.models}
        return {"configuration": {"status": "ok"}, "store": store, "dify": dify}


class Readiness:
    """Checks the store, and the last result of the background thread that checks Dify."""

    def __init__(self, conversations: ConversationStore, registry: AppRegistry) -> None:
        self._conversations = conversations
        self._registry = registry

    def check(self) -> ReadinessReport:
        return ReadinessReport(
            self._conversations.kind, self._is_store_ok(), self._models(PROBE_TIMEOUT)
        )

    def readings(self) -> Iterator[Reading]:
        """The same as gauges, with the size of the store; unknown values are left out."""
        count = self._conversations.stats().count
        yield Reading("conversations", "Chats that are remembered.", (), {(): count})
        help_text = "Whether the store of the conversations can be used."
        yield Reading("store_up", help_text, (), {(): self._conversations.available})
        statuses = self._models(0).items()
        known: dict[tuple[str, ...], float] = {
            (name,): status == "ok" for name, status in statuses if status != UNKNOWN
        }
        yield Reading("dify_up", "Whether Dify returns the app of a model.", ("model",), known)

    def _is_store_ok(self) -> bool:
        self._conversations.get("")  # using it updates `available`
        return self._conversations.available

    def _models(self, max_wait: float) -> dict[str, str]:
        problems = self._registry.problems(max_wait).items()
        return {name: UNKNOWN if code is None else code or "ok" for name, code in problems}


def _status(is_fine: bool) -> str:
    return "ok" if is_fine else "failing"
