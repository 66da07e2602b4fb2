"""Where Ollama may be installed and where it listens: its programs, its service's files, and OLLAMA_HOST.

Pure: environment and file contents are arguments, and anything may stand in them. `parse_host` reads a value as Ollama
itself does (envconfig of 0.34.4; golden cases in tests/golden/ollama_host), for its server and its CLI alike.

A service and a shell need not share an environment, so both are asked: the variable, then what the service's files
set, then the default.
"""

from __future__ import annotations

import html
import ipaddress
import re
from collections.abc import Iterator, Mapping
from typing import Final

import msgspec

from flm.engines.places import dialled, executables
from flm.wire.http1 import parse_address

DEFAULT_PORT: Final = "11434"
MAX_ADDRESSES: Final = 8  # of one machine's files; each is probed in every round
# What Go's strings.TrimSpace takes for blanks: four control characters fewer than Python's strip.
_BLANKS: Final = (
    "\t\n\v\f\r \x85\xa0\u1680" + "".join(map(chr, range(0x2000, 0x200B))) + "\u2028\u2029\u202f\u205f\u3000"
)
_PORT = re.compile(r"[+-]?[0-9]+", re.ASCII)
# One assignment of a unit's `Environment=`: each may be quoted as a whole, or its value may be.
_ASSIGNED = re.compile(r"""(?:^|\s)(?:"OLLAMA_HOST=([^"]*)"|'OLLAMA_HOST=([^']*)'|OLLAMA_HOST=("[^"]*"|'[^']*'|\S*))""")
_LINE = re.compile(r"""^[ \t]*(?:export[ \t]+)?OLLAMA_HOST=("[^"\n]*"|'[^'\n]*'|[^\s#]*)""", re.MULTILINE)
_PROPERTY = re.compile(r"<key>\s*OLLAMA_HOST\s*</key>\s*<string>([^<]*)</string>")


def binaries(system: str, environment: Mapping[str, str], home: str) -> tuple[str, ...]:
    """See `Dialect.binaries`: as its installers for Linux, macOS and Windows, and Homebrew, put it."""
    local = environment.get("LOCALAPPDATA") or f"{home}\\AppData\\Local"
    folders = {
        "linux": ("/usr/local/bin", "/usr/bin", "/bin", "/home/linuxbrew/.linuxbrew/bin", "/snap/bin"),
        "darwin": (
            "/Applications/Ollama.app/Contents/Resources",
            f"{home}/Applications/Ollama.app/Contents/Resources",
            "/usr/local/bin",
            "/opt/homebrew/bin",
        ),
        "win32": (f"{local}\\Programs\\Ollama",),
    }
    return executables("ollama", system, environment, folders.get(system, ()))


def settings(system: str, environment: Mapping[str, str], home: str) -> tuple[str, ...]:
    """See `Dialect.settings`: what sets the environment of its service. On Windows that is the user's own.

    On Linux a unit of systemd, its drop-ins (`systemctl edit ollama`), and the files units and OpenRC read; on macOS
    Homebrew's launch agent.
    """
    if system == "linux":
        own = environment.get("XDG_CONFIG_HOME", "")
        own = own if own.startswith("/") else f"{home}/.config"
        units = ("/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system", f"{own}/systemd/user")
        return (
            *(f"{unit}/ollama.service.d/*.conf" for unit in (units[0], units[3])),
            *(f"{unit}/ollama.service" for unit in units),
            "/etc/default/ollama",
            "/etc/sysconfig/ollama",
            "/etc/conf.d/ollama",
        )
    if system == "darwin":
        return (
            f"{home}/Library/LaunchAgents/homebrew.mxcl.ollama.plist",
            "/opt/homebrew/opt/ollama/homebrew.mxcl.ollama.plist",
            "/usr/local/opt/ollama/homebrew.mxcl.ollama.plist",
        )
    return ()


def addresses(environment: Mapping[str, str], files: Mapping[str, bytes]) -> tuple[str, ...]:
    """See `Dialect.addresses`."""
    values = [environment.get("OLLAMA_HOST", "")]
    for path, content in files.items():
        values += _set_in(path, content.decode(errors="replace"))
    found = [own_address(value) for value in values if value]
    known = [url for url in found if url is not None]
    return (*tuple(dict.fromkeys(known))[: MAX_ADDRESSES - 1], *_default(known))


def _default(known: list[str]) -> tuple[str, ...]:
    url = f"http://127.0.0.1:{DEFAULT_PORT}"
    return () if url in known[: MAX_ADDRESSES - 1] else (url,)


def _set_in(path: str, text: str) -> Iterator[str]:
    """The values a file gives OLLAMA_HOST. The last one of a file holds, as for systemd and for a shell."""
    if path.endswith(".plist"):
        found = [html.unescape(value) for value in _PROPERTY.findall(text)]
    elif path.endswith((".service", ".conf")):
        found = [value for line in _environment_lines(text) for value in _assigned(line)]
    else:
        found = [_unquoted(value) for value in _LINE.findall(text)]
    yield from found[-1:]


def _environment_lines(text: str) -> Iterator[str]:
    """The values of a unit's `Environment=`; a line that ends in a backslash goes on in the next."""
    for line in text.replace("\\\r\n", " ").replace("\\\n", " ").splitlines():
        name, equals, value = line.partition("=")
        if equals and name.strip() == "Environment":
            yield value


def _assigned(line: str) -> Iterator[str]:
    for match in _ASSIGNED.finditer(line):
        quoted, single, bare = match.groups()
        yield quoted or single or _unquoted(bare or "")


def _unquoted(value: str) -> str:
    return value[1:-1] if len(value) > 1 and value[0] in "\"'" and value[-1] == value[0] else value


class HostParts(msgspec.Struct, frozen=True):
    """OLLAMA_HOST taken apart. An empty `host` means every interface; `port` may have a sign or zeros in front."""

    scheme: str
    host: str
    port: str
    path: str


def parse_host(value: str) -> HostParts:
    """OLLAMA_HOST as Ollama itself reads it. Never raises."""
    text = value.strip(_BLANKS).strip("\"'").strip(_BLANKS)
    scheme, mark, rest = text.partition("://")
    default = DEFAULT_PORT
    if not mark:
        scheme, rest = ("https", "ollama.com:443") if text == "ollama.com" else ("http", text)
    elif scheme in ("http", "https"):
        default = "80" if scheme == "http" else "443"
    hostport, _, path = rest.partition("/")
    split = _split(hostport)
    host, port = split if split is not None else (_bare_host(hostport), default)
    return HostParts(scheme, host, port if _is_port(port) else default, path)


def _split(hostport: str) -> tuple[str, str] | None:
    """Host and port as Go's net.SplitHostPort tells them apart; None where it sees an error."""
    host, colon, port = hostport.rpartition(":")
    if not colon:
        return None
    if host.startswith("[") and host.find("]") == len(host) - 1:
        host = host[1:-1]
        return None if "[" in host or "]" in port or "[" in port else (host, port)
    if hostport.startswith("[") or ":" in host or "[" in hostport or "]" in hostport:
        return None
    return host, port


def _bare_host(text: str) -> str:
    """A host without a port; IP literals as Go prints them, and no zones, which its net.ParseIP does not take."""
    literal = text.strip("[]")
    if "%" not in literal:
        try:
            address = ipaddress.ip_address(literal)
        except ValueError:
            pass
        else:
            return str(getattr(address, "ipv4_mapped", None) or address)
    return text or "127.0.0.1"


def _is_port(text: str) -> bool:
    """What Go's strconv.ParseInt reads as 0..65535."""
    if not _PORT.fullmatch(text):
        return False
    digits = text.lstrip("+-").lstrip("0") or "0"
    return digits == "0" or (not text.startswith("-") and len(digits) <= 5 and int(digits) <= 65_535)


def own_address(value: str) -> str | None:
    """The URL to reach the Ollama that OLLAMA_HOST describes; None for its cloud, or where nobody can connect to."""
    parts = parse_host(value)
    if parts.scheme not in ("http", "https") or parts.host.lower() == "ollama.com":
        return None
    path = "/" + parts.path.strip("/") if parts.path.strip("/") else ""
    url = f"{parts.scheme}://{dialled(parts.host)}:{parts.port.lstrip('+-0') or '0'}{path}"
    try:
        parse_address(url)
    except ValueError:
        return None
    return url
