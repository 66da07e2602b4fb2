"""`flm proxy …`: the verbs that start, stop and look after the proxy."""

from __future__ import annotations

import argparse
import io
import logging
import os
import stat
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from flm.cli.command import Context, Noun, Output
from flm.cli.progress import progress

if TYPE_CHECKING:
    from flm.config import Value
    from flm.services.proxy import Handle, Started

log = logging.getLogger("flm.proxy")

_COLUMNS = ("pid", "state", "mode", "endpoint", "listen_addr", "workers", "uptime", "last_error")
_OF_A_CERTIFICATE = ("certificate_until", "next_try")
# option -> the setting it overrides
_FLAGS = {
    "mode": "proxy.mode",
    "port": "proxy.port",
    "https_port": "proxy.https_port",
    "bind": "proxy.bind",
    "workers": "proxy.workers",
    "log_level": "log.level",
    "fallback": "proxy.fallback",
    "acme_email": "acme.email",
    "acme_directory": "acme.directory",
    "acme_ca_bundle": "acme.ca_bundle",
    "acme_profile": "acme.profile",
    "acme_eab_kid": "acme.eab_kid",
    "acme_eab_file": "acme.eab_file",
}


def register(noun: Noun) -> None:
    start = noun.verb("start", _start, "start it, and return when a request to it succeeds")
    start.add_argument("--mode", metavar="M", help="local-http (the default), dev-selfsigned or https-acme")
    start.add_argument(
        "--port", metavar="N", help="port to listen on (3560; https-acme: 80); of plain HTTP beside HTTPS"
    )
    start.add_argument("--https-port", metavar="N", help="port of HTTPS (--port plus 1; beside 80: 443)")
    start.add_argument("--bind", metavar="A", help="address to listen on (127.0.0.1; https-acme: *, all of them)")
    start.add_argument("--workers", metavar="N", help="worker processes (1)")
    start.add_argument("--log-level", metavar="L", help="debug, info, warning or error")
    certificate = start.add_argument_group("https-acme: a certificate of a public authority")
    certificate.add_argument("--acme-domain", metavar="D", action="append", help="name it is for; may be repeated")
    certificate.add_argument("--acme-email", metavar="E", help="whom the authority may write to")
    certificate.add_argument("--acme-staging", action="store_true", help="stop after the rehearsal: trusted by nobody")
    certificate.add_argument("--acme-directory", metavar="URL", help="another authority than Let's Encrypt")
    certificate.add_argument("--acme-ca-bundle", metavar="FILE", help="who vouches for that authority's own HTTPS")
    certificate.add_argument("--acme-profile", metavar="P", help="certificate profile, where the authority has such")
    certificate.add_argument("--acme-eab-kid", metavar="ID", help="key id of an external account binding")
    certificate.add_argument("--acme-eab-file", metavar="FILE", help="file with the key of that binding")
    certificate.add_argument("--challenge", metavar="C", default="http-01", help="http-01, the only one so far")
    certificate.add_argument("--fallback", metavar="M", help="none (the default), dev-selfsigned or local-http")
    start.add_argument("--no-daemon", action="store_true", help="stay in the foreground, log on stderr")
    stop = noun.verb("stop", _stop, "end it, when its streams have finished or their time is over")
    stop.add_argument("--port", type=int, metavar="N", help="only if it listens on this port")
    stop.add_argument("--now", action="store_true", help="do not wait for streams")
    noun.verb("restart", _restart, "new supervisor and workers, nothing refused or cut")
    noun.verb("reload", _reload, "new workers and settings, nothing refused or cut")
    noun.verb("status", _status, "what runs")


def _flags(arguments: argparse.Namespace) -> dict[str, Value]:
    _check_challenge(arguments.challenge)
    given = {setting: getattr(arguments, name) for name, setting in _FLAGS.items()}
    if arguments.acme_domain:
        given["acme.domain"] = ", ".join(arguments.acme_domain)
    if arguments.acme_staging:
        given["acme.staging"] = "true"
    return {setting: value for setting, value in given.items() if value is not None}


def _check_challenge(challenge: str) -> None:
    """Raises PROXY_INVALID_CONFIG."""
    if challenge == "http-01":
        return
    from flm.errors import CommandCode, CommandError

    if challenge == "dns-01":
        reason = (
            "dns-01 is not there yet: it needs an interface to each DNS provider, and is what wildcard names and "
            "servers without an open port 80 need; use http-01 (leave --challenge out), for which port 80 of the name "
            "must lead here, or get the certificate elsewhere and put a TLS server in front of `--mode local-http`"
        )
    else:
        reason = f"there is no challenge {challenge!r}; the one there is is http-01, and it is the default"
    raise CommandError(CommandCode.PROXY_INVALID_CONFIG, reason)


async def _start(arguments: argparse.Namespace, context: Context) -> Output | None:
    from flm.services.proxy import ProxyService, take_given

    given = take_given(os.environ, os.getpid())
    service = ProxyService(context.folder)
    first_key = _somebody_reads()
    if not arguments.no_daemon:
        with progress() as step:
            started = await service.start(_flags(arguments), first_key=first_key, step=step, given=given)
        warn_of_idle(arguments, started.mode, started.last_error)
        return Output(started)

    from flm.cli.output import show

    def tell(started: Started) -> None:
        warn_of_idle(arguments, started.mode, started.last_error)
        show(Output(started), context.format)

    await service.serve(
        _flags(arguments),
        tell,
        first_key=first_key,
        step=lambda step, detail: print(f"flm: {step}: {detail}", file=sys.stderr, flush=True),
        given=given,
    )
    return None


def warn_of_idle(arguments: argparse.Namespace, mode: str, last_error: str | None) -> None:
    """Say which options do nothing in the mode there is: whoever names a domain and forgets the mode has no HTTPS.
    A fallback is no such mode; it has left its reason in `last_error`."""
    if mode == "https-acme" or last_error:
        return
    of_https = {name for name in vars(arguments) if name.startswith("acme_")} | {"fallback"}
    idle = of_https | ({"https_port"} if mode == "local-http" else set())
    given = ", ".join(f"--{name.replace('_', '-')}" for name in sorted(idle) if getattr(arguments, name))
    if given:
        log.warning(
            "in the mode %s nothing goes by %s; `--mode https-acme` is HTTPS with a certificate that everybody trusts, "
            "`--mode dev-selfsigned` with one of FLM's own; `flm proxy stop` first",
            mode,
            given,
        )


def _somebody_reads() -> bool:
    """Whether stdout is a terminal or a pipe. A service manager's log, or a file, would keep a key for ever."""
    try:
        mode = os.fstat(sys.stdout.fileno()).st_mode
    except io.UnsupportedOperation:  # called from a program that collects what is printed
        return True
    return sys.stdout.isatty() or stat.S_ISFIFO(mode)


async def _stop(arguments: argparse.Namespace, context: Context) -> Output:
    from flm.services.proxy import ProxyService

    return Output(await ProxyService(context.folder).stop(port=arguments.port, now=arguments.now))


async def _restart(_arguments: argparse.Namespace, context: Context) -> Output:
    from flm.services.proxy import ProxyService

    return Output(await ProxyService(context.folder).restart())


async def _reload(_arguments: argparse.Namespace, context: Context) -> Output:
    from flm.services.proxy import ProxyService

    return Output(await ProxyService(context.folder).reload())


async def _status(_arguments: argparse.Namespace, context: Context) -> Output:
    from flm.services.proxy import ProxyService

    handles = await ProxyService(context.folder).status()
    return Output(handles, text=for_people(handles))


def for_people(handles: Sequence[Handle]) -> str:
    """A table of what runs: the URL that clients are to use, and with HTTPS until when its certificate is good and when
    the next one is tried for."""
    from flm.cli.output import table

    rows = []
    for handle in handles:
        row: dict[str, object] = {name: getattr(handle, name, None) for name in _COLUMNS}
        reached = handle.endpoints
        base = reached.external or reached.local_network or reached.localhost
        row["endpoint"] = f"{base}/v1" if base else None
        if (certificate := handle.certificate) is not None:
            row["certificate_until"] = certificate.not_after
            row["next_try"] = certificate.next_attempt_at or certificate.renew_after
        rows.append(row)
    encrypted = any(handle.certificate is not None for handle in handles)
    columns = (*_COLUMNS[:-1], *(_OF_A_CERTIFICATE if encrypted else ()), _COLUMNS[-1])
    return table(rows, columns)
