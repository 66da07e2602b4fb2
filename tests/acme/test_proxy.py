"""`https-acme` as a whole: a process tree that gets its certificate from a real CA, serves it, renews it and fails."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from flm.errors import CommandCode, CommandError
from flm.runtime.boot import WORKER_MODULE
from flm.runtime.handle import Endpoints, Handle
from flm.runtime.memory import RINGS
from flm.services.config import ConfigService
from flm.services.security import SecurityService
from flm.tls.files import folder_of, read_pair
from tests.acme.harness import NAME
from tests.acme.streaming import renewed_under_streams
from tests.runtime.harness import TINY, Running, alive, get, prepare, run, until
from tests.support.pebble import Ca
from tests.support.scripted_ca import Front, answer, changed, problem

ISSUANCE_SECONDS = 10.0  # the product's own promise, against a CA on the same machine


class Proxy(Running):
    """A proxy that has its certificate from `ca`."""

    ca: Ca
    steps: list[tuple[str, str]]
    host = "127.0.0.1"

    async def start(self) -> Handle:
        return await self.service.start(
            self.flags, first_key=False, step=lambda step, detail: self.steps.append((step, detail))
        )

    def believing(self) -> ssl.SSLContext:
        """A client's settings that trust what the CA issues, and nobody else."""
        return ssl.create_default_context(cadata=self.ca.root())

    def stored(self) -> Path:
        return self.folder.certs / "acme" / folder_of(str(self.flags["acme.directory"])) / "current.pem"

    async def served(self, name: str = NAME) -> str:
        """The fingerprint of what a client that asks for `name` is shown, when it has verified it."""
        return await asyncio.to_thread(self._handshake, name)

    def _handshake(self, name: str) -> str:
        with (
            socket.create_connection((self.host, self.port), timeout=10) as connection,
            self.believing().wrap_socket(connection, server_hostname=name) as secure,
        ):
            der = secure.getpeercert(binary_form=True)
        assert der is not None
        return hashlib.sha256(der).hexdigest()


def proxy_of(ca: Ca, root: Path, worker_module: str = TINY, *, via: Front | None = None, **flags: str) -> Proxy:
    """One that is not started. `via`: the front through which it meets the CA."""
    chosen = {
        "proxy__mode": "https-acme",
        "proxy__bind": "127.0.0.1",
        "proxy__port": str(ca.http_port),
        "acme__domain": NAME,
        "acme__profile": ca.lasting,
        "acme__directory": (via or ca).directory,
        "acme__ca_bundle": str(ca.ca_file),
    }
    made = prepare(root, worker_module, **(chosen | flags))
    proxy = Proxy(made.folder, made.flags, worker_module)
    proxy.ca, proxy.steps = ca, []
    return proxy


@asynccontextmanager
async def started(proxy: Proxy) -> AsyncIterator[Proxy]:
    try:
        await proxy.start()
        yield proxy
    finally:
        if await proxy.service.status():
            await proxy.service.stop(now=True)


Start = Callable[..., AbstractAsyncContextManager[Proxy]]


def test_from_nothing_to_a_certificate(ca: Ca, tmp_path: Path) -> None:
    async def main() -> None:
        names = f"{NAME}, two.flm.example"
        proxy = proxy_of(ca, tmp_path, WORKER_MODULE, acme__domain=names, engine__discover="false")
        loop = asyncio.get_running_loop()
        began = loop.time()
        async with started(proxy):
            took = loop.time() - began
            print(f"issued and served within {took:.1f} s")
            assert took < ISSUANCE_SECONDS
            handle = await proxy.handle()
            assert (handle.mode, handle.state, handle.last_error) == ("https-acme", "running", None)
            assert handle.acme_domain == names
            assert handle.endpoints.external == f"https://{NAME}:{proxy.port}"
            assert handle.certificate is not None
            assert sorted(handle.certificate.domains) == sorted(names.split(", "))
            for name in names.split(", "):
                assert await proxy.served(name) == handle.certificate.fingerprint
            (listed,) = await SecurityService(proxy.folder).certificates()
            assert (listed.mode, listed.trusted, listed.last_error) == ("https-acme", True, None)
            assert listed.fingerprint == handle.certificate.fingerprint
            kinds = [step for step, _ in proxy.steps]
            assert kinds.index("order") < len(kinds) - 1
            context = proxy.believing()
            context.check_hostname = False
            answer = await get(proxy.port, "/health", tls=context)
            assert b"\r\nstrict-transport-security: max-age=" in answer
            assert b"strict-transport-security" not in await get(proxy.plain_port, "/")
            assert proxy.stored().stat().st_mode & 0o777 == 0o600
            assert ca.log.count("BEGIN EC PRIVATE KEY") == 0

    run(main)


def test_what_is_stored_is_served_after_a_stop(ca: Ca, tmp_path: Path) -> None:
    async def main() -> None:
        proxy = proxy_of(ca, tmp_path)
        async with started(proxy):
            first = await proxy.served()
        issued = ca.issued()
        async with started(proxy):
            assert await proxy.served() == first
            await proxy.service.restart()
            assert await proxy.served() == first
            handle = await proxy.handle()
            assert handle.certificate is not None
            assert (handle.certificate.trusted, handle.certificate.last_error) == (True, None)
        assert ca.issued() == issued

    run(main)


def test_a_successor_of_another_layout_goes_on_with_the_same_authority(ca: Ca, tmp_path: Path) -> None:
    """As after an upgrade: the new image cannot read what was published, so it knows no setting at first."""

    async def main() -> None:
        async with started(proxy_of(ca, tmp_path)) as proxy:
            first, before = await proxy.served(), await proxy.handle()
            opened = Path(f"/proc/{before.pid}/fd").iterdir()
            rings = next(link for link in list(opened) if link.readlink().name == RINGS)
            with rings.open("r+b") as file:
                file.write(b"another!")
            after = await proxy.service.restart()
            assert (after.pid, after.mode, after.last_error) == (before.pid, "https-acme", None)
            proxy.stored().write_bytes(b"damaged")
            await proxy.service.reload()
            while await proxy.served() == first:  # which verifies it
                await asyncio.sleep(0.05)
            location = f"location: https://{NAME}:{proxy.port}/".encode()
            assert location in await get(proxy.plain_port, "/")

    run(main)


def test_a_rehearsal_comes_first_and_is_not_served(ca: Ca, calm_ca: Ca, tmp_path: Path) -> None:
    """Two directories of one CA, as far as FLM knows."""

    async def main() -> None:
        proxy = proxy_of(ca, tmp_path, acme__staging_directory=ca.directory.replace("localhost", "127.0.0.1"))
        before = ca.issued()
        async with started(proxy):
            assert await proxy.served()
            assert ca.issued() == before + 2
            assert [step for step, _ in proxy.steps if step in ("rehearsal", "order")][:1] == ["rehearsal"]

    run(main)


def test_the_staging_certificate_says_that_nobody_trusts_it(ca: Ca, tmp_path: Path) -> None:
    async def main() -> None:
        async with started(proxy_of(ca, tmp_path, acme__staging="true")) as proxy:
            handle = await proxy.handle()
            assert handle.certificate is not None
            assert not handle.certificate.trusted
            assert "flm config set acme.staging false" in (handle.certificate.hint or "")

    run(main)


def test_a_mismatch_on_disk_is_renewed_and_never_served(ca: Ca, tmp_path: Path) -> None:
    async def main() -> None:
        async with started(proxy_of(ca, tmp_path)) as proxy:
            first = await proxy.served()
            pair = read_pair(proxy.stored())
            assert pair is not None
            proxy.stored().write_bytes(pair.chain_pem)  # the key is gone
            await proxy.service.reload()
            while (now := await proxy.served()) == first:
                await asyncio.sleep(0.05)
            stored = read_pair(proxy.stored())
            assert stored is not None
            assert stored.fingerprint == now

    run(main)


def test_a_short_certificate_is_renewed_while_clients_stream(ca: Ca, tmp_path: Path) -> None:
    """200 streams are under way over one renewal at least; new handshakes meet the new certificate; nobody is cut."""

    async def main() -> None:
        async with started(proxy_of(ca, tmp_path, acme__profile="moments", proxy__workers="2")) as proxy:
            seen = await renewed_under_streams(proxy, 160, 75)
            assert seen.fault() == ""
            assert seen.life in (39, 40)  # the last second counts

    run(main)


def test_a_stream_outlives_more_renewals_than_generations_that_reloads_may_leave(ca: Ca, tmp_path: Path) -> None:
    async def main() -> None:
        flags = {"acme__profile": "blink", "proxy__max_draining": "1"}
        async with started(proxy_of(ca, tmp_path, **flags)) as proxy:
            context = proxy.believing()
            context.check_hostname = False
            stream = asyncio.create_task(get(proxy.port, "/drip/150", seconds=60, tls=context))
            seen = {await proxy.served()}
            while len(seen) < 3:
                with suppress(ssl.SSLCertVerificationError):  # a busy machine may renew twenty seconds too late
                    seen.add(await proxy.served())
                await asyncio.sleep(0.1)
            assert not stream.done()
            answer = await stream
            assert b"[DONE]" in answer
            assert b"error" not in answer

    run(main)


def test_a_window_that_says_now_renews_a_running_proxy(front: Front, ca: Ca, tmp_path: Path) -> None:
    async def main() -> None:
        now = datetime.now(UTC)
        past = {"start": (now - timedelta(hours=2)).isoformat(), "end": (now - timedelta(hours=1)).isoformat()}
        said = json.dumps({"suggestedWindow": past}).encode()
        front.script("renewal", answer(200, said, content_type="application/json", retry_after="21600"))
        issued = ca.issued()
        async with started(proxy_of(ca, tmp_path, via=front)) as proxy:
            await until(lambda: ca.issued() == issued + 2, 30)  # not requests: some are refused for their nonce
            async with asyncio.timeout(30):
                while (stored := read_pair(proxy.stored())) is None or await proxy.served() != stored.fingerprint:
                    await asyncio.sleep(0.05)
            handle = await proxy.handle()
            assert handle.last_error is None

    run(main)


def test_a_ca_that_says_no_is_quoted_and_nothing_is_left(front: Front, ca: Ca, tmp_path: Path) -> None:
    async def main() -> None:
        front.script("order", problem("rejectedIdentifier", "we do not serve those", 400))
        proxy = proxy_of(ca, tmp_path, via=front)
        with pytest.raises(CommandError, match="we do not serve those") as refused:
            await proxy.start()
        assert refused.value.code is CommandCode.PROXY_ACME_ERROR
        assert await proxy.service.status() == []
        for port in (proxy.port, proxy.plain_port):
            with socket.create_server(("127.0.0.1", port)):
                pass
        (listed,) = await SecurityService(proxy.folder).certificates()
        assert "we do not serve those" in (listed.last_error or "")

    run(main)


def test_the_fallback_with_the_local_root_goes_on_trying(front: Front, ca: Ca, tmp_path: Path) -> None:
    async def main() -> None:
        front.script("order", problem("rejectedIdentifier", "not today", 400))
        async with started(proxy_of(ca, tmp_path, via=front, proxy__fallback="dev-selfsigned")) as proxy:
            handle = await proxy.handle()
            assert (handle.mode, handle.running) == ("dev-selfsigned", True)
            assert handle.endpoints == Endpoints(f"https://127.0.0.1:{proxy.port}", None, None)
            assert "not today" in (handle.last_error or "")
            answer = await get(proxy.port, tls=proxy.trusting())
            assert answer.startswith(b"HTTP/1.1 200")
            assert b"strict-transport" not in answer
            stream = asyncio.create_task(get(proxy.port, "/drip/40", seconds=60, tls=proxy.trusting()))
            await ConfigService(proxy.folder, {}).set("acme.email", "ops@flm.example")
            await proxy.service.reload()  # another question, so the wait for the former one does not hold
            await asyncio.to_thread(front.wait_for, "certificate")
            async with asyncio.timeout(30):
                while (handle := await proxy.handle()).mode != "https-acme":
                    await asyncio.sleep(0.05)
            assert handle.certificate is not None
            assert await proxy.served() == handle.certificate.fingerprint
            assert handle.last_error is None
            assert (await stream).count(b"data: ") == 41

    run(main)


@pytest.mark.parametrize("exposed", ["false", "true"])
def test_the_fallback_to_plain_http_is_for_loopback_unless_told_otherwise(
    front: Front, ca: Ca, tmp_path: Path, exposed: str
) -> None:
    async def main() -> None:
        front.script("order", problem("rejectedIdentifier", "not today", 400))
        flags = {"proxy__fallback": "local-http", "proxy__bind": "0.0.0.0", "proxy__expose_fallback": exposed}
        async with started(proxy_of(ca, tmp_path, via=front, **flags)) as proxy:
            handle = await proxy.handle()
            assert (handle.mode, handle.https_port) == ("local-http", None)
            address = "0.0.0.0" if exposed == "true" else "127.0.0.1"
            assert handle.listen_addr == f"{address}:{proxy.plain_port}"
            assert (await get(proxy.plain_port)).startswith(b"HTTP/1.1 200")
            assert "not today" in (handle.last_error or "")
            asked = len(front.seen)
            for goes_on in (proxy.handle, proxy.service.reload, proxy.service.restart):
                now = await goes_on()
                assert (now.mode, now.listen_addr) == ("local-http", handle.listen_addr)
                assert "local-http is served instead. Nobody goes on trying meanwhile" in (now.last_error or "")
                assert "`flm proxy stop` and `flm proxy start` try again" in (now.last_error or "")
            assert len(front.seen) == asked
        async with started(proxy):
            assert (await proxy.handle()).mode == "https-acme"
            assert await proxy.served()

    run(main)


def test_a_chain_of_another_key_is_not_served(front: Front, ca: Ca, calm_ca: Ca, tmp_path: Path) -> None:
    async def main() -> None:
        other = proxy_of(calm_ca, tmp_path / "other")
        async with started(other):
            pair = read_pair(other.stored())
            assert pair is not None

        def swap(reply: object) -> None:
            if reply.status == 200:  # type: ignore[attr-defined]  # a refused nonce stays one
                reply.body = pair.chain_pem  # type: ignore[attr-defined]

        front.always("certificate", changed(swap))
        with pytest.raises(CommandError, match="key"):
            await proxy_of(ca, tmp_path / "one", via=front).start()

    run(main)


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL, signal.SIGINT])
def test_a_command_that_is_ended_while_the_ca_takes_its_time_leaves_nothing_running(
    front: Front, ca: Ca, tmp_path: Path, end: signal.Signals
) -> None:
    async def main() -> None:
        front.always("order", front.hang)
        proxy = proxy_of(ca, tmp_path, via=front)
        flags = {f"FLM_{key.upper().replace('.', '_')}": str(value) for key, value in proxy.flags.items()}
        command = subprocess.Popen(
            [sys.executable, "-m", "flm", "proxy", "start"],
            env={**os.environ, "FLM_HOME": str(proxy.folder.root), **flags},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        await asyncio.to_thread(front.wait_for, "order")
        (handle,) = await proxy.service.status()
        command.send_signal(end)
        assert await asyncio.to_thread(command.wait, 20) != 0
        await until(lambda: not alive(handle.pid), 10)
        assert await proxy.service.status() == []

    run(main)


def test_status_and_stop_while_the_ca_takes_its_time(front: Front, ca: Ca, tmp_path: Path) -> None:
    async def main() -> None:
        front.always("order", front.hang)
        proxy = proxy_of(ca, tmp_path, via=front)
        starting = asyncio.create_task(proxy.start())
        await asyncio.to_thread(front.wait_for, "order")
        (handle,) = await proxy.service.status()
        assert (handle.state, handle.running) == ("starting", False)
        await proxy.service.stop(now=True)
        with pytest.raises(CommandError):
            await starting
        await until(lambda: not (proxy.folder.run / "instance.json").exists(), 10)

    run(main)
