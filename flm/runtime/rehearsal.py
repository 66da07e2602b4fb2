"""What is tried before a restart begins: whether the code that is installed now can carry the running proxy on.

A child of that code is asked, since this process is of the code of before (`preflight`), and its workers are started,
as far as they go without anything to serve (`warm`). Changes nothing of the running proxy.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Coroutine
from typing import Any, Final

import msgspec

from flm.errors import CommandCode, CommandError
from flm.runtime.boot import SupervisorBoot, pack
from flm.runtime.control import Answer
from flm.runtime.environment import of_supervisor
from flm.runtime.warm import WarmUpError

PROGRAM: Final = "flm.runtime.preflight"
SECONDS: Final = 30.0  # imports on a cold, loaded disk, and a migration


async def check(boot: SupervisorBoot, warming: Coroutine[Any, Any, None]) -> None:
    """Run the check in a child of the new code, and `warming` at the same time, which shows that its workers start.

    Raises PROXY_INVALID_CONFIG with the reason.
    """
    outcomes = await asyncio.gather(warming, _ask(boot), return_exceptions=True)  # what takes longest begins first
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
            PROGRAM,
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
