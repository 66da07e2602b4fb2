"""The program of a background supervisor: `python -m flm.runtime.startup [--resume] DESCRIPTOR`.

The first time it forks once, so that the supervisor is nobody's child and who started it need not wait for it, and
reports its pid and then the outcome to whoever started it. With `--resume` it is what a supervisor becomes by exec.

Knows how to begin and how to say how that went; everything else is `flm.runtime.supervisor`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys

import msgspec

from flm.errors import CommandCode, CommandError
from flm.runtime.boot import SupervisorBoot, SupervisorState, unpack
from flm.runtime.control import Answer
from flm.runtime.handle import Handle
from flm.runtime.succession import keep_private
from flm.runtime.supervisor import Supervisor

log = logging.getLogger("flm.supervisor")


class _Report:
    """Where whoever started this process reads how that went: the pid first, the outcome then."""

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor
        self._watching: asyncio.AbstractEventLoop | None = None

    def pid(self) -> None:
        """Raises BrokenPipeError if nobody reads any more, as `success` does: a start nobody waits for is given up."""
        self._write(Answer(True, os.getpid()))

    def watch(self) -> None:
        """End this process, as SIGTERM does, once nobody reads any more: a CA may take minutes to refuse."""
        if self._descriptor is not None:
            self._watching = asyncio.get_running_loop()
            self._watching.add_reader(self._descriptor, self._left)  # the end of a pipe's reader shows so at its writer

    def _left(self) -> None:
        log.warning("who started the proxy has gone before it was ready; it ends")
        self._rest()
        signal.raise_signal(signal.SIGTERM)

    def _rest(self) -> None:
        if self._watching is not None and self._descriptor is not None:
            self._watching.remove_reader(self._descriptor)
        self._watching = None

    async def success(self, handle: Handle) -> None:
        self._write(Answer(True, handle))
        self._rest()
        self._close()

    def step(self, step: str, detail: str) -> None:
        """What the start is at. Nobody reading shows at the end."""
        log.info("%s: %s", step, detail)
        with contextlib.suppress(BrokenPipeError):
            self._write(Answer(True, message=detail, step=step))

    def failure(self, error: CommandError) -> None:
        with contextlib.suppress(BrokenPipeError):
            self._write(Answer(False, code=error.code.value, message=error.message))
        self._close()

    def _write(self, answer: Answer) -> None:
        if self._descriptor is not None:
            os.write(self._descriptor, msgspec.json.encode(answer) + b"\n")

    def _close(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def main() -> int:
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    if sys.argv[1] == "--resume":
        state = unpack(int(sys.argv[2]), SupervisorState)
        keep_private(state)
        asyncio.run(Supervisor(state.boot, state).run(_nothing_to_say))
        return 0
    boot = unpack(int(sys.argv[1]), SupervisorBoot)
    if os.fork():
        os._exit(0)
    for descriptor in (boot.lock_fd, boot.report_fd, *(each.descriptor for each in boot.given)):
        if descriptor is not None:
            os.set_inheritable(descriptor, False)
    return _begin(boot, _Report(boot.report_fd))


async def _nothing_to_say(_handle: Handle) -> None:
    """Who asked for a restart is answered on the control connection."""


def _begin(boot: SupervisorBoot, report: _Report) -> int:
    try:
        report.pid()
        asyncio.run(_attended(boot, report))
        return 0
    except BrokenPipeError:
        return 1
    except CommandError as error:
        failure = error
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        failure = CommandError(CommandCode.IO_ERROR, f"the system refused: {error.strerror or error}{where}")
    except Exception as error:
        log.exception("the supervisor cannot go on")
        failure = CommandError(CommandCode.IO_ERROR, f"unexpected {type(error).__name__}: {error}")
    report.failure(failure)
    return failure.exit_code


async def _attended(boot: SupervisorBoot, report: _Report) -> None:
    report.watch()
    await Supervisor(boot).run(report.success, report.step)


def _leave(code: int) -> None:
    """End now: everything in order is done, and a thread that hangs in a system call must not hold the lock on."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _leave(main())
