"""Engines behind https:// and with keys of their own, from `engines add` to a caller's answer. Real handshakes."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from flm.errors import CommandCode, CommandError
from flm.services.engines import EngineService
from flm.store.folder import Folder
from flm.upstream.tls import MAX_CA_BYTES
from tests.runtime.asking import Client
from tests.runtime.harness import running
from tests.runtime.test_engine_life import HOUR, WORKER, becomes, eventually, logged
from tests.support.certificates import Authority
from tests.support.demo import Demo, demo_engine
from tests.support.tls_front import tls_front

URL = "https://127.0.0.1:1"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("tls") / "ours", "Ours")


@pytest.fixture(scope="module")
def certificate(authority: Authority) -> Path:
    return authority.issue("DNS:localhost")


@pytest.fixture
def engine() -> Iterator[Demo]:
    with demo_engine("openai") as started:
        yield started


def stored(folder: Folder) -> list[tuple[object, ...]]:
    connection = sqlite3.connect(folder.config)
    try:
        return connection.execute("SELECT id, url, ca FROM upstreams").fetchall()
    finally:
        connection.close()


@pytest.mark.parametrize(
    ("ca", "words"),
    [
        (b"", "holds no certificate"),
        (b"ssh-rsa AAAA", "holds no certificate in PEM form"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "cannot be read"),
        (b"x" * (MAX_CA_BYTES + 1), "larger than"),
    ],
)
def test_a_file_that_holds_no_authority_changes_nothing(folder: Folder, ca: bytes, words: str) -> None:
    async def main() -> None:
        service = EngineService(folder)
        await service.add("first", "openai", URL)
        for engine_id in ("first", "second"):
            with pytest.raises(CommandError, match=f"the CA file .*{words}") as refused:
                await service.add(engine_id, "openai", URL, ca=ca, credential="sekret")
            assert refused.value.code is CommandCode.USAGE
        assert stored(folder) == [("first", URL, None)]

    asyncio.run(main())


def test_an_authority_for_an_engine_without_tls_is_a_mistake(folder: Folder, authority: Authority) -> None:
    async def main() -> None:
        with pytest.raises(CommandError, match="not https") as refused:
            await EngineService(folder).add("a", "openai", "http://127.0.0.1:1", ca=authority.pem)
        assert refused.value.code is CommandCode.USAGE
        assert await EngineService(folder).list() == ()

    asyncio.run(main())


def test_an_engine_with_an_authority_of_its_own(
    folder: Folder, authority: Authority, certificate: Path, engine: Demo
) -> None:
    async def main(url: str) -> None:
        service = EngineService(folder)
        assert (await service.add("mine", "openai", url, ca=authority.pem + certificate.read_bytes())).status == (
            "RunningHealthy"
        )
        (found,) = await service.detect_engines(fresh=True)
        assert (found.status, found.url) == ("RunningHealthy", url)
        assert [each.id for each in await service.models("mine")] == ["flm://mine/demo"]
        ((_, _, kept),) = stored(folder)
        assert "PRIVATE KEY" not in str(kept)
        await service.remove("mine")
        assert stored(folder) == []

    with tls_front(certificate, engine.url) as front:
        asyncio.run(main(front.url))


def test_without_it_the_status_says_why_and_what_to_do(folder: Folder, certificate: Path, engine: Demo) -> None:
    async def main(url: str) -> None:
        added = await EngineService(folder).add("mine", "openai", url)
        assert added.status == "ErrorNetwork"
        assert "an authority nobody here knows" in str(added.last_error)
        assert "--ca-file" in str(added.last_error)
        (found,) = await EngineService(folder).detect_engines(fresh=True)
        assert found.last_error == added.last_error

    with tls_front(certificate, engine.url) as front:
        asyncio.run(main(front.url))


def test_several_of_one_kind_each_with_its_own_key_and_authority(
    tmp_path: Path, authority: Authority, certificate: Path
) -> None:
    other = Authority(tmp_path / "other", "Other")
    with ExitStack() as stack:
        engines = {}
        for name in ("plain", "ours", "theirs"):
            (tmp_path / name).write_text(f"key-of-{name}")
            engines[name] = stack.enter_context(
                demo_engine("vllm", "--model", name, "--api-key-file", str(tmp_path / name))
            )
        ours = stack.enter_context(tls_front(certificate, engines["ours"].url))
        theirs = stack.enter_context(tls_front(other.issue("DNS:localhost"), engines["theirs"].url))

        async def main() -> str:
            async with running(tmp_path, WORKER) as proxy:
                service, client = EngineService(proxy.folder), await Client.of(proxy)
                urls = {"plain": engines["plain"].url, "ours": ours.url, "theirs": theirs.url}
                authorities = {"ours": authority.pem, "theirs": other.pem}
                for name, url in urls.items():
                    added = await service.add(name, "vllm", url, credential=f"key-of-{name}", ca=authorities.get(name))
                    assert (added.status, added.last_error) == ("RunningHealthy", None)
                assert sorted(await client.models()) == sorted(f"flm://{name}/{name}" for name in urls)
                for name in urls:
                    for model in (f"flm://{name}/{name}", name):
                        assert (await client.chat(model)).status == 200
                return client.key

        key = asyncio.run(main())
        for name, each in engines.items():
            seen = each.requests("/v1/chat/completions")
            assert len(seen) == 2
            for request in each.requests():
                given = {value for header, value in request["headers"] if header == "authorization"}
                assert given <= {f"Bearer key-of-{name}"}
                assert key not in json.dumps(request)
            assert all(["authorization", f"Bearer key-of-{name}"] in one["headers"] for one in seen)


def test_a_certificate_that_expires_is_a_clear_error_for_a_request(
    tmp_path: Path, authority: Authority, certificate: Path, engine: Demo
) -> None:
    expired = authority.issue("DNS:localhost", -3, -1)

    async def main() -> None:
        with tls_front(certificate, engine.url) as front:
            async with running(tmp_path, WORKER, engine__check_interval_seconds=HOUR) as proxy:
                await EngineService(proxy.folder).add("mine", "openai", front.url, ca=authority.pem)
                client = await Client.of(proxy)
                assert (await client.chat("demo")).status == 200
                front.show(expired)
                await eventually(lambda: refused_as(client, 502, "engine_error", "has expired"))
                await eventually(logged(proxy, "a request to engine mine failed"))
                await eventually(lambda: refused_as(client, 503, "engine_unavailable", "has expired"))
                assert (await proxy.handle()).engines[0].status == "ErrorNetwork"

    asyncio.run(main())


async def refused_as(client: Client, status: int, code: str, words: str) -> bool:
    answer = await client.chat("demo")
    return answer.status == status and answer.error["code"] == code and words in answer.error["message"]


def test_one_whose_certificate_is_mended_serves_again(
    tmp_path: Path, authority: Authority, certificate: Path, engine: Demo
) -> None:
    async def main() -> None:
        with tls_front(authority.issue("DNS:elsewhere"), engine.url) as front:
            async with running(tmp_path, WORKER, engine__check_interval_seconds=0.5) as proxy:
                added = await EngineService(proxy.folder).add("mine", "openai", front.url, ca=authority.pem)
                assert "for another name than localhost" in str(added.last_error)
                front.show(certificate)
                await eventually(becomes(proxy, "RunningHealthy"))
                assert (await (await Client.of(proxy)).chat("demo")).status == 200

    asyncio.run(main())
