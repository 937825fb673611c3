"""The key that signs file links, shared by all processes with the same data directory."""

import logging
import os
import secrets
from pathlib import Path

from opendify.config.settings import MIN_SECRET_CHARS
from opendify.storage.data_dir import DataDir, FileLock, fsync_folder, replaced_file

log = logging.getLogger(__name__)

_LOCK_TIMEOUT = 5.0


class SigningKey:
    """``configured`` by the operator, else stored in the file ``secret`` of a directory, created
    when needed."""

    def __init__(self, configured: str, folder: Path) -> None:
        self._folder = folder
        self._path = folder / "secret"
        self._key = configured.encode("utf-8", "surrogateescape")

    def key(self) -> bytes:
        """The key. Raises OSError if it can be neither read nor created."""
        if not self._key:
            self._key = self._read() or self._create_once()
        return self._key

    def _create_once(self) -> bytes:
        """Creates the file, unless another process has done so."""
        DataDir(self._folder).prepare()
        with FileLock(self._folder / "secret.lock").acquire(_LOCK_TIMEOUT):
            existing = self._read()
            if existing:
                return existing
            if self._path.exists():
                log.warning(
                    "%s contains no secret and is replaced; existing links become invalid",
                    self._path,
                )
            return self._write_new()

    def _read(self) -> bytes:
        try:
            content = self._path.read_bytes().strip()
        except FileNotFoundError:
            return b""
        if len(content) < MIN_SECRET_CHARS:
            return b""
        status = self._path.stat()
        if status.st_mode & 0o077 and status.st_uid == os.geteuid():
            log.warning("%s was readable by other users; its permissions are corrected", self._path)
            self._path.chmod(0o600)
        return content

    def _write_new(self) -> bytes:
        content = secrets.token_hex(32).encode()
        with replaced_file(self._path, prefix=".secret-") as file:
            file.write(content + b"\n")
            file.flush()
            os.fsync(file.fileno())
        fsync_folder(self._folder)
        return content
