"""The official OpenAI clients behind one interface: the same operations, and outcomes of the same form.

`PythonClient` runs in threads of the test process; `NodeClient` drives `node/run.js` line by line. An operation is
named, its arguments are those of the client's own method; an outcome is plain JSON. Knows the API, and neither FLM nor
any engine.

| op | what the client does |
|---|---|
| `chat`, `stream` | create, whole and streamed, chunk by chunk |
| `gather` | the client's own helper puts a stream together |
| `parse` | structured output by a pydantic model, a zod schema |
| `embed`, `complete`, `complete_stream`, `models`, `model` | |
| `leave` | closes a stream after `after` chunks: `stream.close()`, `controller.abort()` |
| `warned` | chat, and the headers of the answer |
"""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import msgspec

from tests.clients import python_client

ROOT = Path(__file__).resolve().parents[2]
NODE_FOLDER = ROOT / ".build" / "node"
OUTCOME_SECONDS = 60.0


class Server(msgspec.Struct, frozen=True):
    """Where a client sends its requests, and with which key."""

    base: str
    key: str


class Problem(msgspec.Struct, frozen=True):
    """An exception of the client. `header_id`: the request's id as the exception itself has it, from the header."""

    name: str = msgspec.field(name="class")
    status: int | None = None
    code: str | None = None
    param: str | None = None
    type: str | None = None
    request_id: str | None = None
    header_id: str | None = None
    message: str = ""


class Outcome(msgspec.Struct, frozen=True):
    """What came of an operation: `ok`, or `error` and the text that a stream had brought before."""

    id: int = 0
    ok: Any = None
    error: Problem | None = None
    before: str = ""


class Running(Protocol):
    """An operation under way."""

    def abort(self) -> None:
        """As a program gives up waiting: a cancelled task, an AbortController."""

    def outcome(self) -> Outcome: ...


class Client(Protocol):
    """One of the official clients."""

    name: str

    def begin(self, server: Server, op: str, args: dict[str, Any], **options: Any) -> Running: ...


def ask(client: Client, server: Server, op: str, args: dict[str, Any], **options: Any) -> Outcome:
    """Run one operation to its end. `options`: `retries` (0), `timeout` (seconds), `headers`, `after`."""
    return client.begin(server, op, args, **options).outcome()


def succeed(client: Client, server: Server, op: str, args: dict[str, Any], **options: Any) -> Any:
    """The result of an operation that must not fail."""
    outcome = ask(client, server, op, args, **options)
    assert outcome.error is None, (client.name, op, outcome.error)
    return outcome.ok


def request(number: int, server: Server, op: str, args: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    defaults = {"retries": 0, "timeout": 30, "headers": {}, "after": 1}
    return {"id": number, "op": op, "base": server.base, "key": server.key, "args": args, **defaults, **options}


class _PythonRunning:
    def __init__(self, running: python_client.Running, future: Future[dict[str, Any]]) -> None:
        self._running = running
        self._future = future

    def abort(self) -> None:
        self._running.abort()

    def outcome(self) -> Outcome:
        return msgspec.convert(self._future.result(OUTCOME_SECONDS), Outcome)


class PythonClient:
    """The Python client; each operation has a thread."""

    name = "python"

    def __init__(self, threads: ThreadPoolExecutor) -> None:
        self._threads = threads

    def begin(self, server: Server, op: str, args: dict[str, Any], **options: Any) -> Running:
        running = python_client.Running(request(0, server, op, args, options))
        return _PythonRunning(running, self._threads.submit(running.run))


class _NodeRunning:
    def __init__(self, client: NodeClient, number: int, future: Future[Outcome]) -> None:
        self._client = client
        self._number = number
        self._future = future

    def abort(self) -> None:
        self._client.send({"abort": self._number})

    def outcome(self) -> Outcome:
        return self._future.result(OUTCOME_SECONDS)


class NodeClient:
    """The Node client: one process, many operations."""

    name = "node"

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._count = 0
        self._futures: dict[int, Future[Outcome]] = {}

    def send(self, line: dict[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(line) + "\n")
        self._process.stdin.flush()

    def begin(self, server: Server, op: str, args: dict[str, Any], **options: Any) -> Running:
        self._count += 1
        future: Future[Outcome] = Future()
        self._futures[self._count] = future
        self.send(request(self._count, server, op, args, options))
        return _NodeRunning(self, self._count, future)

    def listen(self) -> None:
        """Hand each outcome to who waits for it, until the process ends; then nobody waits for ever."""
        assert self._process.stdout is not None
        for line in self._process.stdout:
            outcome = msgspec.json.decode(line, type=Outcome)
            self._futures.pop(outcome.id).set_result(outcome)
        for future in self._futures.values():
            future.set_exception(AssertionError("the Node process ended"))


@contextmanager
def python_clients() -> Iterator[Client]:
    with ThreadPoolExecutor(8) as threads:
        yield PythonClient(threads)


@contextmanager
def node_clients() -> Iterator[Client]:
    command = ["node", str(Path(__file__).with_name("node") / "run.js"), str(NODE_FOLDER / "package.json")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        client = NodeClient(process)
        listener = threading.Thread(target=client.listen)
        listener.start()
        try:
            yield client
        finally:
            assert process.stdin is not None
            process.stdin.close()
            listener.join(10)
