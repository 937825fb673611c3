"""``status``: a container and its service in words, as a row of a table, and as JSON. No I/O."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime

from opendify.deploy.messages import message

_COLUMNS = "{:<20} {:<12} {:<10} {:<22} {:<9} {:<20} {:<9} {:<8} {}"
HEADER = _COLUMNS.format(
    *("NAME", "STATE", "HEALTH", "IMAGE", "VERSION", "ADDRESS", "UPTIME", "RESTARTS", "MODELS")
)
MAX_RESTARTS = 2  # more of them, without health, are a loop
MAX_CHECKS, MAX_OUTPUT = 3, 300

_API = {"200": "ok", "401": "key", "403": "key"}
_WORDS = {
    "ok": "word_ok",
    "key": "word_key",
    "bad": "word_bad",
    "old": "word_old",
    "healthy": "word_healthy",
    "unhealthy": "word_unhealthy",
    "starting": "word_starting",
}
_NO_PACKAGE = "No module named opendify.deploy"  # what Python says in images without it


@dataclass(frozen=True, slots=True)
class Status:
    """What deploy.sh knows of one container. ``state`` and ``health`` are the engine's words, or
    ``absent`` and ``none``. ``api`` is ok, key (it needs a key), bad or old (it cannot be asked).
    Whatever is not known is empty."""

    name: str
    state: str
    health: str
    restarts: int
    ref: str
    image: str
    version: str
    address: str
    started: str
    data: str
    api: str
    ready: str
    models: tuple[str, ...]
    answer: str
    is_writable: bool
    failed_checks: tuple[str, ...]  # exit code and output of the engine's last ones

    @property
    def is_healthy(self) -> bool:
        """An image without a health check is judged by its answer alone."""
        return self.state == "running" and self.health in ("healthy", "none") and self.api != "bad"

    @property
    def is_unready(self) -> bool:
        """The service answers, but says that Dify or the store does not."""
        return self.ready not in ("", "200") and self.api != "bad"


def parse(text: str) -> Status:
    """Reads the lines of deploy.sh's ``survey``: a word and its value, first those of the engine,
    then those of ``probe``. Lines of anything else are skipped."""
    facts: dict[str, str] = {"state": "absent", "health": "none"}
    checks = []
    for line in text.split("\n"):
        word, _, value = line.partition(" ")
        if word == "check":
            code, _, output = value.partition(" ")
            checks.append(f"{code} {json.loads(output).strip()}"[:MAX_OUTPUT])
        facts[word] = value

    def fact(name: str) -> str:
        return facts.get(name, "")

    return Status(
        name=fact("name"),
        state=fact("state"),
        health=fact("health"),
        restarts=int(fact("restarts") or "0"),
        ref=fact("ref"),
        image=fact("image"),
        version=fact("version"),
        address=fact("address"),
        started=fact("started"),
        data=fact("data"),
        api="old" if _NO_PACKAGE in text else _API.get(fact("api"), "bad"),
        ready=fact("readyz"),
        models=tuple(json.loads(fact("models") or "[]")),
        answer=fact("answer"),
        is_writable=fact("writable") == "yes",
        failed_checks=tuple(checks[-MAX_CHECKS:]),
    )


def describe(status: Status, language: str) -> Iterator[str]:
    """Lines for a person."""

    def text(key: str, *arguments: object) -> str:
        return message(language, key, *arguments)

    yield text("status_title")
    yield text("status_container", _state(status, language))
    yield text("status_health", text(_WORDS.get(_health(status), "word_unknown")))
    yield text("status_api", text(_WORDS[status.api]))
    if status.is_unready:
        yield text("status_unready", status.ready)
    if status.answer:
        yield text("status_answer", status.answer)
    if status.state != "absent":
        image = status.image.removeprefix("sha256:")[:12]
        yield text("status_image", f"{status.ref} {image}", status.version or "?")
        yield text("status_address", status.address)
        yield text("status_since", status.started.partition(".")[0], status.restarts)
    if status.models:
        yield text("status_models")
        yield from (f"  - {model}" for model in status.models)


def _state(status: Status, language: str) -> str:
    is_sick = status.state == "running" and status.health != "healthy"
    if status.state == "restarting" or (is_sick and status.restarts > MAX_RESTARTS):
        return message(language, "word_loop", status.restarts)
    words = {"running": "word_running", "absent": "word_absent"}
    return message(language, words.get(status.state, "word_stopped"))


def _health(status: Status) -> str:
    if status.state == "restarting":
        return "unhealthy"
    return status.health if status.state == "running" else ""


def write_row(status: Status, now: datetime) -> str:
    """A row under ``HEADER``."""
    version, models = status.version or "-", ",".join(status.models) or "-"
    return _COLUMNS.format(
        *(status.name, status.state, status.health, status.ref, version, status.address),
        *(_uptime(status, now), status.restarts, models),
    )


def _uptime(status: Status, now: datetime) -> str:
    if status.state != "running":
        return "-"
    # Engines write fractions and zones in several forms; to the second, in UTC, all agree
    since = datetime.fromisoformat(status.started[:19]).replace(tzinfo=UTC)
    minutes = int((now - since).total_seconds()) // 60
    return f"{minutes // 1440}d{minutes // 60 % 24}h{minutes % 60}m"


def write_json(status: Status) -> str:
    """One JSON object."""
    return json.dumps(
        {
            "name": status.name,
            "restarts": status.restarts,
            "healthy": status.is_healthy,
            "state": status.state,
            "health": status.health,
            "ref": status.ref,
            "image": status.image,
            "version": status.version,
            "address": status.address,
            "started": status.started,
            "api": status.api,
            "ready": status.ready,
            "models": status.models,
        },
        ensure_ascii=False,
        separators=(",", ":"),
    )
