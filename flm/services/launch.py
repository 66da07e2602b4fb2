"""Starting a supervisor: the process, its report of how that goes, and the one request that proves it.

Strategy: a pipe whose writing end the supervisor holds. Its first line is the pid, then come the steps of a start that
takes its time, then the outcome. A start that nobody waits for any more is undone.

Knows no lock, no folder and no control socket: what is to run stands in the boot document.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import signal
import ssl
import subprocess
import sys
from collections.abc import Callable
from typing import BinaryIO, Final

import msgspec

from flm.errors import CommandCode, CommandError
from flm.runtime import instance
from flm.runtime.boot import SupervisorBoot, pack
from flm.runtime.control import Answer
from flm.runtime.environment import of_supervisor
from flm.runtime.handle import CertificateLine, Handle
from flm.runtime.succession import MODULE

START_SECONDS: Final = 120.0  # of silence: workers have 60 s, databases may have to migrate, a CA has 90 s
GONE_SECONDS: Final = 10.0  # from a supervisor's last word, or its death, to the last process's end
POLL_SECONDS: Final = 0.01
_REPORT_BYTES: Final = 1_048_576

Step = Callable[[str, str], None]


async def launch(boot: SupervisorBoot, step: Step) -> Handle:
    """Start a supervisor in the background, and return when it serves; `step` is told what it is at meanwhile. It
    inherits the lock and the sockets of `boot`, which stay the caller's too.

    Raises what the supervisor refuses with, or PROXY_INVALID_CONFIG; then nothing of it is left.
    """
    reading, writing = os.pipe()
    with open(reading, "rb", buffering=0) as report:  # noqa: ASYNC230 - a pipe that is open already
        document = msgspec.structs.replace(boot, report_fd=writing)
        inherited = (boot.lock_fd, writing, *(each.descriptor for each in boot.given))
        spawning = asyncio.ensure_future(asyncio.to_thread(_spawn, document, inherited))
        try:
            await asyncio.shield(spawning)
        finally:
            await asyncio.wait([spawning])  # also when cancelled: the thread uses these descriptors
            os.close(writing)
        return await _await_report(report, step)


def _spawn(boot: SupervisorBoot, inherited: tuple[int, ...]) -> None:
    """Start the supervisor. The process started only forks and ends, so that the supervisor is nobody's child."""
    document = pack(boot)
    try:
        subprocess.run(  # noqa: S603 - our own interpreter and module
            [sys.executable, "-P", "-m", MODULE, str(document)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=of_supervisor(os.environ),
            pass_fds=(document, *inherited),
            start_new_session=True,
            cwd=boot.root,
            check=False,  # how it went stands in the report
        )
    finally:
        os.close(document)


async def _await_report(report: BinaryIO, step: Step) -> Handle:
    """The report: the supervisor's pid, what it is at if that takes its time, and how the start went."""
    reader = asyncio.StreamReader(limit=_REPORT_BYTES)
    transport, _ = await asyncio.get_running_loop().connect_read_pipe(
        lambda: asyncio.StreamReaderProtocol(reader), report
    )
    pid: int | None = None
    try:
        async with asyncio.timeout(START_SECONDS) as limit:
            pid = (await _read_answer(reader)).data
            while (answer := await _read_answer(reader)).step:
                limit.reschedule(asyncio.get_running_loop().time() + START_SECONDS)
                step(answer.step, answer.message or "")
    except BaseException as error:
        if pid is not None:
            await _undo(pid)
        if isinstance(error, TimeoutError):
            raise did_not_start(f"nothing was heard of it for {START_SECONDS:g} s") from None
        raise
    finally:
        transport.close()
    if not answer.ok:
        raise CommandError(CommandCode(answer.code), answer.message or "the start failed without a reason")
    return msgspec.convert(answer.data, Handle)


async def _undo(pid: int) -> None:
    """A start that nobody waits for any more leaves nothing behind."""
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
        if not await within(GONE_SECONDS, lambda: instance.identify(pid) is None):
            os.kill(pid, signal.SIGKILL)


async def _read_answer(reader: asyncio.StreamReader) -> Answer:
    line = await reader.readline()
    if not line:
        raise did_not_start("it ended, or was stopped, before it was ready; its log may say why")
    return msgspec.json.decode(line, type=Answer)


def did_not_start(reason: str) -> CommandError:
    """PROXY_INVALID_CONFIG, for people."""
    return CommandError(CommandCode.PROXY_INVALID_CONFIG, f"the proxy did not start: {reason}")


class AnotherCertificateError(OSError):
    """Met at the proxy's address."""


async def health(host: str, port: int, certificate: CertificateLine | None) -> bytes:
    """The first line of the answer to /health. Raises OSError, also for another certificate than the proxy's own."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if certificate is not None else None
    if context is not None:
        context.check_hostname = False  # allowed unverified-tls: the very certificate is known
        context.verify_mode = ssl.CERT_NONE  # allowed unverified-tls: idem
    reader, writer = await asyncio.open_connection(host, port, ssl=context)
    try:
        met = writer.get_extra_info("ssl_object")
        if certificate is not None:
            fingerprint = hashlib.sha256(met.getpeercert(binary_form=True)).hexdigest()
            if fingerprint != certificate.fingerprint:
                raise AnotherCertificateError("another certificate than the proxy's own is served there")
        writer.write(b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        return await reader.readline()
    finally:
        writer.transport.abort()


async def within(seconds: float, condition: Callable[[], bool]) -> bool:
    """Whether a condition, of which nobody is told, came true within this time."""
    loop = asyncio.get_running_loop()
    deadline = loop.time() + seconds
    while not condition():
        if loop.time() > deadline:
            return False
        await asyncio.sleep(POLL_SECONDS)
    return True
