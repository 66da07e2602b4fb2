"""The keyring in one process: what is accepted, what is refused, and which files are."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from flm import _native
from flm._native import Keyring, NativeError
from tests.native.conftest import PEPPER, Issued, issue

NewFile = Callable[[], int]


def pair(fd: int, capacity: int = 16) -> tuple[Keyring, Keyring]:
    """A writer and a reader of one new keyring."""
    return Keyring.create(fd, capacity), Keyring.attach(fd, PEPPER)


WORDS = st.integers(0, 2**32 - 1)
POOL = [issue() for _ in range(12)]
ARBITRARY_KEY = issue()
with tempfile.TemporaryFile() as _file:
    ARBITRARY_WRITER, ARBITRARY_READER = pair(_file.fileno())
ARBITRARY_KEY.upsert(ARBITRARY_WRITER)


def test_a_valid_key_gives_its_id_slot_and_scopes(new_file: NewFile) -> None:
    writer, reader = pair(new_file())
    key = issue()
    key.upsert(writer, slot=2**32 - 1, scopes=2**31 + 5)
    assert reader.verify(key.plain, 2**64 - 1) == (key.id, 2**32 - 1, 2**31 + 5)


def test_every_other_cause_is_none(new_file: NewFile) -> None:
    writer, reader = pair(new_file())
    good, unknown, revoked, expired, other = (issue() for _ in range(5))
    good.upsert(writer)
    revoked.upsert(writer, revoked=True)
    expired.upsert(writer, expires_at_ms=1000)
    wrong_secret = Issued(good.plain, good.id, good.salt, other.digest)
    assert reader.verify(good.plain, 0) == (good.id, 0, 0)
    assert reader.verify(expired.plain, 999) == (expired.id, 0, 0)
    assert reader.verify(expired.plain, 1000) is None
    assert reader.verify(expired.plain, 5000) is None
    assert reader.verify(unknown.plain, 0) is None
    assert reader.verify(revoked.plain, 0) is None
    assert reader.verify(good.plain[:-1], 0) is None
    assert reader.verify(b"", 0) is None
    wrong_secret.upsert(writer)
    assert reader.verify(good.plain, 0) is None


def test_another_pepper_accepts_nothing(new_file: NewFile) -> None:
    fd = new_file()
    writer, reader = pair(fd)
    key = issue()
    key.upsert(writer)
    assert reader.verify(key.plain, 0) is not None
    assert Keyring.attach(fd, PEPPER[::-1]).verify(key.plain, 0) is None


def test_a_change_holds_for_the_next_check(new_file: NewFile) -> None:
    writer, reader = pair(new_file())
    key = issue()
    for slot in range(5):
        key.upsert(writer, slot=slot, scopes=slot + 1)
        assert reader.verify(key.plain, 0) == (key.id, slot, slot + 1)
        key.upsert(writer, slot=slot, revoked=True)
        assert reader.verify(key.plain, 0) is None
    assert writer.remove(key.id)
    assert not writer.remove(key.id)
    assert reader.verify(key.plain, 0) is None
    assert len(reader) == len(writer) == 0


def test_ids_and_length_count_revoked_keys_too(new_file: NewFile) -> None:
    writer, reader = pair(new_file())
    keys = [issue() for _ in range(16)]
    for number, key in enumerate(keys):
        key.upsert(writer, revoked=number % 2 == 0)
    assert sorted(writer.ids()) == sorted(reader.ids()) == sorted(key.id for key in keys)
    assert len(writer) == len(reader) == 16


def test_what_it_holds_is_there_and_not_revoked_expired_or_not(new_file: NewFile) -> None:
    writer, reader = pair(new_file())
    good, revoked, expired, unknown = (issue() for _ in range(4))
    good.upsert(writer)
    revoked.upsert(writer, revoked=True)
    expired.upsert(writer, expires_at_ms=1)
    assert [ring.holds(key.id) for ring in (writer, reader) for key in (good, revoked, expired, unknown)] == [
        True, False, True, False
    ] * 2  # fmt: skip
    writer.remove(good.id)
    assert not reader.holds(good.id)
    with pytest.raises(ValueError, match="has 12"):
        reader.holds("short")


def test_a_full_keyring_says_so_and_still_changes(new_file: NewFile) -> None:
    writer, reader = pair(new_file(), capacity=2)
    first, second, third = issue(), issue(), issue()
    first.upsert(writer)
    second.upsert(writer)
    with pytest.raises(NativeError, match="holds 2 keys and was made for 2"):
        third.upsert(writer)
    first.upsert(writer, revoked=True)
    assert reader.verify(first.plain, 0) is None
    writer.remove(first.id)
    third.upsert(writer, slot=3)
    assert reader.verify(third.plain, 0) == (third.id, 3, 0)


@given(st.binary(max_size=100))
@settings(max_examples=300)
def test_arbitrary_bytes_are_never_accepted(presented: bytes) -> None:
    assert ARBITRARY_READER.verify(presented, 0) is None


@given(st.data())
def test_no_change_of_a_valid_key_is_accepted(data: st.DataObject) -> None:
    position = data.draw(st.integers(0, 65))
    byte = data.draw(st.integers(0, 255))
    changed = ARBITRARY_KEY.plain[:position] + bytes([byte]) + ARBITRARY_KEY.plain[position + 1 :]
    accepted = ARBITRARY_READER.verify(changed, 0)
    assert (accepted is not None) == (changed == ARBITRARY_KEY.plain)


def test_bounds_are_errors(new_file: NewFile) -> None:
    writer, reader = pair(new_file())
    for capacity in (0, 2**20 + 1):
        with pytest.raises(ValueError, match="capacity must be from 1"):
            Keyring.create(new_file(), capacity)
    for key_id, salt, digest in (("short", 16, 32), ("x" * 11 + "é", 16, 32), ("x" * 12, 15, 32), ("x" * 12, 16, 31)):
        with pytest.raises(ValueError, match=r"has|consists of"):
            writer.upsert(key_id, 0, bytes(salt), bytes(digest), 0, False, 0)
    for slot, expires, scopes in (
        (-1, 0, 0), (2**32, 0, 0), (0, -1, 0), (0, 2**64, 0), (0, 0, -1), (0, 0, 2**32)
    ):  # fmt: skip
        with pytest.raises(OverflowError):
            writer.upsert("x" * 12, slot, bytes(16), bytes(32), expires, False, scopes)
    with pytest.raises(OverflowError):
        reader.verify(b"", -1)
    with pytest.raises(ValueError, match="at least 32 bytes"):
        Keyring.attach(new_file(), PEPPER[:31])
    assert len(writer) == 0


def test_only_the_writer_writes_and_only_a_reader_verifies(new_file: NewFile) -> None:
    writer, reader = pair(new_file())
    key = issue()
    with pytest.raises(NativeError, match="only its writer changes it"):
        key.upsert(reader)
    with pytest.raises(NativeError, match="only its writer changes it"):
        reader.remove(key.id)
    with pytest.raises(NativeError, match="attached with a pepper"):
        writer.verify(key.plain, 0)


def test_files_that_are_no_keyring_are_refused(new_file: NewFile) -> None:
    fd = new_file()
    with pytest.raises(NativeError, match="never completed"):
        Keyring.attach(fd, PEPPER)
    _native.Shared.create(fd, 1, 1)
    with pytest.raises(NativeError, match="not a flm-keys"):
        Keyring.attach(fd, PEPPER)
    with pytest.raises(NativeError, match="not empty"):
        Keyring.create(fd, 1)
    with pytest.raises(ValueError, match="not negative"):
        Keyring.open_writer(-1)


def test_another_layout_version_is_refused(new_file: NewFile) -> None:
    fd = new_file()
    Keyring.create(fd, 1)
    os.pwrite(fd, (_native.LAYOUT_VERSION + 1).to_bytes(8, "little"), 8)
    with pytest.raises(NativeError, match=f"layout version {_native.LAYOUT_VERSION + 1}"):
        Keyring.attach(fd, PEPPER)
    with pytest.raises(NativeError, match=f"layout version {_native.LAYOUT_VERSION + 1}"):
        Keyring.open_writer(fd)


def test_a_closed_descriptor_is_an_error_and_a_used_one_may_be_closed(new_file: NewFile) -> None:
    fd = os.dup(new_file())
    writer = Keyring.create(fd, 4)
    read_only = os.open(f"/dev/fd/{fd}", os.O_RDONLY)
    os.close(fd)
    with pytest.raises(NativeError, match="duplicate the descriptor"):
        Keyring.open_writer(fd)
    reader = Keyring.attach(read_only, PEPPER)
    with pytest.raises(NativeError, match="map the file"):
        Keyring.open_writer(read_only)
    os.close(read_only)
    key = issue()
    key.upsert(writer)
    assert reader.verify(key.plain, 0) == (key.id, 0, 0)


class Changes(RuleBasedStateMachine):
    """Adds, changes, removals and takeovers of a small crowded keyring, against a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.file = tempfile.TemporaryFile()  # noqa: SIM115 - closed in teardown
        self.writer, self.reader = pair(self.file.fileno(), capacity=len(POOL))
        self.model: dict[Issued, tuple[int, bool, int]] = {}

    @rule(number=st.integers(0, 11), slot=WORDS, revoked=st.booleans(), scopes=WORDS)
    def upsert(self, number: int, slot: int, revoked: bool, scopes: int) -> None:
        POOL[number].upsert(self.writer, slot=slot, revoked=revoked, scopes=scopes)
        self.model[POOL[number]] = (slot, revoked, scopes)

    @rule(number=st.integers(0, 11))
    def remove(self, number: int) -> None:
        assert self.writer.remove(POOL[number].id) == (self.model.pop(POOL[number], None) is not None)

    @rule()
    def take_over(self) -> None:
        self.writer = Keyring.open_writer(self.file.fileno())

    @invariant()
    def the_keyring_says_what_the_dict_says(self) -> None:
        assert len(self.writer) == len(self.reader) == len(self.model)
        for key in POOL:
            slot, revoked, scopes = self.model.get(key, (0, True, 0))
            assert self.reader.verify(key.plain, 0) == (None if revoked else (key.id, slot, scopes))

    def teardown(self) -> None:
        self.file.close()


TestChanges = Changes.TestCase
TestChanges.settings = settings(max_examples=60, stateful_step_count=40)
