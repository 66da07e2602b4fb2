"""The rings of rows: in one process, and between two of which one is killed at any moment."""

from __future__ import annotations

import os
import resource
import tempfile
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from flm._native import NativeError, Rings
from tests.native.conftest import Other

NewFile = Callable[[], int]
StartOther = Callable[..., Other]


def taken(rings: Rings, slot: int = 0, most: int = 1_000_000) -> list[bytes]:
    """The rows of a slot, whose room is given back."""
    rows, position, damaged = rings.take(slot, most)
    assert not damaged
    rings.release(slot, position)
    return rows


@given(st.lists(st.binary(max_size=300), max_size=40))
def test_every_row_comes_back_in_its_order_or_is_counted(rows: list[bytes]) -> None:
    with tempfile.TemporaryFile() as file:
        rings = Rings.create(file.fileno(), 1, 4096)
    rings.prepare(0)
    kept = [row for row in rows if rings.push(0, row)]
    assert taken(rings) == kept
    assert rings.dropped() == len(rows) - len(kept)
    assert rings.push(0, b"room again")


def test_rows_stay_until_they_are_released(new_file: NewFile) -> None:
    fd = new_file()
    first = Rings.create(fd, 2, 4096)
    first.prepare(1)
    assert first.push(1, b"a")
    assert first.push(1, b"b")
    heir = Rings.attach(fd)
    assert heir.waiting() == [1]
    assert heir.take(1, 1)[0] == [b"a"]
    assert taken(heir, 1, 1) == [b"a"]
    assert taken(Rings.attach(fd), 1) == [b"b"]
    assert (first.waiting(), first.dropped()) == ([], 0)


def test_rows_that_made_no_sense_are_counted_by_their_reader(new_file: NewFile) -> None:
    rings = Rings.create(new_file(), 1, 4096)
    rings.prepare(0)
    rings.push(0, b"?")
    rings.release(0, rings.take(0, 1)[1], 1)
    assert (rings.dropped(), rings.waiting()) == (1, [])


def test_only_rings_in_use_are_on_disk(new_file: NewFile) -> None:
    fd = new_file()
    rings = Rings.create(fd, 1024, 1 << 20)
    assert os.fstat(fd).st_blocks * 512 < 1 << 20
    rings.prepare(1023)
    assert 1 << 20 <= os.fstat(fd).st_blocks * 512 < 2 << 20
    assert rings.push(1023, b"last")
    assert taken(rings, 1023) == [b"last"]


def test_no_room_on_disk_is_an_error_and_another_try_may_succeed(new_file: NewFile) -> None:
    fd = new_file()
    rings = Rings.create(fd, 2, 1 << 20)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, before[1]))
    try:
        with pytest.raises(NativeError, match="reserve space"):
            rings.prepare(1)
        assert not rings.push(1, b"no place for it")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    rings.prepare(1)
    assert rings.push(1, b"there is now")
    assert (taken(rings, 1), rings.dropped()) == ([b"there is now"], 1)


def test_wrong_arguments_and_files_are_refused(new_file: NewFile) -> None:
    for slots, ring_bytes in [(0, 64), (1025, 64), (1, 63), (1, 100), (1, 1 << 31)]:
        with pytest.raises(ValueError, match=r"ring has|worker slots"):
            Rings.create(new_file(), slots, ring_bytes)
    with pytest.raises(NativeError, match="never completed"):
        Rings.attach(new_file())
    rings = Rings.create(new_file(), 1, 64)
    for call in (rings.prepare, lambda slot: rings.push(slot, b""), lambda slot: rings.take(slot, 1)):
        with pytest.raises(NativeError, match="no worker slot"):
            call(1)


def test_a_writer_killed_at_any_moment_tears_no_row(new_file: NewFile, start_other: StartOther) -> None:
    """Each successor goes on where its killed predecessor's last complete row ends; the ring is small, so that rows are
    written over what was read before."""
    fd = new_file()
    rings = Rings.create(fd, 1, 1 << 16)
    rings.prepare(0)
    number = 0
    for _ in range(12):
        writer = start_other("push_rows", fd, first=number)
        rows: list[bytes] = []
        while len(rows) < 3000:
            rows += taken(rings)
        writer.kill()
        rows += taken(rings)
        for row in rows:
            assert row == bytes([number % 256]) * (1 + number % 300)
            number += 1
    assert rings.waiting() == []
