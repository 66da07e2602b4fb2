"""The mapped files: made, or refused with a reason that reaches whoever starts the proxy."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flm._native import NativeError
from flm.errors import CommandCode, CommandError
from flm.runtime import memory
from flm.runtime.memory import Memory

INTERVAL = 1_000_000_000  # nanoseconds: a token a second
BURST = 3


def _close(made: Memory) -> None:
    for descriptor in (made.shared_fd, made.keyring_fd, made.buckets_fd, made.rings_fd):
        os.close(descriptor)


def _left(made: Memory) -> int:
    """Tokens that are left in a key's bucket after taking one."""
    return made.buckets.take_key(5, INTERVAL, BURST, NOW)[1]


NOW = 10**12


def test_made_private_and_empty(tmp_path: Path) -> None:
    made = Memory.create(tmp_path, 3)
    try:
        assert made.published() is None
        assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {
            "shared": 0o600,
            "keyring": 0o600,
            "buckets": 0o600,
            "audit": 0o600,
        }
    finally:
        _close(made)


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        @staticmethod
        def create(*_arguments: int) -> None:
            raise NativeError("cannot reserve 8392704 bytes: No space left on device")

    monkeypatch.setattr(memory, "Keyring", Full)
    with pytest.raises(CommandError, match="No space left on device") as refusal:
        Memory.create(tmp_path, 3)
    assert refusal.value.code is CommandCode.IO_ERROR


def test_buckets_outlive_the_proxy(tmp_path: Path) -> None:
    former = Memory.create(tmp_path, 3)
    assert _left(former) == 2
    _close(former)
    successor = Memory.create(tmp_path, 3)
    assert _left(successor) == 1
    adopted = Memory.adopt(successor.shared_fd, successor.keyring_fd, successor.buckets_fd, successor.rings_fd)
    assert adopted is not None
    assert _left(adopted) == 0
    _close(successor)


def test_buckets_of_another_boot_are_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    former = Memory.create(tmp_path, 3)
    _left(former)
    _close(former)
    monkeypatch.setattr(memory.instance, "boot_id", lambda: "another")
    successor = Memory.create(tmp_path, 3)
    assert _left(successor) == 2
    _close(successor)


@pytest.mark.parametrize("spoil", ["damaged", "empty", "fifo", "link"])
def test_what_is_no_buckets_file_is_replaced(tmp_path: Path, spoil: str) -> None:
    path = tmp_path / "buckets"
    elsewhere = tmp_path / "elsewhere"
    if spoil == "fifo":
        os.mkfifo(path)
    elif spoil == "link":
        path.symlink_to(elsewhere)
    else:
        path.write_bytes(b"another" * 1000 if spoil == "damaged" else b"")
    made = Memory.create(tmp_path, 3)
    assert _left(made) == 2
    assert path.is_file()
    assert not path.is_symlink()
    assert not elsewhere.exists()
    _close(made)
