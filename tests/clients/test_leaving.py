"""The official clients give up: by their own timeout, by closing a stream, by aborting. The engine learns of it.

The engine says itself that its client has left. Both clients, every dialect.
"""

from __future__ import annotations

import time

import pytest

from tests.clients.conftest import Target
from tests.clients.drivers import Client, ask, succeed
from tests.clients.test_answers import messages

PATIENCE_SECONDS = 0.8
"""Of the client; long enough for its request to reach the engine on a busy machine."""
CANCEL_SECONDS = 2.0
"""From the client's leave, as this test sees it, to the engine's: 0.25 s are FLM's, the rest is for a busy machine."""


def test_a_client_that_loses_patience(client: Client, target: Target) -> None:
    args = {"model": target.chat, "messages": messages("hold=ever")}
    outcome = ask(client, target.server, "chat", args, timeout=PATIENCE_SECONDS)
    assert outcome.error is not None
    assert (outcome.error.name, outcome.error.status) == ("APITimeoutError", None)
    target.engine.wait("cancelled")
    assert len(target.asked()) == 1


def test_a_client_that_loses_patience_asks_again(client: Client, target: Target) -> None:
    args = {"model": target.chat, "messages": messages("hold=ever")}
    outcome = ask(client, target.server, "chat", args, timeout=PATIENCE_SECONDS, retries=1)
    assert outcome.error is not None
    assert outcome.error.name == "APITimeoutError"
    target.engine.wait("cancelled", 2)
    assert len(target.asked()) == 2


@pytest.mark.parametrize("op", ["chat", "stream"])
def test_a_request_that_is_aborted_before_its_answer(client: Client, target: Target, op: str) -> None:
    args = {"model": target.chat, "messages": messages("hold=ever")}
    running = client.begin(target.server, op, args)
    target.engine.wait("held")
    left = time.monotonic()
    running.abort()
    target.engine.wait("cancelled")
    outcome = running.outcome()
    assert outcome.error is not None
    assert outcome.error.name == "APIUserAbortError"
    ended = float(str(target.asked()[0]["ended_at"]))
    assert ended - left < CANCEL_SECONDS


def test_a_stream_that_is_closed(client: Client, target: Target) -> None:
    args = {"model": target.chat, "messages": messages("endless")}
    assert succeed(client, target.server, "leave", args, after=5) == {"chunks": True}
    target.engine.wait("cancelled")
    assert target.asked()[0]["outcome"] == "cancelled"


def test_a_stream_that_is_aborted_while_nothing_comes(client: Client, target: Target) -> None:
    args = {"model": target.chat, "messages": messages("hold=ever hold_at=4")}
    running = client.begin(target.server, "stream", args)
    target.engine.wait("held")
    running.abort()
    target.engine.wait("cancelled")
    outcome = running.outcome()
    assert outcome.error is not None or outcome.ok["finishes"] == []
