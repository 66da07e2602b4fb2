"""kill -9 of the child at every request it makes, before the CA has it and after, and at every word it says.

Whatever is left then is gone on from: the next attempt has a certificate, from the same account and, where the order
was written down, from the same order; no file is half written, nothing stays published, no child is left. What happens
when the supervisor itself is killed is `test_killed`.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import msgspec
import pytest

from flm.tls.pair import check
from flm.tls.refusal import Refused
from tests.acme.conftest import NewClient
from tests.acme.harness import NAME, Client, refused, run
from tests.support.scripted_ca import (
    Exchange,
    Forward,
    Front,
    Reaction,
    Reply,
    afterwards,
    answer,
    doing,
    dropped,
    dropped_after,
    edited,
    passed,
    problem,
)

# Each request of an attempt, in order, and which of its step it is.
REQUESTS = [
    ("directory", 1),
    ("nonce", 1),
    ("account", 1),
    ("order", 1),
    ("authorization", 1),
    ("challenge", 1),
    ("authorization", 2),
    ("poll", 1),
    ("finalize", 1),
    ("poll", 2),
    ("certificate", 1),
]
UNTOLD = ("directory", "nonce", "account", "order")  # until its answer has come, an order's URL is not known
# From here to the CA's verdict it may find nobody on port 80, which spoils the order.
UNANSWERED = ("challenge", "authorization")
STEPS = ["directory", "account", "names", "order", "challenge", "validation", "finalize", "download"]


def kill(children: list[int]) -> None:
    os.kill(children[-1], signal.SIGKILL)


async def survived(client: Client, front: Front, orders: int) -> None:
    """The next attempt has a certificate, and the CA saw one account and at most so many orders."""
    assert client.tokens == {}
    private_and_whole(client.folder)
    pair = await client.issue()
    check(pair, time.time(), [NAME])
    private_and_whole(client.folder)
    assert front.count("account", 201) == 1
    assert 1 <= front.count("order", 201) <= orders
    assert not list(client.folder.glob(".*")), "what a killed writer left is swept"


def private_and_whole(folder: Path) -> None:
    for path in folder.glob("*"):
        json.loads(path.read_bytes())
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize(("step", "number"), REQUESTS)
def test_killed_at_a_request(
    calm_front: Front, client: NewClient, children: list[int], step: str, number: int, when: str
) -> None:
    front = calm_front

    def end() -> None:
        kill(children)

    front.script(step, *[passed] * (number - 1), doing(end, dropped) if when == "before" else afterwards(end))

    async def scenario() -> None:
        async with client(front) as one:
            no = await refused(one.issue())
            assert no.kind == "local"
            assert "exit code -9" in no.message
            assert front.count(step) == number
            lost = (step, when) == ("order", "after")
            spoilt = step in UNANSWERED and (step, number, when) != ("authorization", 1, "before")
            await survived(one, front, 2 if lost or spoilt else 1)
            resumed = [each for each in one.said("order") if each.startswith("going on")]
            assert len(resumed) == (0 if step in UNTOLD else 1)

    run(scenario())


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_a_word(
    calm_front: Front, client: NewClient, children: list[int], monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    front = calm_front

    async def scenario() -> None:
        async with client(front) as one:
            heard = one._step

            def deadly(said: str, detail: str) -> None:
                heard(said, detail)
                if said == step and len(children) == 1:
                    kill(children)

            monkeypatch.setattr(one, "_step", deadly)
            await refused(one.issue())
            await survived(one, front, 2 if step in ("order", "challenge", "validation") else 1)

    run(scenario())


def test_killed_when_the_pair_is_on_its_way(calm_front: Front, client: NewClient, children: list[int]) -> None:
    """The supervisor has not got it: the next attempt fetches the same certificate, and nothing is issued again."""
    front = calm_front

    async def scenario() -> None:
        async with client(front) as one:
            front.script("certificate", afterwards(lambda: kill(children)))
            await refused(one.issue())
            issued = front.ca.issued()
            pair = await one.issue()
            assert front.ca.issued() == issued
            again = await one.issue()  # that one has arrived: what follows is an order of its own
            assert again.serial != pair.serial

    run(scenario())


def test_an_order_that_nobody_answered_for_is_replaced(
    calm_front: Front, client: NewClient, children: list[int]
) -> None:
    """The CA looked while the killed one was gone, and comes to its verdict when the next one waits for it."""
    front = calm_front
    front.script("challenge", doing(lambda: kill(children), dropped))

    async def scenario() -> None:
        async with client(front) as one:
            await refused(one.issue())
            front.script("authorization", passed, edited(lambda document: document.update(status="invalid")))
            await survived(one, front, 2)
            assert front.count("order", 201) == 2
            assert any("came to nothing" in each for each in one.said("order"))

    run(scenario())


@pytest.mark.parametrize(
    "gone",
    [
        answer(404),
        answer(410, b"<html>gone</html>"),
        problem("malformed", "no such order", 404),
        problem("unauthorized", "not yours"),
    ],
)
def test_an_order_that_the_ca_has_no_more_is_replaced(
    calm_front: Front, client: NewClient, children: list[int], gone: Reaction
) -> None:
    front = calm_front
    front.script("finalize", doing(lambda: kill(children), dropped))

    async def scenario() -> None:
        async with client(front) as one:
            await refused(one.issue())
            front.script("poll", gone)
            await survived(one, front, 2)
            assert front.count("order", 201) == 2

    run(scenario())


@pytest.mark.parametrize(
    "changed",
    [{"url": "https://localhost:1/order"}, {"url": "file:///order"}, {"key": "no key"}],
    ids=["elsewhere", "no address", "no key"],
)
def test_a_record_of_an_order_that_makes_no_sense_is_not_in_the_way(
    calm_front: Front, client: NewClient, children: list[int], changed: dict[str, str]
) -> None:
    front = calm_front
    front.script("finalize", doing(lambda: kill(children), dropped))

    async def scenario() -> None:
        async with client(front) as one:
            await refused(one.issue())
            file = one.folder / "pending.json"
            file.write_text(json.dumps(json.loads(file.read_text()) | changed))
            await survived(one, front, 2)

    run(scenario())


@pytest.mark.parametrize("step", ["challenge", "poll", "finalize", "certificate"])
def test_a_ca_that_forgets_everything_in_between_is_begun_with_anew(
    calm_front: Front, client: NewClient, step: str
) -> None:
    front = calm_front
    front.script(step, problem("accountDoesNotExist", "who are you", 400))

    async def scenario() -> None:
        async with client(front) as one:
            no = await refused(one.issue())
            assert no.kind == "server"  # worth another attempt, unlike a refusal
            assert 'it said: "who are you" (accountDoesNotExist); FLM begins anew with the next attempt' in no.message
            front.script("poll", problem("accountDoesNotExist", "who are you", 400))
            await one.issue()
            assert front.count("account", 201) == 1  # the key is the one Pebble knows

    run(scenario())


@pytest.mark.parametrize("seed", range(2))
def test_killed_again_and_again(calm_front: Front, client: NewClient, children: list[int], seed: int) -> None:
    """Five times in a row, each at another request, and going on from what the one before has left."""
    front, chance = calm_front, random.Random(seed)
    left = 0

    def deadly(exchange: Exchange, forward: Forward) -> Reply | None:
        nonlocal left
        left -= 1
        if left:
            return forward()
        return doing(lambda: kill(children), chance.choice([dropped, dropped_after]))(exchange, forward)

    for step in {step for step, _ in REQUESTS}:
        front.always(step, deadly)

    async def scenario() -> None:
        nonlocal left
        async with client(front) as one:
            for _ in range(5):
                left = chance.randrange(1, 8)
                with contextlib.suppress(Refused):  # going on may take fewer requests than that
                    await one.issue()
            left = sys.maxsize
            await survived(one, front, sys.maxsize)

    run(scenario())


def test_a_supervisor_that_is_killed_leaves_no_child(calm_front: Front, client: NewClient) -> None:
    """The child hears that the other end of its socket is closed, though it waits for the CA just then."""
    calm_front.always("directory", calm_front.hang)
    ask = msgspec.json.encode(client(calm_front).ask())
    program = (
        "import os, socket, subprocess, sys\n"
        "ours, theirs = socket.socketpair()\n"
        "child = subprocess.Popen([sys.executable, '-P', '-m', 'flm.tls.attempt', str(theirs.fileno())],"
        " pass_fds=[theirs.fileno()])\n"
        "theirs.close()\n"
        "ours.sendall(sys.stdin.buffer.readline())\n"
        "print('started', flush=True)\n"
        "sys.stdin.read()\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as supervisor:
        assert supervisor.stdin is not None
        assert supervisor.stdout is not None
        supervisor.stdin.write(ask.decode() + "\n")
        supervisor.stdin.flush()
        assert supervisor.stdout.readline()
        calm_front.wait_for("directory")
        supervisor.kill()
        supervisor.communicate(timeout=10)  # ends with the last one that holds its output, which the child does
