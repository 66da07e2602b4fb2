"""HTTPS with the local root, whole process trees: what clients meet, and what reload, restart, death and a new
certificate do to them."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import signal
import socket
import ssl
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from flm.errors import CommandError
from flm.services.config import ConfigService
from flm.tls.files import read_pair
from tests.runtime.harness import Load, Running, get, only_ok, run, running, until

DEV = {"proxy__mode": "dev-selfsigned"}


def fingerprint(proxy: Running) -> str:
    """Of the certificate that is served now."""
    pem = ssl.get_server_certificate(("127.0.0.1", proxy.port), timeout=10)
    return hashlib.sha256(ssl.PEM_cert_to_DER_cert(pem)).hexdigest()


async def served(proxy: Running) -> str:
    return await asyncio.to_thread(fingerprint, proxy)


@contextlib.contextmanager
def old_versions() -> Iterator[None]:
    """To ask for TLS 1.0 and 1.1 is deprecated, which is why it is asked."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        yield


async def answered(proxy: Running, tls: ssl.SSLContext) -> bool:
    try:
        return (await get(proxy.port, tls=tls)).startswith(b"HTTP/1.1 200")
    except OSError:
        return False


def limited(proxy: Running, highest: ssl.TLSVersion) -> ssl.SSLContext:
    context = proxy.trusting()
    with old_versions():
        context.minimum_version = ssl.TLSVersion.TLSv1
        context.maximum_version = highest
    context.set_ciphers("ALL:@SECLEVEL=0")
    return context


def test_a_client_that_trusts_the_root_is_served_and_sent_there(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, **DEV) as proxy:
            handle = await proxy.handle()
            assert (handle.mode, handle.port, handle.https_port) == ("dev-selfsigned", proxy.plain_port, proxy.port)
            assert handle.endpoints.localhost == f"https://127.0.0.1:{proxy.port}"
            answer = await get(proxy.port, tls=proxy.trusting())
            assert answer.startswith(b"HTTP/1.1 200")
            assert handle.certificate is not None
            assert handle.certificate.fingerprint == await served(proxy)
            assert {"localhost", "127.0.0.1", "::1"} <= set(handle.certificate.domains)
            redirect = await get(proxy.plain_port, "/v1/models?a=b")
            head = redirect.partition(b"\r\n\r\n")[0].lower()
            assert head.startswith(b"http/1.1 308")
            assert f"location: https://localhost:{proxy.port}/v1/models?a=b".encode() in head
            with pytest.raises(ssl.SSLCertVerificationError):
                await get(proxy.port, tls=ssl.create_default_context())

    run(main)


@pytest.mark.parametrize("op", ["reload", "restart"])
def test_nothing_is_dropped_under_load(tmp_path: Path, op: str) -> None:
    async def main() -> None:
        async with running(tmp_path, proxy__workers=2, **DEV) as proxy:
            before, certificate = await proxy.handle(), await served(proxy)
            load = Load(proxy.port, proxy.trusting())
            load.add(fresh=4, reused=4, streams=4, events=50)
            await until(lambda: all(load.seen[f"{kind} ok"] for kind in ("fresh", "reused", "stream")), 20)
            for _ in range(2):
                after = await getattr(proxy.service, op)()
            seen = await load.finish()
            assert only_ok(seen), seen
            assert (after.pid, after.mode, after.last_error) == (before.pid, "dev-selfsigned", None)
            assert after.certificate == before.certificate
            assert await served(proxy) == certificate
            assert (await get(proxy.plain_port, "/")).startswith(b"HTTP/1.1 308")

    run(main)


def test_a_new_certificate_is_served_and_drops_nothing(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, proxy__workers=2, **DEV) as proxy:
            before = await served(proxy)
            load = Load(proxy.port, proxy.trusting())
            load.add(fresh=4, reused=4, streams=4, events=100)
            await until(lambda: all(load.seen[f"{kind} ok"] for kind in ("fresh", "reused", "stream")), 30)
            (proxy.folder.certs / "local.pem").unlink()
            await proxy.service.reload()  # has the keeper look at once
            while await served(proxy) == before:
                assert not proxy.log().count("is not served yet"), proxy.log()
            seen = await load.finish()
            assert only_ok(seen), seen
            after = await served(proxy)
            handle = await proxy.handle()
            assert handle.certificate is not None
            assert handle.certificate.fingerprint == after != before
            stored = read_pair(proxy.folder.certs / "local.pem")
            assert stored is not None
            assert stored.fingerprint == after
            await proxy.service.restart()
            assert await served(proxy) == after

    run(main)


def test_a_worker_that_dies_comes_back_with_the_same_certificate(tmp_path: Path) -> None:
    """Also when what is on disk is no certificate any more: nobody reads it."""

    async def main() -> None:
        async with running(tmp_path, **DEV) as proxy:
            before, certificate = await proxy.handle(), await served(proxy)
            (proxy.folder.certs / "local.pem").write_bytes(b"nonsense")
            os.kill(before.worker_pids[0], signal.SIGKILL)
            assert (await get(proxy.port, tls=proxy.trusting())).startswith(b"HTTP/1.1 200")
            assert await served(proxy) == certificate
            assert (await proxy.handle()).worker_pids != before.worker_pids

    run(main)


def test_old_versions_are_refused(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, **DEV) as proxy:
            for version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2):
                with pytest.raises(OSError, match=r"(?i)version|handshake|reset|eof|closed"):
                    await get(proxy.port, tls=limited(proxy, version))
            with pytest.raises(CommandError, match="one of"):
                await ConfigService(proxy.folder, {}).set("tls.min_version", "1.1")
            await ConfigService(proxy.folder, {}).set("tls.min_version", "1.2")
            await proxy.service.reload()
            async with asyncio.timeout(10):  # a worker that retires may have one more connection in its hands
                while not await answered(proxy, limited(proxy, ssl.TLSVersion.TLSv1_2)):
                    pass
            with pytest.raises(OSError, match=r"(?i)version|handshake|reset|eof|closed"):
                await get(proxy.port, tls=limited(proxy, ssl.TLSVersion.TLSv1_1))

    run(main)


def negotiated(proxy: Running, name: str, context: ssl.SSLContext) -> tuple[str | None, str | None]:
    """The application protocol and the version agreed upon with a client that asks for `name`."""
    with socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as connection:
        connection.settimeout(10)
        with context.wrap_socket(connection, server_hostname=name) as secure:
            return secure.selected_alpn_protocol(), secure.version()


def test_a_name_nobody_knows_is_served_and_http_1_1_agreed_upon(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, **DEV) as proxy:
            context = proxy.trusting()
            context.check_hostname = False
            context.set_alpn_protocols(["h2", "http/1.1"])
            for name in ("nobody.example", "localhost"):
                assert await asyncio.to_thread(negotiated, proxy, name, context) == ("http/1.1", "TLSv1.3")

    run(main)


def test_what_is_no_tls_is_closed_and_harms_nobody(tmp_path: Path) -> None:
    """Plain HTTP, garbage, a hello cut short, and silence: the connection ends, the next client is served."""

    async def main() -> None:
        async with running(tmp_path, **DEV) as proxy:
            hello = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 40
            for bytes_sent in (b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n", b"\x00" * 4096, b"\x80\x2e\x01\x00\x02"):
                reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
                writer.write(bytes_sent)
                async with asyncio.timeout(15):
                    answer = b""
                    with contextlib.suppress(ConnectionResetError):
                        answer = await reader.read()
                assert b"HTTP" not in answer
                assert len(answer) < 16  # a TLS alert at most
                writer.close()
            waiting = [await asyncio.open_connection("127.0.0.1", proxy.port) for _ in range(50)]
            for _, writer in waiting[:25]:
                writer.write(hello)
            assert (await get(proxy.port, tls=proxy.trusting())).startswith(b"HTTP/1.1 200")
            for _, writer in waiting:
                writer.close()

    run(main)


def test_the_key_is_nowhere_but_in_its_file(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, **DEV) as proxy:
            handle = await proxy.handle()
            pair = read_pair(proxy.folder.certs / "local.pem")
            assert pair is not None
            secret = pair.key_pem.splitlines()[1]
            for pid in (handle.pid, *handle.worker_pids):
                for name in ("cmdline", "environ"):
                    assert secret not in Path(f"/proc/{pid}/{name}").read_bytes()
            await proxy.service.restart()
            assert secret.decode() not in proxy.log()
            assert secret.decode() not in json.dumps(str(await proxy.handle()))
            keys = [path for path in proxy.folder.root.rglob("*") if path.is_file() and secret in path.read_bytes()]
            assert keys == [proxy.folder.certs / "local.pem"]
            assert [path.stat().st_mode & 0o777 for path in keys] == [0o600]

    run(main)


@pytest.mark.parametrize(
    ("key", "value"), [("proxy.mode", "local-http"), ("proxy.https_port", "1"), ("proxy.port", "1")]
)
def test_mode_and_ports_do_not_change_while_it_runs(tmp_path: Path, key: str, value: str) -> None:
    async def main() -> None:
        async with running(tmp_path, **DEV) as proxy:
            del proxy.flags[key]
            await proxy.service.stop(now=True)
            service = ConfigService(proxy.folder, {})
            await service.set(
                key,
                str(proxy.plain_port if key == "proxy.port" else proxy.port if "https" in key else "dev-selfsigned"),
            )
            await proxy.start()
            await service.set(key, value)
            with pytest.raises(CommandError, match="cannot change while the proxy runs"):
                await proxy.service.reload()
            assert (await get(proxy.port, tls=proxy.trusting())).startswith(b"HTTP/1.1 200")

    run(main)


def test_a_taken_port_is_named(tmp_path: Path) -> None:
    async def main() -> None:
        with socket.socket() as holder:
            holder.bind(("127.0.0.1", 0))
            holder.listen()
            taken = holder.getsockname()[1]
            for key in ("proxy__port", "proxy__https_port"):
                with pytest.raises(CommandError, match=f"port {taken} .* is taken by"):
                    async with running(tmp_path / key, **{key: taken}, **DEV):
                        pass

    run(main)


AEAD = {"ECDHE-ECDSA-AES128-GCM-SHA256", "ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-ECDSA-CHACHA20-POLY1305"}


def accepted(proxy: Running, suite: str) -> bool:
    """Whether a client that offers this one suite of TLS 1.2 is served."""
    context = limited(proxy, ssl.TLSVersion.TLSv1_2)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers(f"{suite}:@SECLEVEL=0")
    try:
        with (
            socket.create_connection(("127.0.0.1", proxy.port), timeout=10) as connection,
            context.wrap_socket(connection, server_hostname="localhost") as secure,
        ):
            assert secure.compression() is None
            return True
    except OSError:
        return False


def test_of_all_suites_of_tls_1_2_only_those_with_forward_secrecy_and_aead_are_accepted(tmp_path: Path) -> None:
    async def main() -> None:
        async with running(tmp_path, tls__min_version="1.2", **DEV) as proxy:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            context.set_ciphers("ALL:COMPLEMENTOFALL:@SECLEVEL=0")
            suites = [suite["name"] for suite in context.get_ciphers() if suite["protocol"] != "TLSv1.3"]
            assert len(suites) > len(AEAD) * 5  # CBC, RSA key exchange, no encryption at all, …
            taken = {suite for suite in suites if await asyncio.to_thread(accepted, proxy, suite)}
            assert taken == AEAD

    run(main)


NODE = """
fetch(process.argv[1]).then(answer => answer.text())
  .then(text => console.log(text), error => { console.error(error.cause); process.exit(1) });
"""


@pytest.mark.parametrize("program", ["curl", "node"])
def test_other_clients_are_served_with_the_file_of_the_root(tmp_path: Path, program: str) -> None:
    if shutil.which(program) is None:
        pytest.skip(f"needs {program}")

    async def answered_with(url: str, file: str) -> tuple[int | None, bytes]:
        words = ["--silent", "--cacert", file, url] if program == "curl" else ["-e", NODE, url]
        environment = {"PATH": os.environ["PATH"], "NODE_EXTRA_CA_CERTS": file}
        child = await asyncio.create_subprocess_exec(
            program, *words, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        async with asyncio.timeout(30):
            said, _ = await child.communicate()
        return child.returncode, said

    async def main() -> None:
        async with running(tmp_path, **DEV) as proxy:
            url, file = f"https://localhost:{proxy.port}/echo", str(proxy.folder.certs / "local-root.crt")
            code, said = await answered_with(url, file)
            assert code == 0
            assert b"pid" in said
            code, said = await answered_with(url, "/dev/null")
            assert code != 0
            assert said == b""

    run(main)
