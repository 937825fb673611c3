"""Checks with one request to Dify per model whether its key is valid."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import httpx

from opendify.config.models import Model
from opendify.config.proxies import proxies_for
from opendify.config.settings import Settings
from opendify.upstream.tls import new_ssl_context

TIMEOUT = 5.0  # seconds
_PATHS = ("/info", "/parameters")  # Dify 0.6 has the second only


@dataclass(frozen=True, slots=True)
class KeyCheck:
    """``kind`` is good, callers, refused, status or unreachable; ``detail`` is the status or the
    type of the error."""

    model: str
    kind: str
    detail: str = ""

    @property
    def code(self) -> int:
        return {"good": 0, "callers": 0, "refused": 65, "status": 65, "unreachable": 1}[self.kind]


def check_all(settings: Settings, environ: Mapping[str, str]) -> Iterator[KeyCheck]:
    """Checks each key, through the proxies that the service would use."""
    proxies = proxies_for({model.base for model in settings.models.values()}, environ)
    tls = new_ssl_context(settings.ca_certificates)
    mounts = {
        origin: httpx.HTTPTransport(verify=tls, proxy=proxy) for origin, proxy in proxies.items()
    }
    with httpx.Client(verify=tls, mounts=mounts, timeout=TIMEOUT, trust_env=False) as client:
        for model in settings.models.values():
            if settings.key_passthrough:
                yield KeyCheck(model.name, "callers")
            else:
                yield _check_key(client, model)


def _check_key(client: httpx.Client, model: Model) -> KeyCheck:
    status = 0
    for path in _PATHS:
        try:
            headers = {"Authorization": f"Bearer {model.key}"}
            status = client.get(f"{model.base}{path}", headers=headers).status_code
        except (httpx.HTTPError, httpx.InvalidURL) as exc:
            return KeyCheck(model.name, "unreachable", type(exc).__name__)
        if status != 404:
            break
    kinds = {200: "good", 401: "refused", 403: "refused"}
    return KeyCheck(model.name, kinds.get(status, "status"), str(status))
