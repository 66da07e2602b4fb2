"""A data folder that does not exist yet, and a umask that hides nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from flm.store.folder import Folder, locate


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    return locate({"FLM_HOME": str(tmp_path / "home")})


@pytest.fixture
def no_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)
