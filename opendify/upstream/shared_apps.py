"""What the workers of one machine know of the apps: a file in the data folder.

Whoever asks Dify writes it, all others read it when it has changed. It holds no key: apps are named
by digests.
"""

import contextlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from opendify.dify.fields import as_object
from opendify.storage.data_dir import DataDir, FileLock, replaced_file

log = logging.getLogger(__name__)

MAX_RECORD_CHARS = 512 * 1024
MAX_FILE_BYTES = 32 * 1024 * 1024
_WRITE_LOCK_SECONDS = 1.0
# Apps that no model of the writer names: of another instance, or of an earlier configuration.
_KEPT_SECONDS = 24 * 3600.0

Record = dict[str, Any]


@dataclass(frozen=True, slots=True)
class SharedState:
    """Records by digest. Each has the time ``at`` in epoch seconds; ``apps`` describe apps,
    ``checks`` whether a Dify was available."""

    apps: Mapping[str, Record] = field(default_factory=dict)
    checks: Mapping[str, Record] = field(default_factory=dict)


class SharedApps:
    """The file ``apps.json`` of a folder. ``now`` returns epoch seconds. Opens nothing before the
    first call. Where the folder cannot be used, each process knows only what it asked itself."""

    def __init__(self, folder: Path, now: Callable[[], float] = time.time) -> None:
        self._folder = DataDir(folder)
        self._path = folder / "apps.json"
        self._write_lock = FileLock(folder / "apps.lock")
        self._refresh_lock = FileLock(folder / "apps.refresh.lock")
        self.now = now
        self._seen: tuple[int, int, int] | None = None
        self._has_failed = False

    def changed(self) -> SharedState | None:
        """The content, if the file has changed since the last call; else None."""
        try:
            status = self._path.stat()
        except OSError:
            return None
        version = (status.st_mtime_ns, status.st_ino, status.st_size)
        if version == self._seen:
            return None
        self._seen = version
        return self._read()

    @contextmanager
    def refreshing(self) -> Iterator[bool]:
        """Whether this process is the one to ask Dify, during the ``with`` block."""
        with contextlib.ExitStack() as held:
            is_ours = True
            try:
                self._folder.prepare()
                held.enter_context(self._refresh_lock.acquire(0.0))
            except TimeoutError:
                is_ours = False
            except OSError as exc:
                self._report(exc)
            yield is_ours

    def write(self, state: SharedState) -> None:
        """Adds the records to the file, in place of older ones."""
        try:
            self._folder.prepare()
            with self._write_lock.acquire(_WRITE_LOCK_SECONDS):
                self._replace(self._merged(state))
            self._has_failed = False
        except (OSError, ValueError) as exc:  # TimeoutError is an OSError
            self._report(exc)

    def _merged(self, own: SharedState) -> dict[str, Any]:
        found, now = self._read(), self.now()
        return {
            "apps": _newest(found.apps, own.apps, now),
            "checks": _newest(found.checks, own.checks, now),
        }

    def _read(self) -> SharedState:
        try:
            if self._path.stat().st_size > MAX_FILE_BYTES:
                raise ValueError("it is too large")
            whole = as_object(json.loads(self._path.read_bytes()))
        except FileNotFoundError:
            return SharedState()
        except (OSError, ValueError, RecursionError) as exc:
            self._report(exc)
            return SharedState()
        return SharedState(_records(whole.get("apps")), _records(whole.get("checks")))

    def _replace(self, content: dict[str, Any]) -> None:
        with replaced_file(self._path, prefix=".apps-", suffix=".part") as file:
            file.write(json.dumps(content, separators=(",", ":")).encode())

    def _report(self, exc: Exception) -> None:
        if not self._has_failed:
            log.warning(
                "the workers cannot share what they know of the apps in %s: %s",
                self._path,
                (exc.strerror if isinstance(exc, OSError) else None) or exc,
            )
        self._has_failed = True


def _records(raw: Any) -> dict[str, Record]:
    return {
        digest: record
        for digest, record in as_object(raw).items()
        if isinstance(record, dict) and isinstance(record.get("at"), int | float)
    }


def _newest(
    found: Mapping[str, Record], own: Mapping[str, Record], now: float
) -> dict[str, Record]:
    oldest = now - _KEPT_SECONDS
    merged = {digest: record for digest, record in found.items() if record["at"] > oldest}
    for digest, record in own.items():
        known = found.get(digest)
        # A record of the future was written before the clock was set back.
        is_outdated = known is not None and record["at"] < known["at"] <= now
        if not is_outdated and len(json.dumps(record)) <= MAX_RECORD_CHARS:
            merged[digest] = record
        elif known is not None:
            merged[digest] = known
    return merged
