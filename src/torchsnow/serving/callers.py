"""Who calls: what one party can hold counts together."""

from __future__ import annotations

import ipaddress


def caller(client: tuple[str, int] | None) -> str:
    """The party behind an address and port: an IPv4 address, or the /64 network that one subscriber of IPv6 has."""
    host = client[0] if client else ""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:  # a Unix socket, or a name that a proxy gave
        return host
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    mapped = address.ipv4_mapped
    return str(mapped or ipaddress.ip_network((address, 64), strict=False))
