"""Whom OpenDify trusts to say who a server is."""

import ssl

import httpx


def new_ssl_context(authorities: str = "") -> ssl.SSLContext:
    """What connections to Dify are secured with: the authorities of the bundle that comes with
    httpx (certifi), or those of SSL_CERT_FILE or SSL_CERT_DIR instead, as with OpenSSL; and besides
    the ``authorities``, certificates in PEM, where some are given.

    Raises OSError and ssl.SSLError where SSL_CERT_FILE or the authorities are unreadable.
    """
    context = httpx.create_ssl_context()
    if authorities:
        context.load_verify_locations(cadata=authorities)
    return context
