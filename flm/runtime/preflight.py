"""Would the code and data as they are now carry a running proxy on? Asked in a child, before `restart` begins.

Imports everything a supervisor imports, opens and migrates the databases, resolves the settings, reads the pepper;
answers with one JSON line on stdout. Whatever it raises is the reason for the restart not to happen. That workers of
the new code start is shown by starting them: see `warm`.

Starts nothing, binds nothing, publishes nothing.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Coroutine
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final

import msgspec

from flm.errors import CommandCode, CommandError
from flm.runtime.boot import SupervisorBoot, pack, unpack
from flm.runtime.control import Answer
from flm.runtime.environment import of_supervisor
from flm.runtime.warm import WarmUpError

SECONDS: Final = 30.0  # imports on a cold, loaded disk, and a migration


async def check(boot: SupervisorBoot, warming: Coroutine[Any, Any, None]) -> None:
    """Run the check in a child of the new code, and `warming` at the same time, which shows that its workers start.

    Raises PROXY_INVALID_CONFIG with the reason.
    """
    outcomes = await asyncio.gather(_ask(boot), warming, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, WarmUpError):
            raise _refused(str(outcome)) from None
        if isinstance(outcome, BaseException):
            raise outcome


async def _ask(boot: SupervisorBoot) -> None:
    document = pack(boot)
    try:
        child = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "flm.runtime.preflight",
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
            raise _refused(f"its check took over {SECONDS:g} s") from None
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
