"""Names that may stand in a certificate of a public CA, by the http-01 challenge. Pure; asks nobody."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from typing import Final

from flm.tls.refusal import Refused, quoted

MOST: Final = 100  # of one certificate; Let's Encrypt's limit, and other CAs have the same or less
_LABEL: Final = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.IGNORECASE)
_LONGEST: Final = 253
_LOCAL: Final = ("local", "localhost")  # RFC 6762, RFC 6761: they mean something else on each network or machine


def check(names: Sequence[str]) -> None:
    """Raises Refused, saying what is wrong with the first of `names` that no such certificate can be had for."""
    if not names:
        raise _refused("there is no name to get a certificate for", "set acme.domain")
    if len(names) > MOST:
        raise _refused(f"{len(names)} names are too many for one certificate", f"{MOST} is the most")
    for name in names:
        _check(name)


def _check(name: str) -> None:
    if "*" in name:
        raise _refused(
            f"{quoted(name)} is a wildcard, for which a CA asks for the dns-01 challenge, and FLM has only http-01",
            "name each host in full",
        )
    if _is_address(name):
        raise _refused(
            f"{quoted(name)} is an IP address, and FLM gets certificates for names only",
            "give a DNS name that leads to it, or use --mode dev-selfsigned for an address in your own network",
        )
    if not name.isascii():
        raise _refused(f"{quoted(name)} has other letters than DNS does", "write it as its xn--… form")
    labels = name.split(".")
    if len(name) > _LONGEST or not all(_LABEL.fullmatch(label) for label in labels):
        raise _refused(f"{quoted(name)} is no DNS name", "write it like llm.example.com, without scheme, port or path")
    if len(labels) == 1 or labels[-1].lower() in _LOCAL:
        raise _refused(
            f"{quoted(name)} is a name of a local network only, and no CA can see whose it is",
            "give a name in a domain of yours, or use --mode dev-selfsigned for such names",
        )


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name.strip("[]").partition("%")[0])
    except ValueError:
        return False
    return True


def _refused(what: str, next_step: str) -> Refused:
    return Refused("rejected", f"{what}; {next_step}")
