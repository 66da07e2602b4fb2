"""Real clients trust the local root after the printed commands, not before them, and not after it was removed; and they
refuse what its key signs beyond its bounds. The commands are run as printed, with a home folder of the test's own.
"""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509

from flm.tls import local
from flm.tls.interfaces import host_name, local_names
from flm.tls.local import LocalAuthority
from flm.tls.pair import Pair, read
from flm.tls.trust import Store, read_root, stores
from tests.tls.serving import SAID, serving

NODE = """
const [host, port] = process.argv.slice(1);
const options = {host: '127.0.0.1', port, path: '/', agent: false};
options.checkServerIdentity = (_, found) => require('tls').checkServerIdentity(host, found);
if (!/^[0-9.]+$/.test(host)) options.servername = host;
require('https').get(options, a => a.on('data', d => process.stdout.write(d)))
  .on('error', e => { console.error(e.code, e.message); process.exit(1) });
"""
OPENAI = """
import sys
from openai import OpenAI
client = OpenAI(base_url=f"https://localhost:{sys.argv[1]}/v1", api_key="k", max_retries=0)
print(list(client.models.list()))
"""
URLLIB = """
import sys, urllib.request
print(urllib.request.urlopen(f"https://localhost:{sys.argv[1]}/", timeout=10).read())
"""


class Stage:
    """A root, a leaf as `dev-selfsigned` serves it, and a home folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home of a user"  # commands have to quote
        self.home.mkdir()
        self.authority = LocalAuthority(self.home / "certs")
        self.now = time.time()
        self.root = self.authority.root(self.now)
        self.leaf = self.authority.leaf(local_names(), self.now)
        self.file = self.authority.public_file

    def store(self, name: str) -> Store:
        (found,) = [each for each in stores(self.file, read_root(self.root.chain_pem)) if each.id == name]
        return found

    def signed_beyond(self, *names: str) -> Pair:
        """What somebody with the root's key could sign, whatever the root says."""
        return local._issue(self.root, x509.load_pem_x509_certificate(self.root.chain_pem), names, self.now)

    def shell(self, *lines: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", "-ec", "\n".join(lines)],
            env={"HOME": str(self.home), "PATH": os.environ["PATH"]},
            cwd=self.folder,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Stage:
    return Stage(tmp_path_factory.mktemp("clients"))


@pytest.fixture(scope="module")
def port(stage: Stage) -> Iterator[int]:
    with serving(stage.leaf, stage.folder) as port:
        yield port


def needs(program: str) -> str:
    found = shutil.which(program)
    if found is None:
        pytest.skip(f"needs {program}")
    return found


def beyond() -> list[tuple[str, ...]]:
    """Names that the root must not vouch for, the first of which a client asks for."""
    host = host_name()
    below_the_host = [(f"a.{host}",)] if host and "." not in host else []
    return [("example.com",), ("localhost", "example.com"), ("notlocal",), *below_the_host]


class TestPython:
    @staticmethod
    def handshake(name: str, port: int, file: Path) -> None:
        context = ssl.create_default_context(cafile=str(file))
        with (
            socket.create_connection(("127.0.0.1", port), timeout=10) as plain,
            context.wrap_socket(plain, server_hostname=name) as secure,
        ):
            assert secure.version() == "TLSv1.3"

    def test_every_name_of_the_leaf(self, stage: Stage, port: int) -> None:
        for name in stage.leaf.domains:
            self.handshake(name, port, stage.file)

    @pytest.mark.parametrize("names", beyond())
    def test_beyond_its_bounds(self, stage: Stage, names: tuple[str, ...]) -> None:
        with (
            serving(stage.signed_beyond(*names), stage.folder) as port,
            pytest.raises(ssl.SSLCertVerificationError, match=r"(permitted|excluded) subtree violation"),
        ):
            self.handshake(names[0], port, stage.file)

    def test_an_address_beyond_its_bounds(self, stage: Stage) -> None:
        with (
            serving(stage.signed_beyond("203.0.113.9"), stage.folder) as port,
            pytest.raises(ssl.SSLCertVerificationError, match="permitted subtree violation"),
        ):
            self.handshake("203.0.113.9", port, stage.file)

    @pytest.mark.parametrize("program", [URLLIB, OPENAI])
    def test_as_printed(self, stage: Stage, port: int, program: str) -> None:
        store = stage.store("python")
        call = f"{shlex.quote(sys.executable)} -c {shlex.quote(program)} {port}"
        trusted = stage.shell(*store.trust, call)
        assert trusted.returncode == 0, trusted.stderr
        assert stage.shell(*store.trust, *store.remove, call).returncode != 0
        before = stage.shell(call)
        assert before.returncode != 0
        assert "self-signed certificate" in before.stderr or "unable to get local issuer" in before.stderr


class TestCurl:
    @staticmethod
    def call(name: str, port: int) -> str:
        needs("curl")
        return f"curl --silent --show-error --noproxy '*' --resolve {name}:{port}:127.0.0.1 https://{name}:{port}/"

    def test_as_printed(self, stage: Stage, port: int) -> None:
        store = stage.store("curl")
        for name in ("localhost", "127.0.0.1", host_name() or "localhost"):
            assert SAID in stage.shell(*store.trust, self.call(name, port)).stdout
        for lines in ((), (*store.trust, *store.remove)):
            refused = stage.shell(*lines, self.call("localhost", port))
            assert refused.returncode == 60, refused.stderr  # CURLE_PEER_FAILED_VERIFICATION

    @pytest.mark.parametrize("names", beyond())
    def test_beyond_its_bounds(self, stage: Stage, names: tuple[str, ...]) -> None:
        with serving(stage.signed_beyond(*names), stage.folder) as port:
            refused = stage.shell(*stage.store("curl").trust, self.call(names[0], port))
        assert (refused.returncode, refused.stdout) == (60, ""), refused.stderr


class TestNode:
    @staticmethod
    def call(name: str, port: int) -> str:
        return f"{needs('node')} -e {shlex.quote(NODE)} {name} {port}"

    def test_as_printed(self, stage: Stage, port: int) -> None:
        store = stage.store("node")
        for name in ("localhost", "127.0.0.1"):
            answered = stage.shell(*store.trust, self.call(name, port))
            assert SAID in answered.stdout, answered.stderr
        for lines in ((), (*store.trust, *store.remove)):
            refused = stage.shell(*lines, self.call("localhost", port))
            assert "UNABLE_TO_VERIFY_LEAF_SIGNATURE" in refused.stderr

    @pytest.mark.parametrize("names", beyond())
    def test_beyond_its_bounds(self, stage: Stage, names: tuple[str, ...]) -> None:
        with serving(stage.signed_beyond(*names), stage.folder) as port:
            refused = stage.shell(*stage.store("node").trust, self.call(names[0], port))
        assert refused.stdout == ""
        assert "subtree violation" in refused.stderr


class TestChromium:
    """The browser itself, and NSS's own verifier with the same database."""

    @pytest.fixture
    def stage(self, tmp_path: Path) -> Stage:
        return Stage(tmp_path)

    @staticmethod
    def browse(stage: Stage, name: str, port: int) -> str:
        """The page, or the browser's words for why not. Whatever it looks for on its own lies on this machine too."""
        shown = stage.shell(
            f"{needs('chromium-headless-shell')} --no-sandbox --disable-gpu --user-data-dir=profile "
            f"--host-resolver-rules='MAP * 127.0.0.1' --no-proxy-server --dump-dom https://{name}:{port}/"
        )
        return shown.stdout + shown.stderr

    def test_as_printed(self, stage: Stage) -> None:
        needs("certutil")
        store = stage.store("chromium")
        with serving(stage.leaf, stage.folder) as port:
            assert "ERR_CERT_AUTHORITY_INVALID" in self.browse(stage, "localhost", port)
            for _ in range(2):  # a second time does no harm
                trusted = stage.shell(*store.trust)
                assert trusted.returncode == 0, trusted.stderr
            for name in ("localhost", "127.0.0.1", host_name() or "localhost"):
                assert SAID in self.browse(stage, name, port)
            removed = stage.shell(*store.remove)
            assert removed.returncode == 0, removed.stderr
            assert "ERR_CERT_AUTHORITY_INVALID" in self.browse(stage, "localhost", port)

    def test_beyond_its_bounds(self, stage: Stage) -> None:
        needs("certutil")
        stage.shell(*stage.store("chromium").trust)
        for names in beyond():
            with serving(stage.signed_beyond(*names), stage.folder) as port:
                shown = self.browse(stage, names[0], port)
            assert "ERR_CERT_INVALID" in shown, names
            assert SAID not in shown

    def test_nss_itself(self, stage: Stage) -> None:
        needs("certutil")
        store = stage.store("chromium")

        def verified(pair: Pair) -> str:
            (stage.folder / "leaf.pem").write_bytes(read(pair.pem).chain_pem)
            return stage.shell('vfychain -d "sql:$HOME/.pki/nssdb" -u 1 -a leaf.pem 2>&1 || true').stdout

        stage.shell(*store.trust)
        assert "Chain is good!" in verified(stage.leaf)
        for names in beyond():
            assert "is not permitted to issue a certificate with this name" in verified(stage.signed_beyond(*names))
        stage.shell(*store.remove)
        assert "Chain is bad!" in verified(stage.leaf)

    def test_firefoxes_profiles(self, stage: Stage) -> None:
        needs("certutil")
        store = stage.store("firefox")
        nothing = stage.shell(*store.trust)
        assert (nothing.returncode, nothing.stderr) == (0, "")
        for name in ("one", "two"):
            profile = stage.home / ".mozilla/firefox" / name
            profile.mkdir(parents=True)
            made = stage.shell(f"certutil -d sql:{shlex.quote(str(profile))} -N --empty-password")
            assert made.returncode == 0, made.stderr
        listed = 'for each in .mozilla/firefox/*; do certutil -d "sql:$each" -L; done'
        for lines, count in (((), 0), (store.trust, 2), (store.remove, 0)):
            assert stage.shell(*lines, 'cd "$HOME"', listed).stdout.count(f"{stage.root.issuer} ") == count


class TestJava:
    def test_as_printed(self, stage: Stage) -> None:
        """With a store of the test's own in the place of Java's."""
        needs("keytool")
        store = stage.store("java")

        def ours(line: str) -> str:
            assert line.startswith("sudo keytool ")
            return line.removeprefix("sudo ").replace("-cacerts", "-keystore cacerts", 1)

        for lines, count in ((store.trust, 1), (store.remove, 0)):
            done = stage.shell(*map(ours, lines), "keytool -list -keystore cacerts -storepass changeit")
            assert done.returncode == 0, done.stdout
            assert done.stdout.count("trustedCertEntry") == count
