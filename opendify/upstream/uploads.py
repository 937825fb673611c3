"""Gives the files of a message to Dify, each content once.

Open WebUI sends a picture again with every turn; the ids of uploads are kept for an hour, here in
the process, so that a repeated turn repeats no upload.
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
    Prepared,
    Ready,
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

KEPT_UPLOADS = 2000
KEPT_SECONDS = 3600.0


class Uploads:
    """The files that callers send. ``clock`` gives seconds that only go forward."""

    def __init__(self, client: DifyClient, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._kept = SingleFlightCache(KEPT_UPLOADS, KEPT_SECONDS, clock)

    def prepare(
        self,
        model: Model,
        user: str,
        attachments: Sequence[Attachment],
        rules: FileRules | None,
        speech_to_text: bool = False,
        watch: Cancellation = NEVER,
    ) -> Prepared:
        """Checks all files first, then uploads what has to be uploaded, in order.

        ``rules`` is what the app takes, None where that is unknown; ``speech_to_text`` whether it
        writes down speech, which is used for audio that it does not take as a file; ``watch`` what
        ends an upload before its time. Raises CallerGone, ServerStopping,
        InvalidRequest, RequestTooLarge and DifyError.
        """
        files: list[dict[str, Any]] = []
        spoken: list[str] = []
        for step in plan(model.name, attachments, rules, speech_to_text):
            if isinstance(step, Ready):
                files.append(step.file)
            elif isinstance(step, Speech):
                spoken.append(
                    self._once(model, user, step.content, "/audio-to-text", "text", watch)
                )
            else:
                file_id = self._once(model, user, step.content, "/files/upload", "id", watch)
                files.append(
                    {
                        "type": step.kind,
                        "transfer_method": "local_file",
                        "upload_file_id": file_id,
                    }
                )
        return Prepared(tuple(files), "\n".join(spoken))

    def forget(self, model: Model, user: str, ids: Collection[str]) -> None:
        """Drops uploads that Dify does not know any more, so that the next use uploads anew."""

        def is_one(key: Hashable, value: str) -> bool:
            return isinstance(key, tuple) and key[:2] == (_app(model), user) and value in ids

        self._kept.forget(is_one)

    def _once(
        self, model: Model, user: str, content: Content, path: str, answer: str, watch: Cancellation
    ) -> str:
        digest = hashlib.sha256(content.data).digest()
        key = (_app(model), user, path, digest, content.name)
        return self._kept.get(
            key,
            lambda: self._send(model, user, content, path, answer, watch),
            watch.raise_if_cancelled,
        )

    def _send(
        self, model: Model, user: str, content: Content, path: str, answer: str, watch: Cancellation
    ) -> str:
        file = (content.name, content.data, content.media_type)
        try:
            told = self._client.post(model, path, watch, data={"user": user}, files={"file": file})
        except errors.RejectedByDify as exc:
            raise _about(exc, content) from exc
        value = told.get(answer) if isinstance(told, dict) else None
        if not isinstance(value, str) or (answer == "id" and not value):
            lack = f"Dify's answer to POST {path} holds no '{answer}'."
            error = errors.BadUpstreamResponse(lack)
            error.details = causes.describe(model, lack)
            raise error
        log.info("gave a file to Dify model=%s bytes=%d", model.name, len(content.data))
        return value


def _app(model: Model) -> tuple[str, str]:
    """Whose uploads they are: of one model name there may be apps with several keys."""
    return model.name, model.key


def _about(exc: errors.RejectedByDify, content: Content) -> errors.RejectedByDify:
    """Dify's refusal, naming the file: its own words for size and type name nothing."""
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
