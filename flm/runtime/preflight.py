"""Would the code and data as they are now carry a running proxy on? Asked in a child, before `restart` begins.

Imports everything a supervisor and a worker import, opens and migrates the databases, resolves the settings, reads the
pepper; answers with one JSON line on stdout. Whatever it raises is the reason for the restart not to happen.

Starts nothing, binds nothing, publishes nothing.
"""

from __future__ import annotations

import asyncio
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Final

import msgspec

from flm.errors import CommandCode, CommandError
from flm.runtime.boot import SupervisorBoot, pack, unpack
from flm.runtime.control import Answer

SECONDS: Final = 30.0  # imports on a cold, loaded disk, and a migration
IMPORTED: Final = ("flm.runtime.startup", "flm.proxy.app")


async def check(boot: SupervisorBoot) -> None:
    """Run the check in a child of the new code. Raises PROXY_INVALID_CONFIG with its reason."""
    document = pack(boot)
    try:
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "flm.runtime.preflight",
            str(document),
            pass_fds=(document,),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    finally:
        os.close(document)
    try:
        async with asyncio.timeout(SECONDS):
            said, complaints = await child.communicate()
    except TimeoutError:
        child.kill()
        await child.wait()
        raise _refused(f"its check took over {SECONDS:g} s") from None
    try:
        answer = msgspec.json.decode(said, type=Answer)
    except msgspec.MsgspecError:
        lines = complaints.decode("utf-8", "replace").strip().splitlines()
        raise _refused(lines[-1] if lines else f"its check ended with exit code {child.returncode}") from None
    if not answer.ok:
        raise _refused(answer.message or "without a reason")


def _refused(reason: str) -> CommandError:
    return CommandError(
        CommandCode.PROXY_INVALID_CONFIG, f"the restart was not begun, and the proxy goes on as it was: {reason}"
    )


def main() -> None:
    boot = unpack(int(sys.argv[1]), SupervisorBoot)
    try:
        for module in (*IMPORTED, boot.worker_module):
            import_module(module)
        asyncio.run(_open(boot))
        answer = Answer(True)
    except CommandError as error:
        answer = Answer(False, code=error.code.value, message=error.message)
    except Exception as error:
        answer = Answer(False, message=f"{type(error).__name__}: {error}")
    sys.stdout.buffer.write(msgspec.json.encode(answer) + b"\n")


async def _open(boot: SupervisorBoot) -> None:
    from flm.runtime.publish import Publisher
    from flm.store.folder import Folder

    publisher = Publisher(Folder(Path(boot.root), Path(boot.config), Path(boot.security)), boot.flags, "")
    try:
        await publisher.open()
        await publisher.load_settings()
    finally:
        await publisher.close()


if __name__ == "__main__":
    main()
