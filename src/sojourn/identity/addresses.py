"""Where the server may send what a tenant asks it to send: which URLs, and which addresses they may lead to.

The API asks about a URL when it is given, and a worker about each address at the moment of connecting to it: what a
name means may change in between. The rule: an address that is not the public internet's is refused, whatever name leads
to it, unless the operator has listed the host.
"""

from collections.abc import Collection
from ipaddress import IPv4Address, IPv4Network, IPv6Address, ip_address
from urllib.parse import SplitResult, urlsplit

from sojourn.errors import Invalid

URL_MAX = 2048
PROTOCOLS = IPv4Network("192.0.0.0/24")
"""Not the internet's, which Python 3.11 does not know; one cloud keeps its credentials there. Source: RFC 6890."""


def listed(hosts: str) -> frozenset[str]:
    """Read a setting that lists hosts with commas between."""
    return frozenset(host.strip().lower() for host in hosts.split(",") if host.strip())


def checked(url: str, *, http_allowed: bool) -> SplitResult:
    """Take a URL apart that may be sent to. Raises Invalid."""
    try:
        parts = urlsplit(url)
        port, host = parts.port, parts.hostname
    except ValueError:
        raise Invalid("This is no URL.", pointer="/url") from None
    schemes = ("https", "http") if http_allowed else ("https",)
    if parts.scheme not in schemes:
        raise Invalid(f"The URL must begin with {' or '.join(f'{one}://' for one in schemes)}.", pointer="/url")
    if not host or port == 0 or len(url) > URL_MAX or not url.isascii() or not url.isprintable() or " " in url:
        raise Invalid(f"The URL needs a host, no spaces, ASCII only, at most {URL_MAX} characters.", pointer="/url")
    if "@" in parts.netloc or parts.fragment:
        raise Invalid("The URL may hold no user, password or fragment.", pointer="/url")
    return parts


def reachable(address: str, host: str, allowed: Collection[str]) -> bool:
    """Say whether a connection to an address may be made that a host of a URL leads to."""
    return host.lower() in allowed or public(address)


def public(address: str) -> bool:
    """Say whether an address is the public internet's, and leads to no other in disguise."""
    try:
        found: IPv4Address | IPv6Address = ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, IPv6Address):
        found = found.ipv4_mapped or found.sixtofour or found
    inner = found.is_site_local if isinstance(found, IPv6Address) else found in PROTOCOLS
    return found.is_global and not (found.is_multicast or found.is_reserved or inner)
