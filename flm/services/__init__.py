"""What a person can do with FLM, as importable async calls: `ConfigService`, `SecurityService`, `EngineService`,
`ModelService`, `ProxyService`, `CertsService`, `ChatService`, `CheckService`, `BackupService`, `AuditService`. The CLI
only parses, calls these and prints.

    folder = locate_folder()
    key = await SecurityService(folder).create_key("laptop")

Each name is imported when it is first used, so that one service does not cost the start-up of all. Raises CommandError
with a code of `CommandCode`. Knows the rooms below; knows no argument parser and no terminal.
"""

from __future__ import annotations

import os
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flm.services.audit import AuditService as AuditService
    from flm.services.backup import BackupService as BackupService
    from flm.services.certs import CertsService as CertsService
    from flm.services.chat import ChatService as ChatService
    from flm.services.check import CheckService as CheckService
    from flm.services.config import ConfigService as ConfigService
    from flm.services.demo import DemoService as DemoService
    from flm.services.engines import EngineService as EngineService
    from flm.services.models import ModelService as ModelService
    from flm.services.proxy import ProxyService as ProxyService
    from flm.services.security import SecurityService as SecurityService
    from flm.store.folder import Folder as Folder

_HOMES = {
    "AuditService": "flm.services.audit",
    "BackupService": "flm.services.backup",
    "CertsService": "flm.services.certs",
    "ChatService": "flm.services.chat",
    "CheckService": "flm.services.check",
    "ConfigService": "flm.services.config",
    "DemoService": "flm.services.demo",
    "EngineService": "flm.services.engines",
    "Folder": "flm.store.folder",
    "ModelService": "flm.services.models",
    "ProxyService": "flm.services.proxy",
    "SecurityService": "flm.services.security",
}


def locate_folder(*, config: str | None = None, security: str | None = None) -> Folder:
    """The data folder: `FLM_HOME`, else the user's own. `config`, `security`: paths of databases that lie elsewhere."""
    from flm.store.folder import locate

    return locate(os.environ, config=config, security=security)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
