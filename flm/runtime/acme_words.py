"""What the keeper of `https-acme` says, and what it puts on record of a pair. Decides nothing, and asks nobody."""

from __future__ import annotations

from typing import Final

from flm.config import Settings, domains
from flm.tls.pair import Pair, moment
from flm.tls.way import Stop, way

UNTRUSTED: Final = (
    "issued by the staging directory, trusted by nobody; "
    "`flm config set acme.staging false && flm proxy reload` gets a trusted one"
)


def question(stop: Stop, settings: Settings) -> str:
    """What a CA's answer depends on, as far as it can be set."""
    return " ".join(
        (stop.directory, *domains(settings), settings.acme_profile, settings.acme_email, settings.acme_eab_kid)
    )


def held(most: int, name: str, at: Stop, until: float, settings: Settings) -> str:
    """What to say, and what to do meanwhile, while there must be no further validation of `name`."""
    todo = [f"see that http://{name} leads to port {settings.proxy_port} of this machine from outside"]
    if not at.rehearsal and any(stop.rehearsal for stop in way(settings, proven=False)):
        todo.append("rehearse with --acme-staging, whose directory counts for itself")
    if settings.proxy_fallback == "none":
        todo.append("have --fallback dev-selfsigned serve, which goes on trying by itself")
    return (
        f"{most} validations of {name} have failed at {at.directory} within an hour, and CAs count "
        f"them: FLM asks there again not before {moment(until)}, however often it is started; "
        f"meanwhile {'; or '.join(todo)}"
    )


def described(pair: Pair, directory: str, settings: Settings) -> dict[str, object]:
    """What is known of a pair as soon as it is there."""
    return {
        "directory": directory,
        "domains": pair.domains,
        "issuer": pair.issuer,
        "serial": pair.serial,
        "fingerprint": pair.fingerprint,
        "not_before": pair.not_before,
        "not_after": pair.not_after,
        "trusted": not settings.acme_staging,
        "window_start": None,
        "window_end": None,
        "window_next_at": None,
    }


def too_early(pair: Pair, now: float) -> str:
    """Of a certificate whose beginning this machine's clock has not reached."""
    begins = moment(pair.not_before)
    return f"the certificate is not valid before {begins}, and it is {moment(now)} here: is the clock right?"
