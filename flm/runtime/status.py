"""Fills in the handle of a running proxy from what its supervisor knows."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Final

import msgspec

from flm import __version__
from flm._native import ERRORS, IN_FLIGHT, LOG_DROPPED, REQUESTS
from flm.config import SETTINGS, Resolved, domains
from flm.runtime.boot import Served
from flm.runtime.front import Front, served_by
from flm.runtime.generations import Generations
from flm.runtime.handle import AuditLine, CertificateLine, EngineLine, Handle, Override, endpoints, url_host
from flm.snapshot import Engine


def describe(
    *,
    instance_id: str,
    state: str,
    started_at: str,
    began: float,
    address: tuple[str, int],
    asked: Served,
    front: Front,
    resolved: Resolved,
    generations: Generations,
    engines: tuple[Engine, ...],
    last_error: str | None,
    audit: AuditLine,
    log_file: Path | None,
) -> Handle:
    """The handle at this moment. `address`: what the workers' sockets are bound to. `asked`: what the start asked
    for, whatever is stored since. `began`: the start, in seconds of the monotonic clock: the wall clock may have been
    set since. `resolved`: the settings, with their sources."""
    settings, sources = resolved.settings, resolved.sources
    serving = generations.serving
    served = served_by(asked, front, address[0])
    names = domains(settings) if served.mode == "https-acme" else ()
    reached = msgspec.structs.replace(served, mode=front.mode)  # a fallback is reached as its own mode is
    return Handle(
        id=instance_id,
        pid=os.getpid(),
        version=__version__,
        state=state,
        running=bool(serving) and state != "stopping",
        mode=front.mode,
        listen_addr=url_host(address[0]) + f":{address[1]}",
        port=served.port,
        https_port=served.https_port or None,
        endpoints=endpoints(reached, certified(names, front.names()) if front.mode == "https-acme" else front.names()),
        workers=len(serving),
        worker_pids=sorted(member.pid for member in serving),
        draining_pids=sorted(member.pid for member in generations.draining),
        generation=generations.number,
        started_at=started_at,
        uptime=round(time.monotonic() - began, 3),
        engines=[EngineLine(engine.id, engine.kind, engine.status) for engine in engines],
        in_flight=total(generations, IN_FLIGHT),
        requests=total(generations, REQUESTS),
        errors=total(generations, ERRORS),
        log_file=str(log_file) if log_file else None,
        log_lines_dropped=total(generations, LOG_DROPPED),
        acme_domain=", ".join(names) or None,
        certificate=hinted(front.line(), sources.get("acme.staging", "default")),
        last_error=last_error,
        audit=audit,
        overrides={
            key: Override(getattr(settings, SETTINGS[key].attribute), source)
            for key, source in sources.items()
            if source in _OF_THE_START
        },
    )


def certified(names: tuple[str, ...], served: tuple[str, ...]) -> tuple[str, ...]:
    """The names by which clients find a certificate they accept: those of the settings that the served one is for, or
    those it is for where the settings want others by now, and none of them is there yet."""
    return tuple(name for name in names if name in served) or served or names


_OF_THE_START: Final = frozenset({"flag", "environment"})
_STAGED_BY: Final = {
    "flag": "`flm proxy stop`, then `flm proxy start` without `--acme-staging`",
    "environment": "`flm proxy stop`, then `flm proxy start` without FLM_ACME_STAGING or FLM_ACME_USE_PROD",
}


def hinted(line: CertificateLine | None, staging: str) -> CertificateLine | None:
    """The line with a hint that works: what came from an option or a variable wins over any setting, so that only
    another start ends it. `staging`: the source of acme.staging."""
    if line is None or line.mode != "https-acme" or line.hint is None or staging not in _STAGED_BY:
        return line
    hint = (
        f"issued by the staging directory, trusted by nobody; {_STAGED_BY[staging]} gets a trusted one, "
        "`flm config set acme.staging false` alone does not"
    )
    return msgspec.structs.replace(line, hint=hint)


def total(generations: Generations, counter: int) -> int:
    """A counter over all living workers."""
    shared = generations.memory.shared
    return sum(shared.counter(member.cell, counter) for member in generations.crew.members)
