"""Runs a dialect's detection and listing against answers by path, as `upstream/detect` does against a socket."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from typing import TypeVar

from flm.engines.base import Answer, Probe
from tests.support.recordings import exchange

T = TypeVar("T")
NOT_FOUND = Answer(404, {}, b"404 page not found")
SILENCE = Answer(0)


def recorded(folder: str, case: str) -> Answer:
    """A recorded answer to a probe."""
    found = exchange(folder, case)
    return Answer(found.status, found.headers, found.body)


def json_answer(body: str, status: int = 200, **headers: str) -> Answer:
    named = {name.replace("_", "-").encode(): value.encode() for name, value in headers.items()}
    return Answer(status, {b"content-type": b"application/json", **named}, body.encode())


Answers = Mapping[str, Answer] | Callable[[Probe], Answer]


def run(plan: Generator[Probe, Answer, T], answers: Answers, otherwise: Answer = NOT_FOUND) -> tuple[T, list[Probe]]:
    """The plan's result and the probes it sent. `answers` go by path; at most 200 probes."""
    sent: list[Probe] = []
    try:
        probe = next(plan)
        for _ in range(200):
            sent.append(probe)
            probe = plan.send(answers(probe) if callable(answers) else answers.get(probe.path, otherwise))
    except StopIteration as stop:
        result: T = stop.value
        return result, sent
    raise AssertionError("the plan does not end")
