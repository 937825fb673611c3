"""Requests to the running service from within its container."""

import http.client
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from opendify.config.parsing import strip_quotes
from opendify.deploy.masking import split_keys

TIMEOUT = 5.0  # seconds
QUESTION_TIMEOUT = 90.0
QUESTION = "Say hello in one word."
DEFAULT_PORT = 5000


@dataclass(frozen=True, slots=True)
class Service:
    """The port of the service, and a valid API key, "" for none."""

    port: int
    key: str = ""

    @classmethod
    def from_environ(cls, environ: Mapping[str, str]) -> "Service":
        """The service that is configured with these variables."""
        port = strip_quotes(environ.get("SERVER_PORT", "")).strip()
        return cls(int(port) if port.isdigit() else DEFAULT_PORT, first_plain_key(environ))

    def request(
        self, method: str, path: str, body: Any = None, timeout: float = TIMEOUT
    ) -> tuple[int, Any]:
        """The status and JSON of the response, None if it is not JSON. Raises OSError and
        http.client.HTTPException."""
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        content = None
        if body is not None:
            content = json.dumps(body)
            headers["Content-Type"] = "application/json"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=timeout)
        try:
            connection.request(method, path, content, headers)
            answer = connection.getresponse()
            data = answer.read()
        finally:
            connection.close()
        try:
            return answer.status, json.loads(data)
        except ValueError:
            return answer.status, None


def first_plain_key(environ: Mapping[str, str]) -> str:
    """The first key that is not given as a hash: a caller's, else an admin's."""
    for name in ("OPENDIFY_API_KEYS", "OPENDIFY_ADMIN_KEYS"):
        for key in split_keys(strip_quotes(environ.get(name, ""))):
            if key.strip() and not key.strip().lower().startswith("sha256:"):
                return key.strip()
    return ""


def probe(service: Service, *, with_question: bool) -> Iterator[str]:
    """Lines for ``status.parse``, each a word and its value. ``readyz`` and ``api`` are statuses, 0
    if there was no response; ``models`` are their names as JSON."""
    names: list[str] = []
    for word, path in (("readyz", "/readyz"), ("api", "/v1/models")):
        status, body = _try_request(service, "GET", path)
        yield f"{word} {status}"
        if word == "api" and status == 200:
            names = _names(body)
    yield f"models {json.dumps(names, ensure_ascii=False)}"
    if with_question and names:
        yield f"answer {_ask_question(service, names[0])}"


def _ask_question(service: Service, model: str) -> str:
    """The status, and the error code if there is one."""
    body = {"model": model, "messages": [{"role": "user", "content": QUESTION}]}
    status, answer = _try_request(service, "POST", "/v1/chat/completions", body, QUESTION_TIMEOUT)
    error = answer.get("error") if isinstance(answer, dict) else None
    code = error.get("code") if isinstance(error, dict) else ""
    return f"{status} {code or ''}".strip()


def _try_request(
    service: Service, method: str, path: str, body: Any = None, timeout: float = TIMEOUT
) -> tuple[int, Any]:
    try:
        return service.request(method, path, body, timeout)
    except (OSError, http.client.HTTPException):
        return 0, None


def _names(body: Any) -> list[str]:
    entries = body.get("data") if isinstance(body, dict) else None
    if not isinstance(entries, list):
        return []
    names = [entry.get("id") for entry in entries if isinstance(entry, dict)]
    return [name for name in names if isinstance(name, str) and name.isprintable()]
