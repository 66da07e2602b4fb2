"""The listening sockets: opened by the supervisor, one per worker slot, and never closed while it runs.

Each slot has a socket of its own (SO_REUSEPORT), so that the kernel spreads connections over the workers, and those
that arrive while a worker is being replaced wait in its socket's queue. SO_REUSEPORT would also let two proxies of one
user share a port silently; so a port is first bound without it, which fails whoever holds it.

Sockets that were given (`flm.runtime.given`) may be fewer than the slots, or of several addresses: slots share them.

Knows neither the ASGI server nor workers. Blocking for microseconds.
"""

from __future__ import annotations

import errno
import os
import resource
import shlex
import socket
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final

from flm.config import ANY, Settings
from flm.errors import CommandCode, CommandError
from flm.runtime.boot import Served

BACKLOG: Final = 4096  # connections the kernel holds while no worker accepts; capped by net.core.somaxconn
RESERVED_DESCRIPTORS: Final = 64  # databases, pipes, mapped files, listening sockets, the loop's own
MOST_CONNECTIONS: Final = 16_384  # per worker, at 11 kB of memory each
FEWEST_DESCRIPTORS: Final = 128  # below this a worker cannot serve a handful of clients
KEEPALIVE_SECONDS: Final = 30  # a client that vanished is noticed after about two minutes
KERNEL_LATER_SECONDS: Final = 15.0  # than the worker, which looks every 5 s (`stragglers`), and says why it cuts
_NOT_OURS: Final = frozenset({errno.EACCES, errno.EPERM, errno.EADDRINUSE})
_LISTEN: Final = "0A"  # TCP_LISTEN in /proc/net/tcp

# macOS has no TCP_USER_TIMEOUT; TCP_CONNECTIONTIMEOUT does not cover established connections.
_USER_TIMEOUT: Final = getattr(socket, "TCP_USER_TIMEOUT", None)


def family_of(address: str) -> socket.AddressFamily:
    """AF_INET or AF_INET6 of an IP literal. Raises PROXY_INVALID_CONFIG for anything else."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, address)
        except OSError:
            continue
        return family
    raise CommandError(
        CommandCode.PROXY_INVALID_CONFIG,
        f"proxy.bind must be an IP address such as 127.0.0.1 or ::1, or `*` for all, not {address!r}; "
        "set it with `flm config set proxy.bind ADDRESS` or `--bind ADDRESS`",
    )


def refuse_another_address(settings: Settings, served: Served) -> None:
    """Raises PROXY_INVALID_CONFIG if `settings` ask for another mode or address than the running proxy serves."""
    asked = Served.by(settings)
    if asked != served:
        raise CommandError(
            CommandCode.PROXY_INVALID_CONFIG,
            f"the address cannot change while the proxy runs, nor its mode: it serves {served}, and the settings"
            f" say {asked}; set them back, or `flm proxy stop` and `start`",
        )


def open_listening(address: str, port: int, count: int, send_timeout: float) -> list[socket.socket]:
    """`count` listening sockets on one address and port (0: the kernel picks one for all). The address `*` is all of
    IPv4 and IPv6 in one socket, or all of IPv4 on a machine that has no IPv6.

    `send_timeout` (seconds) is how long a client may leave sent bytes unread before the kernel ends its connection; it
    is inherited by accepted connections. Raises PROXY_PORT_IN_USE naming the holder, PROXY_INVALID_CONFIG.
    """
    both = address == ANY and _has_ipv6()
    if address == ANY:
        address = "::" if both else "0.0.0.0"  # noqa: S104 - asked for
    family = family_of(address)
    _probe(family, address, port, both)
    opened: list[socket.socket] = []
    try:
        for _ in range(count):
            opened.append(_listen(family, address, port, send_timeout, both))
            port = opened[0].getsockname()[1]
    except OSError as error:
        for each in opened:
            each.close()
        raise _cannot_bind(address, port, error) from None
    return opened


def _has_ipv6() -> bool:
    """Whether a socket can be bound that takes IPv6 and IPv4 alike."""
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            probe.bind(("::", 0))
            return True
    except OSError:
        return False


def add_listening(like: socket.socket, count: int, send_timeout: float) -> list[socket.socket]:
    """More sockets beside `like`, on its address and port, which are ours already."""
    host, port = like.getsockname()[:2]
    both = like.family == socket.AF_INET6 and not like.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY)
    return [_listen(like.family, host, port, send_timeout, both) for _ in range(count)]


def enough(listening: list[socket.socket], slots: int, send_timeout: float) -> list[socket.socket]:
    """`listening`, and more of it up to one for each slot, if that can be had: a socket that was given may be bound for
    itself alone, or by another user, and is then shared. Raises OSError."""
    missing = slots - len(listening)
    if missing <= 0 or not listening[0].getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT):
        return listening
    try:
        return listening + add_listening(listening[0], missing, send_timeout)
    except OSError as error:
        if error.errno not in _NOT_OURS:
            raise
        return listening


def share(listening: Sequence[socket.socket], slot: int, slots: int) -> list[socket.socket]:
    """Which sockets a slot serves: of each address one at least, and each of them is served by one slot at least."""
    addresses: dict[tuple[str, int], list[socket.socket]] = {}
    for each in listening:
        addresses.setdefault(each.getsockname()[:2], []).append(each)
    return [
        of_one[place % len(of_one)]
        for of_one in addresses.values()
        for place in range(slot, max(slots, len(of_one)), slots)
    ]


def kernel_patience(settings: Settings) -> float:
    """Seconds after which the kernel ends the connection of a client who takes nothing, if no worker has."""
    return settings.proxy_send_timeout_seconds + KERNEL_LATER_SECONDS


def set_send_timeout(listening: socket.socket, seconds: float) -> None:
    """Let connections accepted from now on end by themselves when their client takes nothing for this long."""
    if _USER_TIMEOUT is not None:
        listening.setsockopt(socket.IPPROTO_TCP, _USER_TIMEOUT, round(seconds * 1000))


def _probe(family: socket.AddressFamily, address: str, port: int, both: bool) -> None:
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # connections in TIME_WAIT are nobody's
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not both)
        try:
            probe.bind((address, port))
            probe.listen(1)  # macOS lets two sockets bind with SO_REUSEADDR, but not two listen
        except OSError as error:
            raise _cannot_bind(address, port, error) from None


def _listen(family: socket.AddressFamily, address: str, port: int, send_timeout: float, both: bool) -> socket.socket:
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            listening.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not both)
        tune(listening, send_timeout)
        listening.bind((address, port))
        listening.listen(BACKLOG)
    except BaseException:
        listening.close()
        raise
    return listening


def tune(listening: socket.socket, send_timeout: float) -> None:
    """What every listening socket is told; accepted connections inherit it."""
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    idle = getattr(socket, "TCP_KEEPIDLE", getattr(socket, "TCP_KEEPALIVE", None))
    if idle is not None:
        listening.setsockopt(socket.IPPROTO_TCP, idle, KEEPALIVE_SECONDS)
    set_send_timeout(listening, send_timeout)
    listening.setblocking(False)


def _cannot_bind(address: str, port: int, error: OSError) -> CommandError:
    if error.errno == errno.EADDRINUSE:
        return CommandError(
            CommandCode.PROXY_PORT_IN_USE,
            f"port {port} on {address} is taken by {holder(port) or 'another program'}; "
            "end it, or take another port with `--port N` (`--https-port N`) or `flm config set proxy.port N`",
        )
    if error.errno in (errno.EACCES, errno.EPERM):
        return CommandError(CommandCode.PROXY_INVALID_CONFIG, may_not_bind(port))
    if error.errno == errno.EADDRNOTAVAIL:
        return CommandError(
            CommandCode.PROXY_INVALID_CONFIG,
            f"{address} is not an address of this machine; `--bind ADDRESS` or "
            "`flm config set proxy.bind ADDRESS` takes one that it has, or `*` for all",
        )
    return CommandError(CommandCode.PROXY_INVALID_CONFIG, f"{address} port {port} cannot be bound: {error.strerror}")


def may_not_bind(port: int, program: str = sys.executable, *, linux: bool = sys.platform.startswith("linux")) -> str:
    """That a port below 1024 is not for this user, and the ways out. `program`: the interpreter FLM runs in."""
    ways = ["ports above 1023 (`--port 8880 --https-port 8443`) with the low ones forwarded to them"]
    if linux:
        line = f"sudo setcap cap_net_bind_service=+ep {shlex.quote(os.path.realpath(program))}"
        ways = [
            f"the capability (`{line}`, which lets every program that this Python runs bind them)",
            "a socket unit of systemd (docs/operations.md has one)",
            *ways,
        ]
    return f"port {port} may not be bound by this user, as it is below 1024; what helps is {', or '.join(ways)}"


def holder(port: int) -> str | None:
    """Who listens on `port`, as `name (pid N)`, as far as this user may know it. Linux only; else None."""
    inodes = _listening_inodes(port)
    if not inodes:
        return None
    targets = {f"socket:[{inode}]" for inode in inodes}
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(os.readlink(link) in targets for link in _links(process / "fd")):
                return (
                    f"{(process / 'comm').read_text(encoding='utf-8', errors='replace').strip()} (pid {process.name})"
                )
        except OSError:
            continue  # ended meanwhile, or another user's
    return None


def _links(folder: Path) -> list[str]:
    return [os.path.join(folder, name) for name in os.listdir(folder)]


def _listening_inodes(port: int) -> set[str]:
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        try:
            lines = Path(table).read_text(encoding="ascii").splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            if fields[3] == _LISTEN and int(fields[1].rsplit(":", 1)[1], 16) == port:
                inodes.add(fields[9])
    return inodes


def raise_descriptor_limit() -> int:
    """Raise this process's limit of open descriptors to the hard limit, which workers inherit; returns it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = hard if hard != resource.RLIM_INFINITY else max(soft, 1 << 20)
    if sys.platform == "darwin":
        wanted = min(wanted, 10_240)  # OPEN_MAX: the kernel refuses more, whatever the hard limit says
    if soft < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (OSError, ValueError):
            return soft
    return max(soft, wanted)


def connections_allowed(descriptors: int, max_in_flight: int) -> int:
    """How many client connections a worker may hold so that `accept` never meets the descriptor limit.

    Each request in flight may need one connection to an engine. Raises PROXY_INVALID_CONFIG if too few are left.
    """
    if descriptors < FEWEST_DESCRIPTORS:
        raise CommandError(
            CommandCode.PROXY_INVALID_CONFIG,
            f"only {descriptors} files may be open in one process, and a worker needs {FEWEST_DESCRIPTORS} at least; "
            "raise the limit (`ulimit -n`, or LimitNOFILE= in the service)",
        )
    free = descriptors - RESERVED_DESCRIPTORS
    return min(MOST_CONNECTIONS, max(free // 2, free - max_in_flight))


def descriptor_warning(descriptors: int, max_in_flight: int) -> str | None:
    """What to tell the operator when the limit is too low for `proxy.max_in_flight`; None when it is not."""
    needed = 2 * max_in_flight + RESERVED_DESCRIPTORS
    if descriptors >= needed:
        return None
    return (
        f"only {descriptors} files may be open in one process, and proxy.max_in_flight {max_in_flight} needs {needed}; "
        "raise the limit (`ulimit -n`, LimitNOFILE=) or lower the setting: clients beyond it will wait"
    )


def own_sockets() -> Iterator[socket.socket]:
    """Every socket of this process, each as a descriptor of its own that whoever iterates closes.

    Descriptors that are no sockets, or are closed meanwhile, are passed over and leave nothing behind.
    """
    for name in os.listdir("/dev/fd"):
        try:
            own = os.dup(int(name))
        except OSError:
            continue
        try:
            yield socket.socket(fileno=own)
        except OSError:
            os.close(own)
