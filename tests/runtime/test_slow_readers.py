"""A client that takes nothing of an answer that is all in buffers: it is cut, and the audit log says why."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from flm.config import Value
from flm.services.audit import AuditEntry, AuditService, Query
from tests.runtime.harness import Running, run
from tests.support.demo import demo_engine
from tests.support.installed import installed

CHAT = "/v1/chat/completions"
IN_BUFFERS = 60_000  # bytes of an answer that nobody waits to send, and that the client's window does not take
OPEN_SECONDS = 10.0


@contextlib.contextmanager
def deaf(port: int, tls: ssl.SSLContext | None) -> Iterator[socket.socket]:
    """A connection whose owner has room for next to nothing, and reads none of it."""
    client = socket.socket()
    client.settimeout(OPEN_SECONDS)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.connect(("127.0.0.1", port))
    with tls.wrap_socket(client, server_hostname="localhost") if tls else client as connection:
        yield connection


async def chats(proxy: Running) -> list[AuditEntry]:
    return [each for each in await AuditService(proxy.folder).entries(Query(), 100) if each.endpoint == CHAT]


@pytest.mark.parametrize("mode", ["local-http", "dev-selfsigned"])
def test_the_audit_log_says_that_it_was_too_slow(tmp_path: Path, mode: str) -> None:
    async def main() -> None:
        flags: dict[str, Value] = {"proxy__mode": mode, "proxy__send_timeout_seconds": 1}
        with demo_engine("openai") as engine:
            async with installed(tmp_path, {"e": ("openai", engine.url)}, **flags) as flm:
                tls = flm.proxy.trusting() if mode != "local-http" else None
                system = {"role": "system", "content": f"demo: words=5000 stall={IN_BUFFERS}"}
                body = {"model": f"flm://e/{engine.model}", "stream": True, "messages": [system]}
                with deaf(flm.port, tls) as client:
                    await asyncio.to_thread(client.sendall, flm.request("POST", CHAT, body))
                    while not (rows := await chats(flm.proxy)):
                        await asyncio.sleep(0.05)
                assert [(row.status, row.error_type) for row in rows] == [(200, "client_too_slow")]

    run(main)
