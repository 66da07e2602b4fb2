"""The mapped files: made, or refused with a reason that reaches whoever starts the proxy."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from flm._native import NativeError
from flm.errors import CommandCode, CommandError
from flm.runtime import memory
from flm.runtime.memory import Memory


def test_made_private_and_empty(tmp_path: Path) -> None:
    made = Memory.create(tmp_path, 3)
    try:
        assert made.published() is None
        assert {path.name: path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {
            "shared": 0o600,
            "keyring": 0o600,
        }
    finally:
        os.close(made.shared_fd)
        os.close(made.keyring_fd)


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Full:
        @staticmethod
        def create(*_arguments: int) -> None:
            raise NativeError("cannot reserve 8392704 bytes: No space left on device")

    monkeypatch.setattr(memory, "Keyring", Full)
    with pytest.raises(CommandError, match="No space left on device") as refusal:
        Memory.create(tmp_path, 3)
    assert refusal.value.code is CommandCode.IO_ERROR
