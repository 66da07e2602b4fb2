"""Where an engine may be installed or listen, as pure functions of a system's name and an environment.

Does not look at any disk or network, nor know what is there: it lists the candidates.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence


def executables(name: str, system: str, environment: Mapping[str, str], folders: Sequence[str]) -> tuple[str, ...]:
    """Absolute paths of `name` in the entries of PATH, then in `folders`; relative entries of PATH are left out.

    `system` is `linux`, `darwin` or `win32`.
    """
    windows = system == "win32"
    file = f"{name}.exe" if windows else name
    entries = [entry.strip('"') for entry in environment.get("PATH", "").split(";" if windows else ":")]
    slash = "\\" if windows else "/"
    found = [entry.rstrip(slash) + slash + file for entry in [*entries, *folders] if is_absolute(entry, windows)]
    return tuple(dict.fromkeys(found))


def is_absolute(path: str, windows: bool) -> bool:
    if windows:
        return path[1:3] in (":\\", ":/") or path.startswith("\\\\")
    return path.startswith("/")


def dialled(host: str) -> str:
    """`host` as one can connect to it: an address that means every interface becomes loopback, IPv6 gets brackets."""
    # With a zone (`::%eth0`) it does not mean every interface.
    address = None if "%" in host else _literal(host or "0.0.0.0")  # noqa: S104 - recognised, so that it is not dialled
    if address is not None and address.is_unspecified:
        host = "127.0.0.1" if address.version == 4 else "::1"
    return f"[{host}]" if ":" in host else host


def _literal(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """The IP address that `host` is; an IPv4 address in IPv6 clothes counts as IPv4."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address
