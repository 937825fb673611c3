"""Whether what the service needs is there: the store of the conversations, and Dify."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from opendify.conversations.store.base import ConversationStore
from opendify.observability.metrics import Reading
from opendify.upstream.app_registry import AppRegistry

# A worker that has not asked Dify yet does so at the first look, which waits so long for it.
PROBE_TIMEOUT = 2.0

UNKNOWN = "unknown"

PARTS = ("store", "dify")


@dataclass(frozen=True, slots=True)
class ReadinessReport:
    """What was found. ``models`` has for each "ok", "unknown", or the code of what is wrong."""

    store_kind: str
    is_store_ok: bool
    models: dict[str, str]

    @property
    def is_dify_ok(self) -> bool:
        """One app that is out of order is no reason to turn away the callers of all others. Where
        only callers have keys, nothing can be asked of Dify."""
        return not self.models or "ok" in self.models.values()

    def is_ready(self, besides: Collection[str] = ()) -> bool:
        """Whether all is fine that is asked for. ``besides`` are those of ``PARTS`` that do not
        count: what instances share is away for all of them at once, and is no reason to take any
        of them out of service where there is nothing else to send requests to."""
        found = {"store": self.is_store_ok, "dify": self.is_dify_ok}
        return all(is_fine for part, is_fine in found.items() if part not in besides)

    def details(self) -> dict[str, Any]:
        """For operators. Without a sound configuration nothing would have started."""
        store = {"status": _status(self.is_store_ok), "kind": self.store_kind}
        dify = {"status": _status(self.is_dify_ok), "models": self.models}
        return {"configuration": {"status": "ok"}, "store": store, "dify": dify}


class Readiness:
    """Looks at the store, and at what a thread in the background last heard from Dify."""

    def __init__(self, conversations: ConversationStore, directory: AppRegistry) -> None:
        self._conversations = conversations
        self._directory = directory

    def check(self) -> ReadinessReport:
        return ReadinessReport(
            self._conversations.kind, self._is_store_ok(), self._models(PROBE_TIMEOUT)
        )

    def readings(self) -> Iterator[Reading]:
        """The same for the metrics, with the size of the store; what is not known is left out."""
        count = self._conversations.stats().count
        yield Reading("conversations", "Chats that are remembered.", (), {(): count})
        told = "Whether the store of the conversations can be used."
        yield Reading("store_up", told, (), {(): self._conversations.available})
        said = self._models(0).items()
        known: dict[tuple[str, ...], float] = {
            (name,): one == "ok" for name, one in said if one != UNKNOWN
        }
        yield Reading("dify_up", "Whether Dify returns the app of a model.", ("model",), known)

    def _is_store_ok(self) -> bool:
        self._conversations.get("")  # whether it is available is known once it was used
        return self._conversations.available

    def _models(self, patience: float) -> dict[str, str]:
        troubles = self._directory.problems(patience).items()
        return {name: UNKNOWN if one is None else one or "ok" for name, one in troubles}


def _status(is_fine: bool) -> str:
    return "ok" if is_fine else "failing"
