"""The address of a request's sender, behind proxies. Pure."""

from collections.abc import Iterable, Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Network = IPv4Network | IPv6Network


def sender_address(peer: str, forwarded: Iterable[bytes], trusted: Sequence[Network]) -> str:
    """The address of a request's sender: the peer's, or if the peer is a trusted proxy the address that it reports.

    `forwarded` are the values of X-Forwarded-For, in order. Each proxy appends the address that it got the request
    from, so the last address that is not a trusted proxy's counts. The addresses before it are the sender's own claim.
    """
    hops = [hop.strip().decode("latin-1") for value in forwarded for hop in value.split(b",")]
    address = peer
    while hops and is_trusted(address, trusted):
        hop = _parsed(hops.pop())
        if hop is None:
            break
        address = str(hop)
    return address


def is_trusted(address: str, trusted: Sequence[Network]) -> bool:
    """Whether an address is that of a trusted proxy."""
    parsed = _parsed(address) if trusted else None
    return parsed is not None and any(parsed in network for network in trusted)


def _parsed(text: str) -> IPv4Address | IPv6Address | None:
    try:
        address = ip_address(text)
    except ValueError:
        return None
    # A dual-stack socket reports 127.0.0.1 as ::ffff:127.0.0.1.
    return getattr(address, "ipv4_mapped", None) or address
