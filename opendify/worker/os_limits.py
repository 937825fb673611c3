"""What a worker asks of the system, where that can give it."""

import contextlib
import resource
import socket

_MOST_DESCRIPTORS = 65536


def let_accept_wait_for_data(listener: socket.socket) -> None:
    """For a second: a connection is then accepted with its request, when it is known whether there
    is a thread for it. Linux and TCP only."""
    option = getattr(socket, "TCP_DEFER_ACCEPT", None)
    if option is not None and listener.family != socket.AF_UNIX:
        listener.setsockopt(socket.IPPROTO_TCP, option, 1)


def raise_descriptor_limit() -> None:
    """A stream needs two, and many systems start with 1024, of which a process may have more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _MOST_DESCRIPTORS if hard == resource.RLIM_INFINITY else min(hard, _MOST_DESCRIPTORS)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def descriptor_limit() -> int:
    """How many descriptors this process may have."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
