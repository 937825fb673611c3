"""What a mapping costs, by how many there are already.

    python -m bench.store [--most 1000000]

CPU time, so that a busy machine changes little. A fold happens when the journal has outgrown
the file, so its cost is spread over about as many new mappings as there were entries.
"""

import argparse
import gc
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

from opendify.conversations import ChatRecord, ConversationRecord, JsonFileStore, Update
from opendify.conversations.store.compactor import Compactor
from opendify.conversations.store.snapshot import read_snapshot, write_snapshot

NEW, LOOKUPS = 2_000, 20_000
COLUMNS = ("entries", "new µs", "lookup µs", "fold ms", "fold µs/new", "load ms", "bytes/entry")


def key_of(number: int) -> str:
    return f'["team","dify/assistant","user-{number % 977:08d}","chat-{number:032d}"]'


def conversation_of(number: int) -> str:
    return f"{number:08d}-0000-4000-8000-000000000000"


def cpu_seconds(action: Callable[[], object]) -> float:
    gc.collect()
    began = time.process_time()
    action()
    return time.process_time() - began


def measure(folder: Path, entries: int) -> tuple[float, ...]:
    path = folder / "conversation_mappings.json"
    folder.mkdir(mode=0o700)
    now = int(time.time())
    write_snapshot(
        path,
        {
            key_of(n): ChatRecord((ConversationRecord(conversation_of(n), now, now),))
            for n in range(entries)
        },
    )
    store = JsonFileStore(folder, clock=time.time, max_age_days=None, max_entries=10**8)

    def put() -> None:
        for number in range(entries, entries + NEW):
            store.put(key_of(number), conversation_of(number), Update(""))

    def get() -> None:
        for number in range(LOOKUPS):
            store.get(key_of(number * 7919 % entries))

    load = cpu_seconds(lambda: store.get("the first lookup reads everything"))
    new, lookup = cpu_seconds(put), cpu_seconds(get)
    fold = cpu_seconds(store.close)
    return (
        entries,
        new / NEW * 1e6,
        lookup / LOOKUPS * 1e6,
        fold * 1e3,
        fold / entries * 1e6,
        load * 1e3,
        memory(path) / (entries + NEW),
    )


def rows(most: int) -> Iterator[tuple[float, ...]]:
    """One row for each size, up to so many entries."""
    Compactor.TICK_SECONDS = 3600.0
    with tempfile.TemporaryDirectory() as place:
        for entries in (1_000, 10_000, 100_000, 1_000_000):
            if entries <= most:
                yield measure(Path(place) / str(entries), entries)


def memory(path: Path) -> int:
    gc.collect()
    tracemalloc.start()
    kept = read_snapshot(path)
    gc.collect()
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    del kept
    return size


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--most", type=int, default=1_000_000)
    sys.stdout.write("  ".join(f"{name:>11}" for name in COLUMNS) + "\n")
    for row in rows(parser.parse_args().most):
        sys.stdout.write("  ".join(f"{value:>11,.1f}" for value in row) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
