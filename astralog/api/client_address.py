"""Who a request comes from: its peer, or whom a trusted proxy names in X-Forwarded-For."""

from collections.abc import Mapping
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Any

#: Addresses of X-Forwarded-For that are looked at, from the last one on.
MAX_HOPS = 10


def client_address(
    environ: Mapping[str, Any], trusted: tuple[IPv4Network | IPv6Network, ...]
) -> str:
    """Return the address nearest to the service that is not of a trusted proxy; "" for a socket.

    Each proxy adds whom it saw to the end of X-Forwarded-For, so that what a client wrote there
    itself stands before its own address, and is not looked at.
    """
    address: str = environ.get("REMOTE_ADDR") or ""
    hops = environ.get("HTTP_X_FORWARDED_FOR", "").rsplit(",", MAX_HOPS)
    for hop in reversed(hops[-MAX_HOPS:]):
        if not _is_in(address, trusted) or not is_address(hop.strip()):
            break
        address = hop.strip()
    return address


def _is_in(address: str, networks: tuple[IPv4Network | IPv6Network, ...]) -> bool:
    """Return whether it is in one of the networks, an IPv4 address also where IPv6 has it."""
    if not networks or not is_address(address):
        return False
    parsed = ip_address(address)
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped:
        parsed = parsed.ipv4_mapped
    return any(parsed in network for network in networks)


def is_address(text: str) -> bool:
    """Return whether a text is an IP address, and nothing else."""
    try:
        ip_address(text)
    except ValueError:
        return False
    return "%" not in text  # a zone may be any text
