"""The look-up of a conversation beside a run that says nothing."""

import threading
import time
from typing import cast

import pytest

from opendify import errors
from opendify.upstream import conversation_probe
from opendify.upstream.conversation_probe import DifyConversationProbe, PresenceCheck
from tests.support.waiting import wait_for

FAR = time.monotonic() + 1000


class Probe:
    """Says whether the conversation is missing, once ``answered`` is set."""

    def __init__(self, is_missing: bool) -> None:
        self.answered = threading.Event()
        self.asked = 0
        self._is_missing = is_missing

    def is_missing(self, conversation_id: str) -> bool:
        self.asked += 1
        assert self.answered.wait(20)
        return self._is_missing


def check_with(probe: Probe, monkeypatch: pytest.MonkeyPatch) -> PresenceCheck:
    """A check that is due."""
    monkeypatch.setattr(conversation_probe, "SILENCE_SECONDS", 0.0)
    return PresenceCheck(cast(DifyConversationProbe, probe), "c")


def test_dify_is_not_asked_before_the_run_has_been_silent_for_long() -> None:
    probe = Probe(is_missing=True)
    check = PresenceCheck(cast(DifyConversationProbe, probe), "c")
    assert time.monotonic() < check.next_look(FAR) < FAR
    check.raise_if_missing()
    assert probe.asked == 0


def test_a_result_that_comes_at_once_is_looked_at_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    probe = Probe(is_missing=True)
    probe.answered.set()
    check = check_with(probe, monkeypatch)
    check.raise_if_missing()
    wait_for(lambda: check.next_look(FAR) <= time.monotonic())
    with pytest.raises(errors.ConversationNotFound):
        check.raise_if_missing()


def test_the_wait_goes_on_as_before_once_the_conversation_is_known_to_exist(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    probe = Probe(is_missing=False)
    check = check_with(probe, monkeypatch)
    check.raise_if_missing()
    assert check.next_look(FAR) < FAR  # looked at again and again until there is a result
    probe.answered.set()
    wait_for(lambda: check.next_look(FAR) == FAR)
    check.raise_if_missing()
    assert probe.asked == 1
