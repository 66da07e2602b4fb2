"""A flood: 600 clients of one port that come again and again, as a process of its own, of a chosen kind.

`python -P -m tests.runtime.flood PORT KIND` goes on until its standard input ends.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
import sys
from collections.abc import AsyncIterator

CLIENTS = 600
SECONDS = 20  # within which a flood has begun
SAID = {
    "silent": b"",
    "garbage": b"\x00\xff garbage",
    "tls": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "endless": b"GET / HTTP/1.1\r\nHost: a\r\nx: ",
    "body": b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000000\r\n\r\n",
    "good": b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "gone": b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
}
KINDS = tuple(SAID)


@contextlib.asynccontextmanager
async def flooding(port: int, kind: str) -> AsyncIterator[None]:
    """The port is flooded while the block lasts."""
    pipe = asyncio.subprocess.PIPE
    flood = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", "tests.runtime.flood", str(port), kind, stdin=pipe, stdout=pipe
    )
    try:
        assert flood.stdout is not None
        assert await asyncio.wait_for(flood.stdout.readline(), SECONDS) == b"on\n"
        yield
    finally:
        flood.kill()
        await flood.wait()


async def _client(port: int, kind: str) -> None:
    loop = asyncio.get_running_loop()
    while True:
        with socket.socket() as client, contextlib.suppress(OSError):
            client.setblocking(False)
            await loop.sock_connect(client, ("127.0.0.1", port))
            await loop.sock_sendall(client, SAID[kind])
            if kind == "gone":
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            elif kind in ("endless", "body"):
                while True:
                    await loop.sock_sendall(client, b"x" * (1 if kind == "endless" else 65_536))
                    await asyncio.sleep(0)
            else:
                while await loop.sock_recv(client, 65_536):
                    pass


async def _main(port: int, kind: str) -> None:
    clients = [asyncio.create_task(_client(port, kind)) for _ in range(CLIENTS)]
    print("on", flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    for client in clients:
        client.cancel()


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1]), sys.argv[2]))
