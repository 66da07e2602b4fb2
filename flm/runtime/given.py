"""Listening sockets that were opened by somebody else: a socket unit of systemd binds ports below 1024 for FLM, which
then needs no right to, and holds connections while FLM is not there.

The protocol is sd_listen_fds(3): LISTEN_FDS descriptors from 3 on, meant for the process LISTEN_PID, by the names in
LISTEN_FDNAMES. Strategy: a socket is used for the address and port it is bound to, whoever asks for them. One that is
called `http` or `https` says itself which port is which: its address counts as given on the command line. What fits
nothing is refused, since clients would wait there for ever. The given sockets stay as they are; FLM goes by duplicates.

Knows no worker, and who serves which socket as little.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
from collections.abc import MutableMapping, Sequence
from typing import Final

from flm.config import ANY, Settings, Value
from flm.errors import CommandCode, CommandError
from flm.runtime import sockets
from flm.runtime.boot import Given, Served

FIRST: Final = 3  # SD_LISTEN_FDS_START
MOST: Final = 64  # far more than two ports have addresses and workers
LOOPBACK: Final = "127.0.0.1"
_VARIABLES: Final = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")
_PORTS: Final = {"http": "proxy.port", "https": "proxy.https_port"}
_EVERYWHERE: Final = frozenset({ANY, "0.0.0.0", "::"})  # noqa: S104 - compared with

log = logging.getLogger("flm.supervisor")


def take_given(environment: MutableMapping[str, str], pid: int) -> tuple[Given, ...]:
    """What systemd gave to this process, `pid`. The variables are removed, and no other program inherits the
    descriptors by accident. Raises PROXY_INVALID_CONFIG for what is no listening socket of TCP.
    """
    meant_for, count, names = (environment.pop(name, "") for name in _VARIABLES[:3])
    environment.pop(_VARIABLES[3], None)
    if not count:
        return ()
    if meant_for != str(pid):
        log.warning(
            "the sockets of LISTEN_FDS are for the process %s, and this is %d: they are not used; ExecStart= must "
            "start flm itself, without a shell or another program around it",
            meant_for or "nobody",
            pid,
        )
        return ()
    if not (count.isascii() and count.isdigit() and int(count) <= MOST):
        raise _refused(f"LISTEN_FDS is {count[:80]!r}, which is no number from 0 to {MOST}")
    called = names.split(":") if names else [""] * int(count)
    if len(called) != int(count):
        raise _refused(f"LISTEN_FDNAMES has {len(called)} names for {count} sockets")
    given = tuple(Given(FIRST + number, name) for number, name in enumerate(called))
    for each in given:
        _check(each)
    return given


def settings_of(given: Sequence[Given]) -> dict[str, Value]:
    """The settings that sockets called `http` and `https` say: their ports, and the address. Raises
    PROXY_INVALID_CONFIG if they contradict each other."""
    said: dict[str, Value] = {}
    addresses: set[str] = set()
    for each in given:
        if each.name in _PORTS:
            offer = _Offer(each)
            addresses.add(offer.address)
            if said.setdefault(_PORTS[each.name], offer.port) != offer.port:
                raise _refused(f"two ports are called {each.name}: {said[_PORTS[each.name]]} and {offer.port}")
    if not addresses:
        return {}
    if len(addresses) > 1 and not addresses <= _EVERYWHERE:
        raise _refused(
            f"the sockets called http and https are bound to {' and '.join(sorted(addresses))}, and a proxy has one "
            "address (proxy.bind), or all of them"
        )
    return said | {"proxy.bind": addresses.pop() if len(addresses) == 1 else ANY}


class _Offer:
    """One socket that was given."""

    def __init__(self, given: Given) -> None:
        self._descriptor = given.descriptor
        self.name = given.name
        with self.duplicate() as one:
            host, self.port = one.getsockname()[:2]
            v6 = one.family == socket.AF_INET6
            both = v6 and not one.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
        self.address = ANY if both and host == "::" else str(host)

    def duplicate(self) -> socket.socket:
        return socket.socket(fileno=os.dup(self._descriptor))

    def fits(self, address: str, port: int) -> bool:
        """Whether it is what is wanted at `address` (`*`: any kind of all addresses) and `port`."""
        if self.port != port:
            return False
        return self.address in _EVERYWHERE if address == ANY else self.address == _canonical(address)

    def __str__(self) -> str:
        return f"{_written(self.address, self.port)} ({self.name or 'without a name'})"


class Opener:
    """Where listening sockets come from: those that were `given`, and else the system."""

    def __init__(self, given: Sequence[Given] = ()) -> None:
        self._offers = [_Offer(each) for each in given]

    def refuse_misfits(self, settings: Settings) -> None:
        """Raises PROXY_INVALID_CONFIG if a socket was given that `settings` have no use for."""
        served = Served.by(settings)
        wanted = {"http": served.port} | ({"https": served.https_port} if served.https_port else {})
        misfits = [
            offer for offer in self._offers if not any(offer.fits(served.bind, port) for port in wanted.values())
        ]
        if misfits:
            needed = " and ".join(f"{name} at {_written(served.bind, port)}" for name, port in wanted.items())
            raise _refused(
                f"there is no use for {', '.join(map(str, misfits))}: the settings ask for {needed} (mode "
                f"{served.mode}); let ListenStream= say the same as proxy.bind, proxy.port and proxy.https_port, or "
                "call the socket http or https (FileDescriptorName=), and it says them itself"
            )
        exposed = settings.proxy_expose_fallback or _canonical(served.bind) == LOOPBACK
        if served.mode == "https-acme" and settings.proxy_fallback == "local-http" and not exposed:
            for offer in self._offers:
                if offer.fits(served.bind, served.port):
                    raise _refused(
                        f"{offer} cannot be had for 127.0.0.1 alone, which the fallback local-http means; take the "
                        "fallback dev-selfsigned, or set proxy.expose_fallback true for plain HTTP at that address"
                    )

    def open_for(self, settings: Settings) -> list[socket.socket]:
        """The sockets that `settings` ask for, one for each worker, or those that were given. Raises as `open`."""
        port = settings.proxy_https_port if settings.proxy_mode != "local-http" else settings.proxy_port
        return self.open(settings.proxy_bind, port, settings.proxy_workers, sockets.kernel_patience(settings))

    def open(self, address: str, port: int, count: int, send_timeout: float) -> list[socket.socket]:
        """As `flm.runtime.sockets.open_listening`, unless sockets were given for this address and port: then those,
        perhaps more or fewer than `count`."""
        offers = [offer for offer in self._offers if offer.fits(address, port)]
        if not offers:
            return sockets.open_listening(address, port, count, send_timeout)
        log.info("listening on %s, as given", ", ".join(map(str, offers)))
        if len({offer.address for offer in offers}) * count > len(offers):
            log.warning(
                "%d workers share %s: the kernel may give most connections to one of them; with ReusePort=yes and as "
                "many lines ListenStream= each has its own",
                count,
                ", ".join(sorted({str(offer) for offer in offers})),
            )
        taken = [offer.duplicate() for offer in offers]
        for each in taken:
            sockets.tune(each, send_timeout)
        return taken


def _check(given: Given) -> None:
    """Raises PROXY_INVALID_CONFIG if it is nothing to listen on."""
    called = f"descriptor {given.descriptor} ({given.name or 'without a name'})"
    try:
        os.set_inheritable(given.descriptor, False)
        one = socket.socket(fileno=given.descriptor)
    except OSError as error:
        raise _refused(f"{called} is no socket: {error.strerror}") from None
    tcp = one.family in (socket.AF_INET, socket.AF_INET6) and one.type == socket.SOCK_STREAM
    listens = bool(one.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN))
    one.detach()
    if not tcp:
        raise _refused(f"{called} is no socket of TCP; ListenStream= takes a port, or an address and a port")
    if not listens:
        raise _refused(f"{called} does not listen; the socket unit needs Accept=no, its default")


def _canonical(address: str) -> str:
    try:
        return str(ipaddress.ip_address(address))
    except ValueError:
        return address


def _written(address: str, port: int) -> str:
    return f"[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _refused(why: str) -> CommandError:
    return CommandError(CommandCode.PROXY_INVALID_CONFIG, f"the sockets that systemd gave do not fit: {why}")
