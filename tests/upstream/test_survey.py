"""What is found on the disk, whatever lies at the paths: files, folders, pipes, devices, too much, nothing."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flm.engines.base import DialectDefaults, Identifying, Identity, Listing, Probe, Verdict
from flm.engines.registry import DIALECTS
from flm.upstream import survey as module
from flm.upstream.survey import MAX_FILE_BYTES, Survey, content, executable, survey


class Toy(DialectDefaults):
    """Its program and its settings, one of which may point to another."""

    kind = label = "toy"

    def binaries(self, system: str, environment: Mapping[str, str], home: str) -> tuple[str, ...]:
        return (f"{home}/{system}/toy", f"{home}/apps/Toy-*.AppImage")

    def settings(self, system: str, environment: Mapping[str, str], home: str) -> tuple[str, ...]:
        return (f"{home}/pointer", f"{home}/unit.d/*.conf", f"{home}/toy.json")

    def further_settings(self, files: Mapping[str, bytes]) -> tuple[str, ...]:
        return tuple(f"{value.decode()}/far.json" for path, value in files.items() if path.endswith("/pointer"))

    def identify(self) -> Identifying:
        yield Probe("/")
        return Identity(Verdict.FOREIGN)

    def models(self) -> Listing:
        yield Probe("/")
        return ()


def look(home: Path, **options: object) -> Survey:
    return survey([Toy()], {}, "linux", str(home), **({"runnable": executable} | options))  # type: ignore[arg-type, list-item]


def files(home: Path) -> dict[str, bytes]:
    return {path.removeprefix(f"{home}/"): data for path, data in look(home).files["toy"].items()}


def test_nothing_is_there(tmp_path: Path) -> None:
    assert look(tmp_path) == Survey(frozenset(), {"toy": {}})


def test_settings_are_read_in_order_and_followed(tmp_path: Path) -> None:
    (tmp_path / "unit.d").mkdir()
    for name in ("b.conf", "a.conf", "c.txt"):
        (tmp_path / "unit.d" / name).write_text(name)
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "far.json").write_text("far")
    (tmp_path / "pointer").write_text(str(tmp_path / "elsewhere"))
    (tmp_path / "toy.json").write_text("near")
    found = files(tmp_path)
    assert list(found) == ["pointer", "unit.d/a.conf", "unit.d/b.conf", "toy.json", "elsewhere/far.json"]
    assert found["elsewhere/far.json"] == b"far"
    assert look(tmp_path, settings=False).files == {}


def test_what_changed_is_seen_at_the_next_look(tmp_path: Path) -> None:
    (tmp_path / "toy.json").write_text("1")
    assert files(tmp_path) == {"toy.json": b"1"}
    (tmp_path / "toy.json").write_text("2")
    assert files(tmp_path) == {"toy.json": b"2"}


def test_a_program_by_its_name_or_its_pattern(tmp_path: Path) -> None:
    (tmp_path / "apps").mkdir()
    program = tmp_path / "apps" / "Toy-1.2-x64.AppImage"
    program.write_text("")
    assert look(tmp_path).installed == frozenset()
    program.chmod(0o755)
    assert look(tmp_path).installed == {"toy"}


def test_only_regular_files_are_read_and_nothing_waits(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "toy.json")
    (tmp_path / "pointer").mkdir()
    assert files(tmp_path) == {}
    assert content("/dev/zero") is None
    assert content("/dev/tty") is None
    assert content("\0") is None
    assert content("x" * 100_000) is None
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    assert content(str(tmp_path / "loop")) is None


def test_a_file_is_read_up_to_its_bound(tmp_path: Path) -> None:
    path = tmp_path / "toy.json"
    path.write_bytes(b"x" * MAX_FILE_BYTES)
    assert content(str(path)) == b"x" * MAX_FILE_BYTES
    path.write_bytes(b"x" * (MAX_FILE_BYTES + 1))
    assert content(str(path)) is None
    with path.open("wb") as sparse:
        sparse.truncate(1 << 40)
    assert content(str(path)) is None


def test_an_unreadable_file_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "toy.json"
    path.write_text("1")

    def refuse(*_: object) -> int:
        raise PermissionError

    monkeypatch.setattr(module.os, "open", refuse)
    assert content(str(path)) is None


def test_matches_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "unit.d").mkdir()
    for number in range(30):
        (tmp_path / "unit.d" / f"{number:02}.conf").write_text("")
    assert len(files(tmp_path)) == module.MAX_MATCHES
    monkeypatch.setattr(module, "MAX_PATHS", 3)
    assert list(files(tmp_path)) == ["unit.d/00.conf", "unit.d/01.conf"], "the third path was tried first"


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    (tmp_path / "toy.json").write_text("1")
    (tmp_path / "pointer").mkdir()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        look(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_every_kind_can_be_looked_for_here(tmp_path: Path) -> None:
    found = survey(
        list(DIALECTS.values()), {"PATH": "/usr/bin:relative:\0"}, sys.platform, str(tmp_path), runnable=executable
    )
    assert set(found.files) == set(DIALECTS)


@pytest.mark.parametrize("kind", DIALECTS)
@given(data=st.binary(max_size=200) | st.text(max_size=100).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_anything_may_stand_in_a_settings_file(kind: str, data: bytes) -> None:
    dialect = DIALECTS[kind]
    for system in ("linux", "darwin", "win32"):
        contents = dict.fromkeys(dialect.settings(system, {}, "/home/u"), data)
        further = dialect.further_settings(contents)
        assert all(isinstance(path, str) for path in further)
        for path in further:
            content(path)
        urls = dialect.addresses({}, contents | dict.fromkeys(further, data))
        assert len(urls) <= 16
        assert all(url.startswith(("http://", "https://")) for url in urls)
