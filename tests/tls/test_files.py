"""Files of keys: pairs are read whole or refused, one maker at a time is in a folder, and each CA has its own."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flm.disk.private import write_atomically
from flm.errors import CommandCode, CommandError
from flm.tls import files
from flm.tls.files import MAX_BYTES, folder_of, locked, read_pair, read_private
from flm.tls.pair import read
from tests.tls.issuing import authority

ROOT = authority()
LEAF = ROOT.issue("leaf", ("example.com",))


class TestReading:
    def test_what_is_not_there(self, tmp_path: Path) -> None:
        assert read_private(tmp_path / "none/none") is None
        assert read_pair(tmp_path / "none") is None

    def test_a_large_one_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "large").write_bytes(b"x" * (MAX_BYTES + 1))
        with pytest.raises(CommandError, match="larger than") as error:
            read_private(tmp_path / "large")
        assert error.value.code is CommandCode.IO_ERROR

    def test_a_pair(self, tmp_path: Path) -> None:
        path = tmp_path / "a.pem"
        pair = read(LEAF.key_pem + LEAF.chain)
        write_atomically(path, pair.pem)
        assert read_pair(path) == pair
        write_atomically(path, ROOT.key_pem + LEAF.chain)
        with pytest.raises(CommandError, match=r"a\.pem: .*mixed up") as error:
            read_pair(path)
        assert error.value.code is CommandCode.PROXY_CERT_FAILED


class TestLocked:
    def test_one_at_a_time(self, tmp_path: Path) -> None:
        inside: list[int] = []
        most: list[int] = []

        def enter(number: int) -> None:
            with locked(tmp_path / "certs"):
                inside.append(number)
                most.append(len(inside))
                os.sched_yield()
                inside.remove(number)

        threads = [threading.Thread(target=enter, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30)
        assert most == [1] * 8
        assert list((tmp_path / "certs").iterdir()) == []

    def test_one_that_hangs_is_named(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(files, "LOCK_SECONDS", 0.0)
        with (
            locked(tmp_path),
            pytest.raises(CommandError, match="another flm has been at work"),
            locked(tmp_path),
        ):
            raise AssertionError("both are in")


class TestFolderOf:
    @pytest.mark.parametrize(
        ("url", "readable"),
        [
            ("https://acme-v02.api.letsencrypt.org/directory", "acme-v02.api.letsencrypt.org-"),
            ("https://127.0.0.1:14000/dir", "127.0.0.1_14000-"),
            ("https://user:word@CA.example/", "ca.example-"),
            ("https://[::1]:1/", "___1__1-"),
            ("nonsense", "ca-"),
            ("https://[", "ca-"),
            ("https://\ud800/", "_-"),
        ],
    )
    def test_readable(self, url: str, readable: str) -> None:
        assert folder_of(url).startswith(readable)
        assert len(folder_of(url)) == len(readable) + 12

    def test_of_one_host_each_directory_has_its_own(self) -> None:
        assert folder_of("https://ca.example/a") != folder_of("https://ca.example/b")

    @given(st.text(max_size=300))
    def test_any_url_is_one_harmless_name(self, text: str) -> None:
        name = folder_of(f"https://{text}/dir")
        assert len(name) < 200
        assert Path(name).name == name
        assert not name.startswith(".")
