"""Finds out which engines are there: runs the dialects' probe plans over sockets, all at once, in bounded time.

Does not know what any kind of engine looks like (the dialects' generators do), nor what the answers make of the list
of engines (see `roster`), and keeps nothing: what was found before is an argument, so that ids and states carry over.

Strategy: every address of every kind is probed at the same time on a connection of its own; whatever listens there
(a web server that says 200 to everything, a silent one, an endless answer, a redirect) costs at most its timeout and
PROBE_BODY_BYTES. An engine that is known already is asked by its own kind alone, since some log each question that is
not meant for them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Coroutine, Generator, Iterable, Mapping, Sequence
from typing import Any, Final, TypeVar

from flm.config import DETECT_TIMEOUT_SECONDS, PROBE_BODY_BYTES, PROBE_TIMEOUT_SECONDS
from flm.engines import bounds
from flm.engines.base import Answer, Dialect, Identity, ListingError, Probe, UpstreamRequest, Verdict
from flm.errors import ErrorKind, RequestError
from flm.snapshot import Model
from flm.upstream.health import Observation, Thresholds
from flm.upstream.pool import Pool, Timeouts
from flm.upstream.roster import RECOGNISED, Candidate, candidates_of, judge, place_of
from flm.upstream.roster import Detected as Detected
from flm.upstream.roster import Registered as Registered
from flm.upstream.survey import Survey, executable, survey
from flm.upstream.tls import speaks_tls
from flm.wire.http1 import parse_address

TLS_CHECK_SECONDS: Final = 1.0  # one handshake, with a server that has just answered
LISTING_TIMEOUT_SECONDS: Final = 10.0  # a whole model list; some kinds are asked once for each model
WANTS_KEY: Final = "it wants a key: `flm engines add … --api-key-env NAME`"
_DEFAULT_THRESHOLDS: Final = Thresholds()
_JSON: Final = ((b"content-type", b"application/json"),)

Result = TypeVar("Result")
Clock = Callable[[], float]

log = logging.getLogger("flm.engines")


class KeyWantedError(ListingError):
    """An engine gives its model list only for a key, and FLM has none for it."""


class _Prober:
    """One dialect's questions to one address, over one kept-alive connection."""

    def __init__(
        self, url: str, dialect: Dialect, credential: str | None, ca: str | None, seconds: float, clock: Clock
    ) -> None:
        timeouts = Timeouts(connect=seconds, first_byte=seconds, between_bytes=seconds, total=seconds)
        self._pool = Pool(
            url, credential=credential, ca=ca, idle_seconds=dialect.idle_seconds, timeouts=timeouts, max_in_flight=0
        )
        self._clock = clock
        self.slowest_ms: float | None = None
        self.listening = True
        self.dislikes_http = False  # it closed, or said 400, as servers do that expect TLS
        self.trouble: str | None = None
        self.wants_key = False  # it said 401, and there was no credential to send
        self._has_credential = credential is not None

    async def run(self, plan: Generator[Probe, Answer, Result]) -> Result:
        """Carry out `plan` to its result. What the plan raises comes through."""
        try:
            probe = next(plan)
            while True:
                probe = plan.send(await self._ask(probe))
        except StopIteration as done:
            result: Result = done.value
            return result
        finally:
            plan.close()
            await self._pool.close(running=True)

    async def _ask(self, probe: Probe) -> Answer:
        began = self._clock()
        headers = _JSON if probe.body else ()
        try:
            answer = await self._exchange(UpstreamRequest(probe.path, probe.body, probe.method, headers))
        except RequestError as error:
            self.trouble = error.message
            self.listening = error.kind is not ErrorKind.ENGINE_UNAVAILABLE
            self.dislikes_http = error.kind is ErrorKind.ENGINE_ERROR
            return Answer(0)
        took_ms = (self._clock() - began) * 1000
        self.slowest_ms = max(self.slowest_ms or 0.0, took_ms)
        self.dislikes_http = answer.status == 400
        self.wants_key |= answer.status == 401 and not self._has_credential
        return answer

    async def _exchange(self, request: UpstreamRequest) -> Answer:
        response = await self._pool.send(request)
        try:
            body = bytearray()
            while piece := await response.read():
                body += piece
                if len(body) > PROBE_BODY_BYTES:
                    self.trouble = f"{self._pool.origin} answered with more than {PROBE_BODY_BYTES} bytes"
                    return Answer(0)
            response.release()
            return Answer(response.status, response.headers, bytes(body))
        finally:
            response.abort()


async def identify(
    url: str,
    dialect: Dialect,
    *,
    credential: str | None = None,
    ca: str | None = None,
    installed: bool = False,
    probe_timeout: float = PROBE_TIMEOUT_SECONDS,
    clock: Clock = time.monotonic,
) -> Observation:
    """Check whether an engine of this kind answers at `url`. `probe_timeout` seconds bound each request.

    Never raises for anything the other side does, nor for a URL that cannot be used: that is SILENT, with a detail.
    """
    try:
        prober = _Prober(url, dialect, credential, ca, probe_timeout, clock)
    except ValueError as error:
        return Observation(Verdict.SILENT, detail=f"{url}: {error}", listening=False, installed=installed)
    identity: Identity = await prober.run(dialect.identify())
    detail = identity.detail
    if identity.verdict is Verdict.SILENT:
        detail = prober.trouble or detail
    elif prober.wants_key and identity.verdict is not Verdict.BUSY:
        detail = WANTS_KEY
    if identity.verdict not in RECOGNISED and prober.dislikes_http and await _is_behind_tls(url):
        detail = f"what listens at {url} speaks TLS; its URL begins with https://"
    version, detail = bounds.bounded_version(identity.version), bounds.bounded_detail(_with_url(url, detail))
    return Observation(identity.verdict, version, detail, prober.slowest_ms, prober.listening, installed)


def _with_url(url: str, detail: str | None) -> str | None:
    """Dialects speak of paths; a person wants to see what was asked, with a base that may be one too many."""
    return f"{url}{detail}" if detail is not None and detail.startswith("/") else detail


async def _is_behind_tls(url: str) -> bool:
    """Whether plain HTTP was tried where TLS is spoken, which few servers say in so many words."""
    address = parse_address(url)
    return address.scheme == "http" and await speaks_tls(address.host, address.port, TLS_CHECK_SECONDS)


async def list_models(
    url: str,
    dialect: Dialect,
    *,
    credential: str | None = None,
    ca: str | None = None,
    probe_timeout: float = PROBE_TIMEOUT_SECONDS,
    total_timeout: float = LISTING_TIMEOUT_SECONDS,
    remark: Callable[[str], None] = log.warning,
) -> tuple[Model, ...]:
    """The models of the engine at `url`, bounded; `remark` hears what was left out.

    Raises ListingError, saying what came instead of a list; KeyWantedError if that takes a credential and there is
    none.
    """
    try:
        prober = _Prober(url, dialect, credential, ca, probe_timeout, time.monotonic)
    except ValueError as error:
        raise ListingError(f"{url}: {error}") from None
    try:
        async with asyncio.timeout(total_timeout):
            models, left_out = bounds.bounded_models(await prober.run(dialect.models()))
    except TimeoutError:
        raise ListingError(f"the model list of {url} was not complete within {total_timeout:g} s") from None
    except ListingError as error:
        if prober.wants_key:
            raise KeyWantedError(WANTS_KEY) from None
        why = f" ({prober.trouble})" if prober.trouble is not None else ""
        raise ListingError(f"{_with_url(url, str(error))}{why}") from None
    for each in left_out:
        remark(f"{url}: {each}")
    return models


async def detect_engines(
    dialects: Sequence[Dialect],
    environment: Mapping[str, str],
    system: str,
    home: str,
    *,
    registered: Iterable[Registered] = (),
    previous: Iterable[Detected] = (),
    discover: bool = True,
    thresholds: Thresholds = _DEFAULT_THRESHOLDS,
    probe_timeout: float = PROBE_TIMEOUT_SECONDS,
    total_timeout: float = DETECT_TIMEOUT_SECONDS,
    runnable: Callable[[str], bool] = executable,
    clock: Clock = time.monotonic,
    now: Clock = time.time,
) -> list[Detected]:
    """Every engine of these kinds on this machine, and every registered one, within `total_timeout` seconds.

    `environment`, `system` and `home` go to the dialects. `previous` is the result of the check before: ids stay,
    states advance. `clock` measures latency, `now` is Unix time. An address nobody registered is listed once it was
    recognised, and forgotten after twice `thresholds.failures` bad checks in a row; a program that is installed and
    does not run is InstalledOnly. Without `discover` only registered engines are looked at. Registered engines of
    kinds not among `dialects` are left out. Sorted by id.
    """
    # In each round anew: what is installed, and on which port an engine says that it listens, may change meanwhile.
    here, usual = await asyncio.to_thread(_places, dialects, environment, system, home, discover, runnable)
    candidates = candidates_of(dialects, usual, registered, here.installed)

    async def check(candidate: Candidate) -> Observation:
        known = candidate.registered
        return await identify(
            candidate.url,
            candidate.dialect,
            credential=known.credential if known else None,
            ca=known.ca if known else None,
            installed=candidate.installed,
            probe_timeout=probe_timeout,
            clock=clock,
        )

    previous = list(previous)
    kinds = {place_of(each.url): each.kind for each in previous if each.source == "detected" and each.state.serving}
    return judge(await _look(candidates, kinds, check, total_timeout), previous, thresholds, now())


def _places(
    dialects: Sequence[Dialect],
    environment: Mapping[str, str],
    system: str,
    home: str,
    discover: bool,
    runnable: Callable[[str], bool],
) -> tuple[Survey, list[tuple[Dialect, str]]]:
    """What is on the disk, and the addresses that follow from it; blocking, and its work grows with what lies there."""
    here = survey(dialects, environment, system, home, settings=discover, runnable=runnable)
    known = [(each, here.files[each.kind]) for each in dialects if discover]
    return here, [(each, url) for each, files in known for url in each.addresses(environment, files)]


async def _look(
    candidates: Sequence[Candidate],
    kinds: Mapping[str, str],
    check: Callable[[Candidate], Coroutine[Any, Any, Observation]],
    seconds: float,
) -> list[tuple[Candidate, Observation]]:
    """Check all at once, for so long; what is not done then is silent. Nothing goes on afterwards.

    `kinds`: place to the kind that was there before. Where it still is, no other kind asks its questions.
    """
    groups: dict[str, list[Candidate]] = {}
    for candidate in candidates:
        groups.setdefault(candidate.place, []).append(candidate)
    found: dict[Candidate, Observation] = {}

    async def note(candidate: Candidate) -> Observation:
        found[candidate] = await check(candidate)
        return found[candidate]

    async def settle(place: str, group: list[Candidate]) -> None:
        for candidate in group:
            if candidate.dialect.kind == kinds.get(place) and candidate.registered is None:
                if (await note(candidate)).verdict in RECOGNISED:
                    group[:] = [candidate]
                    return
                break
        await asyncio.gather(*(note(candidate) for candidate in group if candidate not in found))

    await _bounded([settle(place, group) for place, group in groups.items()], seconds)
    late = f"did not answer all questions within {seconds:g} s"
    asked = {candidate for group in groups.values() for candidate in group}
    return [
        (candidate, found.get(candidate) or Observation(Verdict.SILENT, detail=late, installed=candidate.installed))
        for candidate in candidates
        if candidate in asked
    ]


async def _bounded(work: Sequence[Coroutine[Any, Any, None]], seconds: float) -> None:
    """Do all of it at once for at most so long; what is not done then is cancelled, and has ended on return."""
    tasks = [asyncio.create_task(each) for each in work]
    try:
        if tasks:
            await asyncio.wait(tasks, timeout=seconds)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in tasks:
        if not task.cancelled():
            task.result()
