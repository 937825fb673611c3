"""Keeps pages of other sites out where no keys are set.

A browser lets any page send requests to any address that it reaches, also to one that is open on
its own machine or network only: the page cannot read the answer, but the question is asked, the
conversations are cleaned up. And a page whose name leads to 127.0.0.1 (DNS rebinding) can read
it, too. Where keys are set, a page would have to know one.
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
# Nobody can have such a name in the public DNS: RFC 6761, and what ICANN has reserved for private
# use, such as `host.docker.internal`.
_LOCAL_SUFFIXES = (".localhost", ".internal")

_HOST = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([0-9A-Za-z._-]+))(?::[0-9]*)?")
# Of extensions and desktop applications: app://..., chrome-extension://..., file://
_APPLICATION = re.compile(r"[a-z][a-z0-9+.-]*://\S+|file://")


@dataclass(frozen=True, slots=True)
class Address:
    """Where this service is reached: ``host`` is the address that it listens on, or at which
    Compose publishes it; ``public_base`` its URL as callers know it, empty where none is set,
    ``origins`` those whose pages may call."""

    host: str
    public_base: str
    origins: frozenset[str]


def refuse_other_sites(app: Flask, access: Authorizer, address: Address) -> None:
    """Turns away what pages of other sites send, unless keys are needed or an admin's is shown."""

    @app.before_request
    def refuse() -> None:
        if access.needs_keys or request.endpoint in OPEN_ENDPOINTS or access.is_admin():
            return
        environ = request.environ
        host = environ.get("HTTP_HOST", "")
        if is_loopback(address.host) and not _is_trusted_host(host, address.public_base):
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
    """Whether this Host cannot be a name that somebody else let lead to this machine."""
    if not host:
        return True  # HTTP/1.0 needs none, and no browser leaves it out
    name = _host_name(host)
    if not name:
        return False
    is_known = _is_private(name) or name == urlsplit(public_base).hostname
    return is_known or is_loopback(name)


def _host_name(host: str) -> str:
    """The name or address in a Host header, without the port; empty where it is none."""
    match = _HOST.fullmatch(host)
    return (match[1] or match[2]).lower().removesuffix(".") if match else ""


def _is_private(name: str) -> bool:
    """Whether nobody can have this name in the public DNS; a name without a domain neither."""
    return name.endswith(_LOCAL_SUFFIXES) or not ("." in name or ":" in name)


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _is_allowed_origin(environ: Mapping[str, Any], host: str, address: Address) -> bool:
    origin = environ.get("HTTP_ORIGIN", "").lower()
    if not origin:
        return environ.get("HTTP_SEC_FETCH_SITE", "").lower() not in _CROSS_SITE
    if "*" in address.origins or origin in address.origins:
        return True
    scheme, _, site = origin.partition("://")
    if scheme not in ("http", "https"):  # "null" may be of any page
        return bool(_APPLICATION.fullmatch(origin))
    if address.public_base and origin == _origin(address.public_base):
        return True
    # The page of a foreign name that was led here (DNS rebinding) has that name in both.
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
