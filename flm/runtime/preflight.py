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
from flm.runtime.environment import of_supervisor

SECONDS: Final = 30.0  # imports on a cold, loaded disk, and a migration
# What each child checks; two of them, because importing is most of the work and takes a processor each.
PARTS: Final = ("supervisor", "worker")


async def check(boot: SupervisorBoot) -> None:
    """Run the check in children of the new code. Raises PROXY_INVALID_CONFIG with its reason."""
    outcomes = await asyncio.gather(*(_ask(boot, part) for part in PARTS), return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, BaseException):
            raise outcome


async def _ask(boot: SupervisorBoot, part: str) -> None:
    document = pack(boot)
    try:
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "flm.runtime.preflight",
            part,
            str(document),
            env=of_supervisor(os.environ),
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
    except BaseException as error:
        child.kill()
        await child.wait()
        if isinstance(error, TimeoutError):
            raise _refused(f"the check of the {part} took over {SECONDS:g} s") from None
        raise
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
    part, boot = sys.argv[1], unpack(int(sys.argv[2]), SupervisorBoot)
    try:
        if part == "supervisor":
            import_module("flm.runtime.startup")
            asyncio.run(_open(boot))
        else:
            import_module(boot.worker_module)
            import_module("flm.proxy.app")
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
