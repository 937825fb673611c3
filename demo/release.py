"""The releases of Dify that the demo can be."""

from enum import StrEnum


class Release(StrEnum):
    """A release, by the version that it tells."""

    DIFY_1_13 = "1.13.2"
    DIFY_1_16 = "1.16.1"

    @property
    def has_agents(self) -> bool:
        """Whether there are apps of the mode ``agent``."""
        return self is Release.DIFY_1_16

    @property
    def spaces_json(self) -> bool:
        """Whether all JSON is written with spaces, and with plain slashes."""
        return self is Release.DIFY_1_16

    @property
    def refuses_in_worker(self) -> bool:
        """Whether a flow that cannot begin is a run that has failed, where it is streamed."""
        return self is Release.DIFY_1_16

    @property
    def lingers(self) -> bool:
        """Whether the stream of a flow stays open after its last event."""
        return self is Release.DIFY_1_13
