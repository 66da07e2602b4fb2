"""The data folder: where its files are, and the lock of who changes its databases.

Knows the names of the files and nothing of what is in them; that nobody else reads them is for `flm.disk.private`.
Blocking: calls a local file system, so on an event loop it runs in a thread.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from pathlib import Path

import msgspec

from flm.disk.locks import holding
from flm.errors import CommandCode

LOCK_SECONDS = 30.0  # longer than any creation or migration; after it, somebody hangs


class Folder(msgspec.Struct, frozen=True):
    """Where everything of one FLM is. `config` and `security` may lie elsewhere (`--db-path-…`); all are absolute."""

    root: Path
    config: Path
    security: Path

    @property
    def pepper(self) -> Path:
        """The key of the hash of all API keys."""
        return self.root / "pepper"

    @property
    def audit(self) -> Path:
        """The audit log, a database whose loss the others survive."""
        return self.root / "audit.db"

    @property
    def run(self) -> Path:
        """What belongs to the running proxy: lock, identity, control socket, mapped files."""
        return self.root / "run"

    @property
    def certs(self) -> Path:
        """Certificates with their keys, and accounts at certificate authorities."""
        return self.root / "certs"

    @property
    def logs(self) -> Path:
        return self.root / "logs"


def locate(environment: Mapping[str, str], *, config: str | None = None, security: str | None = None) -> Folder:
    """The data folder: `FLM_HOME`, else the user's own (platformdirs). Touches nothing."""
    home = environment.get("FLM_HOME", "")
    if home:
        root = Path(home).expanduser()
    else:
        import platformdirs

        root = platformdirs.user_data_path("flm", appauthor=False)
    root = Path(os.path.abspath(root))
    return Folder(
        root=root,
        config=Path(os.path.abspath(config)) if config else root / "config.db",
        security=Path(os.path.abspath(security)) if security else root / "security.db",
    )


@contextlib.contextmanager
def locked(root: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold the folder for oneself while databases are created, migrated or replaced; `shared`: with others who only
    open them. Raises DB_ERROR after LOCK_SECONDS.
    """
    with holding(root, LOCK_SECONDS, CommandCode.DB_ERROR, "preparing the databases in", shared=shared):
        yield
