"""A proxy that listens and says nothing is told from an engine that takes its time."""

from __future__ import annotations

import asyncio
import socket

import pytest

from flm.errors import CommandCode, CommandError
from flm.services import chat
from flm.store.folder import Folder


def test_a_silent_proxy_is_not_waited_for(folder: Folder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chat, "HEALTH_SECONDS", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # the kernel accepts, nobody reads
        port = str(silent.getsockname()[1])
        service = chat.ChatService(folder, {"FLM_API_KEY": "flm_any", "FLM_PROXY_PORT": port})

        async def ask() -> None:
            async with asyncio.timeout(10):
                await service.ask("Hi", "model")

        with pytest.raises(CommandError, match="nothing was answered within") as caught:
            asyncio.run(ask())
    assert caught.value.code is CommandCode.PROXY_NOT_RUNNING
    assert port in caught.value.message
