"""The keyring between processes: a writer at work or killed, while keys are verified here."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from flm._native import Keyring
from tests.native.conftest import PEPPER, Issued, Other, issue

NewFile = Callable[[], int]
StartOther = Callable[..., Other]


def record(key: Issued, slot: int, digest: bytes, expires_at_ms: int, revoked: bool) -> list[object]:
    return [key.id, slot, key.salt.hex(), digest.hex(), expires_at_ms, revoked, slot + 1]


def test_a_key_under_change_is_never_accepted_wrongly_nor_its_neighbour_refused(
    new_file: NewFile, start_other: StartOther
) -> None:
    fd = new_file()
    changed, steady, stranger = issue(), issue(), issue()
    passing = [issue() for _ in range(5)]  # their comings and goings move others about in the small table
    steady.upsert(Keyring.create(fd, 7), slot=7)
    reader = Keyring.attach(fd, PEPPER)
    # Of these only the first is valid, so a mixture of any two would be accepted with another slot.
    records = [
        record(changed, 1, changed.digest, 0, False),
        record(changed, 2, stranger.digest, 0, False),
        record(changed, 3, changed.digest, 0, True),
        record(changed, 4, changed.digest, 1, False),
    ]
    start_other("change_keys", fd, records=records, passing=[key.id for key in passing])
    seen: Counter[tuple[str, int, int] | None] = Counter()
    for _ in range(3_000_000):
        seen[reader.verify(changed.plain, 1000)] += 1
        assert reader.verify(steady.plain, 1000) == (steady.id, 7, 0)
        assert reader.verify(passing[0].plain, 1000) is None
        if min(seen[None], seen[(changed.id, 1, 2)]) >= 5000:
            break
    assert seen.keys() == {None, (changed.id, 1, 2)}
    assert min(seen.values()) >= 5000


def test_a_change_holds_in_another_process_when_the_call_has_returned(
    new_file: NewFile, start_other: StartOther
) -> None:
    fd = new_file()
    writer = Keyring.create(fd, 8)
    key = issue()
    other = start_other("verify_keys", fd, pepper=PEPPER.hex())
    for slot in range(200):
        key.upsert(writer, slot=slot)
        assert other.ask(key.plain.decode()) == [key.id, slot, 0]
        key.upsert(writer, slot=slot, revoked=True)
        assert other.ask(key.plain.decode()) is None


def test_a_killed_writer_leaves_a_keyring_that_works_and_can_be_taken_over(
    new_file: NewFile, start_other: StartOther
) -> None:
    fd = new_file()
    steady, changed = issue(), issue()
    passing = [issue() for _ in range(6)]
    steady.upsert(Keyring.create(fd, 8), slot=7)
    reader = Keyring.attach(fd, PEPPER)
    records = [record(changed, 1, changed.digest, 0, False), record(changed, 2, changed.digest, 0, True)]
    for round_ in range(12):
        other = start_other("change_keys", fd, records=records, passing=[key.id for key in passing])
        while reader.verify(changed.plain, 0) is None:
            pass  # until the writer is at work
        for _ in range(round_ * 37):
            reader.verify(changed.plain, 0)
        other.kill()
        assert reader.verify(steady.plain, 0) == (steady.id, 7, 0)
        assert reader.verify(changed.plain, 0) in {None, (changed.id, 1, 2)}
        heir = Keyring.open_writer(fd)
        assert len(heir) == len(heir.ids()) == len(reader)
        changed.upsert(heir, slot=3)
        assert reader.verify(changed.plain, 0) == (changed.id, 3, 0)
        for key_id in heir.ids():
            assert heir.remove(key_id)
        assert len(reader) == 0
        steady.upsert(heir, slot=7)
