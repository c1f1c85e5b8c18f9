from ipaddress import ip_network

import pytest

from astralog.api.client_address import client_address

TRUSTED = (ip_network("10.0.0.0/24"), ip_network("fd00::/8"))


@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        ("10.0.0.1", "198.51.100.3", "198.51.100.3"),
        ("10.0.0.1", "198.51.100.3, 10.0.0.2", "198.51.100.3"),
        ("fd00::1", "2001:db8::1", "2001:db8::1"),
        ("::ffff:10.0.0.1", "198.51.100.3", "198.51.100.3"),
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "10.0.0.2", "10.0.0.2"),
    ],
)
def test_a_trusted_proxy_names_its_client(peer: str, forwarded: str, expected: str) -> None:
    """The last address that is no trusted proxy's counts, through several proxies too."""
    environ = {"REMOTE_ADDR": peer, "HTTP_X_FORWARDED_FOR": forwarded}
    assert expected == client_address(environ, TRUSTED)


@pytest.mark.parametrize(
    ("peer", "forwarded", "expected"),
    [
        ("192.0.2.7", "198.51.100.3", "192.0.2.7"),
        ("192.0.2.7", "198.51.100.3, 10.0.0.1", "192.0.2.7"),
        ("10.0.0.1", "203.0.113.9, 198.51.100.3", "198.51.100.3"),
        ("10.0.0.1", "203.0.113.9, 10.0.0.9, 198.51.100.3", "198.51.100.3"),
        ("10.0.0.1", "203.0.113.9, x y\x1b[2J", "10.0.0.1"),
        ("10.0.0.1", "fe80::1%forged", "10.0.0.1"),
        ("10.0.0.1", "," * 100_000, "10.0.0.1"),
        ("", "198.51.100.3", ""),
    ],
)
def test_a_client_cannot_speak_for_another(peer: str, forwarded: str, expected: str) -> None:
    """What it writes into the header stands before the address that the proxy saw."""
    environ = {"REMOTE_ADDR": peer, "HTTP_X_FORWARDED_FOR": forwarded}
    assert expected == client_address(environ, TRUSTED)


def test_without_a_trusted_proxy_the_peer_counts() -> None:
    """Nobody is trusted by default."""
    environ = {"REMOTE_ADDR": "127.0.0.1", "HTTP_X_FORWARDED_FOR": "198.51.100.3"}
    assert "127.0.0.1" == client_address(environ, ())
    assert "127.0.0.1" == client_address({"REMOTE_ADDR": "127.0.0.1"}, TRUSTED)
