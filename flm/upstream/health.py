"""What FLM thinks of an engine, from one check to the next: the table of engine states as a pure function.

Does not know how a check is made (see `detect`), when, or what is done with the result. Time, thresholds and what
was seen are arguments; the previous state goes in, the next one comes out.

Strategy: `advance` asks first what was seen (good, slow or busy, foreign, silent), then what was believed before.
Falling takes several silent checks in a row, so that one lost packet does not take an engine away; rising from an
error takes one good check, so that a restarted engine serves at once; rising from degraded takes several.
"""

from __future__ import annotations

import msgspec

from flm.engines.base import Verdict
from flm.snapshot import SERVING

INSTALLED = "InstalledOnly"
HEALTHY = "RunningHealthy"
DEGRADED = "RunningDegraded"
UNREACHABLE = "ErrorNetwork"
WRONG = "ErrorApi"


class Thresholds(msgspec.Struct, frozen=True):
    """The settings engine.failure_threshold, .recovery_threshold (checks in a row) and .degraded_latency_ms."""

    failures: int = 3
    recoveries: int = 3
    degraded_latency_ms: float = 1500


class Observation(msgspec.Struct, frozen=True):
    """One check. `detail`: what is wrong, if only a little. `latency_ms`: the slowest answer of the check, None if
    there was none. `listening`: False only if the connection was refused, so that no process serves that address.
    `installed`: its program is on this machine."""

    verdict: Verdict
    version: str | None = None
    detail: str | None = None
    latency_ms: float | None = None
    listening: bool = True
    installed: bool = False


class State(msgspec.Struct, frozen=True):
    """What is believed after a check at `checked_at` (Unix seconds). `failures` and `recoveries` count checks in a
    row; `last_error` says in plain words what was wrong with the last check, None if nothing was."""

    status: str
    checked_at: float
    version: str | None = None
    latency_ms: float | None = None
    last_error: str | None = None
    failures: int = 0
    recoveries: int = 0

    @property
    def serving(self) -> bool:
        """Requests may be sent to it."""
        return self.status in SERVING


def advance(previous: State | None, seen: Observation, thresholds: Thresholds, now: float) -> State:
    """The state after `seen` at `now` (Unix seconds). `previous` is None for an engine never checked before."""
    if seen.verdict is Verdict.SILENT:
        return _silent(previous, seen, thresholds, now)
    if seen.verdict is Verdict.FOREIGN:
        return _foreign(previous, seen, now)
    latency = seen.latency_ms or 0.0
    version = seen.version or (previous.version if previous else None)
    if seen.verdict is Verdict.BUSY:
        return State(DEGRADED, now, version, seen.latency_ms, seen.detail or "the engine says that it is busy")
    if latency >= thresholds.degraded_latency_ms:
        slow = f"answered in {latency:.0f} ms; {thresholds.degraded_latency_ms:g} ms or more counts as degraded"
        return State(DEGRADED, now, version, seen.latency_ms, slow)
    if previous is not None and previous.status == DEGRADED:
        recoveries = previous.recoveries + 1
        if recoveries < thresholds.recoveries:
            return State(DEGRADED, now, version, seen.latency_ms, previous.last_error, recoveries=recoveries)
    return State(HEALTHY, now, version, seen.latency_ms, seen.detail)


def _silent(previous: State | None, seen: Observation, thresholds: Thresholds, now: float) -> State:
    failures = previous.failures + 1 if previous is not None else 1
    error = seen.detail or "the engine does not answer"
    version = previous.version if previous is not None else None
    if previous is not None and previous.serving and failures < thresholds.failures:
        return State(previous.status, now, version, previous.latency_ms, error, failures)
    if seen.installed and _nothing_runs(previous, seen):
        return State(INSTALLED, now, last_error=error)
    if previous is not None and previous.status == WRONG and failures < thresholds.failures:
        return State(WRONG, now, version, None, error, failures)
    return State(UNREACHABLE, now, version, None, error, failures)


def _nothing_runs(previous: State | None, seen: Observation) -> bool:
    if previous is None or previous.status == INSTALLED:
        return True  # it has not answered yet, so there is nothing it could have stopped doing
    return not previous.serving and not seen.listening


def _foreign(previous: State | None, seen: Observation, now: float) -> State:
    error = seen.detail or "what answers there does not speak as this kind of engine"
    if seen.installed and (previous is None or previous.status == INSTALLED):
        return State(INSTALLED, now, last_error=error)  # another program took its port
    if previous is None:
        return State(WRONG, now, None, seen.latency_ms, error, failures=1)
    return State(WRONG, now, previous.version, seen.latency_ms, error, previous.failures + 1)
