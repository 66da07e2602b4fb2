"""Which real engines the tests run, at which version, and where their builds lie.

Knows names and folders only: not how a build is made (build.py) nor how an engine is started (engines.py).

Strategy: one folder per part, outside the checkout, whose name carries everything that decides its content (versions,
recipe, machine). A folder of that name with its stamp file is a finished build; anything else does not count. So an old
checkout and a new one share what they have in common, and a changed recipe never meets an old binary.
"""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path

LLAMA_CPP_PYTHON = "0.3.36"
"""Release of the PyPI package whose source distribution carries the llama.cpp tree that llama-server is built from."""

LLAMA_CPP_PYTHON_SHA256 = "832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e"
"""SHA-256 of that source distribution, checked by pip before it is unpacked."""

OLLAMA_NEW = "0.34.4"
"""Runs models by a spawned llama-server; the Go module proxy's checksum database vouches for the source."""

OLLAMA_OLD = "0.11.4"
"""Runs models by itself; the last one that the Go module proxy holds whole."""

RECIPE = 1
"""Raised when build.py builds the same versions in another way."""

STAMP = "BUILT"
"""Written last; a part's folder without it is not a finished build."""

SCRIPTED_MODELS = ("scripted", "scripted-tools", "scripted-think", "scripted-embed")
"""Names of the models that `ollama create` makes from the Modelfiles of the same name."""

HERE = Path(__file__).resolve().parent


def engines_dir() -> Path:
    """The folder that holds every part: `FLM_ENGINES_DIR`, or `flm/engines` in the user's cache folder."""
    if chosen := os.environ.get("FLM_ENGINES_DIR"):
        return Path(chosen).expanduser().resolve()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "flm" / "engines"


def machine() -> str:
    return f"{platform.system()}-{platform.machine()}".lower()


def llama_server_dir() -> Path:
    """Part that holds `bin/llama-server`."""
    return engines_dir() / f"llama-server-{LLAMA_CPP_PYTHON}-{machine()}-r{RECIPE}"


def ollama_dir(version: str) -> Path:
    """Part that holds `bin/ollama`, and `lib/ollama/llama-server` beside it where that version spawns one."""
    runner = f"-llama{LLAMA_CPP_PYTHON}" if version == OLLAMA_NEW else ""
    return engines_dir() / f"ollama-{version}{runner}-{machine()}-r{RECIPE}"


def scripted_dir() -> Path:
    """Part that holds the scripted models and Modelfiles; its name follows the text of the script that writes them."""
    digest = hashlib.sha256((HERE / "scripted_gguf.py").read_bytes()).hexdigest()[:12]
    return engines_dir() / f"scripted-{digest}"


def absent() -> dict[str, Path]:
    """What is not built: name for people -> the folder where it would be."""
    parts = {
        "the scripted models": scripted_dir(),
        "llama-server": llama_server_dir(),
        f"Ollama {OLLAMA_OLD}": ollama_dir(OLLAMA_OLD),
        f"Ollama {OLLAMA_NEW}": ollama_dir(OLLAMA_NEW),
    }
    return {name: folder for name, folder in parts.items() if not is_built(folder)}


def is_built(part: Path) -> bool:
    """Whether that folder is a finished build."""
    return (part / STAMP).is_file()
