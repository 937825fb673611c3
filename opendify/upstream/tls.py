"""The certificate authorities that OpenDify trusts."""

import ssl

import httpx


def new_ssl_context(authorities: str = "") -> ssl.SSLContext:
    """The TLS context for connections to Dify. It trusts the bundle that comes with httpx
    (certifi), or SSL_CERT_FILE or SSL_CERT_DIR instead, as with OpenSSL; and additionally
    ``authorities``, certificates in PEM.

    Raises OSError and ssl.SSLError where SSL_CERT_FILE or the authorities are unreadable.
    """
    context = httpx.create_ssl_context()
    if authorities:
        context.load_verify_locations(cadata=authorities)
    return context
