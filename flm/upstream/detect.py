"""Finds out which engines are there: runs the dialects' probe plans over sockets, all at once, in bounded time.

Does not know what any kind of engine looks like (the dialects' generators do), and keeps nothing: what was found
before is an argument, so that ids and states carry over.

Strategy: every address of every kind is probed at the same time on a connection of its own; whatever listens there
(a web server that says 200 to everything, a silent one, an endless answer, a redirect) costs at most its timeout and
PROBE_BODY_BYTES. Then, in the order of the dialects, an address goes to the first kind that recognises it. An engine
that is known already is asked by its own kind alone, since some log each question that is not meant for them.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Generator, Iterable, Iterator, Mapping, Sequence
from itertools import count
from typing import Any, Final, TypeVar

import msgspec

from flm.config import DETECT_TIMEOUT_SECONDS, PROBE_BODY_BYTES, PROBE_TIMEOUT_SECONDS
from flm.engines.base import Answer, Dialect, Identity, ListingError, Probe, UpstreamRequest, Verdict
from flm.errors import ErrorKind, RequestError
from flm.snapshot import Model
from flm.upstream.health import INSTALLED, Observation, State, Thresholds, advance
from flm.upstream.pool import Pool, Timeouts
from flm.upstream.survey import executable, survey
from flm.upstream.tls import speaks_tls
from flm.wire.http1 import parse_address

TLS_CHECK_SECONDS: Final = 1.0  # one handshake, with a server that has just answered
LISTING_TIMEOUT_SECONDS: Final = 10.0  # a whole model list; some kinds are asked once for each model
_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})
_RECOGNISED: Final = frozenset({Verdict.RECOGNISED, Verdict.BUSY})
_DEFAULT_THRESHOLDS: Final = Thresholds()
_JSON: Final = ((b"content-type", b"application/json"),)

Result = TypeVar("Result")
Clock = Callable[[], float]


class Registered(msgspec.Struct, frozen=True):
    """An engine that somebody named; `credential` is FLM's bearer token for it, `ca` as in `snapshot.Engine`."""

    id: str
    kind: str
    url: str
    credential: str | None = None
    ca: str | None = None

    def __repr__(self) -> str:  # the default would print the credential
        return f"Registered(id={self.id!r}, kind={self.kind!r}, url={self.url!r})"


class Detected(msgspec.Struct, frozen=True):
    """One engine after a check. `source`: `detected` or `registered`."""

    id: str
    kind: str
    url: str
    source: str
    state: State


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
    if identity.verdict not in _RECOGNISED and prober.dislikes_http and await _is_behind_tls(url):
        detail = f"what listens at {url} speaks TLS; its URL begins with https://"
    return Observation(identity.verdict, identity.version, detail, prober.slowest_ms, prober.listening, installed)


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
) -> tuple[Model, ...]:
    """The models of the engine at `url`. Raises ListingError, saying what came instead of a list."""
    try:
        prober = _Prober(url, dialect, credential, ca, probe_timeout, time.monotonic)
    except ValueError as error:
        raise ListingError(f"{url}: {error}") from None
    try:
        async with asyncio.timeout(total_timeout):
            return await prober.run(dialect.models())
    except TimeoutError:
        raise ListingError(f"the model list of {url} was not complete within {total_timeout:g} s") from None
    except ListingError as error:
        if prober.trouble is None:
            raise
        raise ListingError(f"{error} ({prober.trouble})") from None


class _Candidate(msgspec.Struct, frozen=True):
    """One address to check as one kind. `installed`: that kind's program is on the machine the address belongs to."""

    dialect: Dialect
    url: str
    installed: bool
    registered: Registered | None = None

    @property
    def place(self) -> str:
        return _place(self.url)


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
    here = await asyncio.to_thread(survey, dialects, environment, system, home, settings=discover, runnable=runnable)
    usual = [
        (dialect, url)
        for dialect in dialects
        for url in (dialect.addresses(environment, here.files[dialect.kind]) if discover else ())
    ]
    candidates = _candidates(dialects, usual, registered, here.installed)

    async def check(candidate: _Candidate) -> Observation:
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
    kinds = {_place(each.url): each.kind for each in previous if each.source == "detected" and each.state.serving}
    return _judge(await _look(candidates, kinds, check, total_timeout), previous, thresholds, now())


def _candidates(
    dialects: Sequence[Dialect],
    usual: Iterable[tuple[Dialect, str]],
    registered: Iterable[Registered],
    installed: frozenset[str],
) -> list[_Candidate]:
    """Registered engines first: an address that has a name is not looked at under another one."""
    by_kind = {dialect.kind: dialect for dialect in dialects}
    candidates = []
    named = set()
    for engine in registered:
        named.add(_place(engine.url))
        if engine.kind in by_kind:
            here = engine.kind in installed and _place(engine.url).startswith("loopback:")
            candidates.append(_Candidate(by_kind[engine.kind], engine.url, here, engine))
    for dialect, url in usual:
        if _place(url) not in named:
            candidates.append(_Candidate(dialect, url, dialect.kind in installed))
    return candidates


def _place(url: str) -> str:
    """One name for one listening socket, whatever the loopback address is called. A bad URL is its own place."""
    try:
        address = parse_address(url)
    except ValueError:
        return url
    host = "loopback" if address.host in _LOOPBACK else address.host
    return f"{host}:{address.port}{address.base_path}"


async def _look(
    candidates: Sequence[_Candidate],
    kinds: Mapping[str, str],
    check: Callable[[_Candidate], Coroutine[Any, Any, Observation]],
    seconds: float,
) -> list[tuple[_Candidate, Observation]]:
    """Check all at once, for so long; what is not done then is silent. Nothing goes on afterwards.

    `kinds`: place to the kind that was there before. Where it still is, no other kind asks its questions.
    """
    groups: dict[str, list[_Candidate]] = {}
    for candidate in candidates:
        groups.setdefault(candidate.place, []).append(candidate)
    found: dict[_Candidate, Observation] = {}

    async def note(candidate: _Candidate) -> Observation:
        found[candidate] = await check(candidate)
        return found[candidate]

    async def settle(place: str, group: list[_Candidate]) -> None:
        for candidate in group:
            if candidate.dialect.kind == kinds.get(place) and candidate.registered is None:
                if (await note(candidate)).verdict in _RECOGNISED:
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


def _judge(
    seen: Sequence[tuple[_Candidate, Observation]], previous: Sequence[Detected], thresholds: Thresholds, now: float
) -> list[Detected]:
    """From what was seen to what is believed."""
    before = {(engine.kind, _place(engine.url), engine.source): engine.state for engine in previous}
    found: list[Detected] = []
    claimed: set[str] = set()
    for candidate, observation in seen:
        engine = candidate.registered
        if engine is not None:
            state = advance(before.get((engine.kind, candidate.place, "registered")), observation, thresholds, now)
            found.append(Detected(engine.id, engine.kind, engine.url, "registered", state))
        elif observation.verdict in _RECOGNISED and candidate.place not in claimed:
            claimed.add(candidate.place)
            found.append(_detected(candidate, observation, before, thresholds, now))
    free = [(candidate, observation) for candidate, observation in seen if candidate.place not in claimed]
    for kind, group in _by_kind(free):
        rest = [_detected(candidate, observation, before, thresholds, now) for candidate, observation in group.values()]
        ailing = [engine for engine in rest if _remembered(engine, before, thresholds)]
        found += ailing
        if not ailing and not any(engine.kind == kind and engine.source == "detected" for engine in found):
            found += [engine for engine in rest if engine.state.status == INSTALLED][:1]
    return _named(found, previous)


def _by_kind(
    seen: Iterable[tuple[_Candidate, Observation]],
) -> list[tuple[str, dict[str, tuple[_Candidate, Observation]]]]:
    """Kind to place to the first check of that place."""
    groups: dict[str, dict[str, tuple[_Candidate, Observation]]] = {}
    for candidate, observation in seen:
        if candidate.registered is None:
            groups.setdefault(candidate.dialect.kind, {}).setdefault(candidate.place, (candidate, observation))
    return list(groups.items())


_States = Mapping[tuple[str, str, str], State]


def _detected(
    candidate: _Candidate, observation: Observation, before: _States, thresholds: Thresholds, now: float
) -> Detected:
    """Not yet named."""
    kind = candidate.dialect.kind
    state = advance(before.get((kind, candidate.place, "detected")), observation, thresholds, now)
    return Detected("", kind, candidate.url, "detected", state)


def _remembered(engine: Detected, before: _States, thresholds: Thresholds) -> bool:
    """An engine that was recognised once and is not now: listed for some more checks, so that its failure is seen."""
    earlier = before.get((engine.kind, _place(engine.url), "detected"))
    if earlier is None or INSTALLED in (earlier.status, engine.state.status):
        return False
    return engine.state.failures <= 2 * thresholds.failures


def _named(found: Iterable[Detected], previous: Iterable[Detected]) -> list[Detected]:
    """Detected engines are called by their kind, further ones `kind-2`, `kind-3` by port; a name once given stays."""
    earlier = {(engine.kind, _place(engine.url)): engine.id for engine in previous if engine.source == "detected"}
    named = [engine for engine in found if engine.id]
    taken = {engine.id for engine in named}
    nameless = []
    for engine in sorted((engine for engine in found if not engine.id), key=_port_order):
        name = earlier.get((engine.kind, _place(engine.url)))
        if name is None or name in taken:
            nameless.append(engine)
        else:
            taken.add(name)
            named.append(msgspec.structs.replace(engine, id=name))
    for engine in nameless:
        name = next(name for name in _names(engine.kind) if name not in taken)
        taken.add(name)
        named.append(msgspec.structs.replace(engine, id=name))
    return sorted(named, key=lambda engine: engine.id)


def _port_order(engine: Detected) -> tuple[str, int, str]:
    try:
        return engine.kind, parse_address(engine.url).port, engine.url
    except ValueError:
        return engine.kind, 0, engine.url


def _names(kind: str) -> Iterator[str]:
    yield kind
    for number in count(2):
        yield f"{kind}-{number}"
