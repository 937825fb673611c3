"""The secret that file links are signed with: one for all processes that share a folder."""

import logging
import os
import secrets
import tempfile
from pathlib import Path

from opendify.config.settings import MIN_SECRET_CHARS
from opendify.storage.data_dir import DataDir, FileLock, fsync_folder

log = logging.getLogger(__name__)

_LOCK_TIMEOUT = 5.0


class SigningKey:
    """``told`` by the operator, else kept in the file ``secret`` of a folder, made when needed."""

    def __init__(self, told: str, folder: Path) -> None:
        self._folder = folder
        self._path = folder / "secret"
        self._key = told.encode("utf-8", "surrogateescape")

    def key(self) -> bytes:
        """The secret. Raises OSError where it can be neither read nor made."""
        if not self._key:
            self._key = self._read() or self._create_once()
        return self._key

    def _create_once(self) -> bytes:
        """Makes the file, or finds that another process was faster."""
        DataDir(self._folder).prepare()
        with FileLock(self._folder / "secret.lock").held(_LOCK_TIMEOUT):
            found = self._read()
            if found:
                return found
            if self._path.exists():
                log.warning("%s holds no secret and is made anew; old links end", self._path)
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
            log.warning("%s was open to other users and is closed to them now", self._path)
            self._path.chmod(0o600)
        return content

    def _write_new(self) -> bytes:
        content = secrets.token_hex(32).encode()
        descriptor, temporary = tempfile.mkstemp(dir=self._folder, prefix=".secret-")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content + b"\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self._path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise
        fsync_folder(self._folder)
        return content
