"""What the tests here share: FLM's own plain port where a CA looks for challenges, and an attempt that is told to them.

async with Client(tmp_path / "acme", ca) as client:
    pair = await client.issue("one.flm.example")
    ... client.steps, client.tokens ...
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Coroutine
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import pytest

from flm.runtime import issuance
from flm.runtime.plain import PlainListener
from flm.tls.pair import Pair
from flm.tls.plain import Site
from flm.tls.refusal import Refused
from flm.tls.words import Ask

T = TypeVar("T")
NAME = "one.flm.example"
SECONDS = 40.0  # of an attempt; none of them needs it


class Client:
    """One server that wants certificates, with its folder and its port 80 (`port`; 0: one of the kernel's choice)."""

    def __init__(self, folder: Path, directory: str, ca_file: Path, port: int = 0, profile: str = "") -> None:
        self.folder = folder
        self.directory = directory
        self.ca_file = ca_file
        self.profile = profile
        self.steps: list[tuple[str, str]] = []
        self.published: list[str] = []
        self.looks: list[str] = []
        """The names that the CA was told to look at, without those where that is known to have gone well."""
        self.site = Site((NAME,), 443)
        self._port = port

    async def __aenter__(self) -> Client:
        self._socket = socket.create_server(("127.0.0.1", self._port), reuse_port=True)
        self._socket.setblocking(False)
        self._listener = PlainListener([self._socket], self.site)
        self._listener.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._listener.close()
        self._socket.close()

    @property
    def tokens(self) -> dict[str, str]:
        """What is answered on the plain port now."""
        return self.site.tokens

    @property
    def challenges(self) -> list[str]:
        """The tokens that were published for the CA; the first of each attempt is FLM's own probe."""
        return self.published[1:]

    def said(self, step: str) -> list[str]:
        """The details of a step, in order."""
        return [detail for each, detail in self.steps if each == step]

    def ask(self, *names: str, **changed: object) -> Ask:
        """What `issue` asks for."""
        fields: dict[str, object] = {
            "op": "issue",
            "directory": self.directory,
            "ca_bundle": str(self.ca_file),
            "names": list(names) or [NAME],
            "profile": self.profile,
            "folder": str(self.folder),
            "seconds": SECONDS,
        }
        return Ask(**{**fields, **changed})  # type: ignore[arg-type]

    async def window(self, **changed: object) -> tuple[float, float, float] | None:
        """When the CA wants a certificate renewed, or Refused."""
        return await issuance.window(self.ask(op="window", names=[], **changed))

    async def issue(self, *names: str, **changed: object) -> Pair:
        """A certificate, or Refused."""
        return await issuance.issue(self.ask(*names, **changed), self._step, self._publish, self._retract, self)

    async def look(self, name: str) -> None:
        """As an attempt asks before it has a name looked at."""
        self.looks.append(name)

    async def spared(self, name: str) -> None:
        """As an attempt says when that has not failed."""
        self.looks.remove(name)

    def _step(self, step: str, detail: str) -> None:
        self.steps.append((step, detail))

    def _publish(self, token: str, answer: str) -> None:
        self.published.append(token)
        self.site.tokens[token] = answer

    def _retract(self, token: str) -> None:
        self.site.tokens.pop(token, None)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run it on a loop of its own, no longer than a test may take."""
    return asyncio.run(asyncio.wait_for(work, SECONDS * 2))


async def refused(work: Coroutine[Any, Any, object]) -> Refused:
    """The refusal that it ends in."""
    with pytest.raises(Refused) as caught:
        await work
    return caught.value


def attempt(client: Client, *names: str, **changed: object) -> Refused:
    """Why a certificate could not be had."""

    async def scenario() -> Refused:
        async with client as one:
            no = await refused(one.issue(*names, **changed))
            assert one.tokens == {}
            assert "\n" not in no.message
            assert no.message.isprintable()
            return no

    return run(scenario())
