"""Rejects requests from pages of other sites if no keys are set.

A browser lets any page send requests to any address that it reaches, including services on the
user's machine or network. The page cannot read the response, but the request is executed (a chat
turn, a cleanup of conversations). A page whose name resolves to 127.0.0.1 (DNS rebinding) can read
the response, too. If keys are set, such a page would need one.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from ipaddress import ip_address
from typing import Any
from urllib.parse import urlsplit

from flask import Flask, request

from opendify import errors
from opendify.api.middleware.auth import OPEN_ENDPOINTS, Authorizer, is_loopback
from opendify.api.middleware.cors import is_preflight

_SAFE_METHODS = ("GET", "HEAD", "OPTIONS")
_CROSS_SITE = ("cross-site", "same-site")
# Names that cannot exist in the public DNS: RFC 6761, and what ICANN has reserved for private use,
# such as `host.docker.internal`.
_LOCAL_SUFFIXES = (".localhost", ".internal")

_HOST = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([0-9A-Za-z._-]+))(?::[0-9]*)?")
# Extensions and desktop applications: app://..., chrome-extension://..., file://
_APPLICATION = re.compile(r"[a-z][a-z0-9+.-]*://\S+|file://")


@dataclass(frozen=True, slots=True)
class ServiceAddress:
    """Where this service is reached. ``host`` is the address that it listens on, or at which
    Compose publishes it. ``public_base`` is its URL as callers know it, empty if not set.
    ``origins`` are the allowed CORS origins."""

    host: str
    public_base: str
    origins: frozenset[str]


def reject_cross_site_requests(app: Flask, authorizer: Authorizer, address: ServiceAddress) -> None:
    """Rejects cross-site requests, unless keys are required or the request has an admin key."""

    is_local = is_loopback(address.host)

    @app.before_request
    def reject() -> None:
        if authorizer.needs_keys or request.endpoint in OPEN_ENDPOINTS or authorizer.is_admin():
            return
        environ = request.environ
        host = environ.get("HTTP_HOST", "")
        if is_local and not _is_trusted_host(host, address.public_base):
            raise errors.HostNotAllowed(_not_this_host(host))
        if request.method in _SAFE_METHODS or is_preflight():
            return
        if not _is_allowed_origin(environ, host, address):
            raise errors.OriginNotAllowed(_not_this_origin(environ.get("HTTP_ORIGIN", "")))
        if _is_from_browser(environ) and _has_body(environ) and not request.is_json:
            raise errors.UnsupportedMediaType(
                "Send JSON, with the header Content-Type: application/json."
            )


def _is_trusted_host(host: str, public_base: str) -> bool:
    """Whether the Host cannot be a foreign name that was made to resolve to this machine."""
    if not host:
        return True  # optional in HTTP/1.0; browsers always send it
    name = _host_name(host)
    if not name:
        return False
    is_known = _is_private(name) or name == urlsplit(public_base).hostname
    return is_known or is_loopback(name)


def _host_name(host: str) -> str:
    """The name or address in a Host header, without the port; empty if it is invalid."""
    match = _HOST.fullmatch(host)
    return (match[1] or match[2]).lower().removesuffix(".") if match else ""


def _is_private(name: str) -> bool:
    """Whether the name cannot exist in the public DNS; true also for a name without a domain."""
    return name.endswith(_LOCAL_SUFFIXES) or not ("." in name or ":" in name)


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _is_allowed_origin(environ: Mapping[str, Any], host: str, address: ServiceAddress) -> bool:
    origin = environ.get("HTTP_ORIGIN", "").lower()
    if not origin:
        return environ.get("HTTP_SEC_FETCH_SITE", "").lower() not in _CROSS_SITE
    if "*" in address.origins or origin in address.origins:
        return True
    scheme, _, site = origin.partition("://")
    if scheme not in ("http", "https"):  # any page can have "null"
        return bool(_APPLICATION.fullmatch(origin))
    if address.public_base and origin == _origin(address.public_base):
        return True
    # With DNS rebinding, both headers contain the foreign name.
    name = _host_name(host)
    is_same = bool(name) and site == _without_default_port(host.lower())
    return is_same and (_is_private(name) or _is_address(name))


def _is_from_browser(environ: Mapping[str, Any]) -> bool:
    return "HTTP_ORIGIN" in environ or "HTTP_SEC_FETCH_SITE" in environ


def _has_body(environ: Mapping[str, Any]) -> bool:
    length = environ.get("CONTENT_LENGTH") or "0"
    return length != "0" or "HTTP_TRANSFER_ENCODING" in environ


def _origin(url: str) -> str:
    parts = urlsplit(url.lower())
    return f"{parts.scheme}://{_without_default_port(parts.netloc)}"


def _without_default_port(netloc: str) -> str:
    return netloc.removesuffix(":80").removesuffix(":443")


def _not_this_host(host: str) -> str:
    return (
        "This service needs no key and is reached on its own machine only (SERVER_HOST, or "
        f"PUBLISH_ADDRESS with Compose), so it does not accept the host name '{host[:100]}', which "
        "anybody may control. Call it at 127.0.0.1, set PUBLIC_BASE_URL to the "
        "address at which it is called, or set OPENDIFY_API_KEYS."
    )


def _not_this_origin(origin: str) -> str:
    page = f"of '{origin[:100]}'" if origin else "of other sites"
    return (
        f"This service needs no key, so pages {page} may not use it: any page could. Add the "
        "origin to CORS_ORIGINS, or set OPENDIFY_API_KEYS."
    )
