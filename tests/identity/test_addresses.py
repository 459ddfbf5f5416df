"""Which URLs a tenant may name, and which addresses they may lead to."""

import pytest

from sojourn.errors import Invalid
from sojourn.identity import addresses

INSIDE = (
    "127.0.0.1", "127.9.9.9", "0.0.0.0", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1",
    "169.254.169.254", "169.254.170.2", "100.64.0.1", "100.100.100.200", "192.0.0.192", "192.0.2.1", "198.18.0.1",
    "224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255",
    "::", "::1", "::127.0.0.1", "::ffff:10.0.0.1", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "64:ff9b:1::1",
    "100::1", "2001::1", "2001:db8::1", "2002:7f00:1::", "2002:a9fe:a9fe::1", "fc00::1", "fd00:ec2::254", "fe80::1",
    "fe80::1%eth0", "fec0::1", "ff02::1", "", "example.org",
)  # fmt: skip
OUTSIDE = ("1.1.1.1", "8.8.8.8", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "2a00:1450::1", "2002:808:808::1")


@pytest.mark.parametrize("address", INSIDE)
def test_an_address_that_is_not_the_public_internets_is_refused(address: str) -> None:
    assert not addresses.public(address)
    assert not addresses.reachable(address, "example.org", {"example.com"})
    assert addresses.reachable(address, "Example.ORG", {"example.org"})


@pytest.mark.parametrize("address", OUTSIDE)
def test_a_public_address_is_reached(address: str) -> None:
    assert addresses.reachable(address, "example.org", ())


BAD = (
    "", "example.org", "ftp://example.org", "file:///etc/passwd", "https://", "https:///path", "https://user@example.org",
    "https://a:b@example.org", "https://example.org/#part", "https://example.org:0/", "https://example.org:99999/",
    "https://exa mple.org/", "https://example.org/\n", "https://example.org/a\tb", "https://exämple.org/", "https://[::1",
    "https://example.org/" + "x" * 2048, "gopher://example.org", "javascript:alert(1)", "//example.org",
)  # fmt: skip


@pytest.mark.parametrize("url", BAD)
def test_what_is_no_url_to_send_to_is_refused(url: str) -> None:
    for http in (False, True):
        with pytest.raises(Invalid) as refused:
            addresses.checked(url, http_allowed=http)
        assert refused.value.pointer == "/url"


def test_http_is_for_the_operator_to_allow() -> None:
    assert addresses.checked("http://example.org:8080/a?b=c", http_allowed=True).port == 8080
    with pytest.raises(Invalid, match="https://"):
        addresses.checked("http://example.org", http_allowed=False)


def test_hosts_are_listed_with_commas() -> None:
    assert addresses.listed(" Hooks.internal, 10.0.0.7 ,,") == {"hooks.internal", "10.0.0.7"}
    assert addresses.listed("") == frozenset()
