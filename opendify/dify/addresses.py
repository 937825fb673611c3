"""Which host names belong to the internal network and must not be shown to callers. No I/O."""

from ipaddress import ip_address

# Names that do not exist in public DNS (RFC 6761, RFC 6762, RFC 8375), and common internal ones.
_INTERNAL_SUFFIXES = (
    ".corp",
    ".home",
    ".home.arpa",
    ".internal",
    ".intranet",
    ".lan",
    ".local",
    ".localdomain",
    ".localhost",
    ".private",
    ".svc",
)


def is_internal_host(host: str) -> bool:
    """Whether the host of a URL is not on the public Internet: a name without a domain or in a
    private one, or an IP address that is not global."""
    name = host.strip("[]").lower().removesuffix(".")
    try:
        return not ip_address(name).is_global
    except ValueError:
        return "." not in name or name.endswith(_INTERNAL_SUFFIXES)
