"""What of an answer came together does not show in the bytes that its caller gets."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, cast

import httpx
from hypothesis import given, settings
from hypothesis import strategies as st

from opendify import errors, sse
from opendify.config.models import Model
from opendify.protocols.openai.chat_stream import ChatStreamWriter
from opendify.protocols.responses import ResponseMeta
from opendify.rendering.deltas import Completion
from opendify.rendering.file_links import FileLinkResolver
from opendify.rendering.renderer import ResponseRenderer
from opendify.upstream.client import DifyClient
from opendify.upstream.event_stream import EventStream
from opendify.upstream.run import DifyRun
from opendify.upstream.transport.response_reader import ResponseReader
from opendify.upstream.transport.transport import PooledClient, PooledTransport
from tests.support.fake_dify import LAST_CHUNK, STREAM_HEAD, chunk
from tests.support.profiles import examples
from tests.test_any_cut import BODIES, KINDS, Body
from tests.test_recorded_responses import mode_of

META = ResponseMeta("1", 1, "m")
CLIENT = DifyClient(PooledClient(PooledTransport(httpx.Limits()), trust_env=False), 2.0)


class Arriving:
    """An answer's events, by the pieces in which its bytes come."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self._answer = ResponseReader()
        self._decoder = sse.Decoder()

    def read(self, until: float) -> list[bytes] | None:
        for piece in self._pieces:
            if payloads := self._decoder.feed(self._answer.feed(piece)):
                return payloads
        return None


def rendered(pieces: Iterator[bytes], mode: str, **settings: Any) -> tuple[bytes, str, Completion]:
    """The bytes for the caller, the failure that they end with, and what is known at the end."""
    stops = settings.pop("stops")
    model = Model("m", "k", "b", **settings)
    renderer = ResponseRenderer(model, mode, stops, "auto")
    links = FileLinkResolver(lambda url, name, kind: f"our/{name}")
    turn = DifyRun(CLIENT, model, mode, "u", cast(EventStream, Arriving(pieces)))
    writer = ChatStreamWriter()
    written = writer.start(META)
    try:
        while not renderer.has_ended:
            for event in turn.next_events(float("inf")):
                written += writer.write(links.resolve(renderer.feed(event)))
    except errors.DifyError as exc:
        return written, exc.message, renderer.completion
    return written, "", renderer.completion


@given(
    body=BODIES,
    repeated=st.sampled_from([1, 1, 20]),
    size=st.sampled_from([0, 0, 4096, 601]),
    cuts=st.lists(st.floats(0, 1), max_size=4),
    kind=st.sampled_from([*KINDS]),
    stops=st.sampled_from([(), (), ("STOP",), ("tok3", "\n\n")]),
)
@settings(max_examples=examples(100))
def test_a_burst_gives_the_same_bytes_as_if_each_byte_had_come_alone(
    body: Body, repeated: int, size: int, cuts: list[float], kind: str, stops: tuple[str, ...]
) -> None:
    blocks = [block + b"\n\n" for block in body.said.split(b"\n\n") if block]
    at = len(blocks) // 2
    blocks[at:at] = blocks[max(0, at - 1) : at] * (repeated - 1)
    said = b"".join(blocks)[:12_000]
    parts = [said[at : at + size] for at in range(0, len(said), size)] if size else blocks
    raw = STREAM_HEAD + b"".join(map(chunk, parts)) + LAST_CHUNK
    places = [0, *sorted(round(cut * len(raw)) for cut in cuts), len(raw)]
    together = (raw[a:b] for a, b in pairwise(places) if a < b)
    apart = (raw[at : at + 1] for at in range(len(raw)))
    chosen = KINDS[kind] | {"stops": stops}
    mode = mode_of(body.name)
    assert rendered(together, mode, **chosen) == rendered(apart, mode, **chosen)
