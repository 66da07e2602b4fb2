"""The data path without a server: an app over real shared memory and a real keyring, and clients in memory.

A client is an ASGI peer whose every step the test decides: what of the body arrives and when, whether it reads, when
it leaves. Waits are on events. Knows no engine; tests bring a scripted one or a demo engine.
"""

from __future__ import annotations

import asyncio
import json
import os
import tempfile
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from typing import Any

import msgspec

from flm import snapshot as snapshots
from flm._native import Buckets, Keyring, Shared, generate_key, hash_secret
from flm.config import Settings
from flm.policy.document import Policy
from flm.policy.restrictions import Restriction
from flm.policy.scopes import DEFAULT_SCOPES, RESTRICTED, bits
from flm.proxy.app import App, WorkerContext
from flm.proxy.audit import AuditRow, decode
from flm.proxy.respond import ALWAYS
from flm.snapshot import Engine, Model, Snapshot

PEPPER = b"p" * 32
SALT = b"s" * 16
CHAT = "/v1/chat/completions"
EMBEDDINGS = "/v1/embeddings"


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 30))


def _file() -> int:
    descriptor, path = tempfile.mkstemp()
    os.unlink(path)
    return descriptor


class World:
    """An app and everything it is handed. `lines` are the log lines, decoded; `raw` the same as bytes; `rows` those of
    the audit log."""

    def __init__(
        self,
        *engines: Engine,
        aliases: Mapping[str, str] | None = None,
        policy: Policy = Policy(),  # noqa: B008 - frozen
        **settings: Any,
    ) -> None:
        shared, ring, buckets = _file(), _file(), _file()
        self.shared = Shared.create(shared, 1, 1 << 20)
        self.keyring = Keyring.create(ring, 16)
        self.buckets = Buckets.create(buckets, b"b" * 16, keys=16, addresses=16, overflow=16)
        self.raw: list[bytes] = []
        self.rows: list[AuditRow] = []
        self.cuts: list[tuple[str, str]] = []
        self.failures: list[str] = []
        self.restrictions: dict[str, Restriction] = {}
        self.used: list[str] = []
        self.key = self.add_key()
        self.publish(*engines, aliases=aliases, policy=policy, **settings)
        reader = Keyring.attach(ring, PEPPER)
        self.app = App(
            WorkerContext(
                shared=self.shared,
                keyring=reader,
                buckets=self.buckets,
                slot=0,
                log=self.raw.append,
                audit=lambda row: self.rows.append(decode(row)),
                cut=self.cuts.append,
                engine_failed=lambda engine_id, _message: self.failures.append(engine_id),
                key_used=self.used.append,
            )
        )
        os.close(shared)
        os.close(ring)
        os.close(buckets)

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.raw]

    def add_key(
        self,
        *,
        revoked: bool = False,
        expires_at_ms: int = 0,
        allowed: Iterable[str] = DEFAULT_SCOPES,
        restriction: Restriction | None = None,
    ) -> str:
        """A key of these scopes. Its restriction is in force with the next `publish`."""
        key, key_id = generate_key()
        digest = hash_secret(PEPPER, SALT, key)
        granted = bits(allowed)
        if restriction is not None:
            granted |= RESTRICTED
            self.restrictions[key_id] = restriction
        self.keyring.upsert(key_id, len(self.keyring), SALT, digest, expires_at_ms, revoked, granted)
        return key

    def publish(
        self,
        *engines: Engine,
        aliases: Mapping[str, str] | None = None,
        policy: Policy = Policy(),  # noqa: B008 - frozen
        **settings: Any,
    ) -> None:
        snapshot = Snapshot("instance", Settings(**settings), engines, dict(aliases or {}), policy, self.restrictions)
        self.shared.publish(snapshots.encode(snapshot))

    def client(self, method: str = "GET", path: str = "/health", **more: Any) -> Client:
        return Client(self, method, path, **more)

    async def ask(self, method: str = "GET", path: str = "/health", body: Any = None, **more: Any) -> Client:
        """One whole request; returns when the app has ended."""
        client = self.client(method, path, body=body, **more)
        await client.begin()
        return client

    async def chat(self, model: str, *, stream: bool = False, **more: Any) -> Client:
        return await self.ask("POST", CHAT, chat(model, stream=stream), **more)


def engine(url: str, kind: str = "openai", name: str = "e", models: Iterable[str] = ("m",), **more: Any) -> Engine:
    return Engine(name, kind, url, more.pop("status", "RunningHealthy"), models=tuple(map(Model, models)), **more)


def chat(model: str, *, stream: bool = False, text: str = "hello") -> dict[str, Any]:
    return {"model": model, "stream": stream, "messages": [{"role": "user", "content": text}]}


_ALWAYS = {name for name, _ in ALWAYS}


class Client:
    """One request in memory. `body`: sent whole at once unless `hold` is set, then by `feed`."""

    def __init__(
        self,
        world: World,
        method: str,
        path: str,
        *,
        body: Any = None,
        key: str | None = "",
        headers: Mapping[str, str | bytes] | Iterable[tuple[bytes, bytes]] = (),
        host: str | None = "localhost:3560",
        hold: bool = False,
        version: str = "1.1",
        address: str = "127.0.0.1",
    ) -> None:
        self.world = world
        data = body if isinstance(body, bytes) else (b"" if body is None else json.dumps(body).encode())
        fields: list[tuple[bytes, bytes]] = [] if host is None else [(b"host", host.encode())]
        if key is not None:
            fields.append((b"authorization", b"Bearer " + (key or world.key).encode()))
        given = dict(_pairs(headers))
        if body is not None and b"content-length" not in given and b"transfer-encoding" not in given:
            fields.append((b"content-length", b"%d" % len(data)))
        if body is not None and b"content-type" not in given:
            fields.append((b"content-type", b"application/json"))
        fields += [(name, value) for name, value in _pairs(headers) if value != b""]
        raw_path, _, query = path.encode().partition(b"?")
        self.scope = {
            "type": "http",
            "http_version": version,
            "method": method,
            "raw_path": raw_path,
            "path": raw_path.decode("latin-1"),
            "query_string": query,
            "headers": fields,
            "client": (address, "50000"),
        }
        self.messages: list[dict[str, Any]] = []
        self.reading = asyncio.Event()  # cleared: the client reads nothing
        self.reading.set()
        self.changed = asyncio.Event()
        self._incoming: list[dict[str, Any]] = []
        self._waiting: asyncio.Future[dict[str, Any]] | None = None
        self.receives = 0
        self.task: asyncio.Task[None] | None = None
        if not hold:
            self.feed(data, more=False)

    # --- what the client does ----------------------------------------------------------------------------------------

    def start(self) -> asyncio.Task[None]:
        self.task = asyncio.get_running_loop().create_task(self._run())
        return self.task

    async def begin(self) -> None:
        await self.start()

    def feed(self, data: bytes, *, more: bool) -> None:
        self._arrive({"type": "http.request", "body": data, "more_body": more})

    def leave(self) -> None:
        self.reading.set()
        self._arrive({"type": "http.disconnect"})

    async def until(self, seen: Callable[[Client], bool]) -> None:
        while not seen(self):
            self.changed.clear()
            await self.changed.wait()

    # --- what it got -------------------------------------------------------------------------------------------------

    @property
    def status(self) -> int:
        return int(self.messages[0]["status"])

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.messages[0]["headers"])

    @property
    def own_headers(self) -> dict[bytes, bytes]:
        """The headers of this very answer: without those that every answer has."""
        return {name: value for name, value in self.headers.items() if name not in _ALWAYS | {b"x-request-id"}}

    @property
    def body(self) -> bytes:
        return b"".join(message["body"] for message in self.messages[1:])

    @property
    def complete(self) -> bool:
        return bool(self.messages) and self.messages[-1].get("more_body") is False

    @property
    def error(self) -> dict[str, Any]:
        return dict(json.loads(self.body)["error"])

    @property
    def code(self) -> str:
        return str(self.error["code"])

    @property
    def events(self) -> list[bytes]:
        """The events and comments of a stream."""
        return [event for event in self.body.split(b"\n\n") if event]

    # --- the server's side -------------------------------------------------------------------------------------------

    async def _run(self) -> None:
        await self.world.app(self.scope, self._receive, self._send)

    def _arrive(self, message: dict[str, Any]) -> None:
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result(message)
            self._waiting = None
        else:
            self._incoming.append(message)

    def _receive(self) -> asyncio.Future[dict[str, Any]]:
        self.receives += 1
        future: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        if self._incoming:
            future.set_result(self._incoming.pop(0))
        else:
            assert self._waiting is None or self._waiting.done(), "two receives at once"
            self._waiting = future
        self.changed.set()
        return future

    def _send(self, message: dict[str, Any]) -> Awaitable[None]:
        return self._take(message)

    async def _take(self, message: dict[str, Any]) -> None:
        if message["type"] == "http.response.body":
            await self.reading.wait()
            assert len(message["body"]) <= 65_536
        else:
            assert not self.messages, "two heads"
            assert 200 <= message["status"] < 600
        assert not self.complete, "something after the end"
        self.messages.append(message)
        self.changed.set()
        if message.get("more_body") is False:
            self._answered()

    def _answered(self) -> None:
        """As the server does: a pending receive ends with the answer, though the client is still there."""
        if self._waiting is not None and not self._waiting.done():
            self._waiting.set_result({"type": "http.disconnect"})


def _pairs(headers: Any) -> list[tuple[bytes, bytes]]:
    items = headers.items() if isinstance(headers, Mapping) else headers
    return [(_bytes(name), _bytes(value)) for name, value in items]


def _bytes(value: str | bytes) -> bytes:
    return value if isinstance(value, bytes) else value.encode("latin-1")


def decoded(data: bytes) -> Any:
    return msgspec.json.decode(data)
