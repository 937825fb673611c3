"""What a worker remembers of an app, and the form in which workers share it. No I/O."""

import hashlib
from dataclasses import dataclass, replace
from typing import Any

from opendify.config.models import Model
from opendify.dify.apps import App, parse_app, relevant_info, relevant_parameters
from opendify.dify.fields import as_string

CACHE_SECONDS = 600.0
INCOMPLETE_CACHE_SECONDS = 30.0
_ROUNDING_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class Entry:
    """``info`` and ``parameters`` are Dify's last responses, None where there was none; ``problem``
    is the code of the error instead of them, "" for none. ``icon_id`` is Dify's id of the image
    that ``app.icon`` was made of, ``icon_at`` when Dify was asked for it. All times are of the
    clock of the registry."""

    app: App
    fetched_at: float
    expires_at: float
    info: Any = None
    parameters: Any = None
    problem: str = ""
    icon_id: str = ""
    icon_at: float = float("-inf")

    @property
    def has_response(self) -> bool:
        """Whether Dify has said anything of the app, be it a refusal."""
        return self.info is not None or self.parameters is not None or bool(self.problem)

    @property
    def changed_at(self) -> float:
        """When Dify was last asked for any of it."""
        return max(self.fetched_at, self.icon_at)


@dataclass(frozen=True, slots=True)
class Check:
    """Whether a Dify was available; ``problem`` is the error code if not."""

    checked_at: float
    problem: str


def expiry(now: float, app: App, has_parameters: bool) -> float:
    """When an entry fetched ``now`` expires."""
    return now + (CACHE_SECONDS if app.mode and has_parameters else INCOMPLETE_CACHE_SECONDS)


def newest(known: Entry, other: Entry) -> Entry:
    """The newer answers of both, and the newer icon. ``known`` itself if ``other`` was made of it,
    but for rounding."""
    if other.fetched_at > known.fetched_at + _ROUNDING_SECONDS:
        newer, older = other, known
    else:
        newer, older = known, other
    if older.icon_at <= newer.icon_at + _ROUNDING_SECONDS:
        return newer
    app = replace(newer.app, icon=older.app.icon)
    return replace(newer, app=app, icon_id=older.icon_id, icon_at=older.icon_at)


def app_digest(model: Model) -> str:
    """The name of the model's app among those that workers share; tells nothing of its key."""
    return _digest(model.name, model.base, model.key)


def base_digest(base: str) -> str:
    """The name of a Dify among those that workers share."""
    return _digest(base)


def to_record(entry: Entry, model: Model, epoch: float) -> dict[str, Any]:
    """The entry as JSON; ``epoch`` is the epoch time at the zero of the registry's clock."""
    icon = {"icon": entry.app.icon, "icon_id": entry.icon_id, "icon_at": epoch + entry.icon_at}
    return {
        "at": epoch + entry.changed_at,
        "fetched_at": epoch + entry.fetched_at,
        "info": relevant_info(entry.info),
        "parameters": relevant_parameters(entry.parameters),
        # The operator's type is no finding.
        "mode": "" if model.type else entry.app.mode,
        "problem": entry.problem,
        **(icon if entry.icon_at > float("-inf") else {}),
    }


def to_entry(record: dict[str, Any], model: Model, epoch: float, now: float) -> Entry:
    """The entry of a record that any process wrote; nothing in it is later than ``now``."""
    info, parameters = record.get("info"), record.get("parameters")
    app = replace(
        parse_app(info, parameters),
        mode=model.type or as_string(record.get("mode")),
        icon=as_string(record.get("icon")),
    )
    fetched_at = _time(record.get("fetched_at"), epoch, now)
    return Entry(
        app,
        fetched_at,
        expiry(fetched_at, app, parameters is not None),
        info,
        parameters,
        as_string(record.get("problem")),
        as_string(record.get("icon_id")),
        _time(record.get("icon_at"), epoch, now),
    )


def to_check_record(check: Check, epoch: float) -> dict[str, Any]:
    """The check as JSON."""
    return {"at": epoch + check.checked_at, "problem": check.problem}


def to_check(record: dict[str, Any], epoch: float, now: float) -> Check:
    """The check of a record."""
    return Check(_time(record.get("at"), epoch, now), as_string(record.get("problem")))


def _time(raw: Any, epoch: float, now: float) -> float:
    is_number = isinstance(raw, int | float) and not isinstance(raw, bool)
    return min(raw - epoch, now) if is_number else float("-inf")


def _digest(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode("utf-8", "surrogatepass")).hexdigest()[:32]
