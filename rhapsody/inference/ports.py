"""Sockets of a server: one port at all addresses of a name."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterable
from typing import Any

from rhapsody.errors import ResourceError

__all__ = ["bind_sockets", "check_port", "port_error"]

ATTEMPTS = 16
"""How many free ports are tried until one is free at all addresses."""


def bind_sockets(address: str | None, port: int) -> list[socket.socket]:
    """Bind a socket at each address of a name, all on one port. They do not listen yet.

    Args:
        address: A name or an address of this machine; None: all addresses.
        port: The port; 0: a port that is free at all of them.

    Raises:
        ResourceError: The port is in use, or the address is not this machine's.
    """
    try:
        infos = socket.getaddrinfo(address, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        targets = list(dict.fromkeys((info[0], info[4]) for info in infos))
        for attempt in range(ATTEMPTS):
            try:
                return _bind_all(targets, port)
            except OSError as error:
                if port or error.errno != errno.EADDRINUSE or attempt == ATTEMPTS - 1:
                    raise
    except OSError as error:
        raise port_error(address, port, error) from error
    raise AssertionError("the last attempt returns or raises")


def _bind_all(
    targets: Iterable[tuple[socket.AddressFamily, tuple[Any, ...]]], port: int
) -> list[socket.socket]:
    bound: list[socket.socket] = []
    unavailable: OSError | None = None
    try:
        for family, target in targets:
            try:
                bound.append(_bind(family, (target[0], port, *target[2:])))
            except OSError as error:
                # A machine without IPv6 may still resolve names to IPv6 addresses.
                if error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                    raise
                unavailable = error
            else:
                port = port or bound[0].getsockname()[1]
        if not bound and unavailable is not None:
            raise unavailable
    except BaseException:
        for one in bound:
            one.close()
        raise
    return bound


def _bind(family: socket.AddressFamily, target: tuple[Any, ...]) -> socket.socket:
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:  # the IPv4 addresses have sockets of their own
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        bound.bind(target)
    except BaseException:
        bound.close()
        raise
    return bound


def check_port(address: str | None, port: int) -> None:
    """Check that a port is free.

    Args:
        address: A name or an address of this machine; None: all addresses.
        port: The port.

    Raises:
        ResourceError: The port is in use, or the address is not this machine's.
    """
    for bound in bind_sockets(address, port):
        bound.close()


def port_error(address: str | None, port: int, error: OSError) -> ResourceError:
    """Return the error for a port that a server cannot listen on.

    Args:
        address: The address; None: all addresses.
        port: The port.
        error: Why it cannot.
    """
    where = f"{address or 'any address'}, port {port}"
    advice = "choose another port=, or 0 for any free port"
    if isinstance(error, socket.gaierror) or error.errno == errno.EADDRNOTAVAIL:
        advice = "choose an address of this machine as host=, such as '127.0.0.1'"
    return ResourceError(None, "port", f"{where}: {error.strerror or error}; {advice}")
