"""Files of CA certificates. No I/O: the caller reads and parses them."""

import re
from collections.abc import Callable, Mapping

_CERTIFICATE = re.compile(
    "-----BEGIN (TRUSTED )?CERTIFICATE-----.*?-----END (TRUSTED )?CERTIFICATE-----", re.DOTALL
)


def read_authorities(
    environ: Mapping[str, str],
    read_file: Callable[[str], str],
    check_certificates: Callable[[str], None],
    problems: list[str],
) -> str:
    """The certificates of DIFY_CA_FILE in PEM, empty if not set.

    SSL_CERT_FILE is read and checked as well: OpenSSL uses it directly, but reports less. Problems
    are added to ``problems``; ``read_file`` and ``check_certificates`` are those of
    ``load_settings``.
    """
    for variable in ("SSL_CERT_FILE", "DIFY_CA_FILE"):
        authorities = ""
        if path := environ.get(variable, "").strip():
            try:
                authorities = _certificates(read_file(path))
                check_certificates(authorities)
            except (OSError, ValueError) as exc:
                problems.append(
                    f"{variable}: {path} {_problem(exc)}. It must contain the certificates of the "
                    "authorities to trust, in PEM (-----BEGIN CERTIFICATE-----)."
                )
    return authorities


def _certificates(text: str) -> str:
    """The certificates in the text, without the text around them."""
    found = [match[0] + "\n" for match in _CERTIFICATE.finditer(text)]
    if not found:
        raise ValueError("contains no certificate")
    return "".join(found)


def _problem(exc: OSError | ValueError) -> str:
    if isinstance(exc, OSError):
        return f"cannot be read ({exc.strerror or 'no such file'})"
    if isinstance(exc, UnicodeError):
        return "is not text ('openssl x509 -inform der -in FILE -out FILE.pem' converts DER to PEM)"
    return str(exc)
