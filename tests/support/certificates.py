"""Certificates for tests, made by the openssl command: an authority, and what it issues with any names and dates.

authority = Authority(folder, "Test CA")
pair = authority.issue("DNS:localhost")          # certificate and key in one PEM file
authority.issue("IP:127.0.0.1", begins=-3, ends=-1)   # expired yesterday
"""

from __future__ import annotations

import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

_CONFIG = """
[ca]
default_ca = own
[own]
database = {folder}/index.txt
new_certs_dir = {folder}
serial = {folder}/serial
certificate = {folder}/ca.pem
private_key = {folder}/ca.key
default_md = sha256
policy = any
unique_subject = no
copy_extensions = copy
[any]
commonName = supplied
"""


class Authority:
    """A root of its own. `file`: its certificate, PEM."""

    def __init__(self, folder: Path, name: str) -> None:
        if shutil.which("openssl") is None:
            pytest.skip("makes its certificates with openssl")
        folder.mkdir()
        self._folder = folder
        self._count = 0
        self.file = folder / "ca.pem"
        (folder / "index.txt").touch()
        (folder / "serial").write_text("01\n")
        (folder / "config").write_text(_CONFIG.format(folder=folder))
        extensions = ["-addext", "basicConstraints=critical,CA:true", "-addext", "keyUsage=critical,keyCertSign"]
        _openssl(
            folder, "req -x509 -nodes -days 30", *_key("ca.key"), "-out", "ca.pem", "-subj", f"/CN={name}", *extensions
        )

    @property
    def pem(self) -> bytes:
        return self.file.read_bytes()

    def issue(self, names: str, begins: float = -1, ends: float = 1) -> Path:
        """A certificate for `names` (`DNS:localhost,IP:::1`), valid from and to so many days from now, with its key."""
        self._count += 1
        stem = f"leaf{self._count}"
        _openssl(
            self._folder, "req -new -nodes", *_key(f"{stem}.key"), "-out", f"{stem}.csr", "-subj", "/CN=engine",
            "-addext", f"subjectAltName={names}",
        )  # fmt: skip
        dates = ["-startdate", _date(begins), "-enddate", _date(ends)]
        _openssl(self._folder, "ca -batch -notext -config config", "-in", f"{stem}.csr", "-out", f"{stem}.crt", *dates)
        return self._pair(stem)

    def self_signed(self, names: str) -> Path:
        """A certificate that no authority has signed, with its key."""
        self._count += 1
        stem = f"leaf{self._count}"
        _openssl(
            self._folder, "req -x509 -nodes -days 2", *_key(f"{stem}.key"), "-out", f"{stem}.crt",
            "-subj", "/CN=engine", "-addext", f"subjectAltName={names}",
        )  # fmt: skip
        return self._pair(stem)

    def _pair(self, stem: str) -> Path:
        both = self._folder / f"{stem}.pem"
        both.write_bytes((self._folder / f"{stem}.crt").read_bytes() + (self._folder / f"{stem}.key").read_bytes())
        return both


def _key(file: str) -> list[str]:
    return ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-keyout", file]


def _date(days: float) -> str:
    return (datetime.now(UTC) + timedelta(days=days)).strftime("%Y%m%d%H%M%SZ")


def _openssl(folder: Path, command: str, *arguments: str) -> None:
    done = subprocess.run(["openssl", *command.split(), *arguments], cwd=folder, capture_output=True, timeout=30)
    assert done.returncode == 0, done.stderr.decode()
