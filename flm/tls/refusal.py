"""Why there is no certificate, in words: what happened, what the CA said, and what to do next.

Strategy: one exception for all of it, whose kind a program may act on and whose message a person reads. A CA's problem
documents (RFC 7807, with the types of RFC 8555 §6.7) are read here and nowhere else, and each type has its own advice
in one table. What comes from outside is shown in quotes, cut short and without control characters, so that no answer
can paint on a terminal or fill a log.

Knows no socket and no file. No key is ever handed to it.
"""

from __future__ import annotations

from typing import Final

import msgspec

from flm.errors import FlmError
from flm.tls.words import Kind

PREFIX: Final = "urn:ietf:params:acme:error:"
_LONGEST_QUOTE: Final = 400  # of a CA's words; Let's Encrypt's longest, with an address and a link, are about 300
_MOST_PROBLEMS: Final = 5  # names of a certificate whose problems are told one by one
_LONGEST_RETRY: Final = 31 * 86_400.0  # seconds; Let's Encrypt's longest window is a week


class Refused(FlmError):  # noqa: N818 - a CA's no is an answer, and is read as one
    """An attempt has ended without a certificate. `retry_after`: seconds before which another is no use, or 0."""

    def __init__(self, kind: Kind, message: str, retry_after: float = 0.0) -> None:
        super().__init__(message)
        self.kind = kind
        self.retry_after = min(max(0.0, retry_after), _LONGEST_RETRY)


class Identifier(msgspec.Struct, frozen=True):
    """A name, as ACME writes one."""

    value: str
    type: str = "dns"


class Problem(msgspec.Struct, frozen=True):
    """A problem document. Every field may be missing."""

    type: str | None = None
    title: str | None = None
    detail: str | None = None
    instance: str | None = None
    identifier: Identifier | None = None
    subproblems: list[Problem] = []

    @property
    def name(self) -> str:
        """Its type without ACME's prefix; `about:blank` where it has none."""
        return (self.type or "about:blank").removeprefix(PREFIX)


class ProblemError(Exception):
    """The CA answered with a problem. `links`: of the answer's Link headers, relation to URL."""

    def __init__(self, problem: Problem, status: int, retry_after: float, links: dict[str, str]) -> None:
        super().__init__(problem.name)
        self.problem = problem
        self.status = status
        self.retry_after = retry_after
        self.links = links


def quoted(text: str, longest: int = _LONGEST_QUOTE) -> str:
    """Somebody else's words on one line: in quotes, printable, no longer than `longest` characters and then `…`."""
    line = " ".join("".join(each if each.isprintable() else " " for each in text).split())
    return f'"{line}"' if len(line) <= longest else f'"{line[:longest]}…"'


def words_of(problem: Problem) -> str:
    """What the CA said, with the type of its problem."""
    said = problem.detail or problem.title
    kind = quoted(problem.name, 60).strip('"')
    return f"{quoted(said)} ({kind})" if said else f"no more than the problem's type, {kind}"


# --- what to do about each type ---

CUSTOMERS_ONLY: Final = (
    "this CA makes accounts only for its customers: make an account binding with the CA, and give its key id as "
    "acme.eab_kid and a file with its HMAC key as acme.eab_file"
)
_CONTACT: Final = "set acme.email to an address that the CA takes, or to nothing: an account needs none"
_NAME: Final = "see that acme.domain has only names that are yours, public, and spelled in full"
_PORT: Final = (
    "the CA calls port 80 of {name} from the internet: see that the DNS record of {name} has the address of this "
    "machine (an IPv6 address too, if there is one: the CA tries that first), that a firewall or router lets port 80 "
    "in, and that it ends at proxy.port here"
)
_DNS: Final = "see that {name} has an A or AAAA record with this machine's address, and that its name servers answer"
_ANSWER: Final = (
    "something else answered on port 80 of {name}: see that the DNS record of {name} has the address of this machine "
    "(an IPv6 address too, if there is one: the CA tries that first), and that no other web server has port 80"
)
_CAA: Final = (
    "a CAA record in the DNS of {name}, or of a domain above it, forbids this CA to issue: add a record "
    'CAA 0 issue "{issuer}", or take those records away'
)

_ADVICE: Final[dict[str, str]] = {
    "externalAccountRequired": CUSTOMERS_ONLY,
    "invalidContact": _CONTACT,
    "invalidEmail": _CONTACT,
    "unsupportedContact": _CONTACT,
    "rejectedIdentifier": _NAME,
    "unsupportedIdentifier": _NAME,
    "invalidProfile": "set acme.profile to one that the CA offers, or to nothing",
    "caa": _CAA,
    "dns": _DNS,
    "dnssec": "the DNSSEC of {name} is broken: mend it, or take the DS record of its domain away",
    "connection": _PORT,
    "tls": "port 80 of {name} sent the CA on to HTTPS, which failed: port 80 must end at proxy.port here",
    "unauthorized": _ANSWER,
    "incorrectResponse": _ANSWER,
    "badCSR": "if the names are right, this is a fault of FLM or of the CA: please report it",
    "badPublicKey": "this CA does not take the keys that FLM makes (EC P-256): use another CA",
    "badSignatureAlgorithm": "this CA does not take the signatures that FLM makes (ES256): use another CA",
    "serverInternal": "it is the CA's fault, and may pass: try again later",
}


_FORGOTTEN: Final = frozenset({"accountDoesNotExist", "orderNotReady"})  # as a CA that was reset answers


def of_problem(
    error: ProblemError, doing: str, *, name: str = "the name", issuer: str = "the CA's domain", advice: str = ""
) -> Refused:
    """The refusal for a problem that came while FLM was `doing` something. `issuer`: what CAA records call the CA.
    `advice`: what to do, if the type of the problem alone does not say it."""
    problem = error.problem
    if problem.name == "rateLimited" or error.status == 429:
        return _rate_limited(error, doing)
    if problem.name == "userActionRequired":
        return _terms(error)
    if problem.name == "serverInternal" or error.status >= 500:
        message = f"the CA failed while FLM was {doing} (HTTP {error.status}); it said: {words_of(problem)}"
        return Refused("server", f"{message}; {_ADVICE['serverInternal']}", error.retry_after)
    if problem.name in _FORGOTTEN or error.status in (404, 410):
        message = f"the CA does not have what it was asked for while FLM was {doing}; it said: {words_of(problem)}"
        return Refused("server", f"{message}; {advice or 'FLM begins anew with the next attempt'}", error.retry_after)
    message = f"the CA refused while FLM was {doing}; it said: {_all_words(problem)}"
    subject = problem.identifier.value if problem.identifier else name
    advice = advice or _ADVICE.get(problem.name, "").format(name=quoted(subject, 253).strip('"'), issuer=issuer)
    return Refused("rejected", f"{message}; {advice}" if advice else message, error.retry_after)


def of_validation(failed: list[tuple[str, Problem]], issuer: str) -> Refused:
    """The refusal when the CA could not see that names are ours: each name with the CA's words, and the advice."""
    told = [f"{name}: {words_of(problem)}" for name, problem in failed[:_MOST_PROBLEMS]]
    if len(failed) > _MOST_PROBLEMS:
        told.append(f"and {len(failed) - _MOST_PROBLEMS} more names")
    advice = dict.fromkeys(
        _ADVICE.get(problem.name, _PORT).format(name=name, issuer=issuer) for name, problem in failed[:_MOST_PROBLEMS]
    )
    limited = next((problem for _, problem in failed if problem.name == "rateLimited"), None)
    kind: Kind = "rate_limited" if limited else "validation"
    return Refused(
        kind,
        f"the CA could not see that you control {_names(failed)}; it said of {'; '.join(told)}; {'; '.join(advice)}",
    )


def _names(failed: list[tuple[str, Problem]]) -> str:
    names = [name for name, _ in failed[:_MOST_PROBLEMS]]
    return ", ".join(names) + (" and others" if len(failed) > _MOST_PROBLEMS else "")


def _all_words(problem: Problem) -> str:
    """With what a compound problem says of single names (RFC 8555 §6.7.1)."""
    told = [words_of(problem)]
    for each in problem.subproblems[:_MOST_PROBLEMS]:
        subject = f"of {quoted(each.identifier.value, 253).strip(chr(34))}: " if each.identifier else ""
        told.append(f"{subject}{words_of(each)}")
    return "; ".join(told)


def _rate_limited(error: ProblemError, doing: str) -> Refused:
    wait = f"come again in {duration(error.retry_after)}" if error.retry_after else "it does not say for how long"
    return Refused(
        "rate_limited",
        f"the CA asks to wait: its limit was reached while FLM was {doing}; it said: {words_of(error.problem)}; "
        f"{wait}. FLM tries again no earlier by itself; do not start it over and over, since each attempt counts",
        error.retry_after,
    )


def _terms(error: ProblemError) -> Refused:
    where = error.links.get("terms-of-service") or error.problem.instance or ""
    place = f" ({quoted(where, 300)})" if where else ""
    visit = error.problem.instance
    act = f"open {quoted(visit, 300)} and do what it asks" if visit else "agree to them as the CA says"
    return Refused(
        "rejected",
        f"the CA wants you to act before it goes on, since its terms of service{place} changed or were not agreed to; "
        f"it said: {words_of(error.problem)}; {act}, see that acme.accept_terms is true, and try again",
        error.retry_after,
    )


def duration(seconds: float) -> str:
    """For people: `90 s`, `5 min`, `3 h`, `2 days`."""
    if seconds < 120:
        return f"{seconds:.0f} s"
    for size, unit, most in ((60, "min", 120), (3600, "h", 48), (86_400, "days", float("inf"))):
        if seconds / size < most:
            return f"{seconds / size:.0f} {unit}"
    raise AssertionError("the last unit has no bound")
