"""The network interface by which gloo reaches the other hosts of a run.

Left alone it takes the one that the host's own name leads to. Where /etc/hosts calls the host 127.0.0.1 or 127.0.1.1,
as many systems do, that is the loopback interface, and no other host is ever reached.
"""

import ipaddress
import os
import socket

import psutil

from ffc_ds.progress import say

VARIABLE = "GLOO_SOCKET_IFNAME"


def address_towards(host: str) -> str | None:
    """This host's own address on the way to `host`; None if that is this host itself, or if there is no way."""
    own, there = _route(host)
    return None if own is None or own == there or ipaddress.ip_address(own).is_loopback else own


def choose_interface(other: str) -> None:
    """Let gloo take the interface that leads to the host `other`, which the first rank of this host says; unless
    GLOO_SOCKET_IFNAME is set, or an address is translated on the way and no interface has it."""
    if os.environ.get(VARIABLE):
        return
    own = address_towards(other)
    interface = own and _interface_of(own)
    if not interface:
        return
    os.environ[VARIABLE] = interface
    if os.environ.get("LOCAL_RANK", "0") == "0":
        say(f"{socket.gethostname()} takes the network interface {interface} ({own}), which leads to {other}")


def _route(host: str) -> tuple[str | None, str | None]:
    """Own address and that of the other end, without a scope, by the kernel's routes: nothing is sent."""
    try:
        for family, kind, protocol, _, there in socket.getaddrinfo(host, 9, type=socket.SOCK_DGRAM):
            with socket.socket(family, kind, protocol) as probe:
                try:
                    probe.connect(there)
                except OSError:
                    continue
                return _bare(probe.getsockname()[0]), _bare(probe.getpeername()[0])
    except OSError:
        pass
    return None, None


def _interface_of(address: str) -> str | None:
    return next(
        (
            interface
            for interface, addresses in psutil.net_if_addrs().items()
            if any(_bare(each.address) == address for each in addresses)
        ),
        None,
    )


def _bare(address: str) -> str:
    return address.partition("%")[0]
