"""Writers on one folder, killed with -9 at random; then all that they had reported is checked.

    python -m tests.crash.storm --chats 100000 --writers 5 --kills 450

Prints one JSON object; `lost`, `wrong` and `not_in_the_file` must be 0.
"""

import argparse
import json
import os
import random
import selectors
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from opendify.conversations import JsonFileStore, Update
from opendify.conversations.store.compactor import Compactor

MOVED_EVERY = 7
BRANCHED_EVERY = 5


def opened(folder: Path) -> JsonFileStore:
    return JsonFileStore(folder, clock=time.time, max_age_days=None, max_entries=10**7)


def key_of(number: int) -> str:
    return f'["-","model","user {number % 50}","chat {number}"]'


def conversation_of(number: int) -> str:
    return f"conversation-of-{number:020d}"


def branch_of(number: int) -> str:
    """The conversation of the second branch that some chats have."""
    return f"branch-of-{number:020d}"


def write(folder: Path, numbers: range, told: int, fold_every: int) -> None:
    """Put one chat after the other, and tell each number when the store has returned."""
    stopping: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: stopping.append(number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    Compactor.TICK_SECONDS = 0.05
    Compactor.MIN_COMPACT_BYTES = 1 << 14
    store = opened(folder)
    for number in numbers:
        if stopping:
            break
        store.put(key_of(number), conversation_of(number), Update(""))
        os.write(told, b"p%d\n" % number)
        if number % MOVED_EVERY == 0:
            update = Update("digest", "end-of-history")
            store.move(key_of(number), f"moved {number}", conversation_of(number), update)
            os.write(told, b"m%d\n" % number)
        elif number % BRANCHED_EVERY == 0:
            store.put(key_of(number), branch_of(number), Update("digest", "other-history"))
            os.write(told, b"b%d\n" % number)
        if random.randrange(fold_every) == 0:
            store._compactor.compact()
    while not stopping:
        time.sleep(0.01)
    store.close()


@dataclass
class Writer:
    """One writer process after another, each going on where the one before it was killed."""

    folder: Path
    first: int
    step: int
    fold_every: int
    told: list[bytes] = field(default_factory=list)
    count: int = 0
    last: int = -1
    rest: bytes = b""
    pid: int = 0
    pipe: int = -1

    def start(self) -> None:
        self.pipe, told = os.pipe()
        begin = self.first if self.last < 0 else self.last + self.step
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # until it can be handled
        self.pid = os.fork()
        if self.pid == 0:
            random.seed(os.getpid())
            status = 1
            try:
                write(self.folder, range(begin, sys.maxsize, self.step), told, self.fold_every)
                status = 0
            finally:
                os._exit(status)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
        os.close(told)
        self.rest = b""

    def listen(self) -> bool:
        """Read what the writer reported; False when it is dead and all is read."""
        said = os.read(self.pipe, 1 << 16)
        *lines, self.rest = (self.rest + said).split(b"\n")
        self.told += lines
        self.count += sum(line.startswith(b"p") for line in lines)
        if lines:
            self.last = int(lines[-1][1:])
        return bool(said)

    def end(self, number: signal.Signals) -> int:
        os.kill(self.pid, number)
        while self.listen():
            pass
        os.close(self.pipe)
        return os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def run(folder: Path, chats: int, writers: int, kills: int, fold_every: int) -> dict[str, Any]:
    began = time.monotonic()
    crew = [Writer(folder, first, writers, fold_every) for first in range(writers)]
    selector = selectors.DefaultSelector()
    for writer in crew:
        writer.start()
        selector.register(writer.pipe, selectors.EVENT_READ, writer)
    killed = 0
    while (count := sum(writer.count for writer in crew)) < chats or killed < kills:
        for ready, _ in selector.select(timeout=1):
            ready.data.listen()
        if count * kills > killed * chats:
            victim = random.choice(crew)
            time.sleep(random.random() * 0.003)
            selector.unregister(victim.pipe)
            assert victim.end(signal.SIGKILL) == -signal.SIGKILL
            victim.start()
            selector.register(victim.pipe, selectors.EVENT_READ, victim)
            killed += 1
    survivor, *others = crew
    assert all(writer.end(signal.SIGKILL) == -signal.SIGKILL for writer in others)
    assert survivor.end(signal.SIGTERM) == 0
    report = {"told": sum(writer.count for writer in crew), "kills": killed + len(others)}
    report |= verdict(folder, [line for writer in crew for line in writer.told])
    return report | {"seconds": round(time.monotonic() - began, 1)}


def verdict(folder: Path, told: list[bytes]) -> dict[str, Any]:
    """Look for every number reported, in a new store and in the file that people read."""
    store = opened(folder)
    known = {key: [b.conversation_id for b in chat.branches] for key, chat in store.entries()}
    store.close()
    raw = json.loads((folder / "conversation_mappings.json").read_bytes())
    in_file = {
        branch["dify_conversation_id"]
        for entry in raw.values()
        for branch in (entry, *entry.get("branches", []))
    }
    lost = wrong = missing = 0
    moved, branched = (
        {int(line[1:]) for line in told if line.startswith(kind)} for kind in (b"m", b"b")
    )
    for number in {int(line[1:]) for line in told}:
        keys = {key_of(number), f"moved {number}"}
        if number in moved and key_of(number) in known:
            wrong += 1
        found = [conversation for key in keys for conversation in known.get(key, [])]
        expected = {conversation_of(number)} | (
            {branch_of(number)} if number in branched else set()
        )
        lost += not expected.issubset(found)
        # The second branch may have been written by one that was killed before it told.
        wrong += bool(set(found) - {conversation_of(number), branch_of(number)})
        wrong += len(found) != len(set(found))
        missing += not expected <= in_file
    (journal,) = folder.glob("*.jsonl")
    report = {"folds": int(journal.suffixes[0][1:]) - 1, "entries": len(known)}
    return report | {"lost": lost, "wrong": wrong, "not_in_the_file": missing}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chats", type=int, default=10_000)
    parser.add_argument("--writers", type=int, default=5)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--fold-every", type=int, default=500, help="on average, for each writer")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as place:
        report = run(
            Path(place) / "data",
            arguments.chats,
            arguments.writers,
            arguments.kills,
            arguments.fold_every,
        )
    sys.stdout.write(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
