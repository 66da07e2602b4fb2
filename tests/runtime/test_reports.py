"""What a worker tells of failing engines and used keys: little enough, never blocking, and whole or not at all."""

from __future__ import annotations

import asyncio
import socket

import msgspec

from flm.runtime.boot import Word, WorkerState
from flm.runtime.crew import Member
from flm.runtime.reports import MAX_ENGINES, MAX_KEYS, MAX_TEXT, REPORT_SECONDS, FailureReports, UsedKeys
from flm.runtime.worker import _say


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_one_report_a_second_for_each_engine() -> None:
    said: list[Word] = []
    clock = Clock()
    report = FailureReports(said.append, clock)
    for _ in range(1000):
        report("a", "refused")
        report("b", "late")
    assert said == [Word("engine-failed", "refused", "a"), Word("engine-failed", "late", "b")]
    clock.now = REPORT_SECONDS * 0.99
    report("a", "refused")
    assert len(said) == 2
    clock.now = REPORT_SECONDS
    report("a", "reset")
    assert said[2:] == [Word("engine-failed", "reset", "a")]


def test_bounded_in_text_and_in_memory() -> None:
    said: list[Word] = []
    report = FailureReports(said.append, Clock())
    report("a", "x" * 100_000)
    assert len(said[0].message) == MAX_TEXT
    for number in range(3 * MAX_ENGINES):
        report(f"e{number}", "refused")
    assert len(report._last) <= MAX_ENGINES


def test_a_supervisor_that_does_not_listen_blocks_nobody_and_hears_whole_words_again() -> None:
    async def main() -> None:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        word = Word("engine-failed", "x" * MAX_TEXT, "mine")
        for _ in range(2000):  # far more than the socket holds
            _say(theirs, word)
        member = Member(WorkerState(0, 0, 0, 1, ours.detach(), [], False, None), None)
        member.control.setblocking(False)
        heard: list[Word] = []
        while words := member.words():
            heard += words
        assert heard
        assert all(each == word for each in heard)
        theirs.send(b'{"event": "engine-fa\n' + msgspec.json.encode(word) + b"\n")  # the end of one that was cut
        assert member.words() == [word]
        member.control.close()
        theirs.close()

    asyncio.run(main())


def test_used_keys_are_told_once_each_and_again_when_used_again() -> None:
    said: list[Word] = []
    used = UsedKeys(said.append)
    for _ in range(1000):
        used("b")
        used("a")
    assert said == []
    used.tell()
    used.tell()
    assert said == [Word("keys-used", keys=("a", "b"))]
    used("a")
    used.tell()
    assert said[1:] == [Word("keys-used", keys=("a",))]


def test_many_used_keys_are_told_in_short_words_and_never_pile_up() -> None:
    said: list[Word] = []
    used = UsedKeys(said.append)
    for number in range(MAX_KEYS):
        used(f"{number:012}")
    assert used._used == set(), "told without waiting for the time"
    assert sorted(key for word in said for key in word.keys) == [f"{number:012}" for number in range(MAX_KEYS)]
    assert all(len(msgspec.json.encode(word)) < 4096 for word in said)
