"""The second process of the concurrency tests: `python -m tests.native.other ROLE FD`.

Its first input line holds the role's arguments; it answers when it is about to begin. A role that works without pause
does so until its input ends (or it is killed); one that is asked answers each line. It checks nothing: the test does.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator
from itertools import count
from typing import Any

from flm import _native


def say(answer: object) -> None:
    print(json.dumps(answer), flush=True)


def until_input_ends() -> Iterator[int]:
    """0, 1, 2 … until nobody holds the other end of our input."""
    ended = threading.Event()

    def watch() -> None:
        sys.stdin.read()
        ended.set()

    threading.Thread(target=watch, daemon=True).start()
    for number in count():
        if ended.is_set():
            return
        yield number


def change_keys(fd: int, arguments: dict[str, Any]) -> None:
    """Store the given records over and over, and remove and add the given passing keys."""
    ring = _native.Keyring.open_writer(fd)
    records = [
        (i, slot, bytes.fromhex(s), bytes.fromhex(d), e, r, c) for i, slot, s, d, e, r, c in arguments["records"]
    ]
    say("changing")
    for number in until_input_ends():
        for record in records:
            ring.upsert(*record)
        for passing in arguments["passing"]:
            if number % 2:
                ring.remove(passing)
            else:
                ring.upsert(passing, number, bytes(16), bytes(32), 0, False, 0)


def verify_keys(fd: int, arguments: dict[str, Any]) -> None:
    """Answer each presented key with what `verify` says."""
    ring = _native.Keyring.attach(fd, bytes.fromhex(arguments["pepper"]))
    say("attached")
    for line in sys.stdin:
        say(ring.verify(json.loads(line).encode(), 0))


def publish(fd: int, arguments: dict[str, Any]) -> None:
    """Publish without pause: snapshot n is the byte n, 1 to `most` times."""
    shared = _native.Shared.attach(fd)
    most = arguments["most"]
    say("publishing")
    epoch = shared.epoch()
    for _ in until_input_ends():
        following = epoch + 1
        epoch = shared.publish(bytes([following % 256]) * (1 + following * 7919 % most))


def count_up(fd: int, arguments: dict[str, Any]) -> None:
    """Add to one counter a given number of times, each time asked."""
    shared = _native.Shared.attach(fd)
    say("attached")
    for line in sys.stdin:
        times, delta = json.loads(line)
        for _ in range(times):
            shared.add(0, _native.REQUESTS, delta)
        say("added")


def hammer(fd: int, arguments: dict[str, Any]) -> None:
    """Take from one bucket until the time asked for, and on until it is empty: [grants, last time], monotonic."""
    buckets = _native.Buckets.attach(fd, bytes.fromhex(arguments["boot"]))
    take, first, limit = getattr(buckets, arguments["take"]), arguments["first"], arguments["limit"]
    say("attached")
    for line in sys.stdin:
        end = json.loads(line)
        granted, allowed, now = 0, True, 0
        while allowed or now < end:
            now = time.monotonic_ns()
            allowed = take(*first, *limit, now)[0]
            granted += allowed
        say([granted, now])


def drain(fd: int, arguments: dict[str, Any]) -> None:
    """Take from one bucket, at the one time asked for, until it is empty: how often."""
    buckets = _native.Buckets.attach(fd, bytes.fromhex(arguments["boot"]))
    take, first, limit = getattr(buckets, arguments["take"]), arguments["first"], arguments["limit"]
    say("attached")
    for line in sys.stdin:
        now, granted = json.loads(line), 0
        while take(*first, *limit, now)[0]:
            granted += 1
        say(granted)


def take_many(fd: int, arguments: dict[str, Any]) -> None:
    """Take from one key's bucket as often as asked, and answer the nanoseconds of processor time that took."""
    buckets = _native.Buckets.attach(fd, bytes.fromhex(arguments["boot"]))
    slot, limit = arguments["slot"], arguments["limit"]
    say("attached")
    for line in sys.stdin:
        begun, now = time.process_time_ns(), time.monotonic_ns()
        for _ in range(json.loads(line)):
            buckets.take_key(slot, *limit, now)
        say(time.process_time_ns() - begun)


def pass_by(fd: int, arguments: dict[str, Any]) -> None:
    """Take twice at one moment for ever new owners. Says, of owners who had a slot of their own, how often the second
    take was right (it found exactly one token less) or wrong, and how many shared a bucket."""
    buckets = _native.Buckets.attach(fd, bytes.fromhex(arguments["boot"]))
    table, limit, owners = arguments["table"], arguments["limit"], arguments["owners"]
    right, wrong, shared = 0, 0, 0
    say("passing")
    for number in until_input_ends():
        owner, now = owners + number % 5000, time.monotonic_ns()
        first = buckets.take_address(table, owner, *limit, now)
        second = buckets.take_address(table, owner, *limit, now)
        if first[4] or second[4]:
            shared += 1
        elif first[0]:
            expected = (first[1] > 0, max(first[1], 1) - 1)
            right += second[:2] == expected
            wrong += second[:2] != expected
    say([right, wrong, shared])


def push_rows(fd: int, arguments: dict[str, Any]) -> None:
    """Push rows without pause, n copies of the byte n modulo 256 for n from `first` on; wait where there is no room."""
    rings = _native.Rings.attach(fd)
    say("pushing")
    number = arguments["first"]
    while True:
        if rings.push(0, bytes([number % 256]) * (1 + number % 300)):
            number += 1


ROLES = {
    "change_keys": change_keys,
    "verify_keys": verify_keys,
    "publish": publish,
    "count_up": count_up,
    "hammer": hammer,
    "drain": drain,
    "take_many": take_many,
    "pass_by": pass_by,
    "push_rows": push_rows,
}

if __name__ == "__main__":
    ROLES[sys.argv[1]](int(sys.argv[2]), json.loads(sys.stdin.readline()))
