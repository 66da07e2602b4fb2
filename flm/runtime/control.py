"""The control socket: how the CLI speaks to the running proxy. JSON lines on a 0600 unix socket in a 0700 folder.

One request a line, `{"op": …}`; one answer a line, `{"ok": true, "data": …}` or with `ok` false, `code` and `message`.
Only this user and root are listened to. Lines, connections and waiting are bounded.

Knows no operation: it hands each request to a function and sends what that returns.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import struct
import sys
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final

import msgspec

from flm.errors import CommandCode, CommandError, FlmError

LONGEST_LINE: Final = 65_536  # a request is some hundred bytes
LONGEST_ANSWER: Final = 16_777_216  # a status with every engine's state
MOST_CONNECTIONS: Final = 32
REQUEST_SECONDS: Final = 10.0  # from a connection, or the answer before, to a whole line
_ATTEMPTS: Final = 2 * MOST_CONNECTIONS  # each restart just then hangs up on who waits; as many may have been asked for
LONGEST_PATH: Final = 100  # sun_path holds 104 bytes on macOS, 108 on Linux


class Request(msgspec.Struct, frozen=True):
    """One thing asked of the running proxy. `seconds` and `now` belong to `stop`."""

    op: str
    now: bool = False


class Answer(msgspec.Struct, omit_defaults=True):
    ok: bool
    data: Any = None
    code: str | None = None
    message: str | None = None
    step: str = ""  # not an end yet: what is being done, with `message` for people


# Carries out a request and returns the answer's data. The connection's socket is given, so that an answer can be sent
# by the process this one turns into. Raises FlmError.
Handle = Callable[[Request, socket.socket], Awaitable[object]]

log = logging.getLogger("flm.supervisor")

_requests = msgspec.json.Decoder(Request)
_answers = msgspec.json.Decoder(Answer)
_encoder = msgspec.json.Encoder()


@contextlib.contextmanager
def reachable(path: Path) -> Iterator[str]:
    """A name for `path` that fits into a unix socket's address, while the block lasts."""
    if len(os.fsencode(path)) <= LONGEST_PATH:
        yield str(path)
        return
    with tempfile.TemporaryDirectory(prefix="flm") as folder:
        shortcut = Path(folder) / "r"
        shortcut.symlink_to(path.parent)
        yield str(shortcut / path.name)


def listen(path: Path) -> socket.socket:
    """The listening socket at `path`, replacing a left-over one. The caller holds the folder's lock. Raises OSError."""
    path.unlink(missing_ok=True)
    listening = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with reachable(path) as name:
            listening.bind(name)  # the folder is 0700: nobody gets in before the mode is set
        path.chmod(0o600)
        listening.listen(MOST_CONNECTIONS)
        listening.setblocking(False)
    except BaseException:
        listening.close()
        raise
    return listening


class ControlServer:
    """Answers on a listening socket until it is closed."""

    def __init__(self, listening: socket.socket, handle: Handle) -> None:
        self._listening = listening
        self._handle = handle
        self._talks: set[asyncio.Task[None]] = set()
        self._answering: set[asyncio.Task[None]] = set()
        self._accepting: asyncio.Task[None] | None = None

    def start(self) -> None:
        self._accepting = asyncio.get_running_loop().create_task(self._accept())

    async def pause(self, *, but: asyncio.Task[object] | None = None, grace: float = 0.0) -> None:
        """Accept no more, and end every talk: answers under way have `grace` seconds. `but` is left alone.

        The socket goes on listening: who connects meanwhile waits.
        """
        answering = self._answering - {but}
        if answering and grace:
            await asyncio.wait(answering, timeout=grace)
        tasks = [task for task in (self._accepting, *self._talks) if task is not None and task is not but]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(self._listening)
            except OSError:
                await asyncio.sleep(REQUEST_SECONDS / 100)  # out of descriptors: it passes, and must not spin
                continue
            if len(self._talks) >= MOST_CONNECTIONS or peer_uid(connection) not in (os.geteuid(), 0):
                connection.close()
                continue
            talk = loop.create_task(self._talk(connection))
            self._talks.add(talk)
            talk.add_done_callback(self._talks.discard)

    async def _talk(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        buffer = b""
        with connection, contextlib.suppress(OSError, TimeoutError):
            while True:
                async with asyncio.timeout(REQUEST_SECONDS):
                    line, buffer = await _line(connection, buffer, LONGEST_LINE)
                if line is None:
                    return
                await self._answer(line, connection)

    async def _answer(self, line: bytes, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task()
        assert task is not None
        self._answering.add(task)
        try:
            answer = await self._carry_out(line, connection)
            await loop.sock_sendall(connection, _encoder.encode(answer) + b"\n")
        finally:
            self._answering.discard(task)

    async def _carry_out(self, line: bytes, connection: socket.socket) -> Answer:
        try:
            return Answer(True, await self._handle(_requests.decode(line), connection))
        except msgspec.MsgspecError as error:
            return Answer(False, code=CommandCode.USAGE.value, message=f"not a request: {error}")
        except CommandError as error:
            return Answer(False, code=error.code.value, message=error.message)
        except (FlmError, OSError) as error:
            return Answer(False, code=CommandCode.IO_ERROR.value, message=str(error))
        except Exception as error:  # whoever asked must hear that there is no answer
            log.exception("a request on the control socket failed")
            message = f"the proxy made a mistake ({type(error).__name__}); its log says where"
            return Answer(False, code=CommandCode.IO_ERROR.value, message=message)


def send_answer(connection: socket.socket, data: object = None, error: CommandError | None = None) -> None:
    """Answer on a connection that an earlier image of this process accepted, and close it."""
    answer = Answer(True, data) if error is None else Answer(False, code=error.code.value, message=error.message)
    with connection, contextlib.suppress(OSError):
        connection.settimeout(1.0)
        connection.sendall(_encoder.encode(answer) + b"\n")


async def ask(path: Path, request: Request, timeout: float) -> Any:
    """Send one request to the running proxy and return the data of its answer.

    Raises what the proxy answered as CommandError; PROXY_NOT_RUNNING if nobody listens there or it ended without an
    answer; TimeoutError after `timeout` seconds.
    """
    line: bytes | None = None
    async with asyncio.timeout(timeout):
        for _ in range(_ATTEMPTS):
            try:
                line = await _exchange(path, request)
            except OSError:
                break
            if line is not None:
                break
    if line is None:
        raise CommandError(CommandCode.PROXY_NOT_RUNNING, "no proxy answers; start it with `flm proxy start`")
    answer = _answers.decode(line)
    if not answer.ok:
        raise CommandError(CommandCode(answer.code), answer.message or "the proxy refused without a reason")
    return answer.data


async def _exchange(path: Path, request: Request) -> bytes | None:
    """The line that comes back; None if the connection ends without one. Raises OSError if nobody listens."""
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.setblocking(False)
        with reachable(path) as name:
            await loop.sock_connect(connection, name)
        try:
            await loop.sock_sendall(connection, _encoder.encode(request) + b"\n")
            return (await _line(connection, b"", LONGEST_ANSWER))[0]
        except OSError:
            return None


async def _line(connection: socket.socket, buffer: bytes, limit: int) -> tuple[bytes | None, bytes]:
    """(the next line, what is behind it); (None, b"") when the peer has closed, or sent a line over `limit` bytes."""
    loop = asyncio.get_running_loop()
    while b"\n" not in buffer:
        if len(buffer) > limit:
            return None, b""
        data = await loop.sock_recv(connection, 65_536)
        if not data:
            return None, b""
        buffer += data
    line, _, rest = buffer.partition(b"\n")
    return line, rest


_LINUX = sys.platform.startswith("linux")
_LOCAL_PEERCRED: Final = 1  # macOS, <sys/un.h>; SOL_LOCAL is 0; struct xucred: u32 version, u32 uid, …


def peer_uid(connection: socket.socket) -> int:
    """The user at the other end of a unix socket; -1 if the system does not say."""
    try:
        if _LINUX:
            credentials = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            return int(struct.unpack("3i", credentials)[1])
        return int(struct.unpack("=II", connection.getsockopt(0, _LOCAL_PEERCRED, 128)[:8])[1])
    except OSError:
        return -1
