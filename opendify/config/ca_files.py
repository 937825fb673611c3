"""Files with the certificates of authorities. No I/O: the caller reads and parses."""

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
    """The certificates of DIFY_CA_FILE in PEM, "" for none.

    SSL_CERT_FILE is read and checked as well: OpenSSL reads it itself, but says less. What is wrong
    goes to ``problems``; ``read_file`` and ``check_certificates`` are those of ``load_settings``.
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
    """Those in the text, without what stands between them, which may be in any language."""
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
