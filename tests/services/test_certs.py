"""`CertsService`: the root's certificate is handed out, its key never."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import msgspec
import pytest

from flm.errors import CommandCode, CommandError
from flm.services import CertsService
from flm.store.folder import Folder
from flm.tls.local import LocalAuthority
from flm.tls.pair import read

NOW = 1_900_000_000.0


@pytest.fixture
def certs(folder: Folder) -> CertsService:
    return CertsService(folder, lambda: NOW)


def refused(call: Coroutine[Any, Any, object], code: CommandCode) -> str:
    with pytest.raises(CommandError) as error:
        asyncio.run(call)
    assert error.value.code is code
    return error.value.message


def test_the_first_export_makes_the_root_and_the_next_gives_the_same(certs: CertsService, folder: Folder) -> None:
    first = asyncio.run(certs.export())
    assert asyncio.run(certs.export()) == first
    assert first.file == str(folder.certs / "local-root.crt")
    assert Path(first.file).read_text() == first.pem
    root = read((folder.certs / "root.pem").read_bytes())
    assert (first.fingerprint, first.name) == (root.fingerprint, root.issuer)
    assert first.not_after == "2040-03-14T17:46:40Z"
    assert stat.S_IMODE(folder.root.stat().st_mode) == 0o700


def test_to_a_file(certs: CertsService, tmp_path: Path) -> None:
    target = tmp_path / "root.crt"
    before = os.umask(0)
    try:
        exported = asyncio.run(certs.export(target))
    finally:
        os.umask(before)
    assert exported.file == str(target)
    assert target.read_text() == exported.pem
    assert stat.S_IMODE(target.stat().st_mode) == 0o644
    asyncio.run(certs.export(target))  # it is this very certificate
    assert [each.name for each in tmp_path.iterdir() if each.is_file()] == ["root.crt"]


def test_no_other_file_is_written_over(certs: CertsService, tmp_path: Path) -> None:
    (tmp_path / "theirs").write_text("theirs")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for name in ("theirs", "link", "."):
        message = refused(certs.export(tmp_path / name), CommandCode.IO_ERROR)
        assert "is there already and was left as it is" in message
    assert "No such file" in refused(certs.export(tmp_path / "no/where"), CommandCode.IO_ERROR)
    assert (tmp_path / "theirs").read_text() == "theirs"
    assert sorted(each.name for each in tmp_path.iterdir()) == ["home", "link", "theirs"]


def test_no_answer_holds_the_key(certs: CertsService, folder: Folder, tmp_path: Path) -> None:
    answers = [asyncio.run(certs.export(tmp_path / "a.crt")), asyncio.run(certs.trust())]
    keys = [read((folder.certs / "root.pem").read_bytes()).key_pem]
    answers.append(asyncio.run(certs.replace()))
    keys.append(read((folder.certs / "root.pem").read_bytes()).key_pem)
    said = msgspec.json.encode(answers).decode() + repr(answers) + (tmp_path / "a.crt").read_text()
    assert "PRIVATE" not in said
    assert not any(line in said for key in keys for line in key.decode().split("\n")[1:-2])


def test_trust_makes_the_root_and_nothing_else(certs: CertsService, folder: Folder, tmp_path: Path) -> None:
    trust = asyncio.run(certs.trust())
    assert {each.id for each in trust.stores} >= {"debian", "macos", "windows", "chromium", "firefox", "java", "node"}
    assert all(trust.file in line for each in trust.stores if each.id == "debian" for line in each.trust[:1])
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["local-root.crt", "root.pem"]


def test_a_former_root_can_still_be_removed(certs: CertsService, folder: Folder) -> None:
    old = asyncio.run(certs.trust())
    replaced = asyncio.run(certs.replace())
    assert replaced.fingerprint != old.fingerprint
    assert asyncio.run(certs.trust()).fingerprint == replaced.fingerprint
    assert replaced.former_public is not None
    assert f"flm certs trust --print --of {replaced.former_public}" in replaced.next
    former = asyncio.run(certs.trust(Path(replaced.former_public)))
    assert (former.fingerprint, former.name) == (old.fingerprint, old.name)
    assert [each.remove for each in former.stores if each.id == "chromium"] == [
        each.remove for each in old.stores if each.id == "chromium"
    ]


def test_replacing_none_and_a_damaged_one(certs: CertsService, folder: Folder) -> None:
    first = asyncio.run(certs.replace())
    assert (first.former, first.former_public) == (None, None)
    (folder.certs / "root.pem").write_bytes(b"damaged")
    for call in (certs.export(), certs.trust()):
        assert "`flm certs replace`" in refused(call, CommandCode.PROXY_CERT_FAILED)
    second = asyncio.run(certs.replace())
    assert second.former is not None
    assert Path(second.former).read_bytes() == b"damaged"
    assert second.former_public is None
    assert "--of" not in second.next
    assert LocalAuthority(folder.certs).root(NOW).fingerprint == second.fingerprint


def test_files_that_hold_no_former_root(certs: CertsService, tmp_path: Path) -> None:
    (tmp_path / "x").write_text("x")
    message = refused(certs.trust(tmp_path / "x"), CommandCode.PROXY_CERT_FAILED)
    assert "does not begin with the certificate of a local root" in message
    assert "No such file" in refused(certs.trust(tmp_path / "y"), CommandCode.IO_ERROR)
