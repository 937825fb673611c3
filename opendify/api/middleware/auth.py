"""The door: who is let in to what, by the key of the request that is being served."""

import logging
from collections.abc import Callable
from ipaddress import ip_address
from wsgiref.types import WSGIEnvironment

from flask import Flask, request

from opendify import errors
from opendify.api import files
from opendify.api.middleware.cors import is_preflight
from opendify.api.middleware.paths import normalize_request_path
from opendify.api.middleware.request_log import current_record
from opendify.auth.accounts import AccountRegistry, Principal
from opendify.auth.api_keys import parse_bearer
from opendify.limits.limiter import CallerLimiter

log = logging.getLogger(__name__)

# Open to everybody: probes send no keys, and links to files are signed instead. What /readyz
# tells beyond its status is for admins.
OPEN_ENDPOINTS = {"healthz", "readyz", files.ENDPOINT}

# Nothing here reads a body of these.
_WITHOUT_BODY = {"GET", "HEAD", "OPTIONS", "DELETE"}

_PRINCIPAL_KEY = "opendify.identity"

_SEND_A_KEY = (
    "Send a valid key as 'Authorization: Bearer ...'; ask the operator of this service for one."
)

_MAKE_A_KEY = """python3 -c "import secrets; print('sk-' + secrets.token_hex(24))\""""

_BRING_A_KEY = "Send the API key of your Dify app as 'Authorization: Bearer app-...'."


class Authorizer:
    """What the caller of the request that is being served may do."""

    def __init__(self, callers: AccountRegistry, gate: CallerLimiter) -> None:
        self._accounts = callers
        self._limiter = gate

    def principal(self) -> Principal:
        """Who calls, looked up once for a request. Raises KeyWrong."""
        environ = request.environ
        if _PRINCIPAL_KEY not in environ:
            found = environ[_PRINCIPAL_KEY] = self._look_up()
            current_record().caller = found.name
        identity: Principal = environ[_PRINCIPAL_KEY]
        return identity

    def _look_up(self) -> Principal:
        key = _key()
        identity = self._accounts.identify(key)
        if identity is not None:
            return identity
        if self._accounts.bring_dify_key:
            raise errors.InvalidApiKey(_BRING_A_KEY)
        wrong = (
            "The API key is not valid for this service."
            if key
            else "This service requires an API key."
        )
        raise errors.InvalidApiKey(f"{wrong} {_SEND_A_KEY}")

    @property
    def uses_key_passthrough(self) -> bool:
        """Whether the key of a request is that of a Dify app."""
        return self._accounts.bring_dify_key

    @property
    def needs_keys(self) -> bool:
        """Whether a request needs a key at all."""
        return self._accounts.need_keys

    def acquire_slot(self) -> Callable[[], None]:
        """Lets a question of the caller through, as far as the caller's limits go. What it returns
        is to be called when the answer has ended. Raises KeyWrong and LimitReached."""
        identity = self.principal()
        return self._limiter.enter(identity.limit_key, identity.limits)

    def is_admin(self) -> bool:
        """Whether the caller shows an admin key."""
        keys = self._accounts.admin_keys
        return bool(keys) and keys.hold(_key())

    def can_see_details(self) -> bool:
        """Whether the caller shows an admin key, or no keys are set at all."""
        return self.is_admin() or not (self._accounts.admin_keys or self._accounts.need_keys)

    def require_admin(self, always: bool = False) -> None:
        """Lets admins pass, and where no keys are set at all, everybody, but not ``always``.

        Raises KeyWrong, AdminKeyWrong, AdminKeyNeeded and AdminKeysNotSet.
        """
        if self.is_admin():
            return
        if not self._accounts.admin_keys:
            if self._accounts.need_keys:
                self.principal()
            elif not always:
                return
            raise errors.AdminKeysNotSet(
                "This request needs an admin key, and none is configured. Set OPENDIFY_ADMIN_KEYS, "
                "restart, and send one of them as 'Authorization: Bearer ...'."
            )
        if self._accounts.need_keys and self._accounts.identify(_key()) is not None:
            raise errors.AdminKeyRequired(
                "This key is valid for models only. This request needs one of OPENDIFY_ADMIN_KEYS."
            )
        raise errors.InvalidAdminKey(
            "This request needs an admin key: send one of OPENDIFY_ADMIN_KEYS as "
            "'Authorization: Bearer ...'."
        )


def require_api_key(app: Flask, access: Authorizer) -> None:
    """Turns away, whatever they ask for, those who show no key where one is needed. The server is
    told of it before it waits for a body, by ``ACCEPTS_BODY`` of the configuration: from the WSGI
    environment of a request, whether its body is going to be read."""

    @app.before_request
    def refuse_strangers() -> None:
        if request.endpoint in OPEN_ENDPOINTS or is_preflight() or access.is_admin():
            return
        access.principal()

    def accepts_body(environ: WSGIEnvironment) -> bool:
        normalize_request_path(
            environ
        )  # the server asks before the middleware has seen the request
        with app.request_context(environ):
            if request.routing_exception or request.method in _WITHOUT_BODY:
                return False
            try:
                refuse_strangers()
            except errors.OpenDifyError:
                return False
            return True

    app.config["ACCEPTS_BODY"] = accepts_body


def invalid_dify_key(error: errors.UpstreamAuthError) -> errors.InvalidApiKey:
    """What Dify's refusal of a key is to the caller who brought that key."""
    refusal = errors.InvalidApiKey(f"Dify does not accept this key. {_BRING_A_KEY}")
    refusal.dify_code = error.dify_code
    return refusal


def warn_if_unauthenticated(callers: AccountRegistry, host: str) -> None:
    """Says so where everybody who reaches this address of ours may use the models."""
    if not callers.need_keys and not is_loopback(host):
        log.warning(
            "Everybody who reaches %s can use the models: OPENDIFY_API_KEYS is not set. Generate a "
            "key with: %s   Put it into .env as OPENDIFY_API_KEYS=sk-... and start again; clients "
            "send it as their API key. Or restrict access by a firewall or reverse proxy.",
            host,
            _MAKE_A_KEY,
        )


def is_loopback(host: str) -> bool:
    """Whether this address, or this name, is of the machine itself and no other reaches it."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _key() -> str:
    return parse_bearer(request.environ.get("HTTP_AUTHORIZATION", ""))
