"""Uploads the files of a message to Dify, each content once.

Open WebUI sends an image again with every turn; the ids of uploads are cached for an hour, per
process, so that later turns do not upload it again.
"""

import hashlib
import logging
import time
from collections.abc import Callable, Collection, Hashable, Sequence
from typing import Any

from opendify import errors
from opendify.config.models import Model
from opendify.dify.apps import FileRules
from opendify.files.attachments import (
    PreparedFiles,
    ReadyFile,
    Speech,
    plan,
)
from opendify.files.content import Content
from opendify.files.single_flight import SingleFlightCache
from opendify.protocols.base import Attachment
from opendify.upstream import causes
from opendify.upstream.cancellation import NEVER, Cancellation
from opendify.upstream.client import DifyClient

log = logging.getLogger(__name__)

MAX_CACHED_UPLOADS = 2000
CACHE_SECONDS = 3600.0


class Uploads:
    """The uploads of all callers. ``clock`` returns monotonic seconds."""

    def __init__(self, client: DifyClient, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._cache = SingleFlightCache(MAX_CACHED_UPLOADS, CACHE_SECONDS, clock)

    def prepare(
        self,
        model: Model,
        user: str,
        attachments: Sequence[Attachment],
        rules: FileRules | None,
        speech_to_text: bool = False,
        cancellation: Cancellation = NEVER,
    ) -> PreparedFiles:
        """Validates all files, then uploads in order those that need it.

        ``rules`` are the files that the app accepts, None where unknown; ``speech_to_text`` is
        whether it transcribes audio, used for audio that it does not accept as a file. Raises
        ClientDisconnected, ServerStopping, InvalidRequest, RequestTooLarge and DifyError.
        """
        files: list[dict[str, Any]] = []
        transcripts: list[str] = []
        for step in plan(model.name, attachments, rules, speech_to_text):
            if isinstance(step, ReadyFile):
                files.append(step.file)
            elif isinstance(step, Speech):
                transcripts.append(
                    self._cached(model, user, step.content, "/audio-to-text", "text", cancellation)
                )
            else:
                file_id = self._cached(
                    model, user, step.content, "/files/upload", "id", cancellation
                )
                files.append(
                    {
                        "type": step.kind,
                        "transfer_method": "local_file",
                        "upload_file_id": file_id,
                    }
                )
        return PreparedFiles(tuple(files), "\n".join(transcripts))

    def forget(self, model: Model, user: str, ids: Collection[str]) -> None:
        """Drops uploads that Dify no longer has, so that the next use uploads them again."""

        def is_one(key: Hashable, value: str) -> bool:
            return isinstance(key, tuple) and key[:2] == (_app_key(model), user) and value in ids

        self._cache.invalidate(is_one)

    def _cached(
        self,
        model: Model,
        user: str,
        content: Content,
        path: str,
        field: str,
        cancellation: Cancellation,
    ) -> str:
        digest = hashlib.sha256(content.data).digest()
        key = (_app_key(model), user, path, digest, content.name)
        return self._cache.get(
            key,
            lambda: self._send(model, user, content, path, field, cancellation),
            cancellation.raise_if_cancelled,
        )

    def _send(
        self,
        model: Model,
        user: str,
        content: Content,
        path: str,
        field: str,
        cancellation: Cancellation,
    ) -> str:
        file = (content.name, content.data, content.media_type)
        try:
            response = self._client.post(
                model, path, cancellation, data={"user": user}, files={"file": file}
            )
        except errors.RejectedByDify as exc:
            raise _naming_file(exc, content) from exc
        value = response.get(field) if isinstance(response, dict) else None
        if not isinstance(value, str) or (field == "id" and not value):
            problem = f"Dify's answer to POST {path} holds no '{field}'."
            error = errors.BadUpstreamResponse(problem)
            error.details = causes.describe(model, problem)
            raise error
        log.info("uploaded a file to Dify model=%s bytes=%d", model.name, len(content.data))
        return value


def _app_key(model: Model) -> tuple[str, str]:
    """The part of the cache key for the app: one model name may have apps with several keys."""
    return model.name, model.key


def _naming_file(exc: errors.RejectedByDify, content: Content) -> errors.RejectedByDify:
    """Dify's error with the name of the file, which Dify's message lacks."""
    size = len(content.data) / (1024 * 1024)
    if isinstance(exc, errors.FileTooLargeForDify):
        message = f"Dify refused '{content.name}' as too large ({size:.1f} MB)."
    elif isinstance(exc, errors.FileTypeRefusedByDify):
        message = f"Dify refused '{content.name}': it does not take {content.media_type} there."
    else:
        message = f"Dify refused '{content.name}': {exc.message}"
    refused = type(exc)(message, param=content.path, code=exc.code)
    refused.dify_code, refused.details = exc.dify_code, exc.details
    return refused
