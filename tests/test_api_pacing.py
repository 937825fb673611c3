"""How slowly a file may be read."""

from collections.abc import Iterator

import pytest

from opendify.api.pacing import (
    MIN_BYTES_PER_SECOND,
    WINDOW_SECONDS,
    SlowReaderError,
    paced,
    writable_waiter,
)

PIECE = b"x" * 8192


class Reader:
    """Takes a burst at once, then for ``pace`` bytes a second, but in the breaks."""

    def __init__(self, pace: float, burst: int = 0, breaks: dict[int, float] | None = None) -> None:
        self.now = 0.0
        self._pace = pace
        self._burst = burst
        self._breaks = breaks or {}
        self._free_at = 0.0
        self.pieces = 0

    def await_room(self, seconds: float) -> bool:
        has_room = self._free_at <= self.now + seconds
        self.now = max(self.now, min(self._free_at, self.now + seconds))
        return has_room

    def read(self, pieces: int) -> None:
        for piece in paced([PIECE] * pieces, self.await_room, lambda: self.now):
            self.pieces += 1
            self._burst -= len(piece)
            if self._burst < 0:
                self._free_at = self.now + len(piece) / self._pace
            self._free_at += self._breaks.get(self.pieces, 0.0)


@pytest.mark.parametrize("pace", [1.1 * MIN_BYTES_PER_SECOND, 20_000, 1e9])
@pytest.mark.parametrize("breaks", [{}, {400: 3.0}], ids=["steady", "with a break"])
def test_who_keeps_up_gets_all(pace: float, breaks: dict[int, float]) -> None:
    reader = Reader(pace, breaks=breaks if pace > 10_000 else {})
    reader.read(1000)
    assert reader.pieces == 1000


@pytest.mark.parametrize("pace", [1e-9, 1_700, 0.9 * MIN_BYTES_PER_SECOND])
@pytest.mark.parametrize("burst", [0, 4_000_000])
def test_who_does_not_is_left_after_two_windows_whatever_the_buffers_took(
    pace: float, burst: int
) -> None:
    reader = Reader(pace, burst)
    with pytest.raises(SlowReaderError):
        reader.read(10_000)
    assert reader.now <= 2 * WINDOW_SECONDS + len(PIECE) / MIN_BYTES_PER_SECOND + 1


def test_a_long_break_of_a_mobile_line_is_borne() -> None:
    reader = Reader(20_000, breaks={200: 15.0})
    reader.read(400)
    assert reader.pieces == 400


def test_a_server_that_offers_no_socket_is_not_waited_for() -> None:
    def pieces() -> Iterator[bytes]:
        yield from [PIECE, PIECE]

    assert list(paced(pieces(), writable_waiter(None, 10**9))) == [PIECE, PIECE]
