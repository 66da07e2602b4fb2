"""Does each name lead here? Asked before a CA is, since its words come later and count against its limits.

Strategy: the name is looked up as any program here would, and each address (IPv6 and IPv4) is asked on port 80 for a
probe that only we can answer. A machine cannot always see itself as the internet does (a router may not send its own
network back in, a resolver may have names of its own), so what is found is told and stops nothing.

Everything happens in threads that are left behind when the time is over. Knows no CA.
"""

from __future__ import annotations

import http.client
import queue
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Final

SECONDS: Final = 3.0  # for all names together
_MOST_NAMES: Final = 20  # at once; a certificate rarely has more, and the rest goes unchecked
_MOST_ADDRESSES: Final = 4  # of a name, each kind of address among them
_ANSWER_BYTES: Final = 1_024
PATH: Final = "/.well-known/acme-challenge/"
PORT: Final = 80

Lookup = Callable[[str], Sequence[str]]


def warnings(
    names: Sequence[str], token: str, answer: str, lookup: Lookup | None = None, port: int = PORT
) -> list[str]:
    """What is doubtful about `names`, each a sentence for people; empty if every name answered with `answer` for
    `token` at each of its addresses. Takes SECONDS at most."""
    found: queue.SimpleQueue[tuple[str, str | None]] = queue.SimpleQueue()
    checked = list(names[:_MOST_NAMES])

    def check(name: str) -> None:
        found.put((name, _doubt(name, token, answer, lookup or addresses, port)))

    for name in checked:
        threading.Thread(target=check, args=(name,), daemon=True).start()
    results: dict[str, str | None] = {}
    end = time.monotonic() + SECONDS
    while len(results) < len(checked) and (left := end - time.monotonic()) > 0:
        try:
            name, doubt = found.get(timeout=left)
        except queue.Empty:
            break
        results[name] = doubt
    late = f"{{name}} could not be checked from here within {SECONDS:g} s"
    told = [results.get(name, late.format(name=name)) for name in checked]
    return [doubt for doubt in told if doubt is not None]


def addresses(name: str) -> list[str]:
    """The addresses of `name`, as this machine's resolver knows them. Raises OSError."""
    found = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(each[4][0]) for each in found))


def _doubt(name: str, token: str, answer: str, lookup: Lookup, port: int) -> str | None:
    try:
        known = lookup(name)
    except OSError as error:
        return f"{name} has no address that this machine's DNS knows ({error.strerror or error})"
    failed = [(each, why) for each in _some_of_each(known) if (why := _unreached(each, name, token, answer, port))]
    if not failed:
        return None
    told = "; ".join(f"{'this machine at ' if _is_ours(each) else ''}{each} {why}" for each, why in failed)
    return (
        f"{name} could not be reached from here on port {port}: {told}. That may be so only from inside this network; "
        "if the CA cannot reach it either, it will say so"
    )


def _some_of_each(known: Sequence[str]) -> list[str]:
    """The first addresses of both kinds."""
    half = _MOST_ADDRESSES // 2
    six = [each for each in known if ":" in each]
    four = [each for each in known if ":" not in each]
    return six[:half] + four[:half]


def _unreached(address: str, name: str, token: str, answer: str, port: int) -> str | None:
    """Why the probe did not come back from there; None if it did."""
    connection = http.client.HTTPConnection(address, port, timeout=SECONDS)
    try:
        connection.request("GET", PATH + token, headers={"Host": name, "User-Agent": "flm"})
        response = connection.getresponse()
        body = response.read(_ANSWER_BYTES)
    except TimeoutError:
        return "did not answer in time"
    except OSError as error:
        return f"did not answer ({(error.strerror or str(error)).lower()})"
    except http.client.HTTPException:
        return "answered with something that is no HTTP"
    finally:
        connection.close()
    return None if body.decode("ascii", "replace").strip() == answer else "answered, but that was not this proxy"


def _is_ours(address: str) -> bool:
    """Whether this machine has that address: only then may it be bound."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.bind((address, 0))
    except OSError:
        return False
    return True
