"""A real proxy is broken in every way at hand while secrets pass through it; afterwards they are looked for everywhere.

Looked at: every file of the data folder (databases, logs, audit, run folder), the answers to other callers' eyes, what
commands say, command lines and environments of supervisor and workers, a backup, core files. Found, and documented:
the engine's credential in `security.db` (and its log) and in `run/shared`, both 0600, since it has to be used again.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from pathlib import Path
from typing import Any

import msgspec
import pytest

from flm.errors import CommandError
from flm.services.backup import BackupService, Secret
from flm.services.engines import EngineService
from flm.services.security import SecurityService
from tests.runtime.asking import CHAT, Client, conversation
from tests.runtime.harness import Running, alive, running, until
from tests.security.canaries import ANSWER, COOKIE, CREDENTIAL, PASSPHRASE, PROMPT
from tests.support.engine import Peer, ScriptedEngine, answer, chunked

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

WORKER = "tests.security.planted_worker"
WORKERS = 2
# Where the engine's credential has to be, to be used again.
CREDENTIAL_PLACES = ("/security.db", "/security.db-wal", "/run/shared")
QUOTING = json.dumps({"error": {"message": f"{CREDENTIAL} {ANSWER}", "type": "x", "code": CREDENTIAL}}).encode()

Places = dict[str, bytes]


def chat_answer(text: str) -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    return json.dumps(
        {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": None}
    ).encode()


def event(text: str, finish: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    chunk = {"id": "c", "object": "chat.completion.chunk", "created": 1, "model": "m", "choices": [choice]}
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


JSON, SSE = b"content-type: application/json", b"content-type: text/event-stream"
ANSWERS: dict[str, bytes] = {
    "plain": answer(200, chat_answer(ANSWER), JSON),
    "stream": chunked(200, [event(ANSWER), event("", "stop"), b"data: [DONE]\n\n"], SSE),
    "refused 401": answer(401, QUOTING, JSON),
    "refused 400": answer(400, json.dumps({"error": {"message": f"your key {CREDENTIAL} is odd"}}).encode(), JSON),
    "failed 500": answer(500, f"Traceback: Authorization: Bearer {CREDENTIAL}".encode()),
    "failed 503": answer(503, QUOTING, JSON),
    "error event": chunked(200, [event(ANSWER), b"data: " + QUOTING + b"\n\n"], SSE),
    "no json": answer(200, chat_answer(f"{ANSWER} {CREDENTIAL}")[:-9], JSON),
    "no http": f"{CREDENTIAL} {ANSWER}\r\n\r\n".encode(),
    "cut": chunked(200, [event(ANSWER)], SSE)[:-20],
    "no events": chunked(200, [f"data: {{{CREDENTIAL} {ANSWER}\n\n".encode()], SSE),
}
CRASHES = ("raise", "task", "callback", "thread")
STREAMS = frozenset({"stream", "error event", "cut", "no events", "hang"})


class Engine:
    """An engine that answers each prompt as the prompt says, and remembers what it was sent."""

    def __init__(self) -> None:
        self.hanging = asyncio.Event()
        self.requests: list[bytes] = []

    async def serve(self, peer: Peer) -> None:
        while True:
            while (request := peer.next_request()) is None:
                if not await peer.receive_some():
                    return
            self.requests.append(request)
            if request.startswith(b"GET"):
                await peer.send(answer(200, b'{"object":"list","data":[{"id":"m","object":"model"}]}', JSON))
                continue
            case = json.loads(request.partition(b"\r\n\r\n")[2])["messages"][-1]["content"].partition("|")[0]
            if case == "hang":
                await peer.send(chunked(200, [event(ANSWER)], SSE)[:-5])
                self.hanging.set()
                continue
            await peer.send(ANSWERS[case])
            if case in ("no http", "cut"):
                return


class Scene:
    """A proxy with an engine, a client, and everything that was said to anybody."""

    def __init__(self, proxy: Running, engine: Engine, client: Client) -> None:
        self.proxy = proxy
        self.engine = engine
        self.client = client
        self.places: Places = {}
        self.keys = [client.key]

    async def ask(self, case: str) -> bytes:
        """One request with a prompt; everything of the answer."""
        body = conversation("flm://e/m", f"{case}|{PROMPT}", stream=case in STREAMS)
        return await self.send(self.client.request(CHAT, body))

    async def send(self, request: bytes) -> bytes:
        extra = f"cookie: session={COOKIE}\r\nx-forwarded-for: 10.1.2.3\r\n".encode()
        head, _, rest = request.partition(b"\r\n")
        reader, writer = await asyncio.open_connection("127.0.0.1", self.proxy.port)
        writer.write(head + b"\r\n" + extra + rest)
        try:
            async with asyncio.timeout(30):
                return await reader.read()
        except ConnectionError:
            return b""
        finally:
            writer.transport.abort()

    async def plant(self, name: str) -> bytes:
        return await self.send(self.client.request(f"/plant/{name}"))

    async def workers(self) -> list[int]:
        """The workers' pids, as soon as all are there again; one that has just died is still told of for a moment."""
        pids: list[int] = []
        async with asyncio.timeout(60):
            while len(pids) < WORKERS:
                await asyncio.sleep(0.02)
                pids = [pid for pid in (await self.proxy.handle()).worker_pids if alive(pid)]
        return pids

    async def look(self, moment: str) -> None:
        """Remember all that can be seen now."""
        handle = await self.proxy.handle()
        for pid in (handle.pid, *handle.worker_pids):
            for name in ("cmdline", "environ", "comm", "limits"):
                with contextlib.suppress(OSError):  # one that has just died
                    self.places[f"{moment} {pid}/{name}"] = Path(f"/proc/{pid}/{name}").read_bytes()
        self.places[f"{moment} status"] = msgspec.json.encode(handle)
        self.read_files(moment)

    def read_files(self, moment: str) -> None:
        for path in self.proxy.folder.root.parent.rglob("*"):
            if path.is_file():
                with contextlib.suppress(FileNotFoundError):
                    # Shared memory is mostly empty: pages of zeros hide nothing, and take their time to search.
                    self.places[f"{moment} {path}"] = path.read_bytes().replace(bytes(4096), b"")


def holders(secret: str | bytes, places: Places) -> list[str]:
    wanted = secret.encode() if isinstance(secret, str) else secret
    return [name for name, content in places.items() if wanted in content]


def leaks(scene: Scene) -> list[str]:
    """Every place where a secret is that must not be there."""
    found = []
    for secret in (PROMPT, ANSWER, COOKIE, PASSPHRASE, *scene.keys, *(key[17:] for key in scene.keys)):
        found += [f"{secret}: {name}" for name in holders(secret, scene.places)]
    found += [
        f"credential: {name}" for name in holders(CREDENTIAL, scene.places) if not name.endswith(CREDENTIAL_PLACES)
    ]
    pepper = scene.proxy.folder.pepper.read_bytes()
    found += [f"pepper: {name}" for name in holders(pepper, scene.places) if not name.endswith("/pepper")]
    return found


@contextlib.asynccontextmanager
async def staged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """What a person has exported when starting a proxy must not stay in its processes."""
    monkeypatch.setenv("FLM_BACKUP_PASSPHRASE", PASSPHRASE)
    monkeypatch.setenv("GPU_API_KEY", CREDENTIAL)
    engine = Engine()
    async with ScriptedEngine([engine.serve]) as scripted:
        settings = {"engine__check_interval_seconds": 3600.0, "log__level": "debug", "proxy__workers": WORKERS}
        async with running(tmp_path, WORKER, **settings) as proxy:
            await EngineService(proxy.folder, {}).add("e", "openai", scripted.url, credential=CREDENTIAL)
            yield Scene(proxy, engine, await Client.of(proxy))


async def meet_errors(scene: Scene) -> None:
    """Every way an engine may answer, and every wrong way a key may be sent."""
    for case in ANSWERS:
        said = await scene.ask(case)
        assert said.startswith(b"HTTP/1.1 "), case
        if case in ("plain", "stream"):
            assert ANSWER.encode() in said
        # An answer, or a part of it, belongs to its caller; what FLM adds, and the engine's credential, does not.
        scene.places[f"answer to {case}"] = said.replace(ANSWER.encode(), b"")
    key = scene.client.key
    wrong = key[:-8] + "AAAAAAAA"
    scene.keys.append(wrong)
    other = Client(scene.proxy.port, wrong)
    for name, request in {
        "a wrong key": other.request(CHAT, conversation("flm://e/m", PROMPT)),
        "a key in the query": Client(0, "").request(f"/v1/models?api_key={key}"),
        "a key in the path": scene.client.request(f"/v1/models/{key}"),
        "a key as a model": scene.client.request(CHAT, conversation(key, PROMPT)),
        "a key as an unknown route": scene.client.request(f"/{key}"),
        "no json": scene.client.request(CHAT)[:-4].replace(b"length: 0", b"length: 30")
        + b"\r\n\r\n"
        + b'{"model": '
        + PROMPT.encode(),
    }.items():
        said = await scene.send(request)
        assert said.startswith(b"HTTP/1.1 4"), (name, said)
        scene.places[f"answer to {name}"] = said


async def crash_workers(scene: Scene) -> None:
    for name in CRASHES:
        scene.places[f"answer to plant {name}"] = await scene.plant(name)
    assert b"internal_error" in scene.places["answer to plant raise"]
    # All are told, without their text; what a killed worker has gathered for the log would be lost with it.
    told = '"event":"internal_error","exception":"RuntimeError"'
    await until(lambda: told in scene.proxy.log() and scene.proxy.log().count("RuntimeError") >= len(CRASHES), 20)
    for number in (signal.SIGKILL, signal.SIGABRT, signal.SIGSEGV):
        before = await scene.workers()
        scene.engine.hanging.clear()
        asking = asyncio.create_task(scene.ask("hang"))
        await scene.engine.hanging.wait()
        for pid in before:
            os.kill(pid, number)
        await asking
        await until(lambda pids=tuple(before): not any(map(alive, pids)), 20)
    scene.places["answer to abort"] = await scene.plant("abort")


async def break_databases(scene: Scene) -> None:
    """Under the running proxy: what it says when it is told of changes that it cannot read."""
    folder = scene.proxy.folder
    security = folder.security.read_bytes()
    for name, content in (("garbage", CREDENTIAL.encode() * 400), ("cut", security[:6000])):
        folder.security.write_bytes(content)
        with pytest.raises(CommandError) as caught:
            await SecurityService(folder).create_key("never")
        scene.places[f"error of a database that is {name}"] = caught.value.message.encode()
        try:
            said = msgspec.json.encode(await scene.proxy.service.reload())  # the supervisor may still know its pages
        except CommandError as error:
            said = error.message.encode()
        scene.places[f"answer to a reload with {name}"] = said
        scene.read_files(f"with {name}")
    for path in (folder.security, folder.security.with_name("security.db-wal")):
        path.unlink(missing_ok=True)
    folder.security.write_bytes(security)


def test_no_secret_is_left_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with staged(tmp_path, monkeypatch) as scene:
            await scene.look("at the start")
            await meet_errors(scene)
            await scene.look("after errors")
            await crash_workers(scene)
            await scene.look("after crashes")
            service = BackupService(scene.proxy.folder)
            await service.create(tmp_path / "backup", Secret("passphrase", PASSPHRASE.encode()))
            await break_databases(scene)
            (handle,) = await scene.proxy.service.status()
            os.kill(handle.pid, signal.SIGABRT)
            await until(lambda: not any(map(alive, (handle.pid, *handle.worker_pids))), 20)
            scene.read_files("at the end")

            for request in scene.engine.requests:
                assert COOKIE.encode() not in request
                assert b"10.1.2.3" not in request
                assert not any(key.encode() in request for key in scene.keys)
            assert leaks(scene) == []
            controls(scene, tmp_path)

    asyncio.run(main())


def controls(scene: Scene, tmp_path: Path) -> None:
    """That there was something to find, and that it was looked at."""
    names = "\n".join(scene.places)
    for place in ("flm.log", "security.db", "config.db", "run/shared", "run/keyring", "/environ", "/cmdline", "backup"):
        assert place in names
    assert holders(CREDENTIAL, scene.places)
    assert any(CREDENTIAL.encode() in request for request in scene.engine.requests)
    limits = [content for name, content in scene.places.items() if name.endswith("/limits")]
    assert limits
    assert all(b"Max core file size        0                    0 " in content for content in limits)
    assert not [path for root in (tmp_path, Path.cwd()) for path in root.glob("core*") if path.is_file()]


def test_a_leak_would_be_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The negative control: one worker that writes its secrets to standard error, once."""

    async def main() -> None:
        async with staged(tmp_path, monkeypatch) as scene:
            await scene.look("before")
            assert leaks(scene) == []
            await scene.plant("leak")
            async with asyncio.timeout(10):
                while PROMPT not in scene.proxy.log():
                    await asyncio.sleep(0.01)
            await scene.look("after")
            found = leaks(scene)
            for secret in (PROMPT, ANSWER, COOKIE, scene.client.key, "credential"):
                assert any(leak.startswith(secret) and leak.endswith("flm.log") for leak in found), secret

    asyncio.run(main())
