"""The program that says whether the code and data as they are now would carry a running proxy on: see `rehearsal`.

    python -m flm.runtime.preflight DESCRIPTOR

Imports everything a supervisor imports, opens and migrates the databases, resolves the settings, reads the pepper;
answers with one JSON line on stdout. Whatever it raises is the reason for the restart not to happen. That workers of
the new code start is shown by starting them: see `warm`.

Starts nothing, binds nothing, publishes nothing.
"""

from __future__ import annotations

import asyncio
import os
import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import msgspec

from flm.errors import CommandError
from flm.runtime.boot import SupervisorBoot, unpack
from flm.runtime.control import Answer


def main() -> None:
    boot = unpack(int(sys.argv[1]), SupervisorBoot)
    try:
        import_module("flm.runtime.startup")
        if find_spec(boot.worker_module) is None:
            raise ModuleNotFoundError(f"no module named {boot.worker_module!r}")
        asyncio.run(_open(boot))
        answer = Answer(True)
    except CommandError as error:
        answer = Answer(False, code=error.code.value, message=error.message)
    except Exception as error:
        answer = Answer(False, message=f"{type(error).__name__}: {error}")
    sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")
    sys.stdout.flush()
    os._exit(0)  # whoever waits for the answer waits for the end, and the interpreter's own takes a while


async def _open(boot: SupervisorBoot) -> None:
    from flm.runtime.publish import Publisher
    from flm.store.folder import Folder

    publisher = Publisher(Folder(Path(boot.root), Path(boot.config), Path(boot.security)), boot.flags, "")
    try:
        await publisher.open()
        await publisher.load_settings()
        await publisher.load_policy()
    finally:
        await publisher.close()


if __name__ == "__main__":
    main()
