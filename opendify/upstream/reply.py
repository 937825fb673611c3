"""An answer of Dify that nobody waits for."""

import time
from collections.abc import Generator
from contextlib import suppress

import httpcore
import httpx

from opendify.upstream.http1 import Answer, BadAnswer
from opendify.upstream.watch import UNWATCHED
from opendify.upstream.watcher import Wait
from opendify.upstream.wire import Wire


class Reply:
    """The answer to a request that was handed over (``wire``), whose body says nothing."""

    def __init__(self, response: httpx.Response) -> None:
        wire = response.extensions["network_stream"]
        assert isinstance(wire, Wire)
        self._wire = wire
        self._response = response
        self._answer = Answer()

    def steps(self, until: float) -> Generator[Wait, None, int]:
        """Reads it, till then at most; gives its status, 0 where none came or it broke. ``until``
        is a time of ``time.monotonic``."""
        try:
            while not self._answer.complete and time.monotonic() < until:
                yield Wait(self._wire.fileno(), until)
                data = self._wire.receive(time.monotonic(), UNWATCHED)
                if data == b"":
                    self._answer.end()
                elif data is not None:
                    self._answer.feed(data)
        except (BadAnswer, httpcore.ReadError, OSError):
            return 0
        finally:
            self._close()
        return self._answer.status

    def _close(self) -> None:
        if self._answer.complete and self._answer.reusable:
            self._wire.give_back()
            with suppress(httpx.HTTPError):
                self._response.read()
        else:
            self._wire.let_go()
        self._response.close()
