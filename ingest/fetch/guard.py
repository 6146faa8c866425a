"""Which addresses a fetch may reach, and the audit hook that holds every connect of this process to it.

    install_guard(config.allow_private)     # cannot be taken off again

`refusal(address)` is the policy, pure: it unwraps the notations that carry an IPv4 address inside an IPv6
one, and lets only globally routed unicast through.

Covered: `socket.connect` (after DNS, at every redirect hop), datagrams, the scheme of every URL that urllib
opens, and every start of a program. Not covered: other processes and sockets that are not Python's. A child
such as ffmpeg would escape it, so none can be started but one launcher that the operator may name
(`ingest.fetch.runtime`), which confines what it starts.
"""

import ipaddress
import sys
from collections.abc import Callable, Collection
from typing import Any
from urllib.parse import urlsplit

from ingest.sample import Reason

SCHEMES = ("http", "https")
Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# is_global alone lets these through (or did in some Python): deny them by name
_DENIED_V4 = [
    ipaddress.ip_network(text)
    for text in (
        "192.0.0.0/24",  # 192.0.0.192 is Oracle's metadata server
        "192.88.99.0/24",  # 6to4 relays
        "100.64.0.0/10",  # carrier-grade NAT; 100.100.100.200 is Alibaba's metadata server
        "168.63.129.16/32",  # Azure's host agent, on a public address
        "224.0.0.0/3",  # multicast and reserved
    )
]
_GLOBAL_V6 = ipaddress.ip_network("2000::/3")
_DENIED_V6 = [ipaddress.ip_network(text) for text in ("2001::/23", "2001:db8::/32", "3fff::/20")]
_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_SIX_TO_FOUR = ipaddress.ip_network("2002::/16")
# audit events, as Python raises them
_PROGRAMS = frozenset(
    {
        "subprocess.Popen",
        "os.system",
        "os.exec",
        "os.posix_spawn",
        "os.spawn",
        "os.fork",
        "os.forkpty",
        "pty.spawn",
    }
)
_BYPASSES = frozenset({"ftplib.connect", "smtplib.connect", "socket.sendto", "socket.sendmsg"})


class Abort(BaseException):
    """Ends the item at once.

    A BaseException: no `except Exception` of a downloader turns it into a retry.
    """

    def __init__(self, reason: Reason, detail: str = ""):
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


def refusal(address: str) -> str | None:
    """Why `address` (a literal as `socket.connect` gets it) may not be reached, or None where it may.

    Host names, zone ids and everything that is no plain address literal are refused: names are resolved
    before connect.
    """
    try:
        plain = unwrap(ipaddress.ip_address(address.split("%")[0]))
    except ValueError:
        return f"{address!r} is not an address"
    allowed = _allowed_v4(plain) if isinstance(plain, ipaddress.IPv4Address) else _allowed_v6(plain)
    if allowed:
        return None
    return f"{address} is not a public address" + (f" ({plain})" if str(plain) != address else "")


def unwrap(ip: Address) -> Address:
    """The IPv4 address inside an IPv4-mapped, IPv4-compatible, NAT64 or 6to4 one; others as they are."""
    if isinstance(ip, ipaddress.IPv4Address):
        return ip
    bits = int(ip)
    is_compatible = bits >> 32 == 0 and bits > 1  # ::a.b.c.d; 0 and 1 are :: and ::1
    if ip.ipv4_mapped is not None or ip in _NAT64 or is_compatible:
        return ipaddress.IPv4Address(bits & 0xFFFFFFFF)
    if ip in _SIX_TO_FOUR:  # 2002:a.b.c.d::
        return ipaddress.IPv4Address(bits >> 80 & 0xFFFFFFFF)
    return ip


def _allowed_v4(ip: ipaddress.IPv4Address) -> bool:
    return ip.is_global and not ip.is_multicast and not any(ip in net for net in _DENIED_V4)


def _allowed_v6(ip: ipaddress.IPv6Address) -> bool:
    return ip.is_global and ip in _GLOBAL_V6 and not any(ip in net for net in _DENIED_V6)


def url_refusal(url: str) -> str | None:
    """Why `url` may not be opened, judged by its text alone, or None.

    Only http and https, a host, no user name.
    """
    try:
        address = urlsplit(url)
        is_port = address.port is None or address.port >= 0  # `port` raises for what is none
    except ValueError as error:
        return f"malformed URL: {error}"
    if address.scheme.lower() not in SCHEMES:
        return f"scheme {address.scheme!r} is not http or https"
    if not address.hostname or not is_port:
        return "URL without a host"
    if "@" in address.netloc:
        return "URL with a user name"
    return None


def parse_allowed(entries: Collection[str]) -> frozenset[tuple[str, int]]:
    """`host:port` texts (address literals, `[::1]:80`, or localhost) as (address, port) pairs.

    ValueError names a bad one.
    """
    pairs: set[tuple[str, int]] = set()
    for entry in entries:
        host, _, port = entry.rpartition(":")
        hosts = ("127.0.0.1", "::1") if host == "localhost" else (host.removeprefix("[").removesuffix("]"),)
        try:
            pairs.update((str(unwrap(ipaddress.ip_address(name))), int(port)) for name in hosts)
        except ValueError:
            raise ValueError(f"{entry!r} is not address:port (such as 127.0.0.1:8080)") from None
    return frozenset(pairs)


def check_connect(address: Any, allowed: frozenset[tuple[str, int]]) -> None:
    """Raises `Abort` (address) unless `address`, as `socket.connect` was given it, may be connected to."""
    if not isinstance(address, tuple) or len(address) < 2:
        raise Abort(Reason.ADDRESS, "not an internet address")
    host = str(address[0])
    port = address[1]
    why = refusal(host)
    if why and not _is_allowed_private(host, port, allowed):
        raise Abort(Reason.ADDRESS, why)


def _is_allowed_private(host: str, port: int, allowed: frozenset[tuple[str, int]]) -> bool:
    try:
        return (str(unwrap(ipaddress.ip_address(host))), port) in allowed
    except ValueError:
        return False


def audit_hook(
    allowed: frozenset[tuple[str, int]], launcher: str = ""
) -> Callable[[str, tuple[Any, ...]], None]:
    """The hook that `install_guard` installs; apart, so that tests need not guard their own process."""

    def hook(event: str, args: tuple[Any, ...]) -> None:
        if event == "socket.connect":
            check_connect(args[1], allowed)
        elif event == "urllib.Request":
            why = url_refusal(args[0])
            if why:
                raise Abort(Reason.ADDRESS, why)
        elif event in _PROGRAMS and not (launcher and event == "subprocess.Popen" and args[0] == launcher):
            raise PermissionError(f"{event} is not allowed in the fetch process")
        elif event in _BYPASSES:
            raise Abort(Reason.ADDRESS, f"{event} is not allowed in the fetch process")

    return hook


def install_guard(allow_private: Collection[str], launcher: str = "") -> None:
    """Guards this process until it ends.

    `allow_private`: `host:port` exceptions, for the operator's own servers. `launcher`: the absolute path of
    the one program that may be started; "" for none.
    """
    sys.addaudithook(audit_hook(parse_allowed(allow_private), launcher))
