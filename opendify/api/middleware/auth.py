"""Authorization of the current request by its API key."""

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

# Public: probes send no keys, and file links are signed instead. The details of /readyz are for
# admins.
OPEN_ENDPOINTS = {"healthz", "readyz", files.ENDPOINT}

# No route reads the body of these.
_WITHOUT_BODY = {"GET", "HEAD", "OPTIONS", "DELETE"}

_KEY_HEADERS = ("HTTP_API_KEY", "HTTP_X_API_KEY")
_PRINCIPAL_KEY = "opendify.identity"

_SEND_A_KEY = (
    "Send a valid key as 'Authorization: Bearer ...' or 'x-api-key: ...'; ask the operator of this "
    "service for one."
)

_MAKE_A_KEY = """python3 -c "import secrets; print('sk-' + secrets.token_hex(24))\""""

_BRING_A_KEY = (
    "Send the API key of your Dify app as 'Authorization: Bearer app-...' or 'x-api-key: app-...'."
)


class Authorizer:
    """What the caller of the current request may do."""

    def __init__(self, accounts: AccountRegistry, limiter: CallerLimiter) -> None:
        self._accounts = accounts
        self._limiter = limiter

    def principal(self) -> Principal:
        """The caller, looked up once per request. Raises InvalidApiKey."""
        environ = request.environ
        if _PRINCIPAL_KEY not in environ:
            found = environ[_PRINCIPAL_KEY] = self._look_up()
            current_record().caller = found.name
        principal: Principal = environ[_PRINCIPAL_KEY]
        return principal

    def _look_up(self) -> Principal:
        key = _key()
        principal = self._accounts.identify(key)
        if principal is not None:
            return principal
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
        """Whether callers send the key of a Dify app as their API key."""
        return self._accounts.bring_dify_key

    @property
    def needs_keys(self) -> bool:
        """Whether requests need a key at all."""
        return self._accounts.requires_key

    def acquire_slot(self) -> Callable[[], None]:
        """Admits a chat request within the caller's limits. Call the returned function when the
        response has ended. Raises InvalidApiKey and CallerRateLimited."""
        principal = self.principal()
        return self._limiter.acquire(principal.limit_key, principal.limits)

    def is_admin(self) -> bool:
        """Whether the request has an admin key."""
        keys = self._accounts.admin_keys
        return bool(keys) and keys.contains(_key())

    def can_see_details(self) -> bool:
        """Whether the request has an admin key, or no keys are set at all."""
        return self.is_admin() or not (self._accounts.admin_keys or self._accounts.requires_key)

    def require_admin(self, always: bool = False) -> None:
        """Admits admins and, unless ``always``, everybody if no keys are set at all.

        Raises InvalidApiKey, InvalidAdminKey, AdminKeyRequired and AdminKeysNotSet.
        """
        if self.is_admin():
            return
        if not self._accounts.admin_keys:
            if self._accounts.requires_key:
                self.principal()
            elif not always:
                return
            raise errors.AdminKeysNotSet(
                "This request needs an admin key, and none is configured. Set OPENDIFY_ADMIN_KEYS, "
                "restart, and send one of them as 'Authorization: Bearer ...'."
            )
        if self._accounts.requires_key and self._accounts.identify(_key()) is not None:
            raise errors.AdminKeyRequired(
                "This key is valid for models only. This request needs one of OPENDIFY_ADMIN_KEYS."
            )
        raise errors.InvalidAdminKey(
            "This request needs an admin key: send one of OPENDIFY_ADMIN_KEYS as "
            "'Authorization: Bearer ...'."
        )


def require_api_key(app: Flask, authorizer: Authorizer) -> None:
    """Rejects requests without a valid key before routing to a view. Also sets ``ACCEPTS_BODY`` in
    the configuration: a function of a WSGI environment that tells the server, before it waits for
    the body, whether the body will be read."""

    @app.before_request
    def check_api_key() -> None:
        if request.endpoint in OPEN_ENDPOINTS or is_preflight() or authorizer.is_admin():
            return
        authorizer.principal()

    def accepts_body(environ: WSGIEnvironment) -> bool:
        normalize_request_path(environ)  # called before the middleware
        with app.request_context(environ):
            if request.routing_exception or request.method in _WITHOUT_BODY:
                return False
            try:
                check_api_key()
            except errors.OpenDifyError:
                return False
            return True

    app.config["ACCEPTS_BODY"] = accepts_body


def invalid_dify_key(error: errors.UpstreamAuthError) -> errors.InvalidApiKey:
    """The error for a caller whose own Dify key was rejected by Dify."""
    result = errors.InvalidApiKey(f"Dify does not accept this key. {_BRING_A_KEY}")
    result.dify_code = error.dify_code
    return result


def warn_if_unauthenticated(accounts: AccountRegistry, host: str) -> None:
    """Logs a warning if everybody who reaches this address may use the models."""
    if not accounts.requires_key and not is_loopback(host):
        log.warning(
            "Everybody who reaches %s can use the models: OPENDIFY_API_KEYS is not set. Generate a "
            "key with: %s   Put it into .env as OPENDIFY_API_KEYS=sk-... and start again; clients "
            "send it as their API key. Or restrict access by a firewall or reverse proxy.",
            host,
            _MAKE_A_KEY,
        )


def is_loopback(host: str) -> bool:
    """Whether the address or name is reachable from this machine only."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def _key() -> str:
    """The key of the current request, "" for none. Clients of Anthropic's API send ``x-api-key``,
    those made for Azure ``api-key``."""
    environ = request.environ
    if key := parse_bearer(environ.get("HTTP_AUTHORIZATION", "")):
        return key
    values = (str(environ.get(name, "")).strip(" \t") for name in _KEY_HEADERS)
    return next(filter(None, values), "")
