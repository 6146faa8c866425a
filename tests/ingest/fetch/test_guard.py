"""The address policy: what a fetch may connect to, as pure functions; nothing here opens a connection."""

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.fetch.guard import Abort, audit_hook, check_connect, parse_allowed, refusal, unwrap, url_refusal
from ingest.sample import Reason

PRIVATE_V4 = [
    "0.0.0.0",
    "10.0.0.1",
    "100.64.0.1",
    "100.100.100.200",  # Alibaba's metadata server
    "127.0.0.1",
    "127.255.255.254",
    "168.63.129.16",  # Azure's host agent
    "169.254.169.254",  # the metadata server of most clouds
    "172.16.0.1",
    "192.0.0.192",  # Oracle's metadata server
    "192.88.99.1",
    "192.168.1.1",
    "198.18.0.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
]
PUBLIC_V4 = ["8.8.8.8", "93.184.216.34", "172.32.0.1", "100.128.0.1"]


def carriers(v4: str) -> list[str]:
    """Every IPv6 notation that carries `v4` inside."""
    number = int(ipaddress.IPv4Address(v4))
    six_to_four = ipaddress.IPv6Address(0x2002 << 112 | number << 80 | 1)
    return [
        f"::ffff:{v4}",
        f"::{v4}",
        str(ipaddress.IPv6Address((0x64FF9B << 96) | number)),
        str(six_to_four),
    ]


@pytest.mark.parametrize("address", PRIVATE_V4)
def test_an_address_that_is_not_public_is_refused_in_every_notation(address: str) -> None:
    for notation in (address, *carriers(address)):
        assert refusal(notation), notation


@pytest.mark.parametrize("address", PUBLIC_V4)
def test_a_public_address_is_allowed_in_every_notation(address: str) -> None:
    for notation in (address, *carriers(address)):
        assert refusal(notation) is None, notation


@pytest.mark.parametrize(
    "address",
    [
        "::",
        "::1",
        "fe80::1",
        "fe80::1%eth0",
        "fc00::1",
        "fd00:ec2::254",  # AWS's metadata server
        "ff02::1",
        "2001::1",  # Teredo
        "2001:db8::1",
        "3fff::1",
        "64:ff9b:1::a00:1",  # NAT64 of a local prefix
        "::ffff:0:10.0.0.1",  # translated IPv4
        "4000::1",
    ],
)
def test_an_ipv6_address_that_is_not_public_is_refused(address: str) -> None:
    assert refusal(address)


def test_a_public_ipv6_address_is_allowed() -> None:
    assert refusal("2606:4700:4700::1111") is None


@pytest.mark.parametrize(
    "text", ["localhost", "example.org", "", "0177.0.0.1", "2130706433", "0x7f.1", "127.1", "[::1]"]
)
def test_what_is_no_plain_literal_is_refused(text: str) -> None:
    assert refusal(text)


@given(st.integers(0, 2**32 - 1))
def test_a_carried_address_is_judged_as_the_address_itself(number: int) -> None:
    address = str(ipaddress.IPv4Address(number))
    for notation in carriers(address):
        assert number <= 1 or str(unwrap(ipaddress.ip_address(notation))) == address
        assert (refusal(notation) is None) == (refusal(address) is None)


@given(st.text())
def test_no_text_breaks_the_policy(text: str) -> None:
    assert refusal(text) is None or isinstance(refusal(text), str)
    assert url_refusal(text) is None or isinstance(url_refusal(text), str)


@pytest.mark.parametrize(
    "url",
    [
        "http://user@example.org/",
        "http://user:word@example.org/",
        "http://example.org@10.0.0.1/",
        "file:///etc/passwd",
        "ftp://example.org/a.mp4",
        "data:text/html,x",
        "gopher://example.org/",
        "//example.org/a",
        "/etc/passwd",
        "http:///a",
        "http://",
        "http://[::1",
        "http://example.org:99999/",
        "http://example.org:x/",
        "",
    ],
)
def test_a_url_of_another_scheme_with_a_user_or_without_a_host_is_refused(url: str) -> None:
    assert url_refusal(url)


@pytest.mark.parametrize(
    "url", ["http://example.org", "HTTPS://example.org:8443/a?b=c@d#e", "http://127.0.0.1:80/"]
)
def test_an_ordinary_url_is_left_to_the_connect_check(url: str) -> None:
    assert url_refusal(url) is None


def test_an_exception_holds_for_one_address_and_port() -> None:
    allowed = parse_allowed(["127.0.0.1:8765", "[::1]:80"])
    check_connect(("127.0.0.1", 8765), allowed)
    check_connect(("::ffff:127.0.0.1", 8765, 0, 0), allowed)
    check_connect(("::1", 80, 0, 0), allowed)
    for address in (("127.0.0.1", 80), ("127.0.0.2", 8765), ("::1", 8765, 0, 0)):
        with pytest.raises(Abort) as caught:
            check_connect(address, allowed)
        assert caught.value.reason == Reason.ADDRESS


def test_localhost_means_both_loopback_addresses() -> None:
    assert parse_allowed(["localhost:80"]) == {("127.0.0.1", 80), ("::1", 80)}


@pytest.mark.parametrize("entry", ["example.org:80", "127.0.0.1", "127.0.0.1:", "127.0.0.1:http", ":80", ""])
def test_an_exception_that_is_no_address_and_port_is_refused(entry: str) -> None:
    with pytest.raises(ValueError, match="address:port"):
        parse_allowed([entry])


def test_a_unix_socket_is_refused() -> None:
    for address in ("/run/docker.sock", b"\0abstract", None, ()):
        with pytest.raises(Abort):
            check_connect(address, frozenset())


def test_the_hook_refuses_connects_urls_and_programs_and_lets_the_rest_pass() -> None:
    hook = audit_hook(frozenset())
    hook("open", ("/etc/hostname", "r", 0))
    hook("socket.connect", (None, ("8.8.8.8", 443)))
    hook("urllib.Request", ("https://example.org/", None, {}, "GET"))
    with pytest.raises(Abort):
        hook("socket.connect", (None, ("169.254.169.254", 80)))
    with pytest.raises(Abort):
        hook("urllib.Request", ("file:///etc/passwd", None, {}, "GET"))
    with pytest.raises(Abort):
        hook("socket.sendto", (None, ("8.8.8.8", 53)))
    for event in ("subprocess.Popen", "os.system", "os.posix_spawn", "os.fork"):
        with pytest.raises(PermissionError):
            hook(event, ())


def test_no_except_exception_swallows_an_abort() -> None:
    assert not issubclass(Abort, Exception)
