"""The second process of the concurrency tests: `python -m tests.native.other ROLE FD`.

Its first input line holds the role's arguments; it answers when it is about to begin. A role that works without pause
does so until its input ends (or it is killed); one that is asked answers each line. It checks nothing: the test does.
"""

from __future__ import annotations

import json
import sys
import threading
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
    records = [(i, slot, bytes.fromhex(s), bytes.fromhex(d), e, r) for i, slot, s, d, e, r in arguments["records"]]
    say("changing")
    for number in until_input_ends():
        for record in records:
            ring.upsert(*record)
        for passing in arguments["passing"]:
            if number % 2:
                ring.remove(passing)
            else:
                ring.upsert(passing, number, bytes(16), bytes(32), 0, False)


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


ROLES = {"change_keys": change_keys, "verify_keys": verify_keys, "publish": publish, "count_up": count_up}

if __name__ == "__main__":
    ROLES[sys.argv[1]](int(sys.argv[2]), json.loads(sys.stdin.readline()))
