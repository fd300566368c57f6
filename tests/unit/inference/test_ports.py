"""Checks of addresses and ports, with real sockets."""

import errno
import socket

import pytest

from rhapsody.errors import ResourceError
from rhapsody.inference.ports import bind_sockets, check_port, port_error

TEST_NET = "192.0.2.1"
"""An address reserved for documentation (RFC 5737), which no machine has."""


def test_free_port_is_accepted() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    check_port("127.0.0.1", port)
    check_port(None, port)


def test_port_in_use_is_refused_with_advice() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ResourceError) as refused:
            check_port("127.0.0.1", port)
    assert f"127.0.0.1, port {port}" in str(refused.value)
    assert "choose another port=" in str(refused.value)
    assert refused.value.resource_type == "port"


@pytest.mark.parametrize("address", [TEST_NET, "no such name"])
def test_address_of_another_machine_is_refused_with_advice(address: str) -> None:
    with pytest.raises(ResourceError, match="choose an address of this machine as host="):
        check_port(address, 8000)


def addresses_of(name: str | None, port: int) -> list[tuple[str, int]]:
    sockets = bind_sockets(name, port)
    try:
        return [bound.getsockname()[:2] for bound in sockets]
    finally:
        for bound in sockets:
            bound.close()


def resolve_to(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Make every name resolve to some IPv4 addresses."""
    infos = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in addresses]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **options: infos)


def test_all_addresses_of_a_name_have_one_port(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_to(monkeypatch, "127.0.0.1", "127.0.0.2", "127.0.0.1")
    bound = addresses_of("name", 0)
    assert [address for address, _ in bound] == ["127.0.0.1", "127.0.0.2"]
    assert len({port for _, port in bound}) == 1
    assert bound[0][1] != 0


def test_address_of_another_machine_is_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    resolve_to(monkeypatch, TEST_NET, "127.0.0.1")
    assert [address for address, _ in addresses_of("name", 0)] == ["127.0.0.1"]


def test_port_must_be_free_at_all_addresses(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.2", 0))
        taken.listen()
        resolve_to(monkeypatch, "127.0.0.1", "127.0.0.2")
        with pytest.raises(ResourceError, match="choose another port="):
            bind_sockets("name", taken.getsockname()[1])


def test_error_without_an_address_names_any_address() -> None:
    error = port_error(None, 80, OSError(errno.EACCES, "Permission denied"))
    assert "any address, port 80: Permission denied" in str(error)
