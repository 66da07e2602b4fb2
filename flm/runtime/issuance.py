"""An attempt to get a certificate from a CA, seen from the supervisor: a child process that is asked, heard and ended.

Strategy: the ACME client blocks, and takes memory that a proxy has no other use for, so it runs in a process of its
own. The two speak JSON lines over a socket pair (`flm.tls.words`); nothing stands in the child's arguments or
environment that others may not read. The child keeps its own deadline and says so in words; one that does not is
killed shortly after. Whatever ends the waiting here, cancellation too, the child is gone when the call returns, and
what it had published is taken back. A supervisor that dies closes its end of the pair, at which the child ends itself.

Knows no schedule and no database: when to ask, and what to do with a pair, is decided elsewhere.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import sys
from collections.abc import Callable
from typing import Final, Protocol

import msgspec

from flm.errors import CommandError
from flm.runtime.environment import of_supervisor
from flm.tls import pair
from flm.tls.deadline import too_late
from flm.tls.pair import Pair
from flm.tls.refusal import Refused
from flm.tls.words import LONGEST_LINE, Ask, Heard, Said

__all__ = ["Refused", "issue", "window"]

MARGIN_SECONDS: Final = 3.0  # beyond the child's own deadline, until it is killed
_LEAVE_SECONDS: Final = 2.0  # from the last word to the end of the child, until it is killed
_COMPLAINT_BYTES: Final = 16_384  # of what a broken child writes on stderr; the rest is read and dropped
_SHOWN_CHARACTERS: Final = 4_000
_ON_THE_WAY: Final = frozenset({"step", "publish", "retract", "look", "spared"})  # all else is a last word

Step = Callable[[str, str], None]
Publish = Callable[[str, str], None]
Retract = Callable[[str], None]


class Looks(Protocol):
    """Who counts how often a CA was told to look at a name: `flm.runtime.allowance`."""

    async def look(self, name: str) -> None:
        """It is about to be told. Raises Refused if it must not be, and CommandError if that could not be noted."""
        ...

    async def spared(self, name: str) -> None:
        """The last look at `name` has not failed. Raises CommandError."""
        ...


log = logging.getLogger("flm.supervisor")

_said = msgspec.json.Decoder(Said)


async def issue(ask: Ask, step: Step, publish: Publish, retract: Retract, looks: Looks) -> Pair:
    """A pair for `ask.names` from the CA at `ask.directory`. `step` hears of each step and of warnings; `publish` and
    `retract` change what the plain port answers, at once; `looks` is asked before the CA is told to look at a name.

    Raises Refused.
    """
    said = await _run(ask, _Listener(step, publish, retract, looks))
    if said.event != "issued":
        raise _unexpected(f"it answered {said.event} where a certificate was asked for")
    try:
        return pair.read(said.pem.encode())
    except CommandError as error:
        raise _unexpected(error.message) from None


async def window(ask: Ask) -> tuple[float, float, float] | None:
    """When the CA wants `ask.replaces` renewed: start and end in Unix seconds, and the seconds until it may be asked
    again; None if the CA has no such thing. Raises Refused."""
    said = await _run(ask, _Listener(lambda _step, _detail: None, _never_published, _never_retracted, None))
    if said.event != "window":
        raise _unexpected(f"it answered {said.event} where a renewal window was asked for")
    return (said.start, said.end, said.retry_after) if said.start or said.end else None


class _Listener:
    """Acts on what a child says until it says the last word."""

    def __init__(self, step: Step, publish: Publish, retract: Retract, looks: Looks | None) -> None:
        self._step = step
        self._publish = publish
        self._retract = retract
        self._looks = looks
        self._published: list[str] = []
        self.step = "starting"

    async def hear(self, said: Said) -> Heard | None:
        """The answer that the child waits for, if it does."""
        if said.event == "step":
            self.step = said.detail
            self._step(said.step, said.detail)
            return None
        if said.event in ("look", "spared"):
            return await self._count(said)
        try:
            if said.event == "publish":
                self._published.append(said.token)
                self._publish(said.token, said.answer)
            else:
                self._take_back(said.token)
        except Exception as error:
            log.exception("a challenge could not be published")
            return Heard(False, f"{type(error).__name__}")
        return Heard(True)

    async def _count(self, said: Said) -> Heard:
        assert self._looks is not None, "who asks for a window has nothing looked at"
        try:
            await (self._looks.look(said.name) if said.event == "look" else self._looks.spared(said.name))
        except Refused as refused:
            return Heard(False, refused.message, refused.retry_after)
        except CommandError as error:
            return Heard(False, f"what is asked of the CA could not be noted: {error.message}")
        return Heard(True)

    def close(self) -> None:
        """Take back what is still published."""
        for token in list(self._published):
            self._take_back(token)

    def _take_back(self, token: str) -> None:
        if token in self._published:
            self._published.remove(token)
            self._retract(token)


async def _run(ask: Ask, listener: _Listener) -> Said:
    """What a child said last. Raises Refused; the child is gone then, as it is after any other end."""
    ours, theirs = socket.socketpair()
    with ours:
        with theirs:
            child = await _start(theirs)
        complaints = asyncio.create_task(_read_complaints(child))
        leaving = False
        try:
            async with asyncio.timeout(ask.seconds + MARGIN_SECONDS):
                said = await _converse(ours, ask, listener)
            leaving = True
        except TimeoutError:
            raise too_late(ask.seconds, listener.step) from None
        finally:
            listener.close()
            code, complaint = await asyncio.shield(asyncio.gather(_end(child, leaving), complaints))
    if complaint:
        log.error("the attempt to get a certificate wrote: %s", complaint)
    if said is None:
        raise _unexpected(f"its process ended with exit code {code} while it was {listener.step}")
    if said.event == "refused":
        raise Refused(said.kind or "local", said.message, said.retry_after)
    return said


async def _start(theirs: socket.socket) -> asyncio.subprocess.Process:
    try:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",
            "-m",
            "flm.tls.attempt",
            str(theirs.fileno()),
            env=of_supervisor(os.environ),
            pass_fds=(theirs.fileno(),),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            process_group=0,  # a Ctrl-C at the terminal is the supervisor's to hear
        )
    except OSError as error:
        raise Refused("local", f"no process could be started to get a certificate: {error.strerror or error}") from None


async def _converse(ours: socket.socket, ask: Ask, listener: _Listener) -> Said | None:
    """The child's last word; None if it ended without one."""
    reader, writer = await asyncio.open_connection(sock=ours, limit=LONGEST_LINE)
    try:
        writer.write(msgspec.json.encode(ask) + b"\n")
        while line := await reader.readline():
            said = _said.decode(line)
            if said.event not in _ON_THE_WAY:
                await _take_leave(reader, writer, said)
                return said
            if (heard := await listener.hear(said)) is not None:
                writer.write(msgspec.json.encode(heard) + b"\n")
    except (OSError, ValueError):  # msgspec's errors, and a line too long, are ValueErrors
        return None
    finally:
        writer.transport.abort()
    return None


async def _end(child: asyncio.subprocess.Process, leaving: bool) -> int:
    """The exit code of a child that is gone: by itself if it is `leaving`, or killed."""
    if leaving:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LEAVE_SECONDS):
                return await child.wait()
    with contextlib.suppress(ProcessLookupError):
        child.kill()
    return await child.wait()


async def _take_leave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, said: Said) -> None:
    """Tell the child that its pair has arrived, and let it end by itself."""
    if said.event == "issued":
        writer.write(msgspec.json.encode(Heard(True)) + b"\n")
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LEAVE_SECONDS):
            await reader.read()


async def _read_complaints(child: asyncio.subprocess.Process) -> str:
    if child.stderr is None:
        raise AssertionError("the child was started with a pipe")
    kept = b""
    while chunk := await child.stderr.read(_COMPLAINT_BYTES):
        kept = (kept + chunk)[-_COMPLAINT_BYTES:]
    return kept.decode("utf-8", "replace").strip()[-_SHOWN_CHARACTERS:]


def _unexpected(why: str) -> Refused:
    return Refused("local", f"the attempt to get a certificate broke off: {why}; see the log, and please report it")


def _never_published(_token: str, _answer: str) -> None:
    raise AssertionError("who asks for a window publishes nothing")


def _never_retracted(_token: str) -> None:
    raise AssertionError("who asks for a window publishes nothing")
