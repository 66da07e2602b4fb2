"""Where LM Studio may be installed and where its server listens. Not verified against the product.

Facts: its documentation and the sources of its command line tool (lms, lmstudio-js). Its home folder is what
`~/.lmstudio-home-pointer` names, else the older `~/.cache/lm-studio`, else `~/.lmstudio`; the port last used stands in
`.internal/http-server-config.json` of that folder. No environment variable sets it.

Pure: anything may stand in those files.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Annotated, Final

import msgspec

from flm.engines.places import dialled, executables, is_absolute
from flm.wire.chat import MALFORMED

DEFAULT_PORT: Final = 1234
_POINTER: Final = ".lmstudio-home-pointer"
_CONFIG: Final = "http-server-config.json"
_OWN: Final = re.compile(r"lm-?studio", re.IGNORECASE)
MAX_PATH: Final = 4096  # characters; the longest path of Linux


class _Config(msgspec.Struct, frozen=True):
    port: Annotated[int, msgspec.Meta(ge=1, le=65_535)] = DEFAULT_PORT
    network_interface: str = msgspec.field(default="", name="networkInterface")


_config = msgspec.json.Decoder(_Config)


def _joined(system: str, *parts: str) -> str:
    return ("\\" if system == "win32" else "/").join(parts)


def binaries(system: str, environment: Mapping[str, str], home: str) -> tuple[str, ...]:
    """See `Dialect.binaries`: its tool `lms`, which every start of the app puts into its home folder, and the app.

    Other programs are called `lms` too, so on PATH it counts only in a folder of LM Studio's.
    """
    tools = [_joined(system, home, *folder, "bin") for folder in ((".lmstudio",), (".cache", "lm-studio"))]
    found = [path for path in executables("lms", system, environment, tools) if _OWN.search(path)]
    if system == "linux":
        found += executables("lm-studio", system, environment, ("/usr/bin", "/opt/LM Studio"))
        folders = (f"{home}/Applications", f"{home}/Downloads", f"{home}/.local/bin", f"{home}/bin", "/opt")
        found += [f"{folder}/LM*Studio*.AppImage" for folder in folders]
    elif system == "darwin":
        found += [f"{root}/Applications/LM Studio.app/Contents/MacOS/LM Studio" for root in ("", home)]
    elif system == "win32":
        local = environment.get("LOCALAPPDATA") or f"{home}\\AppData\\Local"
        roots = (f"{local}\\Programs", environment.get("ProgramFiles") or "C:\\Program Files")
        found += [f"{root}\\LM Studio\\LM Studio.exe" for root in roots if is_absolute(root, windows=True)]
    return tuple(dict.fromkeys(found))


def settings(system: str, environment: Mapping[str, str], home: str) -> tuple[str, ...]:
    """See `Dialect.settings`."""
    return (
        _joined(system, home, _POINTER),
        _joined(system, home, ".cache", "lm-studio", ".internal", _CONFIG),
        _joined(system, home, ".lmstudio", ".internal", _CONFIG),
    )


def further_settings(files: Mapping[str, bytes]) -> tuple[str, ...]:
    """See `Dialect.further_settings`: the server's configuration in the home folder that the pointer names."""
    found = []
    for path, content in files.items():
        home = content.decode(errors="replace").strip().rstrip("/\\") if path.endswith(_POINTER) else ""
        for system in ("win32", "linux"):
            usable = len(home) <= MAX_PATH and home.isprintable() and is_absolute(home, system == "win32")
            if usable and path.startswith("/") == (system == "linux"):
                found.append(_joined(system, home, ".internal", _CONFIG))
    return tuple(path for path in found if path not in files)


def addresses(environment: Mapping[str, str], files: Mapping[str, bytes]) -> tuple[str, ...]:
    """See `Dialect.addresses`: what its configurations say, then the default."""
    found = [url for path, content in files.items() if path.endswith(_CONFIG) and (url := _configured(content))]
    return tuple(dict.fromkeys([*found, f"http://127.0.0.1:{DEFAULT_PORT}"]))


def _configured(content: bytes) -> str | None:
    try:
        config = _config.decode(content)
    except MALFORMED:
        return None
    try:
        host = str(ipaddress.ip_address(config.network_interface.strip("[]")))
    except ValueError:
        host = ""  # no address, or a name: then it is this machine
    return f"http://{dialled(host)}:{config.port}"
