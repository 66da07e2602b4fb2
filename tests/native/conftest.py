"""Files without a name for the keyring, the shared memory and the buckets, keys to put in, and a second process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from flm import _native

PEPPER = bytes(range(32))
BOOT = b"boot id 16 bytes"
SMALL = {"keys": 64, "addresses": 32, "overflow": 8}
"""Sizes of token buckets in which addresses meet."""
ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Issued:
    """A key and what is stored of it."""

    plain: bytes
    id: str
    salt: bytes
    digest: bytes

    def upsert(
        self,
        ring: _native.Keyring,
        *,
        slot: int = 0,
        expires_at_ms: int = 0,
        revoked: bool = False,
        scopes: int = 0,
    ) -> None:
        ring.upsert(self.id, slot, self.salt, self.digest, expires_at_ms, revoked, scopes)


def issue() -> Issued:
    plain, key_id = _native.generate_key()
    salt = os.urandom(_native.SALT_BYTES)
    return Issued(plain.encode(), key_id, salt, _native.hash_secret(PEPPER, salt, plain))


class Other:
    """A second process running `tests/native/other.py`: asked by JSON lines, ended by the end of its input."""

    def __init__(self, role: str, fd: int, arguments: dict[str, object]) -> None:
        command = [sys.executable, "-m", "tests.native.other", role, str(fd)]
        self.process = subprocess.Popen(
            command, cwd=ROOT, pass_fds=(fd,), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.said = self.ask(arguments)

    def ask(self, line: object) -> object:
        """Send one line and wait for the answer to it."""
        self.tell(line)
        return self.answer()

    def tell(self, line: object) -> None:
        """Send one line."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(line) + "\n")
        self.process.stdin.flush()

    def answer(self) -> Any:
        """Wait for the next answer."""
        assert self.process.stdout is not None
        answer = self.process.stdout.readline()
        assert answer, f"the other process ended with {self.process.wait()}"
        return json.loads(answer)

    def end(self) -> Any:
        """End its input, and wait for what it answers to that."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.answer()

    def kill(self) -> None:
        """SIGKILL, wherever it is."""
        self.process.kill()
        self.process.wait()

    def close(self) -> None:
        with self.process:  # closes its pipes and waits
            pass


@pytest.fixture
def resources() -> Iterator[ExitStack]:
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def new_file(resources: ExitStack) -> Callable[[], int]:
    """Descriptors of new empty files without a name."""
    return lambda: resources.enter_context(tempfile.TemporaryFile()).fileno()


@pytest.fixture
def start_other(resources: ExitStack) -> Callable[..., Other]:
    """Starts second processes; they end with the test."""

    def start(role: str, fd: int, **arguments: object) -> Other:
        other = Other(role, fd, arguments)
        resources.callback(other.close)
        return other

    return start
